#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# The algorithms and their levels, and changes from one to another.
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# chosen NAME: the compression of $device is NAME, according to sysfs and to the tool.
chosen() {
	is "$(<"/sys/block/$name/cloop/compress")" = "$1" "compression in sysfs"
	is "$(<"/sys/block/$name/cloop/algorithm")" = "${1%:*}" "algorithm in sysfs"
	cloop info "$device" | grep -q "^Compression: *$1, records"
}

ext4() {
	image disk --size 320M --compress "$1"
	attach "$image"
	chosen "$1"
	mkfs.ext4 -q "$device"
	mount "$device" "$mnt"
	work "$mnt"
	sync
	drop_caches
	unchanged "$mnt"
	umount "$mnt"
	reattach "$image"
	chosen "$1"
	mount "$device" "$mnt"
	unchanged "$mnt"
	umount "$mnt"
	e2fsck -fn "$device"
	is "$(get replaced)" -eq 0 "records that became LZ4"
	detach "$device"
}
check "ext4 with zstd at level 1" ext4 zstd:1
check "ext4 with zstd at level 9" ext4 zstd:9

# Each step saves more than the one before, and every image has the same contents.
levels() {
	local level bytes before=$GiB size
	size=$(scaled 6 3)
	data "$tmp/data" "$size"
	for level in none lz4 zstd:1 zstd:9 zstd:19; do
		image "$level" --size 32M --record-size 128K --compress "$level"
		attach "$image"
		copy if="$tmp/data" of="$device" bs=1M oflag=direct
		sync "$device"
		same "$tmp/data" "$device"
		bytes=$(get live_bytes)
		figure "$level: $bytes bytes"
		is "$bytes" -lt "$before" "live bytes with $level"
		before=$bytes
		detach "$device"
		# What the kernel has written, the tool's library reads, and the other way round.
		cloop export --force "$image" "$tmp/back"
		cmp -n $((size * MiB)) "$tmp/data" "$tmp/back"
		intact "$image"
		rm "$image"
		cloop import --compress "$level" "$tmp/data" "$image"
		attach --read-only "$image"
		same "$tmp/data" "$device"
		detach "$device"
		rm "$image"
	done
}
check "levels, and images of kernel and tool" levels

# settle NAME WAY: change the compression of $device by sysfs or by the tool.
settle() {
	case $2 in
	sysfs) printf '%s\n' "$1" >"/sys/block/$name/cloop/compress" ;;
	tool) is "$(cloop set --compress "$1" "$device")" = "$device: new data is compressed with $1" "what set says" ;;
	esac
	chosen "$1"
}

# A copy of the image at one moment is what a crash of the machine would leave.
changed() {
	local writer i rounds with ways=(tool sysfs)
	image disk --size 64M
	attach "$image"
	data "$tmp/data" 24
	(
		while [[ ! -e $tmp/stop ]]; do
			copy if="$tmp/data" of="$device" bs=512K oflag=direct
			blkdiscard -o $((8 * MiB)) -l $((8 * MiB)) "$device"
		done
	) &
	writer=$!
	rounds=$(scaled 5 3)
	for ((i = 0; i < rounds; i++)); do
		for with in zstd:1 none zstd:12 lz4; do
			settle "$with" "${ways[i % 2]}"
			((i % 4)) || {
				trap 'fsfreeze -u "$backing"' EXIT
				fsfreeze -f "$backing"
				copy if="$image" of="$tmp/copy" bs=1M
				trap - EXIT
				fsfreeze -u "$backing"
				cloop info --json "$tmp/copy" >"$tmp/info"
				is "$(jq -r '.algorithm + if .level then ":\(.level)" else "" end' "$tmp/info")" = "$with" \
					"compression after a crash"
			}
		done
	done
	touch "$tmp/stop"
	wait "$writer"
	copy if="$tmp/data" of="$device" bs=512K oflag=direct
	same "$tmp/data" "$device"
	settle zstd:3 tool
	reattach "$image"
	chosen zstd:3
	same "$tmp/data" "$device"
	cloop compact "$device"
	same "$tmp/data" "$device"
	detach "$device"
	intact "$image"
}
check "changes beside writers, which survive a crash" changed

# The first record marks the image for older versions; the choice alone does not.
marked() {
	local mark=(od -An -t u1 -j 32 -N 1)
	image disk --size 16M --compress zstd
	attach "$image"
	sync "$device"
	is "$("${mark[@]}" "$image")" -eq 0 "features before the first write"
	copy if=/usr/bin/bash of="$device" bs=64K count=1 oflag=direct
	is "$("${mark[@]}" "$image")" -eq 2 "features after the first write"
	settle lz4 tool
	detach "$device"
	is "$("${mark[@]}" "$image")" -eq 2 "features for ever"
}
check "an image is marked with its first record of zstd" marked

refused() {
	local wrong
	image disk --size 16M
	attach "$image"
	for wrong in zstd:0 zstd:20 zstd: lz4:1 gzip "zstd 3" ""; do
		fails 1 "Invalid argument" tee "/sys/block/$name/cloop/compress" <<<"$wrong"
	done
	# Algorithms and levels that there are not, no setting, and a field that is not zero.
	for wrong in "1 2 0" "1 2 20" "1 1 1" "1 3 1" "0 2 3" "3 2 3" "1 2 3 1"; do
		# shellcheck disable=SC2086 # words
		fails 1 "^EINVAL\$" "$here/control.py" set "$index" $wrong
	done
	fails 1 "^ENXIO\$" "$here/control.py" set 900 1 2 3
	fails 1 "^EPERM\$" "$here/control.py" set --user 65534 "$index" 1 2 3
	chosen lz4
	fails 1 "in use as $device" cloop set --compress zstd "$image"
	detach "$device"
	attach --read-only "$image"
	fails 1 "read-only; detach it" cloop set --compress zstd "$device"
	fails 1 "Read-only file system" tee "/sys/block/$name/cloop/compress" <<<zstd
	chosen lz4
	detach "$device"
	fails 1 "nothing is attached" cloop set --compress zstd "$device"
}
check "what is refused" refused

# Contexts are given back when they are not needed.
memory() {
	local idle
	image disk --size 64M --record-size 128K --compress zstd:15
	attach "$image"
	sleep 5
	idle=$(get memory_bytes)
	data "$tmp/data" 16
	copy if="$tmp/data" of="$device" bs=1M oflag=direct
	is "$(get memory_bytes)" -gt $((idle + 2 * MiB)) "memory under load"
	drop_caches
	sleep 9
	# The context to decompress stays, and nodes of the table.
	is "$(get memory_bytes)" -lt $((idle + MiB)) "memory when idle"
	detach "$device"
}
check "memory comes and goes" memory
