#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Reading and writing the device itself.
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# Every block size, directly and through the page cache, compared with a file that is written in the
# same way.
read_and_write() {
	local record=$1 algorithm=$2 model=$tmp/model bs at=0 i flag
	image disk --size 10M --record-size "$record" --compress "$algorithm"
	attach "$image"
	truncate -s 10M "$model"
	data "$tmp/data" 9
	# Neighbouring ranges in pieces of each size; the order of the sizes is that of the device.
	for bs in 4K 32K 256K 1M; do
		for flag in oflag=direct conv=fsync; do
			copy if="$tmp/data" of="$device" bs="$bs" iflag=skip_bytes,count_bytes skip="$at" count=$MiB seek="${at}B" "$flag"
			copy if="$tmp/data" of="$model" bs="$bs" iflag=skip_bytes,count_bytes skip="$at" count=$MiB seek="${at}B" conv=notrunc
			at=$((at + MiB))
		done
	done
	cmp "$model" "$device"
	# Parts of records, zeros among them: 1 to 9 blocks at odd places, each in one request.
	for i in {1..24}; do
		bs=$((i % 9 + 1))
		at=$((i * 131 % 2500 * 4096))
		copy if="$tmp/data" of="$device" bs=$((bs * 4))K count=1 iflag=skip_bytes skip=$((i * 90 * 4096)) seek="${at}B" oflag=direct
		copy if="$tmp/data" of="$model" bs=$((bs * 4))K count=1 iflag=skip_bytes skip=$((i * 90 * 4096)) seek="${at}B" conv=notrunc
	done
	for i in {1..6}; do
		at=$((i * 271 * 4096))
		copy if=/dev/zero of="$device" bs=$((i * 4))K count=1 seek="${at}B" oflag=direct
		copy if=/dev/zero of="$model" bs=$((i * 4))K count=1 seek="${at}B" conv=notrunc
	done
	everything_as_in "$model"
	reattach "$image"
	everything_as_in "$model"
	detach "$device"
	cloop export "$image" "$tmp/raw"
	cmp "$model" "$tmp/raw"
	is "$(cloop info --json "$image" | jq -r '"\(.record_size / 1024)K \(.algorithm)"')" = "$record $algorithm" "info"
}

# everything_as_in FILE: read the device with all sizes, directly and through the page cache.
everything_as_in() {
	local bs
	for bs in 20K 1M; do
		cmp "$1" <(dd if="$device" bs="$bs" iflag=direct status=none)
	done
	cmp -n $((2 * MiB)) "$1" <(dd if="$device" bs=4K iflag=direct count=512 status=none)
	drop_caches
	cmp "$1" "$device"
}

for record in 4K 16K 64K 128K; do
	check "dd of 4K to 1M, direct and buffered, records of $record" read_and_write "$record" lz4
done
check "dd of 4K to 1M, direct and buffered, without compression" read_and_write 64K none

edges() {
	image disk --size 10M
	attach "$image"
	noise "$tmp/noise" 1
	copy if="$tmp/noise" of="$device" bs=4K count=1 seek=2559 oflag=direct
	fails 1 "No space left on device" dd if="$tmp/noise" of="$device" bs=4K count=1 seek=2560 status=none
	cmp -n 4096 "$tmp/noise" <(dd if="$device" bs=4K skip=2559 iflag=direct status=none)
	is "$(dd if="$device" bs=4K skip=2560 status=none | wc -c)" -eq 0 "bytes after the end"
	fails 1 "Invalid argument" dd if="$tmp/noise" of="$device" bs=512 count=1 oflag=direct status=none
	zeros "$device" 0 $((2559 * 4096))
	is "$(get mapped_blocks)" -eq 1 "mapped blocks"
	# A part of a block, through the page cache.
	copy if="$tmp/noise" of="$device" bs=100 count=1 seek=50 conv=fsync
	cmp -n 100 -i 0:5000 "$tmp/noise" "$device"
	drop_caches
	cmp -n 100 -i 0:5000 "$tmp/noise" "$device"
	is "$(get mapped_blocks)" -eq 2 "mapped blocks"
	reattach "$image"
	cmp -n 4096 "$tmp/noise" <(dd if="$device" bs=4K skip=2559 iflag=direct status=none)
	cmp -n 100 -i 0:5000 "$tmp/noise" "$device"
}
check "first and last block, and beyond" edges

# jobs FIO-OPTION...: several jobs at once, each on its part of the device.
jobs() {
	local size
	size=$(scaled 6 16)
	fio --output="$tmp/fio" --filename="$device" --size="${size}M" --allrandrepeat=1 --randseed=42 \
		--verify=crc32c --verify_fatal=1 --buffer_compress_percentage=55 --refill_buffers --group_reporting "$@" \
		--name=direct --ioengine=libaio --direct=1 --iodepth=16 --rw=randwrite --bs=4k --offset=0 \
		--name=mixed --ioengine=libaio --direct=1 --iodepth=8 --rw=randwrite --bsrange=4k-1m --blockalign=4k --offset="${size}M" \
		--name=large --ioengine=libaio --direct=1 --iodepth=4 --rw=write --bs=1m --offset=$((2 * size))M \
		--name=buffered --ioengine=psync --direct=0 --rw=randwrite --bs=16k --fsync=64 --offset=$((3 * size))M \
		--name=uring --ioengine=io_uring --direct=1 --iodepth=8 --rw=randwrite --bs=64k --offset=$((4 * size))M ||
		{ cat "$tmp/fio"; return 1; }
	grep -q 'err= 0' "$tmp/fio"
}

fio_verify() {
	image disk --size "$(scaled 32 16)M" --record-size "$1"
	attach "$image"
	jobs --do_verify=1
	# The second pass overwrites the data of the first one.
	jobs --do_verify=1 --randseed=43
	reattach "$image"
	jobs --verify_only --randseed=43
}
check "concurrent fio with verification, records of 64K" fio_verify 64K
check "concurrent fio with verification, records of 4K" fio_verify 4K

two_devices() {
	local one two
	data "$tmp/one" 12
	noise "$tmp/two" 12
	image one --size 24M
	attach "$image"
	one=$device
	image two --size 20M --record-size 16K
	attach "$image"
	two=$device
	[[ $one != "$two" ]] || fail "the same device twice"
	copy if="$tmp/one" of="$one" bs=64K oflag=direct &
	copy if="$tmp/two" of="$two" bs=128K oflag=direct &
	wait -n
	wait -n
	same "$tmp/one" "$one"
	same "$tmp/two" "$two"
	zeros "$one" $((12 * MiB)) $((12 * MiB))
	detach "$one"
	same "$tmp/two" "$two"
	copy if="$tmp/one" of="$two" bs=1M count=3 oflag=direct
	same "$tmp/one" "$two" $((3 * MiB))
	detach "$two"
	intact "$backing/one"
	intact "$backing/two"
	attach "$backing/one"
	same "$tmp/one" "$device"
}
check "two devices at once" two_devices

# The pages of a write change while it is served: the stored data must be that of one moment.
changing_pages() {
	image disk --size 16M
	attach "$image"
	"$here/changing_pages.py" "$device" "$(scaled 150)"
	cmp "$device" <(dd if="$device" bs=1M iflag=direct status=none)
	reattach "$image"
	is "$(cloop info --json "$device" | jq .damaged_reads)" -eq 0 "damaged reads"
}
check "pages that change while they are written" changing_pages

hammer() {
	image disk --size 64M --record-size 32K
	attach "$image"
	"$here/hammer.py" "$device" "$(scaled 6)"
	reattach "$image"
	"$here/hammer.py" --verify "$device"
}
check "writes, discards and reads of the same blocks at once" hammer

# A disk that needs long for each read is read at many places at a time: each request that waits for it holds up no other.
deep_reads() {
	local milliseconds=50 depth=32 iops
	modprobe -q dm-delay || skip "this kernel has no dm-delay"
	noise "$tmp/noise" 32
	dmsetup create selftest-slow --table "0 524288 delay $disk2 2048 $milliseconds $disk2 2048 0"
	cloop create --force --size 64M --record-size 16K /dev/mapper/selftest-slow
	attach /dev/mapper/selftest-slow
	copy if="$tmp/noise" of="$device" bs=1M oflag=direct
	# So nothing is in the memory of the log any more.
	detach "$device"
	attach /dev/mapper/selftest-slow
	fio --output="$tmp/fio" --output-format=json --name=reads --filename="$device" --size=32M --direct=1 --ioengine=libaio \
		--rw=randread --bs=4k --iodepth="$depth" --time_based --runtime=5 || { cat "$tmp/fio"; return 1; }
	iops=$(jq '.jobs[0].read.iops | floor' "$tmp/fio")
	figure "$iops reads in a second at depth $depth, each of which takes the disk $milliseconds ms"
	detach "$device"
	dmsetup remove selftest-slow
	# A half of the depth, because an emulated CPU has its share in it.
	is "$iops" -ge $((depth * 1000 / milliseconds / 2)) "reads in a second"
}
check "reads of a slow disk at the same time" deep_reads
