#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# /sys/block/cloopN/cloop, uevents, and the memory of the sector table.
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

parameter=/sys/module/cloop/parameters/table_limit

# value FILE: what the file of the attached $device says.
value() {
	cat "/sys/block/$name/cloop/$1"
}

values() {
	local file
	image disk --size 128M --record-size 32K
	attach "$image"
	data "$tmp/data" 12
	copy if="$tmp/data" of="$device" bs=256K oflag=direct
	copy if="$tmp/data" of="$device" bs=256K oflag=direct
	blkdiscard -o 0 -l $MiB "$device"
	cmp -i $MiB -n $MiB "$tmp/data" "$device"
	sync "$device"
	is "$(value backing_file)" = "$image" "backing_file"
	is "$(value uuid)" = "$(get uuid)" "uuid"
	is "$(value algorithm)" = lz4 "algorithm"
	is "$(value record_size)" -eq 32768 "record_size"
	is "$(value segment_size)" -eq $MiB "segment_size"
	is "$(value mapped_bytes)" -gt $((9 * MiB)) "mapped_bytes"
	is "$(value mapped_bytes)" -le $((11 * MiB)) "mapped_bytes"
	is $(($(value mapped_bytes) + $(value zero_blocks) * 4096)) -eq $((128 * MiB)) "all blocks"
	is "$(value bytes_written)" -ge $((24 * MiB)) "bytes_written"
	is "$(value bytes_read)" -ge $MiB "bytes_read"
	is "$(value live_bytes)" -gt $((4 * MiB)) "live_bytes"
	is "$(value flushes)" -ge 1 "flushes"
	is "$(value syncs)" -ge 1 "syncs"
	for file in errors damaged full failed read_only; do
		is "$(value "$file")" = 0 "$file"
	done
	# The same as elsewhere. What background work changes may change between two looks.
	for file in zero_blocks bytes_written bytes_read flushes table_limit record_size segment_size errors; do
		is "$(value "$file")" -eq "$(get "$file")" "$file"
	done
	sleep 4
	for file in live_bytes stored_bytes allocated_bytes garbage_bytes reserved_bytes log_bytes moved_bytes \
		freed_segments segments free_segments syncs checkpoints table_bytes; do
		is "$(value "$file")" -eq "$(get "$file")" "$file"
	done
	is "$(value write_amplification)" = "$(awk -v log_="$(get log_bytes)" -v user="$(get bytes_written)" \
		'BEGIN { printf "%.2f", log_ / user }')" "write_amplification"
	# One line each, and nothing else is to be written.
	for file in "/sys/block/$name/cloop"/*; do
		is "$(wc -l <"$file")" -eq 1 "lines of $file"
		case $file in
		*/table_limit) is "$(stat -c %a "$file")" = 644 "mode of $file" ;;
		*) is "$(stat -c %a "$file")" = 444 "mode of $file" ;;
		esac
	done
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

# readers COUNT: processes that read all files of all devices for ever; in $pids.
readers() {
	local _
	pids=()
	for ((_ = 0; _ < $1; _++)); do
		# What is missing or just going away is not a failure.
		while :; do cat /sys/block/cloop*/cloop/* >/dev/null 2>&1 || :; done &
		pids+=($!)
	done
}

races() {
	local i pids
	image disk --size 16M
	readers 2
	for ((i = 0; i < $(scaled 12); i++)); do
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
	# 1000 leaves of 4 KiB, four times what may be in memory.
	"$here/scatter.py" write "$device" $((MiB / 2)) $((4 * MiB)) 4096 1000
	is "$(value table_bytes)" -lt $((MiB * 3 / 2)) "memory after writing"
	"$here/scatter.py" verify "$device" $((MiB / 2)) $((4 * MiB)) 4096 1000
	is "$(value table_bytes)" -le $((MiB * 9 / 8)) "memory after reading"
	reattach "$image"
	printf '%d\n' $((32 * MiB)) >"/sys/block/$name/cloop/table_limit"
	"$here/scatter.py" verify "$device" $((MiB / 2)) $((4 * MiB)) 4096 1000
	is "$(value table_bytes)" -gt $((3 * MiB)) "memory with a large limit"
	# A smaller limit is obeyed at once.
	printf '%d\n' $((2 * MiB)) >"/sys/block/$name/cloop/table_limit"
	is "$(value table_bytes)" -le $((2 * MiB)) "memory with a smaller one"
	printf '%d\n' $((32 * MiB)) >"/sys/block/$name/cloop/table_limit"
	"$here/scatter.py" verify "$device" $((MiB / 2)) $((4 * MiB)) 4096 1000
	is "$(value table_bytes)" -gt $((3 * MiB)) "memory with a large limit"
	# What memory pressure does.
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
	is "$(grep -c "$name: " "$tmp/log")" -eq 2 "lines in the log"
	same "$tmp/noise" "$device"
	detach "$device"
	umount "$mnt"
}
check "a full file system is announced, and its end" full
