# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
# One kind of disk error at a time: who is told, what continues, and what is left.
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

below=/dev/mapper/selftest-disk
sectors=$((192 * 2048))
tail_sectors=2048	# behind what an image takes

# disk [FEATURE...]: from now on the disk has these features of dm-flakey, or none.
disk() {
	table "0 $sectors $(target 0 "$@")"
}

# flushes_fail: from now on only flushes fail, because they go to each part of a disk.
flushes_fail() {
	table "0 $((sectors - tail_sectors)) $(target 0)
$((sectors - tail_sectors)) $tail_sectors $(target $((sectors - tail_sectors)) error_writes)"
}

target() {
	local start=$1 count
	shift
	count=$#
	if ((count > 0)); then
		printf 'flakey %s %d 0 1 %d %s' "$disk2" "$start" "$count" "$*"
	else
		printf 'linear %s %d' "$disk2" "$start"
	fi
}

# table TABLE: I/O in flight ends first, with the old table.
table() {
	if [[ ! -e $below ]]; then
		modprobe dm-flakey
		dmsetup create selftest-disk --table "$1"
		return
	fi
	dmsetup suspend --noflush --nolockfs selftest-disk
	dmsetup load selftest-disk --table "$1"
	dmsetup resume selftest-disk
}

# said KIND: the number of lines in the kernel log about failed requests of this kind.
said() {
	dmesg | grep -cE "cloop$index: $1 (at block [0-9]+ )?failed: I/O error on the backing file" || :
}

failed_flag() {
	(($(get flags) & 8))
}

# sticky: from now on every write, discard and flush is an error, whatever the disk does, and
# repeatedly.
sticky() {
	local i
	for i in 1 2; do
		fails 1 "Input/output error" dd if="$tmp/noise" of="$device" bs=64K count=1 seek=$((90 + i)) oflag=direct status=none
		fails 1 "Input/output error" sync "$device"
		fails 1 "Input/output error" blkdiscard -o 0 -l $((64 * KiB)) "$device"
	done
	is "$(get error)" -ne 0 "error of the device"
}

# after_all: the disk works again. The detach reports the failure, and nothing that was durable is lost.
after_all() {
	disk
	fails 1 "detached, but its image could not be closed cleanly" cloop detach "$device"
	[[ ! -e $device ]] || fail "$device is still there"
	intact "$below"
	attach "$below"
	is $(($(get flags) & 8)) -eq 0 "the flag of failure"
}

prepare() {
	disk
	cloop create --force --size 160M --record-size 64K "$below"
	attach "$below"
	noise "$tmp/noise" 4
	copy if="$tmp/noise" of="$device" bs=64K oflag=direct conv=fsync
	# Reads must come from the disk.
	reattach "$below"
}

reads() {
	local before
	prepare
	before=$(said read)
	# The table is loaded: later reads need only the record.
	cmp -n $((64 * KiB)) "$tmp/noise" <(dd if="$device" bs=64K count=1 iflag=direct status=none)
	disk error_reads
	fails 1 "Input/output error" dd if="$device" of=/dev/null bs=64K count=1 skip=3 iflag=direct status=none
	fails 1 "Input/output error" dd if="$device" of=/dev/null bs=4K count=1 skip=100 iflag=direct status=none
	is $(($(said read) - before)) -ge 1 "messages"
	is $(($(said read) - before)) -le 10 "messages"
	# Nothing else fails: neither writes where the table is loaded, nor flushes.
	copy if="$tmp/noise" of="$device" bs=64K count=4 skip=20 seek=8 oflag=direct conv=fsync
	is "$(get error)" -eq 0 "error of the device"
	no failed_flag
	# The same reads succeed when the disk works.
	disk
	cmp -n $((256 * KiB)) -i $((20 * 65536)):0 "$tmp/noise" <(dd if="$device" bs=64K skip=8 count=4 iflag=direct status=none)
	copy if="$tmp/noise" of="$device" bs=64K count=4 skip=8 seek=8 oflag=direct
	same "$tmp/noise" "$device"
	reattach "$below"
	same "$tmp/noise" "$device"
	detach "$device"
}
check "reads fail: these reads alone, until the disk is well again" reads

corrupt() {
	local i good=0 bad=0
	prepare
	cmp -n $((64 * KiB)) "$tmp/noise" <(dd if="$device" bs=64K count=1 iflag=direct status=none)
	# In each read the last byte of its first sector is corrupted; in the read of a record that byte
	# is its own.
	disk corrupt_bio_byte 512 r 85 0
	for i in {0..31}; do
		if dd if="$device" of="$tmp/read" bs=64K skip="$i" count=1 iflag=direct status=none 2>"$tmp/error"; then
			cmp -n $((64 * KiB)) -i $((i * 65536)):0 "$tmp/noise" "$tmp/read"
			good=$((good + 1))
		else
			bad=$((bad + 1))
		fi
	done
	printf '%d good, %d refused\n' "$good" "$bad"
	is "$bad" -ge 28 "reads that were refused"
	disk
	same "$tmp/noise" "$device"
	detach "$device"
	intact "$below"
}
check "the disk hands out wrong bytes: none of them goes further" corrupt

writes() {
	prepare
	disk error_writes
	# These writes are accepted: they are only in memory, and no flush was requested.
	copy if="$tmp/noise" of="$device" bs=64K count=2 seek=80 oflag=direct
	fails 1 "Input/output error" sync "$device"
	failed_flag
	sticky
	# Data on the disk and data in memory is read as before.
	same "$tmp/noise" "$device"
	disk
	sticky
	same "$tmp/noise" "$device"
	after_all
	same "$tmp/noise" "$device"
	detach "$device"
}
check "writes fail: every flush says so until the device is detached" writes

flush_only() {
	prepare
	flushes_fail
	copy if="$tmp/noise" of="$device" bs=64K count=4 seek=80 oflag=direct
	same "$tmp/noise" "$device"
	no failed_flag
	fails 1 "Input/output error" sync "$device"
	failed_flag
	is "$(said flush)" -ge 1 "messages"
	sticky
	same "$tmp/noise" "$device"
	# A disk that works again may have forgotten nothing, but nothing proves that.
	disk
	sticky
	after_all
	same "$tmp/noise" "$device"
	detach "$device"
}
check "flushes fail: sticky, though every write succeeds" flush_only

fua() {
	prepare
	flushes_fail
	fails 1 "Input/output error" dd if="$tmp/noise" of="$device" bs=4K count=1 seek=2000 oflag=direct,dsync status=none
	failed_flag
	sticky
	after_all
	same "$tmp/noise" "$device"
	detach "$device"
}
check "flushes fail: a FUA write is not acknowledged" fua

# promising FEATURE...: programs rely on files while the disk gets these features.
promising() {
	local workers
	noise "$tmp/noise" 1
	disk
	cloop create --force --size 160M "$below"
	attach "$below"
	mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 "$device"
	mount "$device" "$mnt"
	mkdir "$mnt/work"
	sync "$mnt"
	"$here/promises.py" work --writers 2 "$mnt/work" >"$tmp/promised" 2>"$tmp/stopped" &
	workers=$!
	sleep 2
	if [[ $1 == flush ]]; then
		flushes_fail
	else
		disk "$@"
	fi
	# Every program that relies on the disk receives an error.
	no wait "$workers"
	is "$(grep -c "^writer: " "$tmp/stopped")" -eq 2 "writers that heard of the error"
	failed_flag
	umount "$mnt"
	sticky
	after_all
	mount "$device" "$mnt"
	"$here/promises.py" verify "$tmp/promised" "$mnt/work"
	umount "$mnt"
	e2fsck -fn "$device"
	reattach "$below"
	e2fsck -fn "$device"
	detach "$device"
}
check "a file system, and writes fail: nothing promised is lost" promising error_writes
check "a file system, and flushes fail: nothing promised is lost" promising flush

backing_filesystem() {
	local workers
	disk
	mkfs.ext4 -q -F "$below"
	mount "$below" "$mnt"
	cloop create --size 160M "$mnt/disk"
	attach "$mnt/disk"
	mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 "$device"
	mount "$device" "$mnt2"
	mkdir "$mnt2/work"
	sync "$mnt2"
	"$here/promises.py" work --writers 2 "$mnt2/work" >"$tmp/promised" 2>"$tmp/stopped" &
	workers=$!
	sleep 2
	disk error_writes
	no wait "$workers"
	failed_flag
	umount "$mnt2"
	noise "$tmp/noise" 1
	sticky
	fails 1 "detached, but its image could not be closed cleanly" cloop detach "$device"
	umount "$mnt"
	disk
	e2fsck -fp "$below" || is $? -le 1 "status of e2fsck"
	mount "$below" "$mnt"
	intact "$mnt/disk"
	attach "$mnt/disk"
	mount "$device" "$mnt2"
	"$here/promises.py" verify "$tmp/promised" "$mnt2/work"
	umount "$mnt2"
	e2fsck -fn "$device"
	detach "$device"
	umount "$mnt"
}
check "writes of the file system below fail: nothing promised is lost" backing_filesystem

# The worst that a disk can do: it acknowledges, and forgets.
forgetful() {
	local i good=0 bad=0 copied
	prepare
	noise "$tmp/new" 32
	disk drop_writes
	# A checkpoint that does not find the last superblock stops the device. What was acknowledged until then counts.
	copied=$(LC_ALL=C dd if="$tmp/new" of="$device" bs=64K oflag=direct conv=fsync 2>&1 |
		sed -n 's/^\([0-9]*\)+.* records out$/\1/p') || :
	is "$copied" -ge 64 "records that were acknowledged"
	for ((i = 0; i < copied; i += 8)); do
		if dd if="$device" of="$tmp/read" bs=64K skip="$i" count=1 iflag=direct status=none 2>"$tmp/error"; then
			cmp -n $((64 * KiB)) -i $((i * 65536)):0 "$tmp/new" "$tmp/read"
			good=$((good + 1))
		else
			bad=$((bad + 1))
		fi
	done
	printf '%d good, %d refused\n' "$good" "$bad"
	is "$bad" -ge $((copied / 20)) "reads that were refused"
	cloop detach "$device" || :
	disk
	# The state is old, but consistent.
	attach "$below"
	same "$tmp/noise" "$device"
	zeros "$device" $((5 * MiB)) $MiB
	detach "$device"
	intact "$below"
}
check "the disk drops writes: an error or the right data, never old data" forgetful
