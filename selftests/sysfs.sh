#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# /sys/block/cloopN/cloop, uevents, and the memory of the sector table.
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

parameter=/sys/module/cloop/parameters/table_limit

# value FILE: the content of the file of the attached $device.
value() {
	cat "/sys/block/$name/cloop/$1"
}

# look: all files of $device in $there, and cloop info in $said, taken while nothing changes.
look() {
	local key value again
	for _ in {1..20}; do
		(cd "/sys/block/$name/cloop" && grep . ./*) >"$tmp/there"
		cloop info --json "$device" | jq -r 'to_entries[] | "\(.key) \(.value)"' >"$tmp/said"
		again=$(cd "/sys/block/$name/cloop" && grep . ./*)
		[[ $again != "$(<"$tmp/there")" ]] || break
		sleep 1
	done
	there=() said=()
	while IFS=: read -r key value; do
		there[${key#./}]=$value
	done <"$tmp/there"
	while read -r key value; do
		said[$key]=$value
	done <"$tmp/said"
}

values() {
	local file
	local -A there said
	image disk --size 128M --record-size 32K
	attach "$image"
	data "$tmp/data" 12
	copy if="$tmp/data" of="$device" bs=256K oflag=direct
	copy if="$tmp/data" of="$device" bs=256K oflag=direct
	blkdiscard -o 0 -l $MiB "$device"
	cmp -i $MiB -n $MiB "$tmp/data" "$device"
	sync "$device"
	look
	is "${there[backing_file]}" = "$image" "backing_file"
	is "${there[algorithm]}" = lz4 "algorithm"
	is "${there[record_size]}" -eq 32768 "record_size"
	is "${there[segment_size]}" -eq $MiB "segment_size"
	is "${there[mapped_bytes]}" -gt $((9 * MiB)) "mapped_bytes"
	is "${there[mapped_bytes]}" -le $((11 * MiB)) "mapped_bytes"
	is $((there[mapped_bytes] + there[zero_blocks] * 4096)) -eq $((128 * MiB)) "all blocks"
	is "${there[bytes_written]}" -ge $((24 * MiB)) "bytes_written"
	is "${there[bytes_read]}" -ge $MiB "bytes_read"
	is "${there[live_bytes]}" -gt $((4 * MiB)) "live_bytes"
	is "${there[flushes]}" -ge 1 "flushes"
	is "${there[syncs]}" -ge 1 "syncs"
	for file in errors damaged stuck_segments full retrying failed read_only; do
		is "${there[$file]}" = 0 "$file"
	done
	for file in uuid algorithm record_size segment_size zero_blocks live_bytes stored_bytes allocated_bytes \
		reserved_bytes garbage_bytes segments free_segments moved_bytes freed_segments bytes_written \
		bytes_read log_bytes flushes syncs checkpoints errors stuck_segments replaced table_bytes table_limit \
		recompress recompress_after recompressed_bytes pending_bytes; do
		is "${there[$file]}" = "${said[$file]}" "$file"
	done
	is "${there[mapped_bytes]}" -eq $((said[mapped_blocks] * 4096)) "mapped_bytes"
	is "${there[mapped_bytes]}" -eq "${said[mapped_bytes]}" "mapped_bytes"
	is "$(printf '%.3f' "${said[ratio]}")" = \
		"$(jq -n "${there[mapped_bytes]} / ${there[live_bytes]}" | xargs printf '%.3f')" "ratio"
	is "${there[write_amplification]}" = "$(printf '%.2f' "${said[write_amplification]}")" "write_amplification"
	# Each file has one line, and two files can be written.
	is "$(wc -l <"$tmp/there")" -eq "$(find "/sys/block/$name/cloop" -type f | wc -l)" "lines"
	is "$(find "/sys/block/$name/cloop" -type f -perm /222 -printf '%f\n' | sort | xargs)" = "compress recompress recompress_after recompress_rate table_limit warn_percent" "files to be written"
	detach "$device"
	attach --read-only "$image"
	is "$(value read_only)" = 1 "read_only"
	is "$(value write_amplification)" = 0.00 "write_amplification"
	detach "$device"
}
check "the files say what cloop info says" values

early() {
	image disk --size 16M
	listen
	attach "$image"
	heard "ACTION=add .*DEVNAME=$name "
	is "$(value zero_blocks)" -eq 4096 "zero_blocks"
	detach "$device"
}
check "they are there from the beginning" early

limit() {
	local default
	default=$(<$parameter)
	is "$default" -eq $((32 * MiB)) "default of the module"
	trap 'printf "%d\n" $((32 * MiB)) >'"$parameter" EXIT
	printf '%d\n' $((3 * MiB)) >$parameter
	image disk --size 4G
	attach "$image"
	is "$(value table_limit)" -eq $((3 * MiB)) "limit by the module parameter"
	printf '%d\n' $MiB >"/sys/block/$name/cloop/table_limit"
	is "$(value table_limit)" -eq $MiB "limit"
	fails 1 "Invalid argument" tee "/sys/block/$name/cloop/table_limit" <<<"much"
	is "$(get table_limit)" -eq $MiB "limit"
	# 1000 leaves of 4 KiB, four times as much as may be in memory.
	"$here/scatter.py" write "$device" $((MiB / 2)) $((4 * MiB)) 4096 1000
	is "$(value table_bytes)" -lt $((MiB * 3 / 2)) "memory after writing"
	"$here/scatter.py" verify "$device" $((MiB / 2)) $((4 * MiB)) 4096 1000
	is "$(value table_bytes)" -le $((MiB * 9 / 8)) "memory after reading"
	reattach "$image"
	printf '%d\n' $((32 * MiB)) >"/sys/block/$name/cloop/table_limit"
	"$here/scatter.py" verify "$device" $((MiB / 2)) $((4 * MiB)) 4096 1000
	is "$(value table_bytes)" -gt $((3 * MiB)) "memory with a large limit"
	# A smaller limit takes effect at once.
	printf '%d\n' $((2 * MiB)) >"/sys/block/$name/cloop/table_limit"
	is "$(value table_bytes)" -le $((2 * MiB)) "memory with a smaller one"
	# This is what memory pressure does.
	printf '2\n' >/proc/sys/vm/drop_caches
	for _ in {1..30}; do
		(($(value table_bytes) > MiB / 2)) || break
		sleep 0.1
	done
	is "$(value table_bytes)" -le $((MiB / 2)) "memory after memory pressure"
	"$here/scatter.py" verify "$device" $((MiB / 2)) $((4 * MiB)) 4096 1000
	detach "$device"
}
check "the memory of the table stays within its limit, and is given back" limit

full() {
	local mark
	mkfs.ext4 -q -F -m 0 "$disk2" 96M
	mount "$disk2" "$mnt"
	fallocate -l 48M "$mnt/filler"
	image=$mnt/disk
	cloop create --size 1G "$image"
	attach "$image"
	noise "$tmp/noise" 64
	listen
	mark="full $RANDOM"
	printf '%s\n' "$mark" >/dev/kmsg
	for _ in 1 2 3; do
		fails 1 "No space left on device" dd if="$tmp/noise" of="$device" bs=1M oflag=direct status=none
	done
	heard "CLOOP_LOW=1 .*DEVNAME=$name "
	heard "CLOOP_FULL=1 .*DEVNAME=$name "
	is "$(value full)" = 1 "full"
	is "$(get full)" = true "full"
	cloop info "$device" | grep "^Free: *none"
	no grep -q CLOOP_FULL=0 "$tmp/uevents"
	rm "$mnt/filler"
	copy if="$tmp/noise" of="$device" bs=1M oflag=direct
	heard "CLOOP_FULL=0 .*DEVNAME=$name "
	is "$(value full)" = 0 "full"
	is "$(grep -c CLOOP_FULL=1 "$tmp/uevents")" -eq 1 "uevents"
	is "$(grep -c CLOOP_FULL=0 "$tmp/uevents")" -eq 1 "uevents"
	dmesg | awk -v mark="$mark" 'seen; index($0, mark) { seen = 1 }' >"$tmp/log"
	cat "$tmp/log"
	is "$(grep -c "$name: no space left for $image, writes fail" "$tmp/log")" -eq 1 "lines in the log"
	is "$(grep -c "$name: there is space for $image again" "$tmp/log")" -eq 1 "lines in the log"
	is "$(grep -c "$name: space for $image runs low" "$tmp/log")" -eq 1 "lines in the log"
	is "$(grep -c "$name: " "$tmp/log")" -eq 3 "lines in the log"
	same "$tmp/noise" "$device"
	detach "$device"
	umount "$mnt"
}
check "a full file system is announced, and its end" full

# readers COUNT: start processes that read all files of all devices for ever; in $pids.
readers() {
	local n
	pids=()
	for ((n = 0; n < $1; n++)); do
		# A missing file, or one that is just going away, is no failure. The pause is for slow
		# machines.
		while :; do
			cat /sys/block/cloop*/cloop/* >/dev/null 2>&1 || :
			sleep 0.02
		done &
		pids+=($!)
	done
}

races() {
	local i pids
	image disk --size 16M
	readers 2
	for ((i = 0; i < $(scaled 6); i++)); do
		attach "$image"
		copy if=/dev/urandom of="$device" bs=64K count=4
		printf '%d\n' $((2 * MiB)) >"/sys/block/$name/cloop/table_limit"
		detach "$device"
	done
	kill "${pids[@]}"
	wait "${pids[@]}" || :
	intact "$image"
}
check "reading them while devices come and go" races
