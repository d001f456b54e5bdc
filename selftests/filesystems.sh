#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# ext4, xfs and btrfs on the device.
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# clean TYPE: the file system on $device is free of errors.
clean() {
	case $1 in
	ext4) e2fsck -fn "$device" ;;
	xfs) xfs_repair -n "$device" ;;
	btrfs) btrfs check --readonly "$device" ;;
	esac
}

filesystem() {
	local type=$1 mapped saves
	needs "$type"
	image disk --size 512M
	attach "$image"
	case $type in
	ext4 | xfs) mkfs -t "$type" -q "$device" ;;
	btrfs) mkfs.btrfs -q "$device" ;;
	esac
	clean "$type"
	mount -t "$type" "$device" "$mnt"
	work "$mnt"
	umount "$mnt"
	clean "$type"
	mount -t "$type" "$device" "$mnt"
	unchanged "$mnt"
	fstrim "$mnt"
	umount "$mnt"
	mapped=$(get mapped_blocks)
	reattach "$image"
	is "$(get mapped_blocks)" -eq "$mapped" "mapped blocks"
	clean "$type"
	mount -t "$type" "$device" "$mnt"
	unchanged "$mnt"
	# The file system continues from there.
	mv "$mnt/moved" "$mnt/tree/moved"
	rm -r "$mnt/tree/usr"
	cp -a /usr/share/perl5 "$mnt/again"
	inventory "$mnt" >"$tmp/inventory"
	umount "$mnt"
	reattach "$image"
	clean "$type"
	mount -t "$type" "$device" "$mnt"
	unchanged "$mnt"
	if [[ $type == btrfs ]]; then
		btrfs scrub start -B "$mnt"
	fi
	umount "$mnt"
	detach "$device"
	saves=$(cloop info --json "$image" | jq '.ratio > 1.2')
	is "$saves" = true "ratio above 1.2"
}

for type in ext4 xfs btrfs; do
	check "$type: mkfs, work, fsck, remount, attach again" filesystem "$type"
done

# Several processes at once; fio verifies what they have written.
busy() {
	image disk --size 256M --record-size 128K
	attach "$image"
	mkfs.ext4 -q "$device"
	mount -o discard "$device" "$mnt"
	fio --output="$tmp/fio" --directory="$mnt" --size="$(scaled 8)M" --verify=crc32c --verify_fatal=1 \
		--buffer_compress_percentage=60 --refill_buffers --group_reporting \
		--name=direct --ioengine=libaio --direct=1 --iodepth=8 --rw=randwrite --bs=4k --numjobs=2 --fallocate=none \
		--name=buffered --ioengine=psync --rw=randwrite --bsrange=4k-128k --fsync=32 \
		--name=mapped --ioengine=mmap --rw=randwrite --bs=4k || { cat "$tmp/fio"; return 1; }
	rm -r "$mnt"/mapped*
	inventory "$mnt" >"$tmp/inventory"
	umount "$mnt"
	reattach "$image"
	clean ext4
	mount "$device" "$mnt"
	unchanged "$mnt"
}
check "ext4 under concurrent fio with verification" busy
