#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# 1 TiB with scattered blocks: neither time nor memory grows with the size.
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# Number of blocks, at equal distances, in turn from all parts of the device. In a long run every second
# block has a leaf of the table to itself, and all leaves together would take 2 GiB.
blocks=$(scaled 8192 128)
step=$((1024 * GiB / blocks))
origin=$((step / 4))
stride=$((blocks * 5 / 16 + 1))

# attaching IMAGE: milliseconds until the image is attached, the best of three times, in $took.
attaching() {
	local began _
	took=1000000
	for _ in 1 2 3; do
		began=$(now)
		attach "$1"
		began=$(($(now) - began))
		((began > took)) || took=$began
		is "$(get table_bytes)" -lt $((2 * MiB)) "memory of a table without any request"
		detach "$device"
	done
}

# Writes the blocks, from two processes, and watches the memory of the table.
scatter() {
	local half pids=() pid most=0 memory began
	began=$(now)
	for half in 0 1; do
		"$here/scatter.py" write "$device" $((origin + half * step)) $((2 * step)) 4096 $((blocks / 2)) "$stride" &
		pids+=($!)
	done
	while kill -0 "${pids[@]}" 2>/dev/null; do
		memory=$(get table_bytes)
		((memory <= most)) || most=$memory
		sleep 0.5
	done
	for pid in "${pids[@]}"; do
		wait "$pid"
	done
	figure "$blocks blocks written in $(($(now) - began)) ms, $((most / KiB)) KiB of table at most, $(($(allocated "$image") / MiB)) MiB of image"
	# Some nodes may be in use by the processes that have just loaded them.
	is "$most" -le $((33 * MiB)) "memory of the table"
	is "$(get mapped_blocks)" -eq "$blocks" "mapped blocks"
}

# Reads a quarter of the blocks.
gather() {
	local half pids=() pid began
	began=$(now)
	for half in 0 1; do
		"$here/scatter.py" verify "$device" $((origin + half * step)) $((8 * step)) 4096 $((blocks / 8)) "$stride" &
		pids+=($!)
	done
	for pid in "${pids[@]}"; do
		wait "$pid"
	done
	figure "$((blocks / 4)) blocks read in $(($(now) - began)) ms"
	is "$(get table_bytes)" -le $((33 * MiB)) "memory of the table"
}

huge() {
	local empty took began io copied=$backing/copied
	image empty --size 1T
	attaching "$image"
	empty=$took
	image disk --size 1T
	attach "$image"
	scatter
	sync "$device"
	# The state after a power cut: the file as it is while more is being written.
	"$here/scatter.py" write "$device" $((origin + step / 2)) "$step" 4096 $((blocks / 4)) &
	sleep 1
	cp --sparse=always "$image" "$copied"
	wait "$!"
	detach "$device"
	intact "$image"
	attaching "$image"
	figure "attached in $took ms, an empty one in $empty ms"
	# Both are slow under emulation, but equally so.
	is "$took" -le $((empty * 2 + 200)) "milliseconds to attach"

	began=$(now)
	attach "$copied"
	figure "attached after the power cut in $(($(now) - began)) ms, $(get replayed_records) records replayed"
	is $(($(now) - began)) -lt 60000 "milliseconds to recover"
	is "$(get mapped_blocks)" -ge "$blocks" "mapped blocks"
	is "$(get table_bytes)" -le $((33 * MiB)) "memory of the table"
	gather
	detach "$device"
	rm "$copied"

	# Almost all of it is discarded, with no leaf in memory, while other processes work in the
	# remaining part.
	attach "$image"
	fio --output="$tmp/fio" --output-format=json --name=io --filename="$device" --direct=1 --ioengine=psync --rw=randrw --bs=4k \
		--offset=1023G --size=512M --time_based --runtime="$(scaled 10 6)" &
	io=$!
	sleep 4
	is "$(get table_bytes)" -lt $((4 * MiB)) "memory of a table without any request"
	began=$(now)
	blkdiscard -f -l 1023G "$device"
	took=$(($(now) - began))
	wait "$io"
	figure "1023 GiB of it discarded in $took ms; beside it $(jq -r '.jobs[0] |
		"\(.read.total_ios + .write.total_ios) reads and writes, of which the slowest took \([.read.clat_ns.max, .write.clat_ns.max] | max / 1e6 | round)"
		' "$tmp/fio") ms"
	# One second on a real machine; the emulated one is ten to fifteen times slower.
	is "$took" -lt 10000 "milliseconds to discard"
	blkdiscard -f "$device"
	zeros "$device" $((origin + step)) 4096
	# The discarded blocks are counted in the background.
	began=$(now)
	until (($(get mapped_blocks) == 0)); do
		is $(($(now) - began)) -lt "$(scaled 180000 5)" "milliseconds until all is counted, with $(get mapped_blocks) blocks left"
		sleep 0.5
	done
	figure "all of it counted $(($(now) - began)) ms later"
	cloop compact "$device"
	is "$(allocated "$image")" -lt $((16 * MiB)) "bytes allocated"
	figure "then $(($(allocated "$image") / MiB)) MiB of image, of which $(($(get reserved_bytes) / MiB)) MiB are reserved"
	reattach "$image"
	is "$(get mapped_blocks)" -eq 0 "mapped blocks"
	detach "$device"
	is "$(allocated "$image")" -lt $MiB "bytes allocated"
}
check "1 TiB: attach, recovery, memory and discard" huge
