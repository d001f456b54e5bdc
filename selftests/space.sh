#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# The space that an image takes: full and half empty again and again, full of noise, and with different
# writers.
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# --- full and half empty again ---------------------------------------------------

cut=$state/cut		# the copy of the backing file system
cut_mnt=$state/cut-mnt	# what is on the device whose image is in it

# fill CYCLE: write files of 1 MiB to $mnt2 until there is no more room. Once fsync has returned, a file
# is listed in $tmp/promised, with its place in $tmp/noise.
fill() {
	local i at
	for ((i = 0; i < files; i++)); do
		[[ ! -e $mnt2/file-$i ]] || continue
		at=$((($1 * 7919 + i * 104729) % (7 * MiB)))
		if ! dd if="$tmp/noise" of="$mnt2/file-$i" bs=1M count=1 iflag=skip_bytes skip="$at" conv=fsync status=none 2>"$tmp/error"; then
			grep "No space left on device" "$tmp/error"
			rm "$mnt2/file-$i"
			return 0
		fi
		printf '%d %d\n' "$i" "$at" >>"$tmp/promised"
	done
	fail "there was room for everything"
}

# kept DIRECTORY LIST: what was promised is in it.
kept() {
	local i at
	while read -r i at; do
		cmp -n "$MiB" -i "0:$at" "$1/file-$i" "$tmp/noise"
	done <"$2"
}

# power_cut: a copy of the disk at this moment, without the contents of any cache, holds everything that
# was promised.
power_cut() {
	local device index name
	cp "$tmp/promised" "$tmp/before"
	dmsetup suspend --noflush --nolockfs selftest-disk
	copy if="$disk2" of=/dev/mapper/selftest-cut bs=1M count="$size" iflag=direct oflag=direct
	dmsetup resume selftest-disk
	mkdir -p "$cut" "$cut_mnt"
	mount /dev/mapper/selftest-cut "$cut"
	intact "$cut/disk"
	attach --force "$cut/disk"
	mount "$device" "$cut_mnt"
	kept "$cut_mnt" "$tmp/before"
	umount "$cut_mnt"
	e2fsck -fn "$device"
	detach "$device"
	intact "$cut/disk"
	umount "$cut"
}

cycles() {
	local size=$1 files=$(($1 * 2)) cycle filler
	dmsetup create selftest-disk --table "0 $((size * 2048)) linear $disk2 0"
	dmsetup create selftest-cut --table "0 $((size * 2048)) linear $disk2 $((GiB / 512))"
	mkfs.ext4 -q -F -m 0 /dev/mapper/selftest-disk
	mount /dev/mapper/selftest-disk "$mnt"
	image=$mnt/disk
	cloop create --size "$((size * 4))M" "$image"
	attach "$image"
	mkfs.ext4 -q "$device"
	mount "$device" "$mnt2"
	noise "$tmp/noise" 8
	: >"$tmp/promised"
	for ((cycle = 0; cycle < $2; cycle++)); do
		fill "$cycle" &
		filler=$!
		if ((cycle % 3 == 0)); then
			sleep "0.$((RANDOM % 10))"
			power_cut
		fi
		wait "$filler"
		figure "cycle $cycle: $(wc -l <"$tmp/promised") files, $(($(allocated "$image") / MiB)) MiB allocated"
		((cycle % 3 != 1)) || power_cut
		# An error of an earlier write is reported once.
		sync -f "$mnt2" || :
		drop_caches
		kept "$mnt2" "$tmp/promised"
		if ((cycle % 3 == 2)); then
			umount "$mnt2"
			reattach "$image"
			mount "$device" "$mnt2"
			kept "$mnt2" "$tmp/promised"
		fi
		awk 'NR % 2 { print >"'"$tmp/promised"'.new"; next } { print "file-" $1 }' "$tmp/promised" >"$tmp/delete"
		mv "$tmp/promised.new" "$tmp/promised"
		(cd "$mnt2" && xargs rm <"$tmp/delete")
		sync -f "$mnt2"
		fstrim "$mnt2"
	done
	umount "$mnt2"
	e2fsck -fn "$device"
	detach "$device"
	intact "$image"
	umount "$mnt"
}
if [[ ${long:-} ]]; then
	check "full and half empty again, ten times: nothing is lost" cycles 256 10
else
	check "full and half empty again, three times: nothing is lost" cycles 48 3
fi

# --- full of noise ---------------------------------------------------------------

# settles BOUND: the image soon takes no more than BOUND.
settles() {
	local began
	began=$(now)
	while (($(allocated "$image") > $1)); do
		is $(($(now) - began)) -lt 120000 "milliseconds, with $(allocated "$image") bytes allocated of $1"
		sleep 0.5
	done
}

full_of_noise() {
	local size=$(($2 * MiB)) bound most=0 now fio written logged began
	bound=$((size + size / 100 + 16 * MiB))
	image disk --size "$2M" --record-size "$1"
	attach "$image"
	fio --output="$tmp/fio" --filename="$device" --direct=1 --ioengine=libaio --iodepth=4 --name=fill --rw=write --bs=256k \
		--refill_buffers --verify=crc32c --verify_interval=4k --do_verify=0
	sync "$device"
	is "$(get mapped_blocks)" -eq $((size / 4096)) "mapped blocks"
	figure "full: $(($(allocated "$image") * 1000 / size)) thousandths of the device allocated"
	is "$(allocated "$image")" -le "$bound" "bytes allocated"
	written=$(get bytes_written) logged=$(get log_bytes) began=$(now)
	fio --output="$tmp/fio" --filename="$device" --direct=1 --ioengine=libaio --iodepth=4 --name=overwrite --rw=randwrite --bs=4k \
		--norandommap --randrepeat=0 --refill_buffers --verify=crc32c --do_verify=0 --fsync=64 "${@:3}" &
	fio=$!
	while kill -0 "$fio" 2>/dev/null; do
		now=$(allocated "$image")
		((now <= most)) || most=$now
		sleep 0.2
	done
	wait "$fio" || { cat "$tmp/fio"; false; }
	written=$(($(get bytes_written) - written)) logged=$(($(get log_bytes) - logged))
	figure "$((written / 4096)) blocks overwritten at $((written * 1000 / 4096 / ($(now) - began))) per second," \
		"$((logged * 10 / written)) tenths written to the image for each byte, $((most * 1000 / size)) thousandths allocated at most"
	is "$most" -le "$bound" "bytes allocated while blocks were overwritten"
	settles "$bound"
	figure "at rest: $(($(allocated "$image") * 1000 / size)) thousandths"
	# Each block contains its own place.
	fio --output="$tmp/fio" --filename="$device" --direct=1 --ioengine=libaio --iodepth=4 --name=verify --rw=read --bs=256k \
		--verify=crc32c --verify_interval=4k --verify_fatal=1 || { cat "$tmp/fio"; false; }
	reattach "$image"
	settles "$bound"
	detach "$device"
}
if [[ ${long:-} ]]; then
	check "full of noise, and overwritten for long: not much more than the device" full_of_noise 64K 256 --time_based --runtime=1200
else
	check "full of noise, and overwritten: not much more than the device" full_of_noise 64K 64 --io_size=6M
fi

# --- different writers -------------------------------------------------------------

# stored OPTION...: the stored part, in thousandths, of 16 MiB that fio writes with these options, in
# $share.
stored() {
	local before
	blkdiscard "$device"
	before=$(get live_bytes)
	fio --output="$tmp/fio" --filename="$device" --direct=1 --ioengine=libaio --iodepth=4 --name=write --refill_buffers "$@" ||
		{ cat "$tmp/fio"; false; }
	sync "$device"
	is "$(get mapped_blocks)" -eq $((16 * 256)) "mapped blocks"
	share=$((($(get live_bytes) - before) * 1000 / (16 * MiB)))
}

# writers RECORD-SIZE BS
writers() {
	local order share least=1000 most=0 shares=()
	image disk --size 64M --record-size "$1"
	attach "$image"
	for order in write randwrite; do
		for jobs in 1 4; do
			stored --bs="$2" --rw=$order --numjobs=$jobs --size=$((16 / jobs))M --offset_increment=$((16 / jobs))M --buffer_compress_percentage=40
			shares+=("$share")
			((share >= least)) || least=$share
			((share <= most)) || most=$share
		done
	done
	figure "blocks of $2, thousandths stored, by 1 and 4 in order, by 1 and 4 at random: ${shares[*]}"
	# 600 of 1000 bytes are not compressible.
	is "$least" -ge 600 "thousandths stored"
	is "$most" -le 640 "thousandths stored"
	is $((most * 100)) -le $((least * 102)) "thousandths stored at most and at least, within 2 %"
	detach "$device"
}
check "number and order of writers do not matter, blocks of 64K" writers 64K 64k
check "number and order of writers do not matter, blocks of 4K" writers 64K 4k

ratios() {
	local left share shares=()
	image disk --size 64M
	attach "$image"
	for left in 20 45 55 75 90; do
		stored --bs=64k --rw=write --size=16M --buffer_compress_percentage=$((100 - left))
		shares+=("$share")
		is "$share" -ge $((left * 10)) "thousandths stored of $left %"
		is "$share" -le $((left * 10 + 40)) "thousandths stored of $left %"
	done
	figure "thousandths stored of 200, 450, 550, 750, 900: ${shares[*]}"
	detach "$device"
}
check "data of any compressibility takes its compressed size" ratios
