# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
# Every write is logged, below cloop and above it, and replayed to moments at which something was
# promised.
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

lower=/dev/mapper/selftest-lower
log_disk=/dev/mapper/selftest-log
logged=/dev/mapper/selftest-logged
megabytes=192

# log_writes DEVICE: $logged is the device, with a log of all writes to it.
log_writes() {
	modprobe dm-log-writes
	dmsetup create selftest-log --table "0 $((2048 * 2048)) linear $disk2 $((512 * 2048))"
	copy if=/dev/zero of="$log_disk" bs=64K count=1 oflag=direct
	dmsetup create selftest-logged --table "0 $(blockdev --getsz "$1") log-writes $1 $log_disk"
}

# end_log: $tmp/log lists the entries, $entries is their number.
end_log() {
	dmsetup remove selftest-logged
	blockdev --flushbufs "$log_disk"
	"$here/replay.py" list "$log_disk" >"$tmp/log"
	entries=$(wc -l <"$tmp/log")
}

# summary: a summary of the log.
summary() {
	awk '{ n[$2]++ } END { for (kind in n) printf "%d %s ", n[kind], kind }' "$tmp/log"
}

# moments KIND COUNT: the numbers of COUNT random entries of this kind, or of all in a long run.
moments() {
	awk -v kind="$1" '$2 == kind && $0 !~ /dm-log-writes-end/ { print $1 }' "$tmp/log" |
		if ((${long:-0})); then cat; else shuf -n "$2"; fi
}

# promised NUMBER: the promises made before this entry.
promised() {
	awk -v end="$1" '$2 == "mark" && $1 <= end && gsub("/", " ")' "$tmp/log" >"$tmp/promised"
}

# durable DEVICE: the file system on it holds everything that was promised, and fsck finds nothing.
durable() {
	mount "$1" "$mnt"
	if [[ -s $tmp/promised ]]; then
		"$here/promises.py" verify "$tmp/promised" "$mnt/work"
	fi
	umount "$mnt"
	e2fsck -fn "$1"
}

# recovered: the same for the image in $tmp/copy.
recovered() {
	intact "$tmp/copy"
	attach "$tmp/copy"
	durable "$device"
	detach "$device"
	intact "$tmp/copy"
	looked=$((looked + 1))
}

# The file system exists before the first promise, which is made after mkfs.
first_promise() {
	awk '$2 == "mark" { print $1; exit }' "$tmp/log"
}

below() {
	local at done_until=0 first next looked=0
	blkdiscard --zeroout -l $((megabytes * MiB)) "$disk2"
	dmsetup create selftest-lower --table "0 $((megabytes * 2048)) linear $disk2 0"
	log_writes "$lower"
	cloop create --force --size 160M --record-size 32K "$logged"
	attach "$logged"
	mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 "$device"
	mount "$device" "$mnt"
	mkdir "$mnt/work"
	"$here/promises.py" work --writers 2 --operations "$(scaled 24)" --mark selftest-logged "$mnt/work" >/dev/null
	umount "$mnt"
	detach "$device"
	end_log
	first=$(first_promise)
	truncate -s "${megabytes}M" "$tmp/base"
	{
		moments mark 2
		moments flush 2
	} | sort -n >"$tmp/moments"
	while read -r at; do
		((at >= first)) || continue
		"$here/replay.py" apply "$log_disk" "$tmp/base" "$done_until" $((at + 1))
		done_until=$((at + 1))
		promised "$at"
		cp --sparse=always "$tmp/base" "$tmp/copy"
		recovered
		# Between this moment and the next flush any of these writes may have been lost.
		next=$(awk -v at="$at" '$1 > at && $2 == "flush" { print $1; exit }' "$tmp/log")
		if [[ -n $next ]]; then
			cp --sparse=always "$tmp/base" "$tmp/copy"
			"$here/replay.py" apply "$log_disk" "$tmp/copy" $((at + 1)) "$next" "$at"
			recovered
		fi
	done <"$tmp/moments"
	figure "$looked states of the disk recovered, of a log with $(summary)"
	is "$looked" -ge 3 "states of the disk"
}
check "below: flushed data is there when only that is on the disk" below

above() {
	local at done_until=0 looked=0 kind first loop
	modprobe loop
	image disk --size "${megabytes}M"
	attach "$image"
	log_writes "$device"
	mkfs.ext4 -q "$logged"
	mount -o discard "$logged" "$mnt"
	mkdir "$mnt/work"
	"$here/promises.py" work --writers 2 --operations "$(scaled 24)" --mark selftest-logged "$mnt/work" >/dev/null
	rm -r "$mnt/work/bystander"
	fstrim "$mnt"
	umount "$mnt"
	end_log
	# The requests of a file system have reached the disk.
	for kind in flush fua discard; do
		is "$(grep -c " $kind " "$tmp/log")" -ge 1 "entries of the kind $kind"
	done
	first=$(first_promise)
	truncate -s "${megabytes}M" "$tmp/base"
	{
		moments mark 2
		moments flush 1
	} | sort -n >"$tmp/moments"
	while read -r at; do
		((at >= first)) || continue
		"$here/replay.py" apply "$log_disk" "$tmp/base" "$done_until" $((at + 1))
		done_until=$((at + 1))
		promised "$at"
		cp --sparse=always "$tmp/base" "$tmp/copy"
		loop=$(losetup --find --show "$tmp/copy")
		durable "$loop"
		losetup -d "$loop"
		looked=$((looked + 1))
	done <"$tmp/moments"
	is "$looked" -ge 2 "moments"
	figure "$looked moments replayed, of a log with $(summary)"
	# Replaying all entries in the order of the log gives what the device reads as.
	"$here/replay.py" apply "$log_disk" "$tmp/base" "$done_until" "$entries"
	same "$tmp/base" "$device"
	reattach "$image"
	same "$tmp/base" "$device"
}
check "above: flush, FUA and discard pass, in their order" above
