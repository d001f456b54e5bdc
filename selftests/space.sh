#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# The space that an image takes: full of noise, and whoever writes it.
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# --- full of noise ---------------------------------------------------------------

# settles BOUND: the image takes no more than that, soon.
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
	# What reclaim moves it has twice for a moment.
	is "$most" -le $((bound + 8 * MiB)) "bytes allocated while blocks were overwritten"
	settles "$bound"
	figure "at rest: $(($(allocated "$image") * 1000 / size)) thousandths"
	# Each block says where it belongs.
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

# --- whoever writes ----------------------------------------------------------------

# stored OPTION...: thousandths of 16 MiB that is stored when fio writes it like this, in $share.
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
	# 600 are not to be compressed.
	is "$least" -ge 600 "thousandths stored"
	is "$most" -le 640 "thousandths stored"
	is $((most * 100)) -le $((least * 102)) "thousandths stored at most and at least, within 2 %"
	detach "$device"
}
check "who writes does not matter, blocks of 64K" writers 64K 64k
check "who writes does not matter, blocks of 4K" writers 64K 4k

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
check "what compresses to any share is stored at it" ratios
