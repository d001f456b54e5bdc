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

# without_module: unload the module, and keep modprobe from loading it, until allow_module.
without_module() {
	rmmod cloop
	mkdir -p /run/modprobe.d
	printf 'install cloop /bin/false\n' >/run/modprobe.d/selftest.conf
	trap allow_module EXIT
}

allow_module() {
	rm -f /run/modprobe.d/selftest.conf /dev/cloop-control
	# devtmpfs has made the node if the module is loaded.
	modprobe -r cloop
	modprobe cloop
}

missing() {
	local before
	image disk --size 16M
	before=$(digest "$image")
	without_module
	fails 1 "the cloop module is not loaded; load it with .modprobe cloop." cloop attach "$image"
	fails 1 "the cloop module is not loaded" cloop detach /dev/cloop0
	is "$(cloop list)" = "" "list"
	cloop detach --all
	is "$(cloop info --json "$image" | jq -r .state)" = clean "state"
	intact "$image"
	is "$(digest "$image")" = "$before" "the image"
	allow_module
	attach "$image"
	detach "$device"
}
check "without the module one clear sentence" missing

# Attaching loads the module, and nothing else does.
loaded_by_attach() {
	image disk --size 16M
	rmmod cloop
	is "$(cloop list)" = "" "list"
	cloop info "$image"
	intact "$image"
	[[ ! -e /sys/module/cloop ]] || fail "a look at an image has loaded the module"
	attach "$image"
	detach "$device"
}
check "cloop attach loads the module" loaded_by_attach

# The node that kmod makes when a machine starts. Whoever opens it loads the module.
static_node() {
	local node name number
	image disk --size 16M
	rmmod cloop
	[[ ! -e /dev/cloop-control ]] || fail "the node is still there"
	node=$(kmod static-nodes --format=devname | grep '^cloop ')
	is "$node" = "cloop cloop-control c10:253" "entry of modules.devname"
	read -r _ name number <<<"$node"
	number=${number#c}
	mknod -m 600 "/dev/$name" c "${number%:*}" "${number#*:}"
	trap allow_module EXIT
	is "$(cloop list)" = "" "list"
	[[ ! -e /sys/module/cloop ]] || fail "cloop list has loaded the module"
	read -r _ _ name < <("$here/control.py" version)
	[[ -e /sys/module/cloop ]] || fail "opening the node has not loaded the module"
	is "$name" = "$(cloop --version | cut -d ' ' -f 2)" "version"
	attach "$image"
	detach "$device"
	# The node outlives the module, and loads it again.
	rmmod cloop
	[[ -c /dev/cloop-control ]] || fail "the node is gone"
	attach "$image"
	detach "$device"
}
check "opening the node in /dev loads the module" static_node

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
