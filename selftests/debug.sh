# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
# What a kernel with its checks on has to say at the end.
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

kmemleak=/sys/kernel/debug/kmemleak

# leaks REGEX: no object without a reference was allocated where this is in the backtrace.
leaks() {
	local _
	[[ -e $kmemleak ]] || skip "this kernel has no kmemleak"
	# What is younger than five seconds may be on its way, and what is found once, too.
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
	# The code it was allocated by has no name any more.
	leaks '[[]cloop[]]|\n *0x[0-9a-f]+\n'
	modprobe cloop
}
check "nor did it leave any behind" unloaded

# A lockdep that has switched itself off finds no more.
lockdep() {
	[[ -e /proc/lockdep_stats ]] || skip "this kernel has no lockdep"
	grep -E 'lock-classes|direct dependencies|dependency chains|max locking depth|debug_locks' /proc/lockdep_stats
	is "$(awk '$1 == "debug_locks:" { print $2 }' /proc/lockdep_stats)" -eq 1 "debug_locks"
}
check "lockdep has watched to the end" lockdep
