#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Damaged images: reading damaged blocks is an error, everything else is as before.
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# flip FILE OFFSET: change one byte.
flip() {
	local byte
	byte=$(od -An -tu1 -j "$2" -N 1 "$1")
	# shellcheck disable=SC2059 # an octal escape
	printf "\\$(printf '%o' $((byte ^ 0x10)))" | copy of="$1" bs=1 seek="$2" conv=notrunc
}

# marked FILE: incompressible data in which each 64 KiB can be found again in an image.
marked() {
	local i
	noise "$1" 4
	for i in {0..63}; do
		printf 'MARK%04d' "$i" | copy of="$1" bs=1 seek=$((i * 65536 + 5000)) conv=notrunc
	done
}

# position FILE MARK: the offset of the mark in the file.
position() {
	local at
	at=$(grep -abo -m 1 "$2" "$1" | head -n 1)
	printf '%d\n' "${at%%:*}"
}

messages() {
	dmesg | grep -c "cloop$index: read at block" || :
}

record() {
	local block before
	marked "$tmp/noise"
	image disk --size 16M --compress "$1"
	attach "$image"
	copy if="$tmp/noise" of="$device" bs=64K oflag=direct
	detach "$device"
	flip "$image" $(($(position "$image" MARK0030) + 1))
	fails 4 "disk: .*\(blocks 480 to 495 of the device\)" cloop check "$image"
	attach "$image"
	before=$(messages)
	for block in 480 481 495; do
		fails 1 "Input/output error|Invalid or incomplete multibyte" dd if="$device" bs=4K skip=$block count=1 iflag=direct status=none
	done
	is $(($(messages) - before)) -ge 1 "messages"
	fails 2 "Input/output error" cmp -n 65536 -i $((30 * 65536)) "$tmp/noise" "$device"
	for block in {1..60}; do
		no dd if="$device" bs=4K skip=490 count=1 iflag=direct status=none
	done
	is $(($(messages) - before)) -le 20 "messages of 60 failed reads"
	is "$(get damaged_reads)" -ge 63 "damaged reads"
	# Everything before and after it is intact, and the record can be written again.
	cmp -n $((30 * 65536)) "$tmp/noise" <(dd if="$device" bs=64K count=30 iflag=direct status=none)
	cmp -i $((31 * 65536)):0 "$tmp/noise" <(dd if="$device" bs=64K skip=31 count=33 iflag=direct status=none)
	copy if="$tmp/noise" of="$device" bs=64K skip=30 seek=30 count=1 oflag=direct
	drop_caches
	same "$tmp/noise" "$device"
	reattach "$image"
	same "$tmp/noise" "$device"
}
check "a flipped byte in a record" record none

# The number of messages is limited for each device separately.
loud_neighbour() {
	local name first before
	marked "$tmp/noise"
	for name in loud quiet; do
		image $name --size 16M --compress none
		attach "$image"
		copy if="$tmp/noise" of="$device" bs=64K oflag=direct
		detach "$device"
		flip "$image" $(($(position "$image" MARK0030) + 1))
	done
	attach "$backing/loud"
	first=$device
	attach "$backing/quiet"
	before=$(messages)
	# More errors than may be logged, whenever an interval of five seconds begins.
	for _ in {1..40}; do
		no dd if="$first" bs=4K skip=490 count=1 iflag=direct status=none
	done
	no dd if="$device" bs=4K skip=490 count=1 iflag=direct status=none
	is $(($(messages) - before)) -eq 1 "messages of the quiet one"
	detach "$device"
	detach "$first"
}
check "a device that repeats its errors hides no error of another" loud_neighbour
check "a flipped byte in a record, with compression on" record lz4

# Whichever byte is flipped: no crash and no wrong data. A read returns the written data, or an error.
anywhere() {
	local i at status good=0 bad=0 refused=0 size
	data "$tmp/data" 4
	image disk --size 16M
	attach "$image"
	copy if="$tmp/data" of="$device" bs=64K oflag=direct
	detach "$device"
	size=$(stat -c %s "$image")
	cp --sparse=always "$image" "$backing/good"
	for ((i = 0; i < $(scaled 16); i++)); do
		cp --sparse=always "$backing/good" "$image"
		# Half of the flips hit the structures.
		at=$((RANDOM * 32768 + RANDOM))
		if ((i % 2)); then
			at=$((at % 512 + (i % 4 == 3 ? 65536 : 0)))
		else
			at=$((at % (size - MiB) + MiB))
		fi
		flip "$image" $at
		status=0
		cloop check "$image" >"$tmp/check" 2>&1 || status=$?
		((status == 0 || status == 4 || status == 8)) || fail "cloop check ended with $status after a flip at $at"
		if ! cloop attach "$image" >"$tmp/device" 2>"$tmp/error"; then
			is "$(grep -c '^cloop: ' "$tmp/error")" -eq 1 "sentences for a flip at $at"
			refused=$((refused + 1))
			((status != 0)) || fail "attach refused what check found clean, flip at $at: $(<"$tmp/error")"
			continue
		fi
		device=$(<"$tmp/device")
		# dd leaves zeros where a read fails.
		dd if="$device" of="$tmp/read" bs=64K iflag=direct count=64 conv=noerror,sync status=noxfer 2>"$tmp/error"
		is "$({ cmp -l "$tmp/data" "$tmp/read" || :; } | awk '$3 != 0' | wc -l)" -eq 0 "wrong bytes after a flip at $at"
		if grep -q "error reading" "$tmp/error"; then
			((status != 0)) || fail "a read failed that check found clean, flip at $at"
			bad=$((bad + 1))
		else
			cmp "$tmp/data" "$tmp/read"
			good=$((good + 1))
		fi
		detach "$device"
	done
	printf '%d without effect, %d with read errors, %d refused\n' "$good" "$bad" "$refused"
	is $((good + bad)) -ge 4 "images that could be attached"
}
check "a flipped byte anywhere" anywhere

both_superblocks() {
	image disk --size 16M
	attach "$image"
	noise "$tmp/noise" 1
	copy if="$tmp/noise" of="$device" bs=1M oflag=direct
	detach "$device"
	# One superblock is enough.
	flip "$image" 20
	attach "$image"
	same "$tmp/noise" "$device"
	detach "$device"
	intact "$image"
	flip "$image" 20
	flip "$image" $((65536 + 20))
	fails 1 "disk: (damaged|.*superblock|not a cloop image)" cloop attach "$image"
	fails 4 "." cloop check "$image"
	flip "$image" $((65536 + 20))
	attach "$image"
	same "$tmp/noise" "$device"
}
check "one damaged superblock is survived, two are refused" both_superblocks
