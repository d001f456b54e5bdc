#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Crashes while the device is in use: a copy of the image, a copy of the disk, or a disk that fails.
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

copied() {
	local before content
	image disk --size 128M
	attach "$image"
	mkfs.ext4 -q "$device"
	mount "$device" "$mnt"
	work "$mnt"
	sync
	cp --sparse=always "$image" "$backing/copy"
	umount "$mnt"
	detach "$device"
	cloop check "$backing/copy" | grep "not detached in an orderly way"
	is "$(cloop info --json "$backing/copy" | jq -r .state)" = needs-recovery "state"
	# Read-only: the contents are those after recovery, and the file does not change.
	before=$(digest "$backing/copy")
	attach --read-only "$backing/copy"
	is "$(get replayed_records)" -gt 0 "replayed records"
	content=$(digest "$device")
	detach "$device"
	is "$(digest "$backing/copy")" = "$before" "the copy"
	attach "$backing/copy"
	is $(($(get flags) & 4)) -eq 4 "the flag of recovery"
	is "$(digest "$device")" = "$content" "contents after recovery"
	mount "$device" "$mnt"
	unchanged "$mnt"
	umount "$mnt"
	e2fsck -fn "$device"
	reattach "$backing/copy"
	is $(($(get flags) & 4)) -eq 0 "the flag of recovery"
	e2fsck -fn "$device"
}
check "a copy of the image in use is recovered" copied

snapshots() {
	local round origin=/dev/mapper/selftest-origin sectors=$((192 * 2048)) writers
	modprobe dm-snapshot
	dmsetup create selftest-real --table "0 $sectors linear $disk2 0"
	dmsetup create selftest-origin --table "0 $sectors snapshot-origin /dev/mapper/selftest-real"
	cloop create --force --size 160M --record-size 32K "$origin"
	attach "$origin"
	mkfs.ext4 -q "$device"
	mount "$device" "$mnt"
	mkdir "$mnt/work"
	sync "$mnt"
	"$here/promises.py" work "$mnt/work" >"$tmp/done" &
	writers=$!
	for ((round = 0; round < $(scaled 3); round++)); do
		sleep "2.$((RANDOM % 10))"
		cp "$tmp/done" "$tmp/done.$round"
		# Everything that the disk holds at this moment, and nothing later.
		dmsetup suspend --noflush --nolockfs selftest-origin
		dd if=/dev/zero of="$disk2" bs=64K count=1 seek=32768 status=none
		dmsetup create selftest-cow$round --table "0 $((256 * 2048)) linear $disk2 $(((2048 + round % 4 * 256) * 2048))"
		dmsetup create selftest-snapshot$round --notable
		dd if=/dev/zero of=/dev/mapper/selftest-cow$round bs=64K count=1 oflag=direct status=none
		dmsetup load selftest-snapshot$round --table \
			"0 $sectors snapshot /dev/mapper/selftest-real /dev/mapper/selftest-cow$round N 16"
		dmsetup resume selftest-snapshot$round
		dmsetup resume selftest-origin
		cp "$tmp/done" "$tmp/newest"
		check_snapshot "$round"
	done
	kill "$writers"
	wait "$writers" || :
	is "$(wc -l <"$tmp/done")" -ge 20 "promises in the meantime"
	umount "$mnt"
	detach "/dev/$live"
	intact "$origin"
	dmsetup remove selftest-origin
	dmsetup remove selftest-real
}

check_snapshot() {
	local snapshot=/dev/mapper/selftest-snapshot$1
	live=cloop0
	intact "$snapshot"
	# The device below it is attached, and has the same UUID.
	fails 1 "UUID of an attached image" cloop attach "$snapshot"
	attach --force "$snapshot"
	printf 'snapshot %d: %d promises, %d records replayed\n' "$1" "$(wc -l <"$tmp/done.$1")" "$(get replayed_records)"
	mount "$device" "$mnt2"
	"$here/promises.py" verify --newest "$tmp/newest" "$tmp/done.$1" "$mnt2/work"
	umount "$mnt2"
	e2fsck -fn "$device"
	detach "$device"
	intact "$snapshot"
	dmsetup remove "selftest-snapshot$1"
	dmsetup remove "selftest-cow$1"
}
check "snapshots of the disk under load hold what was promised" snapshots

disk_fails() {
	local sectors=$((192 * 2048)) below=/dev/mapper/selftest-disk writers
	dmsetup create selftest-disk --table "0 $sectors linear $disk2 0"
	cloop create --force --size 160M "$below"
	attach "$below"
	mkfs.ext4 -q "$device"
	mount "$device" "$mnt"
	noise "$tmp/data" 4
	mkdir "$mnt/work"
	sync "$mnt"
	"$here/promises.py" work "$mnt/work" >"$tmp/done" 2>/dev/null &
	writers=$!
	sleep 4
	# From now on every access to the disk is an error.
	dmsetup suspend --noflush --nolockfs selftest-disk
	dmsetup load selftest-disk --table "0 $sectors error"
	dmsetup resume selftest-disk
	sleep 1
	fails 1 "Input/output error|Read-only file system" dd if="$tmp/data" of="$device" bs=1M count=4 conv=fsync status=none
	# The error repeats: a later fsync does not claim success.
	fails 1 "Input/output error|Read-only file system" dd if="$tmp/data" of="$device" bs=4K count=1 conv=fsync status=none
	is $(($(get flags) & 8)) -eq 8 "the flag of failure"
	is "$(get errors)" -ge 1 "errors"
	wait "$writers" || :
	umount "$mnt"
	fails 1 "detached, but its image could not be closed cleanly" cloop detach "$device"
	[[ ! -e $device ]] || fail "$device is still there"
	fails 1 "" cloop attach "$below"
	# The disk works again.
	dmsetup suspend selftest-disk
	dmsetup load selftest-disk --table "0 $sectors linear $disk2 0"
	dmsetup resume selftest-disk
	intact "$below"
	attach "$below"
	mount "$device" "$mnt"
	"$here/promises.py" verify "$tmp/done" "$mnt/work"
	umount "$mnt"
	e2fsck -fn "$device"
	reattach "$below"
	e2fsck -fn "$device"
	detach "$device"
	dmsetup remove selftest-disk
}
check "the disk fails under load and comes back" disk_fails
