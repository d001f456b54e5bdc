#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Where an image can lie.
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# exercise IMAGE: use the image, attach it again, and find everything there.
exercise() {
	attach "$1"
	data "$tmp/data" 8
	copy if="$tmp/data" of="$device" bs=256K oflag=direct
	copy if="$tmp/data" of="$device" bs=64K seek=512 conv=fsync
	copy if=/usr/bin/perl of="$device" bs=12K seek=100 oflag=direct count=50
	copy if=/usr/bin/perl of="$tmp/data" bs=12K seek=100 conv=notrunc count=50
	blkdiscard -o $((2 * MiB)) -l $MiB "$device"
	copy if=/dev/zero of="$tmp/data" bs=1M seek=2 count=1 conv=notrunc
	sync "$device"
	same "$tmp/data" "$device"
	reattach "$1"
	same "$tmp/data" "$device"
	drop_caches
	cmp -n $((8 * MiB)) "$tmp/data" "$device"
	is "$(get errors)" -eq 0 "errors"
	detach "$device"
	intact "$1"
}

filesystem() {
	needs "$1"
	case $1 in
	ext4 | xfs) mkfs -t "$1" -q "$disk2" 512M 2>/dev/null || mkfs -t "$1" -q -f "$disk2" ;;
	btrfs) mkfs.btrfs -q -f "$disk2" ;;
	esac
	if [[ $1 == tmpfs ]]; then
		mount -t tmpfs selftests "$mnt"
	else
		mount "$disk2" "$mnt"
	fi
	cloop create --size 64M "$mnt/disk"
	exercise "$mnt/disk"
	# The device keeps its file system busy, and releases it.
	attach "$mnt/disk"
	fails 32 "busy" umount "$mnt"
	detach "$device"
	if [[ $1 == btrfs ]]; then
		# This fails if the data of a write changes while btrfs computes its checksum.
		btrfs scrub start -B "$mnt"
	fi
	umount "$mnt"
}
for type in ext4 xfs btrfs tmpfs; do
	check "on $type" filesystem "$type"
done

direct() {
	image disk --size 16M
	attach "$image"
	is $(($(get flags) & 2)) -eq 2 "the flag of direct I/O"
	detach "$device"
	# Without O_DIRECT on the descriptor the page cache is used.
	index=$("$here/control.py" attach "$image")
	is $(($(get flags) & 2)) -eq 0 "the flag of direct I/O"
	detach "/dev/cloop$index"
}
check "direct I/O where the file system has it" direct

disk() {
	wipefs -qa "$disk2"
	# Not every disk can discard.
	blkdiscard -f "$disk2" || blkdiscard -f -z -l 128M "$disk2"
	cloop create --size 64M "$disk2"
	exercise "$disk2"
	attach "$disk2"
	fails 1 "in use" mkfs.ext4 -q "$disk2"
	fails 1 "$disk2: " cloop attach "$disk2"
	fails 1 "^EBUSY\$" "$here/control.py" attach "$disk2"
	fails 1 "$disk2: " cloop create --force --size 64M "$disk2"
	same "$tmp/data" "$device"
	detach "$device"
	# Existing contents are not overwritten without --force.
	fails 1 "$disk2: .*--force" cloop create --size 64M "$disk2"
	intact "$disk2"
	cloop create --force --size 32M "$disk2"
	intact "$disk2"
	wipefs -qa "$disk2"
}
check "on a whole disk" disk

other_devices() {
	local below
	modprobe loop
	truncate -s 256M "$backing/loop"
	below=$(losetup --find --show "$backing/loop")
	cloop create --size 64M "$below"
	exercise "$below"
	losetup -d "$below"
	modprobe dm-mod
	dmsetup create selftest-linear --table "0 524288 linear $disk2 2048"
	cloop create --force --size 64M /dev/mapper/selftest-linear
	exercise /dev/mapper/selftest-linear
	attach /dev/mapper/selftest-linear
	fails 1 "busy" dmsetup remove --noudevsync selftest-linear
	detach "$device"
	dmsetup remove selftest-linear
}
check "on loop and device-mapper devices" other_devices

# not_changed IMAGE: one with its UUID is attached as $device, so the tool does not change this one.
not_changed() {
	fails 1 "attached as $device" cloop resize --size +4M "$1"
	fails 1 "attached as $device" cloop compact "$1"
	fails 8 "attached as $device" cloop check --repair "$1"
	# It can be looked at.
	cloop info "$1"
}

# The lock of the file does not keep others from a device that leads to it.
twice() {
	local below
	modprobe loop
	truncate -s 256M "$backing/loop"
	cloop create --force --size 64M "$backing/loop"
	truncate -s 256M "$backing/loop"
	attach "$backing/loop"
	below=$(losetup --find --show "$backing/loop")
	fails 1 "UUID of an attached image" cloop attach "$below"
	not_changed "$below"
	is "$(cloop list --json | jq '.cloopdevices | length')" -eq 1 "devices"
	losetup -d "$below"
	detach "$device"
	# The UUID is free again. A file becomes shorter when it is detached, a loop device does not.
	truncate -s 256M "$backing/loop"
	below=$(losetup --find --show "$backing/loop")
	attach "$below"
	fails 1 "UUID of an attached image" cloop attach "$backing/loop"
	detach "$device"
	losetup -d "$below"
	intact "$backing/loop"
}
check "one image behind two devices is attached once" twice

# An overlay has an inode of its own for a lower file.
overlay() {
	local lower=$backing/lower upper=$backing/upper merged=$mnt
	needs overlay
	mkdir "$lower" "$upper" "$upper/files" "$upper/work"
	cloop create --size 64M "$lower/disk"
	mount -t overlay overlay -o "lowerdir=$lower,upperdir=$upper/files,workdir=$upper/work" "$merged"
	attach "$lower/disk"
	fails 1 "UUID of an attached image" cloop attach "$merged/disk"
	not_changed "$merged/disk"
	is "$(cloop list --json | jq '.cloopdevices | length')" -eq 1 "devices"
	# Opening the file for writing has made a copy of it, and the user says so.
	cloop compact --force "$merged/disk"
	cloop resize --force --size +4M "$merged/disk"
	cloop check --repair --force "$merged/disk"
	detach "$device"
	intact "$lower/disk"
	# In the other order.
	attach "$merged/disk"
	fails 1 "UUID of an attached image" cloop attach "$lower/disk"
	not_changed "$lower/disk"
	detach "$device"
	umount "$merged"
	intact "$lower/disk"
}
check "a lower file and its overlay are attached once" overlay
