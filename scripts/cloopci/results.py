# SPDX-License-Identifier: GPL-2.0
"""Results of test suites, read from what the suites print."""

import re
from collections.abc import Iterable

# The words of scripts/vm and of scripts/powercut for a machine that never began its script.
NOT_BOOTED = re.compile(r"^(vm: )?the machine did not boot", re.MULTILINE)
NOT_BOOTED_STATUS = 125

_CARGO = re.compile(r"test result: .*?(\d+) passed; (\d+) failed; (\d+) ignored")
_PLAN = re.compile(r"1\.\.(\d+)")
_SKIP = re.compile(r"ok .*# *SKIP")


class Counts:
    """How many tests passed, failed and were skipped, and how many a suite had planned."""

    def __init__(self) -> None:
        self.passed = 0
        self.failed = 0
        self.skipped = 0
        self.planned = 0

    @property
    def reported(self) -> int:
        """Tests with a result."""
        return self.passed + self.failed + self.skipped


def of_tap(lines: Iterable[str]) -> Counts:
    """Count TAP of any number of suites, with other output in between."""
    counts = Counts()
    for line in lines:
        if _SKIP.match(line):
            counts.skipped += 1
        elif line.startswith("ok "):
            counts.passed += 1
        elif line.startswith("not ok "):
            counts.failed += 1
        elif plan := _PLAN.match(line):
            counts.planned += int(plan[1])
    return counts


def of_cargo(lines: Iterable[str]) -> Counts:
    """Sum up what `cargo test` says of each test program."""
    counts = Counts()
    for line in lines:
        if found := _CARGO.match(line):
            counts.passed += int(found[1])
            counts.failed += int(found[2])
            counts.skipped += int(found[3])
    return counts


def did_not_boot(status: int, said: str) -> bool:
    """Whether a run of the VM ended because the machine did not boot, not because a test failed."""
    return status == NOT_BOOTED_STATUS and NOT_BOOTED.search(said) is not None
