#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# A full backing file system: writes fail at once, everything else works, and nothing is lost.
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# small MEBIBYTES: a small file system on $mnt for images.
small() {
	mkfs.ext4 -q -F -m 0 "$disk2" "$1M"
	mount "$disk2" "$mnt"
}

# grow DISK SIZE: enlarge an unmounted ext4. resize2fs requires a check if it was mounted since the last
# one.
grow() {
	e2fsck -fp "$1" || is $? -le 1 "status of e2fsck"
	resize2fs "$1" "$2"
}

raw() {
	local written
	small 48
	image=$mnt/disk
	cloop create --size 1G "$image"
	attach "$image"
	noise "$tmp/noise" 64
	# The first part is made durable; the rest goes on until there is no more room.
	copy if="$tmp/noise" of="$device" bs=1M count=10 oflag=direct conv=fsync
	fails 1 "No space left on device" dd if="$tmp/noise" of="$device" bs=1M skip=10 seek=10 oflag=direct status=none
	written=$(($(get mapped_blocks) * 4096))
	printf '%d bytes were taken\n' "$written"
	is "$written" -ge $((26 * MiB)) "bytes that were taken"
	is "$written" -le $((50 * MiB)) "bytes that were taken"
	# Repeated writes fail, and at once.
	fails 1 "No space left on device" dd if="$tmp/noise" of="$device" bs=1M skip=55 seek=900 count=4 oflag=direct status=none
	# For buffered writes the page cache of a block device knows only one error.
	fails 1 "No space left on device|Input/output error" dd if="$tmp/noise" of="$device" bs=1M seek=300 count=8 conv=fsync status=none
	# Reading and flushing continue.
	sync "$device"
	same "$tmp/noise" "$device" $((10 * MiB))
	written=$((written / MiB * MiB))
	same "$tmp/noise" "$device" "$written"
	is "$(get error)" -eq 0 "error of the device"
	detach "$device"
	intact "$image"
	attach --read-only "$image"
	same "$tmp/noise" "$device" "$written"
	detach "$device"
	# With a little room the image can be attached again; with more room it takes more.
	umount "$mnt"
	grow "$disk2" 128M
	mount "$disk2" "$mnt"
	attach "$image"
	same "$tmp/noise" "$device" "$written"
	copy if="$tmp/noise" of="$device" bs=1M oflag=direct conv=fsync
	same "$tmp/noise" "$device"
	reattach "$image"
	same "$tmp/noise" "$device"
	detach "$device"
	umount "$mnt"
}
check "writes fail with ENOSPC, acknowledged data stays" raw

still_full() {
	small 48
	image=$mnt/disk
	cloop create --size 1G "$image"
	attach "$image"
	noise "$tmp/noise" 56
	fails 1 "No space left on device" dd if="$tmp/noise" of="$device" bs=1M oflag=direct status=none
	sync "$device"
	detach "$device"
	# No block is free, and none is needed to read the contents.
	no dd if=/dev/zero of="$mnt/rest" bs=4K status=none
	attach --read-only "$image"
	same "$tmp/noise" "$device" $((24 * MiB))
	detach "$device"
	if cloop attach "$image" >"$tmp/device" 2>"$tmp/error"; then
		device=$(<"$tmp/device")
		same "$tmp/noise" "$device" $((24 * MiB))
		detach "$device"
	else
		cat "$tmp/error"
		grep -q "no space left on its file system; free some, or attach it with --read-only" "$tmp/error"
	fi
	umount "$mnt"
	grow "$disk2" 64M
	mount "$disk2" "$mnt"
	attach "$image"
	same "$tmp/noise" "$device" $((24 * MiB))
	detach "$device"
	intact "$image"
	umount "$mnt"
}
check "attach, with the file system still full" still_full

discard_when_full() {
	small 48
	image=$mnt/disk
	cloop create --size 1G "$image"
	attach "$image"
	noise "$tmp/noise" 56
	fails 1 "No space left on device" dd if="$tmp/noise" of="$device" bs=1M oflag=direct status=none
	blkdiscard -o 0 -l $((8 * MiB)) "$device"
	blkdiscard --zeroout -o $((10 * MiB)) -l $MiB "$device"
	sync "$device"
	zeros "$device" 0 $((8 * MiB))
	zeros "$device" $((10 * MiB)) $MiB
	cmp -i $((11 * MiB)) -n $((12 * MiB)) "$tmp/noise" "$device"
	detach "$device"
	intact "$image"
	umount "$mnt"
}
check "discards on a full file system" discard_when_full

filesystem() {
	small 64
	image=$mnt/disk
	cloop create --size 512M "$image"
	attach "$image"
	mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 "$device"
	mount "$device" "$mnt2"
	cp -a /usr/share/perl5 "$mnt2"
	sync
	noise "$tmp/noise" 64
	# The file system assumes that there is room; fsync reports that there was none.
	no dd if="$tmp/noise" of="$mnt2/noise" bs=1M conv=fsync
	drop_caches
	diff -r /usr/share/perl5 "$mnt2/perl5"
	umount "$mnt2"
	detach "$device"
	intact "$image"
	umount "$mnt"
	grow "$disk2" 192M
	mount "$disk2" "$mnt"
	attach "$image"
	e2fsck -fp "$device" || is $? -le 1 "status of e2fsck"
	mount "$device" "$mnt2"
	diff -r /usr/share/perl5 "$mnt2/perl5"
	umount "$mnt2"
	detach "$device"
	umount "$mnt"
}
check "a file system on it survives" filesystem

# A file system on which the image cannot become longer than 40 MiB, as FAT has a limit at 4 GiB: EFBIG, not ENOSPC.
limited() {
	local server
	needs fuse
	image lower --size 1G
	(
		ulimit -f $((40 * KiB))
		exec "$here/fuse.py" "$mnt" "$backing/lower" >"$tmp/fuse"
	) &
	server=$!
	served "$server"
	attach "$mnt/image"
	listen
	noise "$tmp/noise" 64
	copy if="$tmp/noise" of="$device" bs=1M count=10 oflag=direct conv=fsync
	fails 1 "No space left on device" dd if="$tmp/noise" of="$device" bs=1M skip=10 seek=10 oflag=direct status=none
	heard "CLOOP_FULL=1"
	is "$(get error)" -eq 0 "error of the device"
	is $(($(get flags) & 16)) -eq 16 "the flag of a full device"
	sync "$device"
	same "$tmp/noise" "$device" $((10 * MiB))
	# Discards make room in it.
	blkdiscard -o $((5 * MiB)) -l $((1019 * MiB)) "$device"
	copy if="$tmp/noise" of="$device" bs=1M skip=5 seek=5 count=15 oflag=direct conv=fsync
	heard "CLOOP_FULL=0"
	same "$tmp/noise" "$device" $((20 * MiB))
	detach "$device"
	is "$(stat -c %s "$backing/lower")" -le $((40 * MiB)) "length of the image"
	umount "$mnt"
	wait "$server"
	intact "$backing/lower"
}
check "a file that cannot become longer is a full one" limited

# waits NAME DEVICE BLOCKS: measure reads and flushes beside 64 writers; the mean time of a read is in $read_mean.
waits() {
	local kind number mean worst
	"$here/latency.py" "$2" "$(scaled 10 6)" "$3" >"$tmp/latency"
	while read -r kind number mean worst; do
		figure "$1: $number $kind, mean $mean ms, worst $worst ms"
		[[ $kind != reads ]] || read_mean=$mean read_worst=$worst
	done <"$tmp/latency"
}

waiting() {
	local loop plain_mean plain_worst
	mkfs.ext4 -q -F -m 0 "$disk2" 1G
	mount "$disk2" "$mnt"
	truncate -s 128M "$mnt/plain"
	modprobe loop
	loop=$(losetup -f --show --direct-io=on "$mnt/plain")
	copy if=/dev/urandom of="$loop" bs=1M count=128 oflag=direct iflag=fullblock
	waits "plain loop" "$loop" 32768
	plain_mean=$read_mean plain_worst=$read_worst
	losetup -d "$loop"
	rm "$mnt/plain"
	# Full of data that does not compress: each write waits until reclaim has found space for it.
	image=$mnt/disk
	cloop create --size 128M "$image"
	attach "$image"
	copy if=/dev/urandom of="$device" bs=1M count=128 oflag=direct iflag=fullblock
	waits cloop "$device" 32768
	is "$(get error)" -eq 0 "error of the device"
	detach "$device"
	intact "$image"
	umount "$mnt"
	# Goals are twice the figures of plain loop; the rest is for the noise of a machine that is emulated.
	awk -v mean="$read_mean" -v plain="$plain_mean" 'BEGIN { exit !(mean <= 4 * plain + 20) }' ||
		fail "a read takes $read_mean ms, and $plain_mean ms on plain loop"
	awk -v worst="$read_worst" -v plain="$plain_worst" 'BEGIN { exit !(worst <= 4 * plain + 1000) }' ||
		fail "the longest read takes $read_worst ms, and $plain_worst ms on plain loop"
}
check "reads do not wait for writers that wait for space" waiting

# More writers than a hardware queue has requests, on one CPU, all of which wait for space.
crowded() {
	local plain mean number kind worst flush_mean
	mkfs.ext4 -q -F -m 0 "$disk2" 1G
	mount "$disk2" "$mnt"
	image=$mnt/disk
	cloop create --size 128M "$image"
	attach "$image"
	copy if=/dev/urandom of="$device" bs=1M count=128 oflag=direct iflag=fullblock
	crowd() {
		taskset -c 0 "$here/latency.py" "$device" "$(scaled 20 3)" 32768 "$1" >"$tmp/latency"
		while read -r kind number mean worst; do
			figure "$1 writers on one CPU: $number $kind, mean $mean ms, worst $worst ms"
			[[ $kind != flushes ]] || flush_mean=$mean
		done <"$tmp/latency"
	}
	crowd 64
	plain=$flush_mean
	crowd 512
	is "$(get error)" -eq 0 "error of the device"
	detach "$device"
	intact "$image"
	umount "$mnt"
	awk -v mean="$flush_mean" -v plain="$plain" 'BEGIN { exit !(mean <= 3 * plain + 200) }' ||
		fail "a flush takes $flush_mean ms beside 512 writers, and $plain ms beside 64"
}
check "flushes do not wait for any number of writers" crowded
