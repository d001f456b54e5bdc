#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Images made to break the kernel, with all checksums right.
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

hostile() {
	cloop-hostile "$backing/hostile" "$(scaled 40 25)"
	"$here/hostile.py" "$backing/hostile"
}
check "the kernel and the tool agree on hostile images" hostile
