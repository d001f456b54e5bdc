#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# What the disk tells the block layer about itself, and atomic writes.
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# limit NAME [DISK]
limit() {
	cat "/sys/block/${2:-$name}/queue/$1"
}

values() {
	local record=$1 bytes=$(($1 * KiB))
	image disk --size 64M --record-size "${record}K"
	attach "$image"
	is "$(limit logical_block_size)" -eq 4096 "logical_block_size"
	is "$(limit physical_block_size)" -eq 4096 "physical_block_size"
	is "$(limit optimal_io_size)" -eq $bytes "optimal_io_size"
	is "$(limit max_hw_sectors_kb)" -eq 1024 "max_hw_sectors_kb"
	# More than the 257 pages of a megabyte that does not begin with a page.
	is "$(limit max_segments)" -gt 257 "max_segments"
	# The data of a write is copied first.
	is "$(limit stable_writes)" -eq 0 "stable_writes"
	is "$(limit write_cache)" = "write back" "write_cache"
	is "$(limit fua)" -eq 1 "fua"
	is "$(limit atomic_write_max_bytes)" -eq $bytes "atomic_write_max_bytes"
	is "$(limit atomic_write_boundary_bytes)" -eq $bytes "atomic_write_boundary_bytes"
	is "$(limit atomic_write_unit_min_bytes)" -eq 4096 "atomic_write_unit_min_bytes"
	is "$(limit atomic_write_unit_max_bytes)" -eq $bytes "atomic_write_unit_max_bytes"
	is "$("$here/atomic.py" statx "$device")" = "4096 $bytes 1" "statx"
	detach "$device"
}
check "limits of an image with records of 4K" values 4
check "limits of an image with records of 64K" values 64
check "limits of an image with records of 128K" values 128

# The image lies on a disk that seeks, or on one that does not.
rotational() {
	local disk=${disk1#/dev/} before value
	before=$(limit rotational "$disk")
	image disk --size 16M
	cloop create --force --size 16M "$disk2"
	for value in 1 0; do
		printf '%d\n' "$value" >"/sys/block/$disk/queue/rotational"
		printf '%d\n' "$value" >"/sys/block/${disk2#/dev/}/queue/rotational"
		attach "$image"
		is "$(limit rotational)" -eq "$value" "an image in a file"
		detach "$device"
		attach "$disk2"
		is "$(limit rotational)" -eq "$value" "an image on a block device"
		detach "$device"
	done
	printf '%d\n' "$before" >"/sys/block/$disk/queue/rotational"
}
check "the device seeks if the disk below does" rotational

# requests FIELD: of the device, completed since it was attached.
requests() {
	awk -v field="$1" '{ print $field }' "/sys/block/$name/stat"
}

# written REQUESTS OFFSET BYTES SKEW: such a direct write takes so many requests.
written() {
	local before
	before=$(requests 5)
	"$here/atomic.py" direct "$device" "$2" "$3" "$4"
	is $(($(requests 5) - before)) -eq "$1" "requests of $3 bytes at $2, $4 bytes after a page"
}

large() {
	local before
	image disk --size 4G
	attach "$image"
	written 1 0 $MiB 0
	# One page more than a bio can hold.
	written 1 0 $MiB 512
	written 1 $((28 * KiB)) $MiB 512
	written 2 0 $((2 * MiB)) 0
	# What has no data is cut only by the length that a bio can have.
	before=$(requests 5)
	fallocate --zero-range --keep-size --offset $GiB --length $GiB "$device"
	is $(($(requests 5) - before)) -le 2 "requests of a gigabyte of zeros"
	detach "$device"
}
check "requests of large writes" large

atomic() {
	image disk --size 16M --record-size 32K
	attach "$image"
	"$here/atomic.py" write "$device" 0 $((32 * KiB))
	"$here/atomic.py" write "$device" $((MiB - 4096)) 4096
	"$here/atomic.py" write "$device" $((MiB + 16384)) 16384
	# Longer than a record, not a power of two, not at a multiple of its length, not a block.
	fails 1 "^EINVAL\$" "$here/atomic.py" write "$device" 0 $((64 * KiB))
	fails 1 "^EINVAL\$" "$here/atomic.py" write "$device" 0 $((12 * KiB))
	fails 1 "^EINVAL\$" "$here/atomic.py" write "$device" 4096 8192
	fails 1 "^EINVAL\$" "$here/atomic.py" write "$device" 0 2048
	is "$(get mapped_blocks)" -eq 13 "mapped blocks"
	detach "$device"
	intact "$image"
}
check "which atomic writes are accepted" atomic

# The disk below is copied as it is at one moment, as a power cut would leave it.
crash() {
	local sectors=$((64 * 2048)) below=/dev/mapper/selftest-disk size=$((24 * MiB)) round writer last=0 number
	modprobe dm-mod
	dmsetup create selftest-disk --table "0 $sectors linear $disk2 0"
	cloop create --force --size $size --record-size 64K "$below"
	attach "$below"
	"$here/atomic.py" work "$device" $size $((64 * KiB)) >"$tmp/done" &
	writer=$!
	for ((round = 0; round < $(scaled 4); round++)); do
		sleep "1.$((RANDOM % 10))"
		dmsetup suspend --noflush --nolockfs selftest-disk
		dd if="$disk2" of="$backing/copy" bs=1M count=64 iflag=direct conv=sparse status=none
		dmsetup resume selftest-disk
		[[ -d /proc/$writer ]] || fail "the writer has ended: $(<"$tmp/done")"
		live=$device
		attach --force "$backing/copy"
		number=$("$here/atomic.py" verify "$device" $size)
		is "$number" -gt "$last" "the newest write"
		last=$number
		printf 'write %d, %d records replayed\n' "$number" "$(get replayed_records)"
		detach "$device"
		intact "$backing/copy"
		rm "$backing/copy"
		device=$live
	done
	kill "$writer"
	wait "$writer" || :
	figure "$last atomic writes, cut $round times"
	"$here/atomic.py" verify "$device" $size
	name=${device#/dev/} index=${device#/dev/cloop}
	detach "$device"
	intact "$below"
	dmsetup remove selftest-disk
}
check "no atomic write is torn by a crash" crash
