#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# The ioctls of /dev/cloop-control, without the tool.
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

ioctl() {
	"$here/control.py" "$@"
}

version() {
	local abi reserved text
	read -r abi reserved text < <(ioctl version)
	is "$abi" -eq 1 "interface version"
	is "$reserved" -eq 0 "reserved field"
	is "$text" = "$(cloop --version | cut -d ' ' -f 2)" "version of the module and of the tool"
	fails 1 "^ENOTTY\$" ioctl ioctl 0xc705
	# A known command with a structure of another size.
	fails 1 "^ENOTTY\$" ioctl ioctl 0xc248c703
	fails 1 "^ENOTTY\$" ioctl ioctl 0x1260
}
check "version, and unknown commands" version

arguments() {
	image disk --size 16M
	fails 1 "^EINVAL\$" ioctl attach --flags 2 "$image"
	fails 1 "^EINVAL\$" ioctl attach --flags 2147483648 "$image"
	fails 1 "^EINVAL\$" ioctl attach --reserved 1 "$image"
	fails 1 "^EINVAL\$" ioctl attach --index -2 "$image"
	fails 1 "^EINVAL\$" ioctl attach --index 2147483647 "$image"
	fails 1 "^EBADF\$" ioctl attach --open r "$image"
	fails 1 "^EBADF\$" ioctl attach --open w "$image"
	fails 1 "^EBADF\$" ioctl attach --open w --read-only "$image"
	fails 1 "^(EINVAL|EISDIR|EBADF|ENOTBLK)\$" ioctl attach --open r --read-only "$backing"
	fails 1 "^(EINVAL|ENOTBLK|EBADF)\$" ioctl attach /dev/null
	fails 1 "^(EINVAL|ENOTBLK|EBADF)\$" ioctl attach /dev/cloop-control
	fails 1 "^(EINVAL|ENOTBLK|EBADF)\$" ioctl attach --open r --read-only /proc/self/maps
	fails 1 "^ENXIO\$" ioctl detach 0
	fails 1 "^ENXIO\$" ioctl detach -1
	fails 1 "^ENXIO\$" ioctl detach 2147483647
	fails 1 "^ENXIO\$" ioctl info 0
	fails 1 "^ENXIO\$" ioctl info -1
	# None of these calls has left anything behind.
	is "$(ioctl attach --index 5 "$image")" -eq 5 "index"
	fails 1 "^EINVAL\$" ioctl detach --flags 2 5
	fails 1 "^EINVAL\$" ioctl detach --flags 3 5
	image other --size 16M
	fails 1 "^EEXIST\$" ioctl attach --index 5 "$image"
	ioctl info 5 | grep -x "backing_file $backing/disk"
	ioctl info 5 | grep -x "backing_ino $(stat -c %i "$backing/disk")"
	ioctl info 5 | grep -x "size $((16 * MiB))"
	ioctl detach 5
	fails 1 "^ENXIO\$" ioctl detach 5
}
check "wrong arguments are refused" arguments

permission() {
	image disk --size 16M
	is "$(stat -c %a /dev/cloop-control)" = 600 "mode of the control device"
	fails 1 "^EPERM\$" ioctl attach --user 65534 "$image"
	attach "$image"
	fails 1 "^EPERM\$" ioctl detach --user 65534 "$index"
	fails 1 "^EPERM\$" ioctl info --user 65534 "$index"
	fails 1 "permission denied; run as root" setpriv --reuid 65534 --clear-groups cloop info "$device"
}
check "CAP_SYS_ADMIN is needed" permission

# The file description that was attached keeps its lock; the caller's descriptor is closed.
unlocked() {
	image disk --size 16M
	index=$(ioctl attach "$image")
	fails 1 "disk: in use" cloop attach "$image"
	noise "$tmp/noise" 1
	copy if="$tmp/noise" of="/dev/cloop$index" bs=1M
	cmp "$tmp/noise" <(head -c $MiB "/dev/cloop$index")
	# Deleting the name of the image does not affect the device.
	ln "$image" "$backing/name"
	rm "$image"
	sync
	drop_caches
	same "$tmp/noise" "/dev/cloop$index"
	cloop detach "/dev/cloop$index"
	intact "$backing/name"
}
check "an image attached without lock or O_DIRECT" unlocked
