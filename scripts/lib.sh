# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# What all scripts share: where things are, how they are seen from inside the
# toolchain tree, and how errors are said. To be sourced.
# shellcheck disable=SC2034 # the variables are for the scripts that source this

# Inside the tree these two are always at the same place, so that whatever is
# built there does not depend on where the host keeps them.
tree_src=/cloop/src
tree_cache=/cloop/cache

scripts=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
src=$(dirname "$scripts")
cache=$(realpath -m "${CLOOP_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/cloop}")

# The layout of the cache.
tree=${CLOOP_TREE:-$cache/tree}	# Debian root with compilers and QEMU
kernel=$cache/kernel/current	# -> RELEASE/: src, obj, modules, vmlinuz, release
vm=$cache/vm			# root.erofs, initramfs.cpio
debug=$cache/debug		# of make check-debug: tree, kernel/
bench=$cache/bench		# of make bench: tree, root.erofs, kernel/, and what was measured
out=$cache/out			# module/, target/: what `make build` builds
logs=$cache/logs
run=$cache/run			# one directory per running VM

me=$(basename "$0")

note() {
	printf '%s\n' "$*" >&2
}

# die MESSAGE [STATUS]
die() {
	note "$me: $1"
	exit "${2:-1}"
}

in_tree() {
	[[ ${CLOOP_IN_TREE:-} == 1 && -d $tree_src && -d $tree_cache ]]
}

# tree_path PATH: how PATH of the host is called inside the tree. The whole
# host is visible there under /host.
tree_path() {
	local path
	path=$(realpath -m -- "$1")
	if in_tree; then
		printf '%s\n' "$path"
		return
	fi
	case $path/ in
	"$src"/*) printf '%s\n' "$tree_src${path#"$src"}" ;;
	"$cache"/*) printf '%s\n' "$tree_cache${path#"$cache"}" ;;
	/tmp/*) printf '%s\n' "$path" ;;
	/) printf '/host\n' ;;
	*) printf '%s\n' "/host$path" ;;
	esac
}

# The release name of the kernel that was set up.
kernel_release() {
	[[ -s $kernel/release ]] || die "the kernel is not set up: run 'make setup'"
	cat "$kernel/release"
}
