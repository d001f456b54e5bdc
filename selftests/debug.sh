# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
# The final reports of a kernel that checks itself.
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

kmemleak=/sys/kernel/debug/kmemleak

# leaks REGEX: no unreferenced object was allocated with this in its backtrace.
leaks() {
	local _
	[[ -e $kmemleak ]] || skip "this kernel has no kmemleak"
	# An object younger than five seconds may still be on its way, and so may one that is found only
	# once.
	for _ in 1 2 3; do
		sleep 6
		printf 'scan\n' >"$kmemleak"
	done
	cat "$kmemleak" >"$tmp/leaks"
	figure "$(grep -c '^unreferenced' "$tmp/leaks" || :) objects without a reference, of whomever"
	awk -v regex="$1" 'BEGIN { RS = "unreferenced object "; ORS = "" } NR > 1 && $0 ~ regex { print RS $0 }' \
		"$tmp/leaks" >"$tmp/ours"
	[[ ! -s $tmp/ours ]] || { head -n 200 "$tmp/ours"; fail "memory was lost"; }
}

loaded() {
	image disk --size 16M
	attach "$image"
	leaks '[[]cloop[]]'
	detach "$device"
	leaks '[[]cloop[]]'
}
check "the module has lost no memory" loaded

unloaded() {
	[[ -e $kmemleak ]] || skip "this kernel has no kmemleak"
	rmmod cloop
	# The code that allocated it has no name any more.
	leaks '[[]cloop[]]|\n *0x[0-9a-f]+\n'
	modprobe cloop
}
check "the module has left no memory behind" unloaded

# lockdep finds nothing more once it has switched itself off.
lockdep() {
	[[ -e /proc/lockdep_stats ]] || skip "this kernel has no lockdep"
	grep -E 'lock-classes|direct dependencies|dependency chains|max locking depth|debug_locks' /proc/lockdep_stats
	is "$(awk '$1 == "debug_locks:" { print $2 }' /proc/lockdep_stats)" -eq 1 "debug_locks"
}
check "lockdep has watched to the end" lockdep
