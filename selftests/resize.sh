#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Changing the size of attached devices.
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# size_of DEVICE: the size according to the block layer and to the tool, which must be the same.
size_of() {
	is "$(blockdev --getsize64 "$1")" -eq "$(cloop info --json "$1" | jq .size)" "size that the tool says"
	is "$(blockdev --getsize64 "$1")" -eq $(($(<"/sys/block/$name/size") * 512)) "size in sysfs"
	blockdev --getsize64 "$1"
}

ext4() {
	image disk --size 32M
	attach "$image"
	mkfs.ext4 -q "$device"
	mount "$device" "$mnt"
	cp -a /usr/share/zoneinfo/Europe "$mnt"
	noise "$tmp/noise" 32
	listen
	is "$(cloop resize --size 160M "$device")" = \
		"$device: 160M ($((160 * MiB)) bytes), was 32M ($((32 * MiB)) bytes)" "what resize says"
	is "$(size_of "$device")" -eq $((160 * MiB)) "size"
	heard "RESIZE=1 .*DEVNAME=$name "
	resize2fs "$device"
	cp "$tmp/noise" "$mnt/noise"
	sync
	drop_caches
	cmp "$tmp/noise" "$mnt/noise"
	diff -r --no-dereference /usr/share/zoneinfo/Europe "$mnt/Europe"
	umount "$mnt"
	e2fsck -fn "$device"
	reattach "$image"
	is "$(size_of "$device")" -eq $((160 * MiB)) "size after attaching again"
	mount "$device" "$mnt"
	cmp "$tmp/noise" "$mnt/noise"
	umount "$mnt"
	detach "$device"
}
check "ext4 grows while it is in use" ext4

xfs() {
	needs xfs
	image disk --size 320M
	attach "$image"
	mkfs.xfs -q "$device"
	mount "$device" "$mnt"
	cp -a /usr/share/zoneinfo/Europe "$mnt"
	cloop resize --size +704M "$device"
	is "$(size_of "$device")" -eq $GiB "size"
	xfs_growfs "$mnt"
	is $(($(stat -f -c '%b * %S' "$mnt"))) -gt $((900 * MiB)) "size of the file system"
	data "$tmp/data" 4
	# A preallocated file reaches into the new part.
	fallocate -l 700M "$mnt/big"
	copy if="$tmp/data" of="$mnt/big" bs=1M seek=680 conv=notrunc,fsync
	drop_caches
	cmp "$tmp/data" <(dd if="$mnt/big" bs=1M skip=680 count=4 status=none)
	diff -r --no-dereference /usr/share/zoneinfo/Europe "$mnt/Europe"
	umount "$mnt"
	xfs_repair -n "$device"
	detach "$device"
	intact "$image"
}
check "xfs grows while it is in use" xfs

shrink() {
	image disk --size 96M
	attach "$image"
	mkfs.ext4 -q "$device"
	mount "$device" "$mnt"
	cp -a /usr/share/zoneinfo/Europe "$mnt"
	noise "$mnt/noise" 56
	fails 1 "$device: there is data beyond the new end of the device; .*--force" cloop resize --size 32M "$device"
	is "$(size_of "$device")" -eq $((96 * MiB)) "size"
	diff -r --no-dereference /usr/share/zoneinfo/Europe "$mnt/Europe"
	rm "$mnt/noise"
	umount "$mnt"
	e2fsck -fp "$device"
	resize2fs "$device" 32M
	# cloop cannot know that the blocks which the file system has left there are useless.
	blkdiscard -f -o $((32 * MiB)) "$device"
	mount "$device" "$mnt"
	listen
	cloop resize --size 32M "$device"
	is "$(size_of "$device")" -eq $((32 * MiB)) "size"
	heard "RESIZE=1 .*DEVNAME=$name "
	# The file system was frozen, and is not frozen any more.
	touch "$mnt/new"
	sync "$mnt/new"
	diff -r --no-dereference /usr/share/zoneinfo/Europe "$mnt/Europe"
	umount "$mnt"
	e2fsck -fn "$device"
	fails 1 "Invalid argument|No space left" dd if=/dev/zero of="$device" bs=4K seek=8192 count=1 oflag=direct status=none
	reattach "$image"
	e2fsck -fn "$device"
	detach "$device"
}
check "shrinking after the file system, not before it" shrink

forced() {
	image disk --size 64M
	attach "$image"
	noise "$tmp/noise" 4
	copy if="$tmp/noise" of="$device" bs=1M
	copy if="$tmp/noise" of="$device" bs=1M seek=60
	fails 1 "there is data beyond" cloop resize --size -4K "$device"
	cloop resize --force --size -2M "$device"
	is "$(size_of "$device")" -eq $((62 * MiB)) "size"
	cmp -n $((2 * MiB)) "$tmp/noise" <(dd if="$device" bs=1M skip=60 iflag=direct status=none)
	# Discarded data does not come back.
	cloop resize --size 64M "$device"
	zeros "$device" $((62 * MiB)) $((2 * MiB))
	same "$tmp/noise" "$device"
	reattach "$image"
	zeros "$device" $((62 * MiB)) $((2 * MiB))
	same "$tmp/noise" "$device"
	is "$(get mapped_blocks)" -eq $((6 * 256)) "blocks"
	detach "$device"
}
check "shrinking by force discards" forced

unwritten() {
	image disk --size 64M
	attach "$image"
	# While a process has the device open, the page cache keeps what was written.
	exec {fd}<"$device"
	noise "$tmp/noise" 1
	copy if="$tmp/noise" of="$device" bs=1M seek=63
	fails 1 "there is data beyond" cloop resize --size 32M "$device"
	exec {fd}<&-
	cmp "$tmp/noise" <(dd if="$device" bs=1M skip=63 iflag=direct status=none)
	detach "$device"
}
check "data that is only in the page cache counts" unwritten

under_load() {
	local writer i
	image disk --size 64M
	attach "$image"
	noise "$tmp/noise" 8
	while copy if="$tmp/noise" of="$device" bs=64K oflag=direct conv=notrunc; do :; done &
	writer=$!
	for i in 32M 2G 16M 64M; do
		cloop resize --size "$i" "$device"
	done
	kill "$writer"
	wait "$writer" || :
	copy if="$tmp/noise" of="$device" bs=64K oflag=direct
	is "$(size_of "$device")" -eq $((64 * MiB)) "size"
	reattach "$image"
	same "$tmp/noise" "$device"
	detach "$device"
}
check "beside writers" under_load

refused() {
	image disk --size 16M
	attach --read-only "$image"
	fails 1 "$device: read-only; detach it and attach its image for writing" cloop resize --size 32M "$device"
	fails 1 "$device: read-only" cloop resize --size 8M "$device"
	detach "$device"
	fails 1 "^ENXIO\$" "$here/control.py" resize "$index" 4096
	attach "$image"
	fails 1 "disk: in use as $device" cloop resize --size 32M "$image"
	fails 2 "not a multiple of 4096" cloop resize --size 5000 "$device"
	fails 1 "^EINVAL\$" "$here/control.py" resize "$index" 5000
	fails 1 "^EINVAL\$" "$here/control.py" resize "$index" 0
	fails 1 "^EINVAL\$" "$here/control.py" resize "$index" $((1 << 62))
	fails 1 "^EINVAL\$" "$here/control.py" resize --flags 2 "$index" 4096
	fails 1 "^EPERM\$" "$here/control.py" resize --user 65534 "$index" 4096
	is "$(size_of "$device")" -eq $((16 * MiB)) "size"
	detach "$device"
	intact "$image"
}
check "impossible sizes are refused" refused
