#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Images made to break the kernel, with right checksums.
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

hostile() {
	cloop-hostile "$backing/hostile" "$(scaled 20 50)"
	"$here/hostile.py" "$backing/hostile" $((${long:-0} ? 1 : 4))
}
check "the kernel and the tool agree on hostile images" hostile
