#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Compaction of attached and detached images.
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# full_of_holes MEBIBYTES: $image, attached, of which every other 64 KiB was discarded. The remaining
# contents are in $tmp/left.
full_of_holes() {
	image disk --size 256M
	attach "$image"
	noise "$tmp/left" "$1"
	copy if="$tmp/left" of="$device" bs=1M oflag=direct
	"$here/scatter.py" discard "$device" 0 $((128 * KiB)) $((64 * KiB)) $(($1 * 8))
	dd if="$device" bs=1M count="$1" iflag=direct of="$tmp/left" status=none
}

on_line() {
	local said
	full_of_holes 24
	said=$(cloop compact "$device")
	printf '%s\n' "$said"
	[[ $said =~ ^$device:\ .*,\ was\ .*$ ]] || fail "compact said: $said"
	# The image is smaller than an idle device would leave it.
	is "$(get garbage_bytes)" -lt $((2 * MiB)) "garbage that is left"
	is "$(get freed_segments)" -gt 10 "segments that were freed"
	is "$(get moved_bytes)" -gt 0 "bytes that were moved"
	# 12 MiB of data, and the reserve of the log.
	is "$(allocated "$image")" -lt $((24 * MiB)) "bytes on disk"
	same "$tmp/left" "$device"
	reattach "$image"
	same "$tmp/left" "$device"
	# A compaction with nothing to do ends at once.
	cloop compact "$device"
	detach "$device"
}
check "an attached image becomes small" on_line

off_line() {
	full_of_holes 16
	detach "$device"
	cloop compact "$image"
	is "$(allocated "$image")" -lt $((10 * MiB)) "bytes on disk"
	intact "$image"
	attach "$image"
	fails 1 "disk: in use as $device" cloop compact "$image"
	same "$tmp/left" "$device"
	detach "$device"
}
check "an image that is not attached becomes as small as it can be" off_line

interrupted() {
	local pid status
	full_of_holes 32
	fails 1 "^EINTR\$" "$here/control.py" compact --alarm 0.05 "$index"
	same "$tmp/left" "$device"
	# A compaction that is stopped in the middle, for others to meet.
	trap 'fsfreeze -u "$backing"' EXIT
	fsfreeze -f "$backing"
	"$here/control.py" compact "$index" >"$tmp/said" &
	pid=$!
	until [[ $("$here/control.py" resize "$index" 0) == EALREADY ]]; do
		[[ ! -e /proc/$pid ]] || continue
		# This question itself may have blocked it.
		grep -qx EALREADY "$tmp/said" || fail "it ended: $(<"$tmp/said")"
		"$here/control.py" compact "$index" >"$tmp/said" &
		pid=$!
	done
	fails 1 "$device: is being resized or compacted; wait until that has ended" cloop compact "$device"
	fails 1 "$device: is being resized or compacted" cloop resize --size 1G "$device"
	fails 1 "$device: in use" cloop detach "$device"
	is "$(get state)" = attached "state"
	kill -TERM "$pid"
	trap - EXIT
	fsfreeze -u "$backing"
	status=0
	wait "$pid" || status=$?
	is "$status" -eq 143 "status of the compaction"
	same "$tmp/left" "$device"
	detach "$device"
	intact "$image"
}
check "a signal ends it, others are not kept waiting, nothing is lost" interrupted

refused() {
	image disk --size 16M
	fails 1 "^ENXIO\$" "$here/control.py" compact 0
	attach "$image"
	fails 1 "^EINVAL\$" "$here/control.py" compact --flags 1 "$index"
	fails 1 "^EPERM\$" "$here/control.py" compact --user 65534 "$index"
	cloop compact "$device"
	detach "$device"
	attach --read-only "$image"
	fails 1 "$device: read-only" cloop compact "$device"
	detach "$device"
	fails 1 "nothing is attached|no such" cloop compact "$device"
}
check "a compaction that is impossible is refused" refused

beside_writers() {
	local pid
	full_of_holes 16
	data "$tmp/data" 12
	copy if="$tmp/data" of="$device" bs=256K seek=256 oflag=direct &
	pid=$!
	cloop compact "$device"
	wait "$pid"
	cmp "$tmp/data" <(dd if="$device" bs=256K skip=256 count=48 iflag=direct status=none)
	same "$tmp/left" "$device"
	reattach "$image"
	cmp "$tmp/data" <(dd if="$device" bs=256K skip=256 count=48 iflag=direct status=none)
	same "$tmp/left" "$device"
	detach "$device"
}
check "beside writers" beside_writers
