# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
# fsx: random reads and writes of files, most of them through mappings, beside everything else that goes on on a disk.
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

files=4

# Without an msync after a mapped write: when the page is written back is then up to the kernel.
configure() {
	cat >"$tmp/fsx.toml" <<-'END'
		flen = 2000000
		nomsyncafterwrite = true
		[opsize]
		max = 131072
		[weights]
		mapwrite = 20
		mapread = 10
		write = 10
		read = 10
		truncate = 3
		punch_hole = 5
		posix_fallocate = 2
		copy_file_range = 2
		sendfile = 2
		posix_fadvise = 5
		fsync = 2
		fdatasync = 2
		invalidate = 2
		close_open = 2
	END
}

# repeat SECONDS CMD...: until the test is over, with a pause of that length.
repeat() {
	local pause=$1
	shift
	until [[ -e $tmp/over ]]; do
		"$@"
		sleep "$pause"
	done
}

# over: nothing goes on beside the test any more.
over() {
	touch "$tmp/over"
	wait "${others[@]}"
}

# one_file NUMBER DEADLINE: fsx on a file of its own, with one seed after the other. Leaves the number of operations
# in $tmp/operations.NUMBER.
one_file() {
	local operations=250 round=0
	while (($(now) < $2)); do
		round=$((round + 1))
		fsx -N "$operations" -S $((1000 * $1 + round)) -P "$tmp" -f "$tmp/fsx.toml" "$mnt/fsx.$1" >"$tmp/fsx.$1" 2>&1 || {
			cat "$tmp/fsx.$1"
			fail "fsx of file $1 in round $round"
		}
		printf '%d\n' $((round * operations)) >"$tmp/operations.$1"
	done
}

# exercise RECORD-SIZE [OPTION]: with this option of mount.
exercise() {
	local i deadline fsx=() others=() pid
	image disk --size 1G --record-size "$1"
	attach "$image"
	mkfs.ext4 -q "$device"
	mount ${2:+-o "$2"} "$device" "$mnt"
	mkdir "$mnt/work"
	configure
	trap over EXIT
	deadline=$(($(now) + $(scaled 12 70) * 1000))
	repeat 0.5 fstrim "$mnt" &
	others+=($!)
	repeat 0.7 drop_caches &
	others+=($!)
	repeat 3 cloop compact "$device" &
	others+=($!)
	"$here/promises.py" work --writers 2 --seconds "$(scaled 12 70)" "$mnt/work" >"$tmp/promised" &
	others+=($!)
	for ((i = 1; i <= files; i++)); do
		one_file "$i" "$deadline" &
		fsx+=($!)
	done
	for pid in "${fsx[@]}"; do
		wait "$pid"
	done
	over
	trap - EXIT
	figure "$(cat "$tmp"/operations.* | paste -sd +) operations"
	"$here/promises.py" verify "$tmp/promised" "$mnt/work"
	# What fsx has left is what a freshly attached device has.
	(cd "$mnt" && md5sum fsx.*) >"$tmp/sums"
	umount "$mnt"
	e2fsck -fn "$device"
	reattach "$image"
	mount "$device" "$mnt"
	(cd "$mnt" && md5sum --quiet -c "$tmp/sums")
	umount "$mnt"
	is "$(get errors)" -eq 0 "errors"
}
check "records of 4K, with discards" exercise 4K discard
check "records of 4K" exercise 4K
check "records of 64K, with discards" exercise 64K discard
check "records of 64K" exercise 64K
