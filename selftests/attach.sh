#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Attaching and detaching: what appears, and what is refused.
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

attach_and_detach() {
	local queue
	image disk --size 64M --record-size 32K
	attach "$image"
	is "$(blockdev --getsize64 "$device")" -eq $((64 * MiB)) "size"
	is "$(blockdev --getss "$device")" -eq 4096 "logical block size"
	is "$(blockdev --getpbsz "$device")" -eq 4096 "physical block size"
	is "$(blockdev --getro "$device")" -eq 0 "read-only"
	queue=/sys/block/$name/queue
	is "$(<"$queue/write_cache")" = "write back" "write cache"
	is "$(<"$queue/fua")" -eq 1 "fua"
	is "$(<"$queue/discard_granularity")" -eq 4096 "discard granularity"
	is "$(<"$queue/discard_max_bytes")" -ge $((1 * GiB)) "largest discard"
	is "$(<"$queue/write_zeroes_max_bytes")" -ge $((1 * GiB)) "largest write-zeroes"
	is "$(<"$queue/max_hw_sectors_kb")" -ge 1024 "largest request"
	is "$(<"$queue/stable_writes")" -eq 0 "stable writes"
	# For each CPU one for reads, and one for everything else.
	is "$(find "/sys/block/$name/mq" -mindepth 1 -maxdepth 1 | wc -l)" -eq $((2 * $(nproc))) "hardware queues"
	is "$(cloop list --json | jq -r '.cloopdevices[] | "\(.name) \(.size) \(.ro) \(."back-file")"')" = \
		"$device $((64 * MiB)) false $image" "list"
	cloop list | grep "^$device .* $image\$"
	is "$(cloop info --json "$device" | jq -r '"\(.state) \(.device) \(.record_size) \(.algorithm)"')" = \
		"attached $device 32768 lz4" "info"
	cloop info "$image" | grep "attached as $device\$"
	detach "$device"
	[[ ! -e /sys/block/$name ]] || fail "the device is still there"
	is "$(cloop list)" = "" "list"
	is "$(cloop info --json "$image" | jq -r .state)" = clean "state"
}
check "a device appears, says what it is, and goes" attach_and_detach

# figures: data, live records, ratio, allocated and reserved bytes of the only device, by cloop list.
figures() {
	cloop list --json | jq -r '.cloopdevices[0] | "\(.mapped_bytes) \(.live_bytes) \(.ratio) \(.allocated_bytes) \(.reserved_bytes)"'
}

honest() {
	local mapped live ratio allocated reserved
	image disk --size 1G
	attach "$image"
	read -r mapped live ratio allocated reserved <<<"$(figures)"
	is "$mapped $ratio" = "0 null" "data and ratio"
	is "$live" -lt 4096 "bytes of live records"
	is "$reserved" -ge $((7 * MiB)) "bytes reserved"
	is "$((allocated - reserved))" -le $((3 * MiB)) "bytes allocated beyond the reserve"
	mkfs.ext4 -q "$device"
	sync "$device"
	sleep 1
	figure "data, live, ratio, allocated, reserved: $(figures)"
	read -r mapped live ratio allocated reserved <<<"$(figures)"
	is "$((mapped > live))" -eq 1 "more data than live records"
	is "$(jq -n "$ratio > 1")" = true "ratio above 1"
	is "$(cloop info --json "$device" | jq .ratio)" = "$ratio" "ratio that info says"
	is "$((allocated - reserved - live))" -le $((4 * MiB)) "bytes allocated beyond reserve and live records"
	cloop list | grep "^$device "
	detach "$device"
}
check "an empty device has no ratio, and the reserve does not spoil that of a new file system" honest

numbers() {
	image one --size 8M
	image two --size 8M
	attach --device cloop7 "$backing/one"
	is "$device" = /dev/cloop7 "device"
	fails 1 "two: the device asked for is taken" cloop attach --device /dev/cloop7 "$backing/two"
	attach "$backing/two"
	is "$device" = /dev/cloop0 "device"
	is "$(cloop list --json | jq -r '[.cloopdevices[].name] | join(" ")')" = "/dev/cloop0 /dev/cloop7" "list"
	fails 2 "not a cloop device" cloop attach --device loop1 "$backing/two"
	cloop detach --all
	[[ ! -e /dev/cloop0 && ! -e /dev/cloop7 ]] || fail "detach --all left a device"
}
check "the first free number, or the one that is wanted" numbers

huge() {
	local began took
	image huge --size 1T
	sync
	is "$(allocated "$image")" -lt $MiB "bytes of the empty image on disk"
	began=$(now)
	attach "$image"
	took=$(($(now) - began))
	printf 'attached in %d ms\n' "$took"
	is "$took" -lt 2000 "milliseconds to attach"
	is "$(blockdev --getsize64 "$device")" -eq $((1024 * GiB)) "size"
	is "$(get table_memory)" -eq 0 "table memory"
	zeros "$device" 0 $MiB
	zeros "$device" $((1023 * GiB)) $MiB
	is "$(get table_memory)" -eq 0 "table memory after reading"
	noise "$tmp/noise" 1
	copy if="$tmp/noise" of="$device" bs=1M oflag=direct seek=$((777 * 1024))
	copy if="$tmp/noise" of="$device" bs=1M oflag=direct seek=$((1024 * 1024 - 1))
	is "$(get table_memory)" -lt $((256 * KiB)) "table memory after two writes"
	reattach "$image"
	is "$(get table_memory)" -eq 0 "table memory after attaching again"
	cmp "$tmp/noise" <(dd if="$device" bs=1M iflag=direct skip=$((777 * 1024)) count=1 status=none)
	cmp "$tmp/noise" <(dd if="$device" bs=1M iflag=direct skip=$((1024 * 1024 - 1)) status=none)
	detach "$device"
	sync
	is "$(allocated "$image")" -lt $((8 * MiB)) "bytes on disk with 2 MiB of data"
}
check "1 TiB costs nothing but what is written" huge

read_only() {
	local before
	image disk --size 64M
	attach "$image"
	mkfs.ext4 -q "$device"
	mount "$device" "$mnt"
	cp /usr/bin/bash "$mnt"
	umount "$mnt"
	detach "$device"
	before=$(digest "$image")
	attach --read-only "$image"
	is "$(blockdev --getro "$device")" -eq 1 "read-only"
	is "$(cloop list --json | jq -r '.cloopdevices[0].ro')" = true "ro in the list"
	mount -o ro "$device" "$mnt"
	cmp /usr/bin/bash "$mnt/bash"
	umount "$mnt"
	mount "$device" "$mnt"
	fails 1 "Read-only file system" touch "$mnt/new"
	umount "$mnt"
	fails 1 "Operation not permitted|Permission denied" dd if=/dev/zero of="$device" bs=4K count=1 oflag=direct status=none
	fails 1 "Operation not permitted|Permission denied" blkdiscard "$device"
	detach "$device"
	is "$(digest "$image")" = "$before" "the image"
}
check "read-only: mount works, writing does not, the image stays as it is" read_only

read_only_places() {
	image disk --size 16M
	attach "$image"
	noise "$tmp/noise" 2
	copy if="$tmp/noise" of="$device" bs=1M oflag=direct
	detach "$device"
	mount --bind -o ro "$backing" "$mnt2"
	fails 1 "disk: its file system is read-only; attach it with --read-only" cloop attach "$mnt2/disk"
	attach --read-only "$mnt2/disk"
	same "$tmp/noise" "$device"
	detach "$device"
}
check "an image on a read-only file system" read_only_places

twice() {
	local path
	image disk --size 16M
	ln "$image" "$backing/hard"
	ln -s disk "$backing/soft"
	attach "$image"
	for path in disk hard soft; do
		fails 1 "$path: in use as $device; detach it first" cloop attach "$backing/$path"
		fails 1 "$path: in use as $device" cloop attach --read-only "$backing/$path"
		# Without a lock: the messages of the kernel alone.
		fails 1 "^EBUSY\$" "$here/control.py" attach "$backing/$path"
		fails 1 "^EBUSY\$" "$here/control.py" attach --read-only --open r "$backing/$path"
	done
	fails 8 "disk: in use as $device" cloop check "$image"
	fails 1 "disk" cloop create --force --size 8M "$image"
	fails 1 "disk: in use" cloop export "$image" "$tmp/raw"
	is "$(cloop list --json | jq '.cloopdevices | length')" -eq 1 "devices"
	detach "$device"
	intact "$image"
}
check "the same image twice is refused, by any of its names" twice

busy() {
	image disk --size 64M
	attach "$image"
	mkfs.ext4 -q "$device"
	mount "$device" "$mnt"
	fails 1 "$device: in use" cloop detach "$device"
	fails 1 "^EBUSY\$" "$here/control.py" detach "$index"
	fails 1 "$device: in use" cloop detach --all
	# The device goes on as if the detach had not been tried.
	cp /usr/bin/bash "$mnt"
	sync "$mnt/bash"
	cmp /usr/bin/bash "$mnt/bash"
	umount "$mnt"
	# The device is only open.
	exec {fd}<"$device"
	fails 1 "$device: in use" cloop detach "$device"
	exec {fd}<&-
	detach "$device"
	fails 1 "$device: nothing is attached" cloop detach "$device"
	fails 1 "$device: nothing is attached" cloop info "$device"
	intact "$image"
}
check "detach of a mounted or open device is refused" busy

briefly_busy() {
	image disk --size 16M
	attach "$image"
	{ sleep 1; } <"$device" &
	until fuser -s "$device"; do
		sleep 0.05
	done
	# As udev does after an attach.
	cloop detach "$device"
	wait
	intact "$image"
}
check "detach waits for a device that is open for a moment" briefly_busy

in_the_way() {
	local began took
	image disk --size 16M
	printf 'data' >/dev/cloop5
	began=$(now)
	fails 1 "/dev/cloop5: a regular file is in the place" cloop attach --device cloop5 "$image"
	fails 1 "/dev/cloop5: a regular file is in the place" cloop detach /dev/cloop5
	fails 1 "/dev/cloop5: a regular file is in the place" cloop info /dev/cloop5
	took=$(($(now) - began))
	is "$took" -lt 4000 "milliseconds"
	rm /dev/cloop5
	is "$(cloop list)" = "" "list"
	attach --device cloop5 "$image"
	is "$device" = /dev/cloop5 "device"
}
check "a file in the place of the node is named at once" in_the_way

# The limit of the shell is not that of the device, neither while it is attached nor in the calls of the tool.
limited() {
	image disk --size 64M
	noise "$tmp/noise" 8
	device=$(ulimit -f 1; cloop attach "$image")
	copy if="$tmp/noise" of="$device" bs=1M oflag=direct
	(ulimit -f 1; cloop resize --size 128M "$device")
	(ulimit -f 1; cloop compact "$device")
	same "$tmp/noise" "$device" $((8 * MiB))
	(ulimit -f 1; cloop detach "$device")
	is "$(cloop info --json "$image" | jq -r .state)" = clean "state"
	intact "$image"
}
check "the file size limit of the caller does not count in a device" limited

pinned() {
	image disk --size 16M
	attach "$image"
	fails 1 "in use" rmmod cloop
	[[ -e /sys/module/cloop ]] || fail "the module is gone"
	noise "$tmp/noise" 1
	copy if="$tmp/noise" of="$device" bs=1M oflag=direct
	same "$tmp/noise" "$device"
	attach_nothing
	detach "$device"
}

# A failed attach must neither leave the module pinned (unload would show it), nor unpin it too often.
attach_nothing() {
	noise "$tmp/none" 1
	fails 1 "none: not a cloop image" cloop attach "$tmp/none"
	fails 1 "in use" rmmod cloop
}
check "rmmod with a device attached is refused" pinned

# Attaching the file fails with status 1 and a message, and does not change the file.
refused() {
	local file=$1 regex=$2 before
	before=$(digest "$file")
	fails 1 "$regex" cloop attach "$file"
	fails 1 "$regex" cloop attach --read-only "$file"
	is "$(digest "$file")" = "$before" "contents of $file"
	is "$(cloop list)" = "" "list"
}

# What an import leaves that is killed while it waits for its pipe.
unfinished() {
	local file=$1 pipe pid tries=100
	mkfifo "$tmp/pipe"
	exec {pipe}<>"$tmp/pipe"
	cloop import --size 16M "$tmp/pipe" "$file" &
	pid=$!
	until [[ -s $file ]] && (($(od -An -tu1 -j32 -N1 "$file") & 1)); do
		((tries-- > 0)) || fail "the image is not marked as incomplete"
		sleep 0.1
	done
	kill -KILL "$pid"
	wait "$pid" || :
	exec {pipe}>&-
}

wrong_input() {
	image disk --size 16M
	attach "$image"
	noise "$tmp/noise" 4
	copy if="$tmp/noise" of="$device" bs=1M oflag=direct
	detach "$device"

	noise "$backing/noise" 2
	refused "$backing/noise" "noise: not a cloop image; make one with .cloop create."
	fails 1 "^EMEDIUMTYPE\$" "$here/control.py" attach "$backing/noise"
	mkfs.ext4 -q "$backing/filesystem" 4M
	refused "$backing/filesystem" "filesystem: not a cloop image"
	: >"$backing/empty"
	refused "$backing/empty" "empty: empty, not a cloop image"
	printf 'short' >"$backing/short"
	refused "$backing/short" "short: "
	head -c 200K "$image" >"$backing/superblock"
	refused "$backing/superblock" "superblock: .*(damaged|truncated|corrupt|short|end)"
	head -c $((3 * MiB)) "$image" >"$backing/truncated"
	refused "$backing/truncated" "truncated: .*(damaged|truncated|corrupt|short|end)"
	unfinished "$backing/unfinished"
	refused "$backing/unfinished" "unfinished: incomplete: .*--force"
	fails 1 "^ENODATA\$" "$here/control.py" attach "$backing/unfinished"
	fails 1 "is a directory" cloop attach "$backing"
	fails 1 "/dev/null: neither a regular file nor a block device" cloop attach /dev/null
	mkfifo "$tmp/fifo"
	fails 1 "fifo: neither a regular file nor a block device" cloop attach "$tmp/fifo"
	fails 1 "absent: no such file" cloop attach "$backing/absent"
	fails 1 "/dev/cloop55: " cloop detach /dev/cloop55
	fails 1 "noise: neither a cloop device" cloop detach "$backing/noise"
	fails 1 "$disk1: " cloop attach --read-only "$disk1"
	fails 2 "" cloop attach
	fails 2 "" cloop detach

	# The image itself is intact after all this.
	attach "$image"
	same "$tmp/noise" "$device"
}
check "a file that is no image is refused with one clear sentence" wrong_input

nested() {
	local inner outer
	image outer --size 256M
	attach "$image"
	outer=$device
	mkfs.ext4 -q "$outer"
	mount "$outer" "$mnt"
	cloop create --size 128M "$mnt/inner"
	attach "$mnt/inner"
	inner=$device
	mkfs.ext4 -q "$inner"
	mount "$inner" "$mnt2"
	cp -a /usr/share/perl5 /usr/bin/perl "$mnt2"
	sync
	drop_caches
	diff -r /usr/share/perl5 "$mnt2/perl5"
	cmp /usr/bin/perl "$mnt2/perl"
	fails 32 "target is busy" umount "$mnt"
	umount "$mnt2"
	detach "$inner"
	intact "$mnt/inner"
	umount "$mnt"
	e2fsck -fn "$outer"
	detach "$outer"
	intact "$backing/outer"
}
check "an image on a device of another image" nested

hangs() {
	local server asking hung other
	needs fuse
	image lower --size 16M
	"$here/fuse.py" "$mnt" "$backing/lower" >"$tmp/fuse" &
	server=$!
	served "$server"
	attach "$mnt/image"
	hung=$index
	image other --size 16M
	attach "$backing/other"
	other=$index
	kill -STOP "$server"
	"$here/control.py" info "$hung" size >"$tmp/asked" &
	asking=$!
	sleep 1
	# The question hangs, and so would any about this device. The others do not notice.
	timeout 20 "$here/control.py" info "$other" size
	timeout 20 "$here/control.py" detach "$other"
	other=$(timeout 20 "$here/control.py" attach "$backing/other")
	timeout 20 "$here/control.py" compact "$other"
	timeout 20 "$here/control.py" detach "$other"
	[[ ! -s $tmp/asked ]] || fail "the file system did not hang"
	kill -CONT "$server"
	wait "$asking"
	is "$(<"$tmp/asked")" -eq $((16 * MiB)) "size"
	"$here/control.py" detach "$hung"
	umount "$mnt"
	wait "$server"
	intact "$backing/lower"
}
check "a backing file that hangs blocks no other device" hangs

opener() {
	local server number
	needs fuse
	image lower --size 64M
	"$here/fuse.py" "$mnt" "$backing/lower" "$tmp/changes" >"$tmp/fuse" &
	server=$!
	served "$server"
	# As a user who may attach devices, but is not root.
	number=$(setpriv --reuid 1000 --inh-caps +sys_admin,+dac_override --ambient-caps +sys_admin,+dac_override \
		"$here/control.py" attach "$mnt/image")
	noise "$tmp/noise" 16
	copy if="$tmp/noise" of="/dev/cloop$number" bs=1M oflag=direct conv=fsync
	blkdiscard "/dev/cloop$number"
	"$here/control.py" compact "$number"
	"$here/control.py" detach "$number"
	umount "$mnt"
	wait "$server"
	intact "$backing/lower"
	sort "$tmp/changes" | uniq -c
	is "$(cut -d ' ' -f 1 "$tmp/changes" | sort -u | xargs)" = "fallocate fsync setattr" "changes of the file"
	is "$(cut -d ' ' -f 2 "$tmp/changes" | sort -u | xargs)" = 1000 "users for whom the file was changed"
}
check "the backing file is used with the rights of the process that opened it" opener

# gone IMAGE: the device is detached, at once or soon, and its image is closed, which comes after that.
gone() {
	local _
	for _ in {1..100}; do
		if [[ ! -e $device && ! -e /sys/block/$name ]] && flock --nonblock "$1" true; then
			return 0
		fi
		sleep 0.1
	done
	[[ ! -e $device ]] || fail "$device is still there"
	fail "$1 is still in use"
}

# The device goes when its last user has gone, and its image is closed cleanly.
lazy() {
	local fd
	image disk --size 64M
	attach "$image"
	mkfs.ext4 -q "$device"
	mount "$device" "$mnt"
	fails 1 "$device: in use" cloop detach "$device"
	is "$(get autoclear)" = false "autoclear"
	cloop detach --lazy "$device"
	cloop detach --lazy "$device"
	is "$(get autoclear)" = true "autoclear after a lazy detach"
	# It can be used and opened meanwhile.
	cp /usr/bin/bash "$mnt"
	exec {fd}<"$device"
	umount "$mnt"
	sleep 1
	[[ -b $device ]] || fail "the device has gone with a user left"
	exec {fd}<&-
	gone "$image"
	intact "$image"
	attach "$image"
	mount -o ro "$device" "$mnt"
	cmp /usr/bin/bash "$mnt/bash"
	umount "$mnt"
	# Nobody uses it: it goes at once.
	cloop detach --lazy "$device"
	[[ ! -e $device ]] || fail "$device is still there"
	fails 1 "nothing is attached" cloop detach --lazy "$device"
	rmmod cloop
	modprobe cloop
}
check "a lazy detach waits for the last user" lazy

autoclear() {
	local first other fd i
	image disk --size 64M
	attach --autoclear "$image"
	is "$(get autoclear)" = true "autoclear"
	image other --size 16M
	other=$(cloop attach --autoclear "$image")
	first=$device device=$other name=${other#/dev/}
	: <"$device"
	gone "$image"
	# That one has had no user yet.
	device=$first name=${first#/dev/}
	[[ -b $device ]] || fail "$device has gone as well"
	# mkfs opens and closes a device several times.
	exec {fd}<"$device"
	mkfs.ext4 -q "$device"
	exec {fd}<&-
	gone "$backing/disk"
	intact "$backing/disk"
	for ((i = 0; i < $(scaled 10); i++)); do
		attach --autoclear "$backing/disk"
		exec {fd}<"$device"
		e2fsck -fn "$device"
		exec {fd}<&-
		gone "$backing/disk"
	done
	rmmod cloop
	modprobe cloop
	intact "$backing/disk"
}
check "a device that goes with its last user" autoclear

# The device is also in use while it is compacted.
lazy_while_held() {
	local compacting
	image disk --size 256M
	attach "$image"
	noise "$tmp/noise" 64
	copy if="$tmp/noise" of="$device" bs=1M oflag=direct
	blkdiscard -o 0 -l $((16 * MiB)) "$device"
	cloop compact "$device" &
	compacting=$!
	sleep 0.2
	cloop detach --lazy "$device"
	wait "$compacting" || :
	gone "$image"
	intact "$image"
}
check "a lazy detach waits for a compaction" lazy_while_held

# What users of losetup type.
habits() {
	local node listing
	image disk --size 1.5G
	node=$(cloop attach --find --show --device 5 "$image") && fail "--find beside --device"
	node=$(cloop attach --find --show "$image")
	is "$node" = /dev/cloop0 "the device found"
	is "$(blockdev --getsize64 "$node")" -eq $((3 * GiB / 2)) "1.5G"
	is "$(cloop list -n -O NAME -j "$image")" = "$node" "the device of the image"
	is "$(cloop list -j /usr/bin/bash)" = "" "the device of another file"
	# Anybody may look.
	listing=$(setpriv --reuid=65534 --clear-groups cloop list --noheadings --output name,ratio,compress,recompress,back-file)
	is "$listing" = "$node - lz4 zstd:9 $image" "the list for everybody"
	is "$(setpriv --reuid=65534 --clear-groups cloop list --json | jq -r '.cloopdevices[].uuid')" = \
		"$(<"/sys/block/${node#/dev/}/cloop/uuid")" "UUID"
	cloop detach "$image"
	is "$(cloop list)" = "" "list"
	fails 1 "neither a cloop device nor an attached image" cloop detach "$image"
	is "$(cloop attach --device 5 "$image")" = /dev/cloop5 "the device chosen"
	# A device on a device: all go in one pass.
	node=/dev/cloop5
	mkfs.ext4 -q "$node"
	mount "$node" "$mnt"
	cloop create --size 16M "$mnt/inner"
	cloop attach --device 7 "$mnt/inner"
	umount -l "$mnt"
	cloop detach --all
	is "$(cloop list)" = "" "list"
	rm "$image"
}
check "the habits of losetup" habits
