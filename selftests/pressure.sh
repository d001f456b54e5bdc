# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
# Little memory: writeback and swap must get through cloop and the file system below it.
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

huge=/proc/sys/vm/nr_hugepages

# leave MEBIBYTES: use up all memory except about this much, until the test ends.
leave() {
	local available
	drop_caches
	available=$(awk '/^MemAvailable/ { print int($2 / 1024) }' /proc/meminfo)
	# Reserved huge pages belong to no process, and cannot be reclaimed.
	printf '%d\n' $(((available - $1) / 2)) >"$huge"
	awk '/^(MemAvailable|MemFree)/' /proc/meminfo
}

# vm COUNTER: a counter of /proc/vmstat.
vm() {
	awk -v name="$1" '$1 == name { print $2 }' /proc/vmstat
}

# complaints: the kernel's messages about memory that it could not allocate.
complaints() {
	dmesg | grep -cE 'page allocation failure|Out of memory|oom-kill' || :
}

give_back() {
	swapoff -a
	printf '0\n' >"$huge"
}

filesystem() {
	local workers before reclaimed
	[[ -e $huge ]] || skip "this kernel has no huge pages to take memory away with"
	trap give_back EXIT
	before=$(complaints)
	image disk --size 512M --record-size 16K
	attach "$image"
	"mkfs.$1" -q "$device"
	mount "$device" "$mnt"
	mkdir "$mnt/work"
	sync "$mnt"
	leave 80
	reclaimed=$(($(vm pgsteal_kswapd) + $(vm pgsteal_direct)))
	"$here/promises.py" work --writers 2 --seconds "$(scaled 4)" "$mnt/work" >"$tmp/promised" &
	workers=$!
	fio --output="$tmp/fio" --directory="$mnt" --size=24M --io_size="$(scaled 12)M" --verify=crc32c --verify_fatal=1 --randrepeat=0 \
		--name=buffered --rw=randwrite --bs=16k-64k --ioengine=psync \
		--name=mapped --rw=randwrite --bs=4k --ioengine=mmap || { cat "$tmp/fio"; false; }
	wait "$workers"
	reclaimed=$(($(vm pgsteal_kswapd) + $(vm pgsteal_direct) - reclaimed))
	figure "$reclaimed pages reclaimed"
	"$here/promises.py" verify "$tmp/promised" "$mnt/work"
	umount "$mnt"
	give_back
	is "$(complaints)" -eq "$before" "complaints about memory"
	reattach "$image"
	mount "$device" "$mnt"
	"$here/promises.py" verify "$tmp/promised" "$mnt/work"
	umount "$mnt"
}
check "a file system on cloop on ext4, buffered and mapped, in little memory" filesystem ext4

swap() {
	local out before pids=() pid
	[[ -e $huge ]] || skip "this kernel has no huge pages to take memory away with"
	trap give_back EXIT
	before=$(complaints)
	image swap --size 1G
	attach "$image"
	mkswap "$device"
	swapon "$device"
	leave 80
	out=$(vm pswpout)
	for _ in 1 2 3; do
		"$here/memory.py" "$(scaled 56 2)" "$(scaled 1 30)" &
		pids+=($!)
	done
	# Writeback of the file system that holds the swap file must get through as well.
	noise "$backing/noise" 12
	for pid in "${pids[@]}"; do
		wait "$pid"
	done
	out=$(($(vm pswpout) - out))
	figure "$out pages swapped out"
	is "$out" -ge 5000 "pages swapped out"
	is "$(complaints)" -eq "$before" "complaints about memory"
	is "$(get errors)" -eq 0 "errors"
	give_back
	reattach "$image"
}
check "swap on cloop on ext4" swap
