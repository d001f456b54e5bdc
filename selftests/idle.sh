#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# A device that is not used takes no time.
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# threads: process numbers of the module's kernel threads.
threads() {
	pgrep '^(cloop|kworker/.*cloop)' || :
}

# ticks PID...: clock ticks these have used.
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
	# After five seconds a device puts its image in order, and then it sleeps.
	sleep 10
	mapfile -t pids < <(threads)
	is "${#pids[@]}" -ge 4 "threads of two devices"
	before=$(ticks "${pids[@]}")
	sleep 3
	used=$(($(ticks "${pids[@]}") - before))
	is "$used" -le 1 "ticks of background threads in 3 s"
	# Nor do they count as load: what waits without end must not wait in state D. A worker
	# of the kernel's pool that had nothing to do may have gone.
	for pid in "${pids[@]}"; do
		stat=$(cat "/proc/$pid/stat" 2>/dev/null) || continue
		printf '%s\n' "$stat"
		[[ $stat == *") "[SI]" "* ]] || fail "a thread sleeps in the wrong state"
	done
	cloop detach --all
	is "$(pgrep -c '^cloop' || :)" -eq 0 "threads after detaching"
}
check "background threads of an idle device sleep" idle
