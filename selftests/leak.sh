#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Attaching and detaching many times.
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# memory FIELD: the field of /proc/meminfo, in KiB, after all pending frees.
memory() {
	awk -v field="$1:" '$1 == field { print $2 }' /proc/meminfo
}

settle() {
	sync
	drop_caches
	sleep 1
}

round() {
	attach "$image"
	copy if="$tmp/noise" of="$device" bs=256K count=2 oflag=direct conv=fsync
	same "$tmp/noise" "$device" $((256 * KiB))
	detach "$device"
}

failed_round() {
	no cloop attach "$backing/none" 2>/dev/null
	no cloop attach "$backing/damaged" 2>/dev/null
}

# steady ROUNDS COMMAND: running COMMAND ROUNDS times leaves no memory behind.
steady() {
	local i field rounds=$1 after
	shift
	declare -A before
	for i in {1..15}; do
		"$@"
	done
	settle
	for field in SUnreclaim VmallocUsed Percpu KernelStack MemAvailable; do
		before[$field]=$(memory "$field")
	done
	for ((i = 0; i < rounds; i++)); do
		"$@"
	done
	settle
	for field in SUnreclaim VmallocUsed Percpu KernelStack MemAvailable; do
		after=$(memory "$field")
		printf '%s: %d KiB before, %d KiB after %d rounds\n' "$field" "${before[$field]}" "$after" "$rounds"
		if [[ $field == MemAvailable ]]; then
			is $((before[$field] - after)) -le 16384 "KiB of memory lost"
		else
			is $((after - before[$field])) -le 1024 "KiB more of $field"
		fi
	done
	is "$(pgrep -c '^cloop-[wm]' || :)" -eq 0 "threads"
	is "$(lsmod | awk '$1 == "cloop" { print $3 }')" -eq 0 "users of the module"
}

rounds() {
	image disk --size 64M
	noise "$tmp/noise" 1
	steady "$(scaled 100)" round
	intact "$image"
}
check "100 rounds of attach, use and detach leave nothing behind" rounds

failures() {
	noise "$backing/none" 2
	image damaged --size 16M
	attach "$image"
	noise "$tmp/noise" 1
	copy if="$tmp/noise" of="$device" bs=1M oflag=direct
	detach "$device"
	truncate -s 1M "$image"
	steady "$(scaled 40)" failed_round
}
check "failed attaches leave nothing behind" failures

# Several processes attach, open and detach at once.
contender() {
	local i device
	for ((i = 0; i < $2; i++)); do
		device=$(cloop attach "$backing/$1" 2>/dev/null) || continue
		head -c 4096 "$device" >/dev/null 2>&1 || :
		cloop detach "$device" 2>/dev/null || :
	done
}

onlooker() {
	local device
	while [[ ! -e $tmp/stop ]]; do
		for device in /dev/cloop[0-9]*; do
			head -c 4096 "$device" >/dev/null 2>&1 || :
		done
		cloop list >/dev/null || :
	done
}

race() {
	local name pids=() watching pid
	for name in one two; do
		image "$name" --size 16M
	done
	onlooker &
	watching=$!
	for name in one one two two; do
		contender "$name" "$(scaled 12)" &
		pids+=($!)
	done
	for pid in "${pids[@]}"; do
		wait "$pid"
	done
	touch "$tmp/stop"
	wait "$watching"
	cloop detach --all
	intact "$backing/one"
	intact "$backing/two"
	attach "$backing/one"
}
check "attach, open, list and detach at the same time" race
