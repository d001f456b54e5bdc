#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Hibernation and suspend: nothing is written while the machine is frozen, and nothing is lost.
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# able: skip the test if the kernel cannot hibernate, or would take the output of the tests with it.
able() {
	grep -qsw disk /sys/power/state || skip "this kernel cannot hibernate"
	[[ -z $(compgen -G "/sys/class/virtio-ports/*/name") ]] || skip "without vm --serial"
}

# worn DISK: attach an image on a disk with 24 MiB of data, durable, half of which is garbage then: reclaim
# begins as soon as the device is idle. What it holds is in $tmp/noise.
worn() {
	cloop create --force --size 128M "$1"
	attach "$1"
	noise "$tmp/noise" 24
	copy if="$tmp/noise" of="$device" bs=1M oflag=direct
	"$here/scatter.py" discard "$device" 0 $((32 * KiB)) $((16 * KiB)) 768
	python3 -c '
with open("'"$tmp/noise"'", "r+b") as file:
    for at in range(768):
        file.seek(at << 15)
        file.write(bytes(1 << 14))
'
	sync "$device"
}

declare -A writers

# load DEVICE: write to its blocks from 64 MiB to 80 MiB all the time. Until the machine freezes, no device is idle.
load() {
	local ready=$tmp/${1##*/}
	"$here/pm.py" write "$1" 16384 4096 >"$ready" &
	writers[$1]=$!
	until grep -qx ready "$ready"; do sleep 0.1; done
}

# unload DEVICE: end that, and verify the blocks.
unload() {
	kill "${writers[$1]}"
	wait "${writers[$1]}"
	"$here/pm.py" verify "$1" 16384 4096
}

frozen() {
	local written round
	able
	worn "$disk2"
	for ((round = 0; round < $(scaled 1); round++)); do
		load "$device"
		sleep 1
		written=$("$here/pm.py" frozen 12 "$disk2")
		is "$written" -eq 0 "writes, discards and flushes while the machine was frozen"
		unload "$device"
		same "$tmp/noise" "$device"
	done
	reattach "$disk2"
	same "$tmp/noise" "$device"
	detach "$device"
}
check "nothing is written between freeze and thaw" frozen

# swapped DISK: swap space on a disk, for the copy of the memory.
swapped() {
	mkswap -q "$1"
	swapon "$1"
	trap 'swapoff -a' EXIT
	lsblk -dnro MAJ:MIN "$1" >/sys/power/resume
	printf 'test_resume\n' >/sys/power/disk
}

# parts: two parts of a disk, 512 MiB for an image, in $below, and 2 GiB for the copy of the memory.
parts() {
	below=/dev/mapper/selftest-image
	dmsetup create selftest-image --table "0 $((512 * 2048)) linear $disk2 0"
	dmsetup create selftest-swap --table "0 $((2048 * 2048)) linear $disk2 $((2048 * 2048))"
	swapped /dev/mapper/selftest-swap
}

rejoin() {
	swapoff /dev/mapper/selftest-swap
	dmsetup remove selftest-swap
	dmsetup remove selftest-image
}

# hibernate: and wake up again at once.
hibernate() {
	sleep 1
	printf 'disk\n' >/sys/power/state
}

hibernated() {
	local below round
	able
	parts
	worn "$below"
	# It takes a while to store this: long enough for a device to count as idle.
	noise "$tmp/ballast" 300
	for ((round = 0; round < $(scaled 1); round++)); do
		load "$device"
		hibernate
		unload "$device"
		same "$tmp/noise" "$device"
		# Reclaim goes on.
		sleep 7
		same "$tmp/noise" "$device"
	done
	reattach "$below"
	same "$tmp/noise" "$device"
	"$here/pm.py" verify "$device" 16384 4096
	detach "$device"
	rejoin
}
check "what was flushed before hibernation is there afterwards" hibernated

# appending FILE: append lines to a file without end, and make each durable.
appending() {
	local number=0
	until [[ -e $tmp/enough ]]; do
		printf '%d\n' $((++number)) >>"$1"
		sync "$1"
	done
	printf '%d\n' "$number"
}

# A file system on dm-crypt on dm-linear on a device, another device on the file system, and a loop device beside it.
layers() {
	local below lower upper loop sectors round appender
	able
	parts
	modprobe -a dm-crypt loop
	cloop create --force --size 1G "$below"
	attach "$below"
	lower=$device
	sectors=$(blockdev --getsz "$lower")
	dmsetup create selftest-linear --table "0 $sectors linear $lower 0"
	dmsetup create selftest-crypt --table "0 $sectors crypt aes-xts-plain64 $(printf '%064d' 1) 0 /dev/mapper/selftest-linear 0"
	mkfs.ext4 -q /dev/mapper/selftest-crypt
	mount /dev/mapper/selftest-crypt "$mnt2"
	cloop create --size 128M "$mnt2/image"
	attach "$mnt2/image"
	upper=$device
	truncate -s 80M "$mnt2/loop"
	loop=$(losetup --find --show "$mnt2/loop")
	for ((round = 0; round < $(scaled 1); round++)); do
		rm -f "$tmp/enough"
		load "$upper"
		load "$loop"
		appending "$mnt2/lines" >"$tmp/lines" &
		appender=$!
		hibernate
		touch "$tmp/enough"
		wait "$appender"
		unload "$upper"
		unload "$loop"
		drop_caches
		cmp "$mnt2/lines" <(seq "$(<"$tmp/lines")")
		rm "$mnt2/lines"
	done
	losetup -d "$loop"
	device=$upper
	reattach "$mnt2/image"
	"$here/pm.py" verify "$device" 16384 4096
	detach "$device"
	umount "$mnt2"
	e2fsck -fn /dev/mapper/selftest-crypt
	dmsetup remove selftest-crypt
	dmsetup remove selftest-linear
	detach "$lower"
	intact "$below"
	rejoin
}
check "hibernation with dm, a file system and another device on a device" layers

# delaying SIZE: attach a device of this size on a part of a disk, for requests that come late.
delaying() {
	thorough
	able
	modprobe dm-delay
	parts
	cloop create --force --size "$1" "$below"
	attach "$below"
}

# late DEVICE MILLISECONDS: $delayed is the device, with requests that reach it after this time.
late() {
	delayed=/dev/mapper/selftest-late-${1##*/}
	dmsetup create "${delayed##*/}" --table "0 $(blockdev --getsz "$1") delay $1 0 $2"
}

# restless DEVICE: a kernel thread that initialises inode tables on $mnt2. The freezer has to wait for the end of each of its
# requests, which reach the device 100 ms after the thread has made them.
restless() {
	mkfs.ext4 -q -F -E lazy_itable_init=1,lazy_journal_init=1 -g 1024 "$1"
	late "$1" 100
	mount -o init_itable=0 "$delayed" "$mnt2"
	unfinished
}

# unfinished: the thread has more to do.
unfinished() {
	pgrep -x ext4lazyinit >/dev/null || fail "all inode tables are initialised"
}

# calm DEVICE: unmount it.
calm() {
	umount "$mnt2"
	dmsetup remove "$delayed"
	e2fsck -fn "$1"
}

late_thread() {
	local below delayed round
	delaying 4G
	for ((round = 0; round < $(scaled 1); round++)); do
		restless "$device"
		hibernate
		unfinished
		calm "$device"
	done
	detach "$device"
	intact "$below"
	rejoin
}
check "a kernel thread whose requests dm hands over late" late_thread

# The workqueue of loop is frozen when its work has ended, which waits for the device. The requests for loop were made before
# the tasks of user space were frozen, and reach it afterwards.
late_work() {
	local below delayed lower loop reader
	delaying 1G
	modprobe loop
	mkfs.ext4 -q "$device"
	late "$device" 100
	lower=$delayed
	mount "$lower" "$mnt2"
	noise "$mnt2/loop" 128
	sync "$mnt2/loop"
	drop_caches
	loop=$(losetup --find --show "$mnt2/loop")
	late "$loop" 20000
	"$here/pm.py" ahead "$delayed" 6 >"$tmp/ahead" &
	reader=$!
	# The first requests reach the loop device now.
	until grep -qx 20 "$tmp/ahead"; do sleep 0.1; done
	hibernate
	kill "$reader"
	wait "$reader" || :
	dmsetup remove "$delayed"
	losetup -d "$loop"
	umount "$mnt2"
	dmsetup remove "$lower"
	e2fsck -fn "$device"
	detach "$device"
	intact "$below"
	rejoin
}
check "a workqueue that is frozen when its work on the device has ended" late_work

# The image of a device comes to lie on a newer device.
reversed() {
	local below delayed older
	delaying 4G
	older=$device
	image newer --size 512M
	attach "$image"
	dmsetup suspend selftest-image
	copy if="$disk2" of="$device" bs=1M count=512
	sync "$device"
	dmsetup load selftest-image --table "0 $((512 * 2048)) linear $device 0"
	dmsetup resume selftest-image
	# The log of the older device has something to write when the machine sleeps.
	restless "$older"
	hibernate
	unfinished
	calm "$older"
	detach "$older"
	intact "$below"
	dmsetup suspend selftest-image
	dmsetup load selftest-image --table "0 $((512 * 2048)) linear $disk2 0"
	dmsetup resume selftest-image
	detach "$device"
	intact "$image"
	rejoin
}
check "an image that lies on a device that is newer than its own" reversed

# refused DISK: hibernation to a disk on $device fails at once, and the device works afterwards.
refused() {
	local began
	swapped "$1"
	began=$(now)
	fails 1 "Input/output error" dd if=<(printf disk) of=/sys/power/state status=none
	is $(($(now) - began)) -lt 60000 "milliseconds until hibernation was given up"
	swapoff "$1"
	noise "$tmp/noise" 4
	copy if="$tmp/noise" of="$device" bs=1M oflag=direct
	same "$tmp/noise" "$device"
}

into_itself() {
	able
	image disk --size 2G
	attach "$image"
	refused "$device"
	# Here the requests come from a workqueue.
	dmsetup create selftest-crypt --table "0 $(blockdev --getsz "$device") crypt aes-xts-plain64 $(printf '%064d' 1) 0 $device 0"
	refused /dev/mapper/selftest-crypt
	dmsetup remove selftest-crypt
	is "$(ionice -p $$)" = "none: prio 0" "the I/O priority of this shell"
	reattach "$image"
	same "$tmp/noise" "$device"
	detach "$device"
}
check "hibernation does not hang if its memory would go to a cloop device" into_itself

suspended() {
	able
	[[ -e /sys/class/rtc/rtc0/wakealarm ]] || skip "no clock that wakes the machine up"
	grep -q deep /sys/power/mem_sleep || skip "no suspend to RAM"
	printf 'deep\n' >/sys/power/mem_sleep
	worn "$disk2"
	load "$device"
	sleep 1
	printf '+8\n' >/sys/class/rtc/rtc0/wakealarm
	printf 'mem\n' >/sys/power/state
	unload "$device"
	same "$tmp/noise" "$device"
	reattach "$disk2"
	same "$tmp/noise" "$device"
	detach "$device"
}
check "suspend to RAM under load" suspended
