# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
# Failing memory allocations: fault injection in the allocations of the module and of the code that it
# calls. Every failure is clean, and nothing that was promised is lost.
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# The kernel reports some failed allocations; the variable tells run not to take these for complaints.
# shellcheck disable=SC2034
allocations_fail=1

knobs=(/sys/kernel/debug/failslab /sys/kernel/debug/fail_page_alloc)

# knob NAME VALUE: set the knob if it exists.
knob() {
	local directory
	for directory in "${knobs[@]}"; do
		[[ ! -e $directory/$1 ]] || printf '%s\n' "$2" >"$directory/$1"
	done
}

# symbol NAME: the address of the symbol.
symbol() {
	awk -v name="$1" '$3 == name { print "0x" $1; exit }' /proc/kallsyms
}

# faults own|all: select the allocations that may fail once they are armed: those with the module in
# their backtrace, and with "own" only those without a call into a file system in between.
faults() {
	local directory text end
	for directory in "${knobs[@]}"; do
		[[ -e $directory/require-start ]] ||
			skip "this kernel has no fault injection with a stack trace filter"
	done
	trap disarm EXIT
	mapfile -t text < <(awk '$4 == "[cloop]" && tolower($2) == "t" { print $1 }' \
		/proc/kallsyms | sort | sed -n '1p; $p')
	is "${#text[@]}" -eq 2 "ends of the module's code"
	disarm
	knob task-filter N
	knob verbose 0
	knob interval 1
	knob space 0
	knob ignore-gfp-wait N
	knob ignore-gfp-highmem N
	knob min-order 0
	knob stacktrace-depth 32
	knob require-start "0x${text[0]}"
	printf -v end '0x%x' $((0x${text[1]} + 4096))
	knob require-end "$end"
	if [[ $1 == own ]]; then
		# All of the code in fs/ that works on an open file, by the order of linking: block/
		# comes after it, and rarely used code of file systems after that.
		knob reject-start "$(symbol do_truncate)"
		knob reject-end "$(awk '$3 == "do_truncate" || $3 == "submit_bio" || $3 ~ /^(ext4|xfs|btrfs)_/ && tolower($2) == "t" {
			print "0x" $1, $3 }' /proc/kallsyms | sort | sed -n '/ do_truncate$/,/ submit_bio$/p' | tail -n 2 | sed -n '1s/ .*//p')"
	else
		knob reject-start 0
		knob reject-end 0
	fi
}

armed=0 failures=0

# disarm: allocations succeed again. The failures since arm are added to $failures.
disarm() {
	knob probability 0
	failures=$((failures + $(injected)))
	armed=0
}

# arm PERCENT [TIMES [BYTES]]: from now on each allocation fails with this probability, at most TIMES
# times; before that, BYTES can be allocated.
arm() {
	armed=${2:-1000000}
	knob space "${3:-0}"
	knob times "$armed"
	knob probability "$1"
}

# injected: the number of failures since arm, of both kinds.
injected() {
	local knob count=0
	for knob in "${knobs[@]}"; do
		count=$((count + (armed > 0 ? armed - $(<"$knob/times") : 0)))
	done
	printf '%d\n' "$count"
}

# some_failed: a test in which no allocation failed shows nothing.
some_failed() {
	figure "$failures allocations failed"
	is "$failures" -gt 0 "failed allocations"
}

attaching() {
	faults all
	image disk --size 64M
	attach "$image"
	noise "$tmp/noise" 2
	copy if="$tmp/noise" of="$device" bs=1M oflag=direct
	detach "$device"
	"$here/nomem.py" attach "$@" "$image" >"$tmp/said"
	figure "$(<"$tmp/said")"
	intact "$image"
	attach "$image"
	same "$tmp/noise" "$device"
}
check "each allocation of an attach fails in turn" attaching
check "each allocation of a read-only attach fails in turn" attaching --read-only

changing() {
	faults all
	image disk --size 64G
	"$here/nomem.py" "$1" "$image" >"$tmp/said"
	figure "$(<"$tmp/said")"
	intact "$image"
}
check "each allocation of a detach fails in turn: what was flushed is there" changing detach
check "each allocation of a resize fails in turn: the old size or the new one" changing resize

detaching() {
	local i clean=0 status
	faults all
	image disk --size 256M
	noise "$tmp/noise" 2
	for ((i = 0; i < $(scaled 10); i++)); do
		attach "$image"
		copy if="$tmp/noise" of="$device" bs=64K seek=$((i % 16 * 100)) oflag=direct conv=fsync
		copy if=/usr/bin/bash of="$device" bs=64K seek=2000 iflag=fullblock oflag=direct count=8
		arm 100 1 $((i * i * 100))
		status=0
		cloop detach "$device" 2>"$tmp/error" || status=$?
		disarm
		[[ ! -e $device ]] || fail "$device is still there"
		if ((status == 0)); then
			clean=$((clean + 1))
		else
			grep -E 'could not be closed cleanly.*(Cannot allocate memory|Input/output error)|Cannot allocate memory' "$tmp/error"
		fi
		intact "$image"
		attach "$image"
		cmp -n $((2 * MiB)) "$tmp/noise" \
			<(dd if="$device" bs=64K skip=$((i % 16 * 100)) count=32 iflag=direct status=none)
		detach "$device"
	done
	figure "$clean of $i detaches were clean"
	some_failed
}
check "an allocation fails during a detach: what was flushed is there" detaching

io() {
	faults own
	image disk --size 8G --record-size "$1"
	attach "$image"
	arm "$2"
	"$here/nomem.py" io "$device" "$(scaled 10)" >"$tmp/said"
	figure "$(<"$tmp/said")"
	disarm
	some_failed
	# This was no error of the backing file.
	is "$(get error)" -eq 0 "error of the device"
	is "$(get errors)" -eq 0 "errors of the backing file"
	noise "$tmp/noise" 2
	copy if="$tmp/noise" of="$device" bs=64K oflag=direct conv=fsync
	reattach "$image"
	same "$tmp/noise" "$device"
}
check "the module's own allocations fail under load: ENOMEM, and nothing else" io 64K 10
check "the same, with small records" io 4K 30

# promising own|all PERCENT: programs rely on files while allocations fail.
promising() {
	local workers
	faults "$1"
	image disk --size 1G
	attach "$image"
	mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 "$device"
	mount "$device" "$mnt"
	mkdir "$mnt/work"
	sync "$mnt"
	"$here/promises.py" work --writers 2 --seconds "$(scaled 8)" "$mnt/work" >"$tmp/promised" 2>"$tmp/stopped" &
	workers=$!
	sleep 1
	arm "$2"
	# An error is allowed, and ends the writer that receives it. The file system, too, may give up.
	wait "$workers" || figure "writers ended: $(grep -o 'Cannot allocate.*\|Input/output.*\|Read-only.*' "$tmp/stopped" | sort | uniq -c | xargs)"
	figure "$(wc -l <"$tmp/promised") promises"
	disarm
	some_failed
	umount "$mnt"
	if ! cloop detach "$device" 2>"$tmp/error"; then
		grep "could not be closed cleanly" "$tmp/error"
	fi
	[[ ! -e $device ]] || fail "$device is still there"
	intact "$image"
	attach "$image"
	# With errors in its journal the file system asks for a check, which must find that it lost
	# nothing.
	e2fsck -fp "$device" || is $? -le 1 "status of e2fsck"
	mount "$device" "$mnt"
	"$here/promises.py" verify "$tmp/promised" "$mnt/work"
	umount "$mnt"
	e2fsck -fn "$device"
}
check "a file system while the module's allocations fail: nothing promised is lost" promising own 50
check "a file system while any allocation below it fails: nothing promised is lost" promising all 1

resizing() {
	local i size=$((64 * MiB)) wanted done=0
	faults all
	image disk --size $size
	noise "$tmp/noise" 2
	attach "$image"
	copy if="$tmp/noise" of="$device" bs=64K oflag=direct conv=fsync
	for ((i = 0; i < $(scaled 20); i++)); do
		wanted=$(((64 + (i * 37 % 64) * 1000) * MiB))
		arm 100 1 $((i * 100))
		if cloop resize --size $wanted "$device" 2>"$tmp/error"; then
			done=$((done + 1))
			size=$wanted
		else
			grep -E 'out of memory|Cannot allocate memory|Input/output error' "$tmp/error"
		fi
		disarm
		if (($(get error) != 0)); then
			cloop detach "$device" 2>/dev/null || :
			intact "$image"
			attach "$image"
			size=$(blockdev --getsize64 "$device")
		fi
		is "$(blockdev --getsize64 "$device")" -eq "$size" "size"
		is "$(get size)" -eq "$size" "size"
	done
	figure "$done of $i resizes succeeded"
	some_failed
	reattach "$image"
	is "$(blockdev --getsize64 "$device")" -eq "$size" "size"
	same "$tmp/noise" "$device"
}
check "an allocation fails during a resize: the old size or the new one" resizing

compacting() {
	local i done=0
	faults "$1"
	image disk --size 256M
	attach "$image"
	noise "$tmp/left" 24
	for ((i = 0; i < $(scaled 8); i++)); do
		copy if="$tmp/left" of="$device" bs=1M oflag=direct conv=fsync
		"$here/scatter.py" discard "$device" 0 $((128 * KiB)) $((64 * KiB)) $((24 * 8))
		dd if="$device" bs=1M count=24 iflag=direct of="$tmp/holes" status=none
		sync "$device"
		arm 100 $((1 + i % 3)) $((i * i * 1000))
		if cloop compact "$device" 2>"$tmp/error"; then
			done=$((done + 1))
		else
			cat "$tmp/error"
		fi
		disarm
		same "$tmp/holes" "$device"
		if (($(get error) != 0)); then
			[[ $1 == all ]] || fail "the device is in error"
			cloop detach "$device" 2>/dev/null || :
			intact "$image"
			attach "$image"
			same "$tmp/holes" "$device"
		fi
	done
	figure "$done of $i compactions succeeded"
	some_failed
	cloop compact "$device"
	reattach "$image"
	same "$tmp/holes" "$device"
}
check "the module's allocations fail during a compaction: nothing is lost" compacting own
check "any allocation fails during a compaction: nothing is lost" compacting all
