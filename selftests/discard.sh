#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Discard and write-zeroes: the covered range reads as zeros and costs nothing.
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# prepare RECORD-SIZE: a device full of noise.
prepare() {
	image disk --size 8M --record-size "$1"
	attach "$image"
	noise "$tmp/noise" 8
	copy if="$tmp/noise" of="$device" bs=1M oflag=direct
	is "$(get mapped_blocks)" -eq 2048 "mapped blocks"
}

# ranges COMMAND...: run COMMAND on several ranges, and do the same to the file.
ranges() {
	local range at len mapped=2048
	for range in "$((2 * MiB)) $((2 * MiB))" "4096 4096" "$((5 * MiB + 12288)) $((200 * KiB))" "$((8 * MiB - 4096)) 4096"; do
		read -r at len <<<"$range"
		"$@" -o "$at" -l "$len" "$device"
		copy if=/dev/zero of="$tmp/noise" bs=4K seek=$((at / 4096)) count=$((len / 4096)) conv=notrunc
		zeros "$device" "$at" "$len"
		mapped=$((mapped - len / 4096))
		is "$(get mapped_blocks)" -eq "$mapped" "mapped blocks"
	done
	same "$tmp/noise" "$device"
	cmp "$tmp/noise" "$device"
	# A second time nothing is there, nothing changes, and nothing is written to the log.
	sync "$device"
	mapped=$(get log_bytes)
	"$@" -o $((2 * MiB)) -l $((2 * MiB)) "$device"
	is "$(get log_bytes)" -eq "$mapped" "log bytes"
	same "$tmp/noise" "$device"
	reattach "$image"
	same "$tmp/noise" "$device"
	# The ranges can be written again.
	copy if=/usr/bin/perl of="$device" bs=1M count=2 seek=3 oflag=direct
	copy if=/usr/bin/perl of="$tmp/noise" bs=1M count=2 seek=3 conv=notrunc
	same "$tmp/noise" "$device"
}

discard() {
	prepare "$1"
	ranges blkdiscard
}
check "blkdiscard, records of 64K" discard 64K
check "blkdiscard, records of 4K" discard 4K

write_zeroes() {
	local before
	prepare "$1"
	before=$(get bytes_written)
	ranges blkdiscard --zeroout
	# Only the 2 MiB that perl wrote arrived as data, after the device had been attached again.
	is "$(get bytes_written)" -le $((2 * MiB)) "bytes written as data"
	is "$before" -eq $((8 * MiB)) "bytes written as data"
}
check "blkdiscard --zeroout, records of 16K" write_zeroes 16K

written_zeros() {
	prepare 64K
	copy if=/dev/zero of="$device" bs=1M count=4 oflag=direct
	zeros "$device" 0 $((4 * MiB))
	is "$(get mapped_blocks)" -eq 1024 "mapped blocks"
	copy if=/dev/zero of="$device" bs=4K count=3 seek=1250 conv=fsync
	is "$(get mapped_blocks)" -eq 1021 "mapped blocks"
	fallocate --punch-hole -o $((7 * MiB)) -l $MiB "$device"
	zeros "$device" $((7 * MiB)) $MiB
	is "$(get mapped_blocks)" -eq $((1021 - 256)) "mapped blocks"
	reattach "$image"
	zeros "$device" 0 $((4 * MiB))
	zeros "$device" $((7 * MiB)) $MiB
	is "$(get mapped_blocks)" -eq $((1021 - 256)) "mapped blocks"
}
check "zeros that are written as data cost nothing" written_zeros
