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
