# SPDX-License-Identifier: GPL-2.0
"""check [--long] GROUP...: run these groups of checks, all of them even if some fail.

The last line is "N passed, N failed"; the exit status is zero only if something passed and nothing
failed. A machine that did not boot has tested nothing: it is counted apart, and the exit status is not
zero either.
"""

import os
import sys

from . import lint, paths, suites
from .tally import Tally, say

GROUPS = {
    "lint": lambda tally, where, long: lint.check(tally, where),
    "host": suites.host,
    "fuzz": suites.fuzz,
    "mutants": suites.mutants,
    "vm": suites.vm,
    "debug": suites.debug,
}
USAGE = f"usage: check [--long] {'|'.join(GROUPS)}..."


def main(words: list[str]) -> int:
    """The exit status."""
    long = "--long" in words
    groups = [word for word in words if word != "--long"]
    if not groups or set(groups) - set(GROUPS):
        print(f"check: {USAGE}", file=sys.stderr)
        return 2
    where = paths.load()
    where.logs.mkdir(parents=True, exist_ok=True)
    os.chdir(where.src)
    tally = Tally(where.logs)
    try:
        for group in groups:
            say(f"\n=== {group}")
            GROUPS[group](tally, where, long)
    except KeyboardInterrupt:
        return 130
    return tally.finish()
