#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# The algorithms and their levels, and changes from one to another.
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# chosen NAME: the compression of $device is NAME, according to sysfs and to the tool.
chosen() {
	is "$(<"/sys/block/$name/cloop/compress")" = "$1" "compression in sysfs"
	is "$(<"/sys/block/$name/cloop/algorithm")" = "${1%:*}" "algorithm in sysfs"
	cloop info "$device" | grep -q "^Compression: *$1, records"
}

ext4() {
	image disk --size 320M --compress "$1"
	attach "$image"
	chosen "$1"
	mkfs.ext4 -q "$device"
	mount "$device" "$mnt"
	work "$mnt"
	sync
	drop_caches
	unchanged "$mnt"
	umount "$mnt"
	reattach "$image"
	chosen "$1"
	mount "$device" "$mnt"
	unchanged "$mnt"
	umount "$mnt"
	e2fsck -fn "$device"
	is "$(get replaced)" -eq 0 "records that became LZ4"
	detach "$device"
}
check "ext4 with zstd at level 1" ext4 zstd:1
check "ext4 with zstd at level 9" ext4 zstd:9

# Each step saves more than the one before, and every image has the same contents.
levels() {
	local level bytes before=$GiB size
	size=$(scaled 6 3)
	data "$tmp/data" "$size"
	for level in none lz4 zstd:1 zstd:9 zstd:19; do
		image "$level" --size 32M --record-size 128K --compress "$level"
		attach "$image"
		copy if="$tmp/data" of="$device" bs=1M oflag=direct
		sync "$device"
		same "$tmp/data" "$device"
		bytes=$(get live_bytes)
		figure "$level: $bytes bytes"
		is "$bytes" -lt "$before" "live bytes with $level"
		before=$bytes
		detach "$device"
		# What the kernel has written, the tool's library reads, and the other way round.
		cloop export --force "$image" "$tmp/back"
		cmp -n $((size * MiB)) "$tmp/data" "$tmp/back"
		intact "$image"
		rm "$image"
		cloop import --compress "$level" "$tmp/data" "$image"
		attach --read-only "$image"
		same "$tmp/data" "$device"
		detach "$device"
		rm "$image"
	done
}
check "levels, and images of kernel and tool" levels

# settle NAME WAY: change the compression of $device by sysfs or by the tool.
settle() {
	case $2 in
	sysfs) printf '%s\n' "$1" >"/sys/block/$name/cloop/compress" ;;
	tool) is "$(cloop set --compress "$1" "$device")" = "$device: new data is compressed with $1" "what set says" ;;
	esac
	chosen "$1"
}

# A copy of the image at one moment is what a crash of the machine would leave.
changed() {
	local writer i rounds with ways=(tool sysfs)
	image disk --size 64M
	attach "$image"
	data "$tmp/data" 24
	(
		while [[ ! -e $tmp/stop ]]; do
			copy if="$tmp/data" of="$device" bs=512K oflag=direct
			blkdiscard -o $((8 * MiB)) -l $((8 * MiB)) "$device"
		done
	) &
	writer=$!
	rounds=$(scaled 5 3)
	for ((i = 0; i < rounds; i++)); do
		for with in zstd:1 none zstd:12 lz4; do
			settle "$with" "${ways[i % 2]}"
			((i % 4)) || {
				trap 'fsfreeze -u "$backing"' EXIT
				fsfreeze -f "$backing"
				copy if="$image" of="$tmp/copy" bs=1M
				trap - EXIT
				fsfreeze -u "$backing"
				cloop info --json "$tmp/copy" >"$tmp/info"
				is "$(jq -r '.algorithm + if .level then ":\(.level)" else "" end' "$tmp/info")" = "$with" \
					"compression after a crash"
			}
		done
	done
	touch "$tmp/stop"
	wait "$writer"
	copy if="$tmp/data" of="$device" bs=512K oflag=direct
	same "$tmp/data" "$device"
	settle zstd:3 tool
	reattach "$image"
	chosen zstd:3
	same "$tmp/data" "$device"
	cloop compact "$device"
	same "$tmp/data" "$device"
	detach "$device"
	intact "$image"
}
check "changes beside writers, which survive a crash" changed

# The first record marks the image for older versions; the choice alone does not.
marked() {
	local mark=(od -An -t u1 -j 32 -N 1)
	image disk --size 16M --compress zstd --recompress none
	attach "$image"
	sync "$device"
	is "$("${mark[@]}" "$image")" -eq 0 "features before the first write"
	copy if=/usr/bin/bash of="$device" bs=64K count=1 oflag=direct
	is "$("${mark[@]}" "$image")" -eq 2 "features after the first write"
	settle lz4 tool
	detach "$device"
	is "$("${mark[@]}" "$image")" -eq 2 "features for ever"
	cloop set --recompress lz4 "$image"
	cloop set --recompress none "$image"
	is "$("${mark[@]}" "$image")" -eq 6 "features after recompression"
}
check "an image is marked with its first record of zstd" marked

refused() {
	local wrong
	image disk --size 16M
	attach "$image"
	for wrong in zstd:0 zstd:20 zstd: lz4:1 gzip "zstd 3" ""; do
		fails 1 "Invalid argument" tee "/sys/block/$name/cloop/compress" <<<"$wrong"
	done
	# Algorithms and levels that there are not, no setting, and a field that is not zero.
	for wrong in "1 2 0" "1 2 20" "1 1 1" "1 3 1" "0 2 3" "17 2 3" "1 2 3 1" "2 0 0 2 0" "2 0 0 3 1" "2 1 0 2 9" "4 0 0 0 0 9 9" \
		"1 2 3 0 0 0 9"; do
		# shellcheck disable=SC2086 # words
		fails 1 "^EINVAL\$" "$here/control.py" set "$index" $wrong
	done
	fails 1 "^ENXIO\$" "$here/control.py" set 900 1 2 3
	fails 1 "^EPERM\$" "$here/control.py" set --user 65534 "$index" 1 2 3
	for wrong in "0 0 0" "0 2 0" "0 2 20" "1 2 9" "0 3 1"; do
		# shellcheck disable=SC2086 # words
		fails 1 "^EINVAL\$" "$here/control.py" recompress "$index" $wrong
	done
	fails 1 "^ENXIO\$" "$here/control.py" recompress 900 0 2 9
	fails 1 "^EPERM\$" "$here/control.py" recompress --user 65534 "$index" 0 2 9
	for wrong in zstd:0 gzip lz4:1; do
		fails 1 "Invalid argument" tee "/sys/block/$name/cloop/recompress" <<<"$wrong"
	done
	fails 1 "Invalid argument" tee "/sys/block/$name/cloop/recompress_after" <<<$((1 << 32))
	chosen lz4
	fails 1 "in use as $device" cloop set --compress zstd "$image"
	detach "$device"
	attach --read-only "$image"
	fails 1 "read-only; detach it" cloop set --compress zstd "$device"
	fails 1 "Read-only file system" tee "/sys/block/$name/cloop/compress" <<<zstd
	chosen lz4
	detach "$device"
	fails 1 "nothing is attached" cloop set --compress zstd "$device"
}
check "what is refused" refused

# at_rest: wait until all data of the device was looked at that could be compressed again.
at_rest() {
	local i
	for ((i = 0; i < 120; i++)); do
		(($(get pending_bytes) > 0)) || return 0
		sleep 1
	done
	return 1
}

# as_new ALGORITHM: the live bytes of an image to which $tmp/data is imported, rounded up to the size of a device.
as_new() {
	local file=$tmp/as-new
	cloop import --force --record-size 128K --compress "$1" "$tmp/data" "$file"
	cloop info --json "$file" | jq .live_bytes
	rm "$file"
}

# An idle device becomes as small as one that was written with the strong algorithm, and then writes nothing more.
idle() {
	local size bytes before direct written
	size=$(scaled 8 4)
	data "$tmp/data" "$size"
	image disk --size "${size}M" --record-size 128K --recompress zstd:9
	attach "$image"
	is "$(<"/sys/block/$name/cloop/recompress")" = zstd:9 "recompression in sysfs"
	is "$(<"/sys/block/$name/cloop/recompress_after")" -eq 600 "seconds until data is cold"
	copy if="$tmp/data" of="$device" bs=1M oflag=direct
	# A quarter of it again, block by block.
	fio --name=scatter --filename="$device" --rw=randwrite --bs=4k --size="${size}M" --io_size=$((size / 4))M --direct=1 \
		--end_fsync=1 --buffer_compress_percentage=50 --refill_buffers >"$tmp/fio"
	copy if="$device" of="$tmp/data" bs=1M iflag=direct
	before=$(get live_bytes)
	echo 0 >"/sys/block/$name/cloop/recompress_after"
	at_rest
	direct=$(as_new zstd:9)
	bytes=$(get live_bytes)
	figure "$before bytes, $bytes after recompression, $direct imported"
	is "$bytes" -le $((direct * 105 / 100)) "live bytes at rest"
	is "$bytes" -lt "$before" "live bytes at rest"
	same "$tmp/data" "$device"
	# What was replaced is freed, and that is all.
	sleep 8
	written=$(get log_bytes)
	sleep 8
	is "$(get log_bytes)" -eq "$written" "bytes written at rest"
	reattach "$image"
	is "$(get pending_bytes)" -eq 0 "bytes to look at after attaching"
	same "$tmp/data" "$device"
	detach "$device"
	intact "$image"
}
check "an idle device compresses its data again, and comes to rest" idle

# All at once, beside a writer.
at_once() {
	local size writer
	size=$(scaled 8 4)
	data "$tmp/data" "$size"
	image disk --size $((2 * size))M --record-size 128K --recompress none
	attach "$image"
	copy if="$tmp/data" of="$device" bs=1M oflag=direct
	(
		while [[ ! -e $tmp/stop ]]; do
			copy if="$tmp/data" of="$device" bs=256K seek=$((size * 4)) oflag=direct
		done
	) &
	writer=$!
	cloop compact --recompress zstd:12 "$device"
	touch "$tmp/stop"
	wait "$writer"
	is "$(get recompressed_bytes)" -gt 0 "bytes that were compressed again"
	head -c "${size}M" "$device" | cmp - "$tmp/data"
	tail -c "${size}M" "$device" | cmp - "$tmp/data"
	detach "$device"
	cloop compact --recompress zstd:19 "$image"
	intact "$image"
	is "$(cloop info --json "$image" | jq .live_bytes)" -le $((2 * $(as_new zstd:19) * 102 / 100)) "live bytes of the image"
}
check "all data is compressed again on request, beside a writer" at_once

# Contexts are given back when they are not needed.
memory() {
	local idle
	image disk --size 64M --record-size 128K --compress zstd:15
	attach "$image"
	sleep 5
	idle=$(get memory_bytes)
	data "$tmp/data" 16
	copy if="$tmp/data" of="$device" bs=1M oflag=direct
	is "$(get memory_bytes)" -gt $((idle + 2 * MiB)) "memory under load"
	drop_caches
	sleep 9
	# The context to decompress stays, and nodes of the table.
	is "$(get memory_bytes)" -lt $((idle + MiB)) "memory when idle"
	detach "$device"
}
check "memory comes and goes" memory
