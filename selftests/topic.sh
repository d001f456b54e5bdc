#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# What run needs of a topic, which is a file of shell functions:
#
#	topic.sh list TOPIC			variables, then the tests, as words that end in a zero byte
#	topic.sh test TOPIC COMMAND [ARG...]	run one test; the first command that fails ends it
set -uo pipefail

here=$(dirname "$(realpath "$0")")
# shellcheck source=lib.sh
. "$here/lib.sh"

# tainted: the taints that a bug causes. run says which.
tainted() {
	# shellcheck disable=SC2154 # taints: of run
	printf '%d\n' $(($(</proc/sys/kernel/tainted) & taints))
}

# where STATUS COMMAND LINE: of the command that has just failed, and of its callers.
where() {
	local frame line=$3
	printf 'status %d of: %s\n' "$1" "$2"
	for ((frame = 1; frame < ${#FUNCNAME[@]}; frame++)); do
		[[ ${FUNCNAME[frame]} != main ]] || return 0
		printf '  in %s, %s:%d\n' "${FUNCNAME[frame]}" "${BASH_SOURCE[frame]##*/}" "$line"
		line=${BASH_LINENO[frame]}
	done
}

action=$1 topic=$2
shift 2
# shellcheck source=/dev/null
. "$here/$topic.sh" || exit

case $action in
list)
	printf '%s\0' "${allocations_fail:-}" "$state" "$backing" "$mnt" "$mnt2" "$tmp" "$disk1" "$disk2"
	for i in "${!commands[@]}"; do
		printf '%s\0' "${descriptions[i]}" "${commands[i]}"
	done
	;;
test)
	set -Eeuo pipefail
	shopt -s inherit_errexit
	trap 'where "$?" "$BASH_COMMAND" "$LINENO" >&2' ERR
	"$@"
	;;
esac
