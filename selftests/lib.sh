# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# Functions that the topics share; sourced by run. A topic is a file TOPIC.sh that defines functions and
# declares them as tests:
#
#	check "what it shows" FUNCTION [ARG...]
#
# A test runs in a shell of its own that ends with the first command that fails: so a test fails. Its
# output is shown only then, except for figures. Mounts, devices and files that it leaves are removed
# after it.
# shellcheck disable=SC2034 # the variables are for the topics

here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
state=/run/cloop-selftests
backing=$state/backing	# an ext4 on disk1, for images
mnt=$state/mnt		# to mount things on
mnt2=$state/mnt2
tmp=$state/tmp		# in memory
disk1=/dev/vdb
disk2=/dev/vdc		# for a test to do with what it likes
if [[ -b /dev/ubda ]]; then
	# The names of user-mode Linux.
	disk1=/dev/ubdb
	disk2=/dev/ubdc
fi

# There is no udev in the VM: device-mapper makes its nodes itself.
export DM_DISABLE_UDEV=1

KiB=1024
MiB=$((1024 * KiB))
GiB=$((1024 * MiB))

descriptions=() commands=()

# check DESCRIPTION FUNCTION [ARG...]: declare a test. Arguments are single words.
check() {
	descriptions+=("$1")
	shift
	commands+=("$*")
}

# scaled N [FACTOR]: N, or FACTOR times N in a long run.
scaled() {
	printf '%d\n' $(($1 * (${long:-0} ? ${2:-10} : 1)))
}

# fail MESSAGE: end the test.
fail() {
	printf 'FAILED: %s\n' "$*"
	return 1
}

# skip REASON: end the test, which shows nothing on this kernel.
skip() {
	printf 'skip: %s\n' "$*"
	exit 4
}

# thorough: skip the test unless the run is a long one.
thorough() {
	((${long:-0})) || skip "only in a long run"
}

# needs FILE-SYSTEM: skip the test if the kernel does not have it.
needs() {
	modprobe -q "$1" || :
	grep -qw "$1" /proc/filesystems || skip "this kernel has no $1"
}

# served SERVER: wait until the file system of fuse.py, which runs as SERVER and writes to $tmp/fuse, is mounted.
served() {
	until grep -qx ready "$tmp/fuse"; do
		kill -0 "$1" || fail "fuse.py has ended"
		sleep 0.1
	done
}

# figure TEXT: a result that is shown even if the test passes.
figure() {
	printf 'figure: %s\n' "$*"
}

# is ACTUAL OPERATOR EXPECTED WHAT: compare numbers (-eq, -lt ...) or strings (=, !=).
is() {
	test "$1" "$2" "$3" || fail "${4:-value}: $1, expected $2 $3"
}

# fails STATUS REGEX CMD...: CMD must fail in this way. The message of cloop must be one line.
fails() {
	local status=$1 regex=$2 actual=0 said
	shift 2
	said=$("$@" 2>&1) || actual=$?
	[[ $actual == "$status" ]] || fail "$* ended with status $actual, expected $status; it said: $said"
	[[ $said =~ $regex ]] || fail "$* said: '$said', expected: $regex"
	if [[ $1 == cloop && $status == 1 ]]; then
		[[ $said != *$'\n'* && $said == "cloop: "* ]] || fail "not one clear sentence: $said"
	fi
}

# no CMD...: CMD must not succeed. (A command after ! never ends a test.)
no() {
	if "$@"; then
		fail "$* succeeded"
	fi
}

# image NAME [OPTION...]: create an image on the backing file system; the path is in $image.
image() {
	image=$backing/$1
	shift
	cloop create "$@" "$image"
}

# attach [OPTION...] IMAGE: the device is in $device, its name in $name, its number in $index.
attach() {
	device=$(cloop attach "$@")
	[[ $device == /dev/cloop* && -b $device ]] || fail "attach printed '$device'"
	name=${device#/dev/}
	index=${name#cloop}
}

detach() {
	cloop detach "$1"
	[[ ! -e $1 ]] || fail "$1 is still there"
}

# reattach [OPTION...] IMAGE: detach $device, check the image, attach it again.
reattach() {
	local path=${*: -1}
	detach "$device"
	intact "$path"
	attach "$@"
}

# intact IMAGE: cloop check finds nothing wrong.
intact() {
	cloop check "$1"
}

# get FIELD: a field of the attached $device, from cloop info or else from the kernel's struct
# cloop_info.
get() {
	local json
	json=$(cloop info --json "/dev/cloop$index")
	if [[ $json =~ \"$1\":\ *\"?([^,\"[:space:]]*) ]]; then
		printf '%s\n' "${BASH_REMATCH[1]}"
	else
		"$here/control.py" info "$index" "$1"
	fi
}

# drop_caches: the next buffered read comes from the device.
drop_caches() {
	printf '3\n' >/proc/sys/vm/drop_caches
}

# data FILE MEBIBYTES: typical contents of a disk: text, programs, zeros, and an incompressible part.
data() {
	local bytes=$(($2 * MiB))
	{
		cat /usr/share/common-licenses/GPL-3
		head -c $((bytes / 8)) /dev/urandom
		head -c $((bytes / 8)) /dev/zero
		cat /usr/bin/[b-f]* /usr/lib/x86_64-linux-gnu/lib[b-d]*.so* /usr/lib/x86_64-linux-gnu/lib[b-d]*.so*
	} 2>/dev/null | head -c "$bytes" >"$1" || :
	is "$(stat -c %s "$1")" -eq "$bytes" "size of the test data"
}

# noise FILE MEBIBYTES: incompressible data.
noise() {
	head -c $(($2 * MiB)) /dev/urandom >"$1"
}

# Copies between files and devices, checked by the exit status of dd.
copy() {
	dd status=none "$@"
}

# same FILE DEVICE [BYTES]: the device begins with the contents of the file, by direct reads.
same() {
	local bytes=${3:-$(stat -c %s "$1")}
	cmp -n "$bytes" "$1" <(dd if="$2" bs=1M iflag=direct,count_bytes count="$bytes" status=none)
}

# zeros DEVICE OFFSET BYTES: the range reads as zeros, directly and through the page cache.
zeros() {
	cmp -n "$3" /dev/zero <(dd if="$1" bs=1M iflag=direct,count_bytes,skip_bytes skip="$2" count="$3" status=none)
	cmp -n "$3" -i "0:$2" /dev/zero "$1"
}

# flushes DISK: number of cache flushes that the block device has completed.
flushes() {
	awk '{ print $16 }' "/sys/block/${1#/dev/}/stat"
}

# now: the time in milliseconds.
now() {
	printf '%d\n' $((${EPOCHREALTIME/./} / 1000))
}

# listen: record the kernel's uevents from here on, for heard.
listen() {
	setpriv --pdeathsig TERM "$here/uevents.py" >"$tmp/uevents" &
	until grep -qx ready "$tmp/uevents"; do sleep 0.1; done
}

# heard REGEX: such a uevent was sent, or is sent soon.
heard() {
	local _
	for _ in {1..50}; do
		! grep -qE "$1" "$tmp/uevents" || return 0
		sleep 0.1
	done
	cat "$tmp/uevents"
	fail "no uevent with $1"
}

# allocated FILE: bytes that the file takes on its file system.
allocated() {
	du --block-size=1 "$1" | cut -f 1
}

# digest FILE
digest() {
	md5sum <"$1"
}

# --- trees of files ------------------------------------------------------------

# inventory DIRECTORY: names, types, modes, links and contents of everything below it.
inventory() {
	find "$1" -mindepth 1 ! -name lost+found \( -type d -printf '%P %y %m %U:%G\n' -o -printf '%P %y %m %U:%G %s %n %l\n' \) | sort
	(cd "$1" && find . -type f -print0 | sort -z | xargs -0 md5sum)
}

# work DIRECTORY: typical operations on a file system. Leaves the inventory in $tmp/inventory.
work() {
	local i
	mkdir "$1/tree"
	tar -C / -cf - usr/share/zoneinfo/Europe usr/share/perl5 usr/share/bash-completion usr/sbin |
		tar -C "$1/tree" -xf -
	diff -r --no-dereference /usr/sbin "$1/tree/usr/sbin"
	# A big file, a sparse one, and one that is changed in the middle.
	noise "$1/noise" 3
	truncate -s 200M "$1/sparse"
	for i in 3 77 199; do
		copy if="$1/noise" of="$1/sparse" bs=64K count=3 seek=$((i * 16)) conv=notrunc
	done
	cp /usr/bin/perl "$1/changed"
	copy if="$1/noise" of="$1/changed" bs=4000 count=7 seek=11 conv=notrunc,fsync
	# Rename, delete, link, append, truncate.
	mv "$1/tree/usr/share/bash-completion" "$1/moved"
	mv "$1/changed" "$1/tree/usr/sbin/changed"
	rm -r "$1/tree/usr/share/zoneinfo/Europe"
	ln "$1/noise" "$1/hard link"
	ln -s noise "$1/symbolic link"
	for i in {1..20}; do
		printf 'line %d\n' "$i" >>"$1/appended"
		sync "$1/appended"
	done
	truncate -s 100000 "$1/noise"
	chmod 600 "$1/noise"
	cp /usr/bin/bash "$1/deleted"
	sync "$1/deleted"
	rm "$1/deleted"
	inventory "$1" >"$tmp/inventory"
}

# unchanged DIRECTORY: the directory is as work left it.
unchanged() {
	diff "$tmp/inventory" <(inventory "$1")
}
