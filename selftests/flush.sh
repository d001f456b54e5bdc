#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Flush and FUA: exactly as many syncs of the backing file as were requested.
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# counted: syncs and checkpoints of the device, when neither is under way, in $count.
counted() {
	local before
	count=$(get syncs)\ $(get checkpoints)
	while before=$count && sleep 0.1; do
		count=$(get syncs)\ $(get checkpoints)
		[[ $count != "$before" ]] || return 0
	done
}

# syncs COMMAND...: count how often COMMAND makes the backing file durable, in $syncs, and how often the
# disk below it flushes its cache, in $disk_flushes. A device that was idle for five seconds writes
# checkpoints with two syncs each: those are not counted.
syncs() {
	local count before disk_before checkpoints all
	counted
	before=$count
	disk_before=$(flushes "$disk1")
	"$@"
	counted
	all=$((${count% *} - ${before% *}))
	checkpoints=$((${count#* } - ${before#* }))
	disk_flushes=$(($(flushes "$disk1") - disk_before))
	syncs=$((all - 2 * checkpoints))
	((checkpoints == 0)) || disk_flushes=$((disk_flushes * syncs / all))
	printf '%s: %d syncs, %d flushes of the disk, %d checkpoints besides\n' "$*" "$syncs" "$disk_flushes" "$checkpoints"
}

# write_blocks COUNT DD-OPTION...: COUNT blocks, one dd each.
write_blocks() {
	local i count=$1
	shift
	for ((i = 0; i < count; i++)); do
		copy if="$tmp/noise" of="$device" bs=4K count=1 skip="$i" seek=$((i * 5)) "$@"
	done
}

sync_often() {
	local i
	for ((i = 0; i < $1; i++)); do
		sync "$2"
	done
}

raw() {
	image disk --size 64M
	attach "$image"
	noise "$tmp/noise" 1
	write_blocks 1 conv=fsync

	syncs write_blocks 20 oflag=direct
	is "$syncs" -eq 0 "syncs of 20 writes"
	syncs sync_often 1 "$device"
	is "$syncs" -eq 1 "syncs of a flush after them"
	is "$disk_flushes" -ge 1 "flushes of the disk"
	syncs sync_often 10 "$device"
	is "$syncs" -eq 0 "syncs of flushes with nothing to flush"
	is "$disk_flushes" -eq 0 "flushes of the disk with nothing to flush"
	figure "10 flushes with nothing to flush: $syncs syncs of the image, $disk_flushes flushes of the disk"

	syncs write_blocks 20 conv=fsync
	is "$syncs" -eq 20 "syncs of 20 writes with fsync"
	is "$disk_flushes" -ge 20 "flushes of the disk"
	syncs write_blocks 20 conv=fdatasync oflag=direct
	is "$syncs" -eq 20 "syncs of 20 direct writes with fdatasync"
	is "$disk_flushes" -ge 20 "flushes of the disk"

	# REQ_FUA. The flush that follows it finds nothing to do.
	syncs write_blocks 20 oflag=direct,dsync
	is "$syncs" -eq 20 "syncs of 20 FUA writes"
	is "$disk_flushes" -ge 20 "flushes of the disk"
	syncs copy if="$tmp/noise" of="$device" bs=4K count=32 oflag=direct,sync
	is "$syncs" -eq 32 "syncs of 32 O_SYNC writes"

	# A discard must be flushed; a discard of nothing needs no flush.
	syncs blkdiscard -o 0 -l 4096 "$device"
	is "$syncs" -eq 0 "syncs of a discard"
	syncs sync_often 2 "$device"
	is "$syncs" -eq 1 "syncs after a discard"
	blkdiscard -o $((48 * MiB)) -l $MiB "$device"
	syncs sync_often 2 "$device"
	is "$syncs" -eq 0 "syncs after a discard of nothing"
	# A read needs no flush.
	copy if="$device" of=/dev/null bs=1M iflag=direct
	syncs sync_often 2 "$device"
	is "$syncs" -eq 0 "syncs after reading"
	cmp -i 4096:0 -n $((31 * 4096)) "$tmp/noise" <(dd if="$device" bs=4K skip=1 count=31 iflag=direct status=none)
}

append_and_sync() {
	local i
	for ((i = 0; i < $1; i++)); do
		printf 'line %d\n' "$i" >>"$mnt/log"
		sync "$mnt/log"
	done
}

filesystem() {
	image disk --size 128M
	attach "$image"
	mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 "$device"
	mount "$device" "$mnt"
	cp /usr/bin/bash "$mnt"
	noise "$tmp/noise" 1
	sync
	sleep 1
	syncs append_and_sync 20
	# A journal commit is a flush before its commit block and a FUA write of it: at least one sync
	# in total.
	is "$syncs" -ge 20 "syncs of 20 fsyncs"
	is "$syncs" -le 60 "syncs of 20 fsyncs"
	is "$disk_flushes" -ge 20 "flushes of the disk"
	syncs sync_often 10 "$mnt/log"
	is "$syncs" -le 1 "syncs of fsyncs with nothing dirty"
	# Overwriting allocated blocks needs no journal: direct O_DSYNC writes are FUA and nothing else.
	noise "$mnt/data" 1
	sync "$mnt/data"
	syncs copy if="$tmp/noise" of="$mnt/data" bs=16K count=16 conv=notrunc oflag=direct,dsync
	is "$syncs" -ge 16 "syncs of 16 FUA writes"
	is "$syncs" -le 20 "syncs of 16 FUA writes"
	cmp -n $((256 * KiB)) "$tmp/noise" "$mnt/data"
	umount "$mnt"
}

# shared FIO-OPTION...: 16 processes, 20 times each, on a disk with slow flushes.
shared() {
	local below=/dev/mapper/selftest-disk sectors=$((192 * 2048))
	modprobe dm-delay
	dmsetup create selftest-disk --table "0 $sectors delay $disk2 0 0 $disk2 0 0 $disk2 0 100"
	disk1=$disk2
	cloop create --force --size 160M "$below"
	attach "$below"
	syncs fio --output="$tmp/fio" --filename="$device" --direct=1 --ioengine=psync --rw=randwrite --bs=4k \
		--size=4M --number_ios=20 --offset_increment=4M --numjobs=16 --name=together "$@"
	figure "320 requests to be durable, 16 at once, $*: $syncs syncs of the image, $disk_flushes flushes of the disk"
	# Requests that the device serves at the same time wait for the same flush, or for the next one.
	is "$syncs" -ge 20 "syncs of 320 requests to be durable"
	is "$syncs" -le 160 "syncs of 320 requests to be durable"
	is "$disk_flushes" -le 160 "flushes of the disk"
	detach "$device"
	intact "$below"
}

check "one sync for each flush and FUA write of the device, none for nothing" raw
check "one or more for each fsync of a file" filesystem
check "concurrent fsyncs share them" shared --fdatasync=1
check "concurrent FUA writes share them" shared --sync=dsync
