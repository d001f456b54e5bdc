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

# load: write to another part of the device all the time. Until the machine freezes, no device is idle.
load() {
	"$here/pm.py" write "$device" 16384 4096 &
	writer=$!
}

unload() {
	kill "$writer"
	wait "$writer"
	"$here/pm.py" verify "$device" 16384 4096
}

frozen() {
	local written round
	able
	worn "$disk2"
	for ((round = 0; round < $(scaled 1); round++)); do
		load
		sleep 1
		written=$("$here/pm.py" frozen 12 "$disk2")
		is "$written" -eq 0 "writes, discards and flushes while the machine was frozen"
		unload
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

hibernated() {
	local below=/dev/mapper/selftest-image swap=/dev/mapper/selftest-swap sectors=$((2048 * 2048)) round
	able
	dmsetup create selftest-swap --table "0 $sectors linear $disk2 $sectors"
	swapped "$swap"
	dmsetup create selftest-image --table "0 $((512 * 2048)) linear $disk2 0"
	worn "$below"
	# It takes a while to store this: long enough for a device to count as idle.
	noise "$tmp/ballast" 300
	for ((round = 0; round < $(scaled 1); round++)); do
		load
		sleep 1
		printf 'disk\n' >/sys/power/state
		unload
		same "$tmp/noise" "$device"
		# Reclaim goes on.
		sleep 7
		same "$tmp/noise" "$device"
	done
	reattach "$below"
	same "$tmp/noise" "$device"
	"$here/pm.py" verify "$device" 16384 4096
	detach "$device"
	swapoff "$swap"
	dmsetup remove selftest-swap
	dmsetup remove selftest-image
}
check "what was flushed before hibernation is there afterwards" hibernated

into_itself() {
	local began
	able
	image disk --size 2G
	attach "$image"
	swapped "$device"
	began=$(now)
	fails 1 "Input/output error" dd if=<(printf disk) of=/sys/power/state status=none
	is $(($(now) - began)) -lt 60000 "milliseconds until hibernation was given up"
	swapoff "$device"
	noise "$tmp/noise" 4
	copy if="$tmp/noise" of="$device" bs=1M oflag=direct
	same "$tmp/noise" "$device"
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
	load
	sleep 1
	printf '+8\n' >/sys/class/rtc/rtc0/wakealarm
	printf 'mem\n' >/sys/power/state
	unload
	same "$tmp/noise" "$device"
	reattach "$disk2"
	same "$tmp/noise" "$device"
	detach "$device"
}
check "suspend to RAM under load" suspended
