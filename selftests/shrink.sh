#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# The image shrinks with its contents while it is in use.
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# files DIRECTORY MEBIBYTES: copy this many MiB of files of the system, and half as much incompressible
# data.
files() {
	local n source
	mkdir "$1"
	noise "$1/noise" $(($2 / 3))
	for ((n = 0; ; n++)); do
		for source in /usr/bin /usr/sbin /usr/share/perl5 /usr/lib/x86_64-linux-gnu; do
			(($(du -sm "$1" | cut -f 1) < $2)) || return 0
			mkdir -p "$1/$n"
			cp -a "$source" "$1/$n"
		done
	done
}

# shrinks MOST WHAT: after a while at most MOST bytes are live, and the image is as small as is promised
# for live records of this size (P3).
shrinks() {
	local began live allocated
	began=$(now)
	while :; do
		live=$(get live_bytes)
		allocated=$(allocated "$image")
		((live > $1 || allocated > live + live / 20 + 16 * MiB)) || break
		is $(($(now) - began)) -lt 120000 "milliseconds, $2, with $live bytes live and $allocated allocated"
		sleep 0.5
	done
	figure "$2: $((allocated / MiB)) MiB for $((live / MiB)) MiB after $(($(now) - began)) ms"
}

# filesystem TYPE WAY...: delete one of several trees in each of these ways, discard or fstrim.
filesystem() {
	local type=$1 options=discard full way left=$(($# - 1)) most
	shift
	image disk --size 4G
	attach "$image"
	case $type in
	ext4 | xfs) mkfs -t "$type" -q "$device" ;;
	# Otherwise the file system discards some minutes later.
	btrfs) mkfs.btrfs -q "$device" && options=discard=sync ;;
	esac
	mount -t "$type" "$device" "$mnt"
	cp -a /usr/share/perl5 "$mnt/stays"
	files "$mnt/$1" "$(scaled 40 25)"
	# Without --reflink=never the second copy would share the blocks of the first.
	for way in "${@:2}"; do
		cp -a --reflink=never "$mnt/$1" "$mnt/$way"
	done
	sync -f "$mnt"
	full=$(get live_bytes)
	figure "full: $(($(allocated "$image") / MiB)) MiB for $((full / MiB)) MiB, $((($(get mapped_blocks) * 4096) / MiB)) MiB of blocks"
	for way; do
		# xfs keeps its mount options when it is remounted without being unmounted.
		umount "$mnt"
		mount -t "$type" -o "$([[ $way == discard ]] && printf '%s' "$options" || printf 'nodiscard')" "$device" "$mnt"
		rm -r "${mnt:?}/$way"
		sync -f "$mnt"
		left=$((left - 1))
		most=$((full * left / $# + full / 8))
		if [[ $way == fstrim ]]; then
			is "$(get live_bytes)" -gt "$most" "live bytes before fstrim"
			fstrim "$mnt"
		fi
		shrinks "$most" "$type, $way"
	done
	diff -r /usr/share/perl5 "$mnt/stays"
	umount "$mnt"
	reattach "$image"
	mount -t "$type" "$device" "$mnt"
	diff -r /usr/share/perl5 "$mnt/stays"
	umount "$mnt"
	detach "$device"
}

# Half of the time is spent waiting for the device to be idle, so a short run does not do everything.
check "deleted files leave the image, ext4" filesystem ext4 discard fstrim
check "deleted files leave the image, xfs" filesystem xfs discard ${long:+fstrim}
check "deleted files leave the image, btrfs" filesystem btrfs fstrim ${long:+discard}

# Blocks that mkfs zeroes, now or later, are not stored.
tables() {
	local live
	image disk --size 16G
	attach "$image"
	mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 "$device"
	sync "$device"
	live=$(get live_bytes)
	figure "ext4 of 16 GiB: $((live / KiB)) KiB"
	is "$live" -lt $((2 * MiB)) "live bytes of an empty ext4"
	# As on kernels without write-zeroes.
	copy if=/dev/zero of="$device" bs=1M count=64 seek=8192 conv=fsync
	is "$(get live_bytes)" -lt $((live + 16 * KiB)) "live bytes with zeros written"
	detach "$device"
}
check "inode tables and journal of ext4 cost nothing" tables
