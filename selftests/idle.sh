#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# A device that is not used takes no CPU time.
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# threads: process numbers of the kernel threads of the module.
threads() {
	pgrep '^(cloop|kworker/.*cloop)' || :
}

# ticks PID...: clock ticks that these processes have used.
ticks() {
	local pid sum=0 used
	for pid in "$@"; do
		used=$(awk '{ print $14 + $15 }' "/proc/$pid/stat" 2>/dev/null) || used=0
		sum=$((sum + used))
	done
	printf '%d\n' "$sum"
}

idle() {
	local pids pid stat before used
	image one --size 64M
	attach "$image"
	noise "$tmp/noise" 8
	copy if="$tmp/noise" of="$device" bs=1M oflag=direct
	image two --size 64M
	attach "$image"
	sync
	# After five seconds a device writes checkpoints and reclaims, and then it sleeps.
	sleep 10
	mapfile -t pids < <(threads)
	is "${#pids[@]}" -ge 4 "threads of two devices"
	before=$(ticks "${pids[@]}")
	sleep 3
	used=$(($(ticks "${pids[@]}") - before))
	is "$used" -le 1 "ticks of background threads in 3 s"
	# Sleeping threads do not count as load either: a wait without end must not be in state D. An
	# idle worker of the kernel's pool may have ended.
	for pid in "${pids[@]}"; do
		stat=$(cat "/proc/$pid/stat" 2>/dev/null) || continue
		printf '%s\n' "$stat"
		[[ $stat == *") "[SI]" "* ]] || fail "a thread sleeps in the wrong state"
	done
	cloop detach --all
	is "$(pgrep -c '^cloop-[wm]' || :)" -eq 0 "threads after detaching"
}
check "background threads of an idle device sleep" idle

# free: KiB of memory that nothing uses, not even the page cache.
free() {
	sync
	printf '1\n' >/proc/sys/vm/drop_caches
	sleep 1
	awk '/^MemFree/ { print $2 }' /proc/meminfo
}

memory() {
	local count=8 i before attached busy
	local devices=() known=()
	[[ ! -e /sys/kernel/debug/kmemleak ]] || skip "this kernel takes memory of its own for each allocation"
	for ((i = 0; i < count; i++)); do
		image "disk$i" --size 64M
	done
	noise "$tmp/noise" 24
	# What the first device needs once for all.
	attach "$image"
	detach "$device"
	before=$(free)
	for ((i = 0; i < count; i++)); do
		attach "$backing/disk$i"
		devices+=("$device")
	done
	attached=$((before - $(free)))
	figure "$((attached / count)) KiB for a device that was attached"
	for device in "${devices[@]}"; do
		copy if="$tmp/noise" of="$device" bs=1M oflag=direct
		fio --output="$tmp/fio" --name=io --filename="$device" --size=16M --direct=1 --ioengine=libaio --rw=randrw \
			--bs=64k --iodepth=32 --io_size=16M
	done
	for device in "${devices[@]}"; do
		known+=("/sys/block/${device#/dev/}/cloop/memory_bytes")
	done
	# An idle device writes checkpoints and reclaims after five seconds, and memory that is not needed goes two to four
	# seconds later.
	for ((i = 0; i < 10; i++)); do
		sleep 5
		busy=$((before - $(free)))
		((busy / count > 4000)) || break
	done
	figure "$((busy / count)) KiB for a device that was used, of which it knows $(awk -v count=$count '
		{ sum += $1 } END { printf "%d", sum / count / 1024 }' "${known[@]}")"
	is $((attached / count)) -le 4000 "KiB of memory for a device that was attached"
	is $((busy / count)) -le 4000 "KiB of memory for a device that was used"
}
check "memory of an idle device" memory
