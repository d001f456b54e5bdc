#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# The module itself. This is the last topic that all kernels run: it ends with a look at the kernel log
# since boot.
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

unload() {
	local i
	image disk --size 16M
	attach "$image"
	noise "$tmp/noise" 2
	copy if="$tmp/noise" of="$device" bs=1M oflag=direct
	detach "$device"
	for i in {1..5}; do
		rmmod cloop
		[[ ! -e /sys/module/cloop && ! -e /dev/cloop-control ]] || fail "the module is still there"
		modprobe cloop
		attach "$image"
		same "$tmp/noise" "$device"
		detach "$device"
	done
}
check "unload and load again" unload

missing() {
	local before
	image disk --size 16M
	before=$(digest "$image")
	rmmod cloop
	fails 1 "the cloop module is not loaded; load it with .modprobe cloop." cloop attach "$image"
	fails 1 "the cloop module is not loaded" cloop detach /dev/cloop0
	is "$(cloop list)" = "" "list"
	cloop detach --all
	is "$(cloop info --json "$image" | jq -r .state)" = clean "state"
	intact "$image"
	is "$(digest "$image")" = "$before" "the image"
	modprobe cloop
	attach "$image"
	detach "$device"
}
check "without the module one clear sentence" missing

log() {
	# shellcheck disable=SC2154 # complaints: of run
	if dmesg | grep -E "$complaints"; then
		fail "the kernel complained"
	fi
	is "$(tainted)" -eq 0 "taints by errors"
	# Messages about devices other than the errors that the tests above have caused.
	dmesg | grep -E "cloop" | grep -vE 'selftest [0-9]+: ' | tail -n 20
	:
}
check "the kernel's log since boot is clean" log
