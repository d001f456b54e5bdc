# SPDX-License-Identifier: GPL-2.0
"""The count that a check ends with."""

import os
import pathlib
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from typing import BinaryIO

from . import results

# A step writes what it has to say to the file, and returns an exit status.
Step = Callable[[BinaryIO], int]

# Lines of the output of a failed step that are shown.
SHOWN = 100


def say(text: str = "") -> None:
    """Print a line at once: what runs next writes to the same place."""
    print(text, flush=True)


def command(*words: str, **environment: str) -> Step:
    """A step that runs a command, with these variables in its environment."""

    def step(log: BinaryIO) -> int:
        return subprocess.run(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False,
                              env=os.environ | environment).returncode

    return step


class Tally:
    """Counts results and prints them as they come. A machine that did not boot has tested nothing: it
    counts neither as passed nor as failed."""

    def __init__(self, logs: pathlib.Path) -> None:
        self.logs = logs
        self.counts = results.Counts()
        self.unbooted = 0

    def one(self, name: str, step: Step) -> None:
        """A check that is one test. Its output is shown only if it fails."""
        began = time.monotonic()
        path = self.logs / "check.log"
        with open(path, "wb") as log:
            try:
                status = step(log)
            except Exception:
                # An error in a check is no reason to leave out the others.
                log.write(traceback.format_exc().encode())
                status = 1
        if status == 0:
            self.counts.passed += 1
            say(f"ok - {name} ({time.monotonic() - began:.0f} s)")
            return
        said = path.read_text(errors="replace")
        if results.did_not_boot(status, said):
            self._did_not_boot(name)
        else:
            self.fail(name)
        for line in said.splitlines()[-SHOWN:]:
            say(f"  | {line}")

    def suite(self, name: str, words: list[str], log: pathlib.Path,
              count: Callable[[list[str]], results.Counts], **environment: str) -> results.Counts | None:
        """Run a command that is a whole suite, with its output shown and kept in `log`, and add what
        `count` makes of it. Returns the result, or nothing if the machine did not boot."""
        with open(log, "wb") as file:
            with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                  env=os.environ | environment) as process:
                for line in process.stdout:
                    file.write(line)
                    sys.stdout.buffer.write(line)
                    sys.stdout.buffer.flush()
        said = log.read_text(errors="replace")
        if results.did_not_boot(process.returncode, said):
            self._did_not_boot(name)
            return None
        counts = count(said.splitlines())
        self.add(name, counts, process.returncode)
        return counts

    def add(self, name: str, counts: results.Counts, status: int) -> None:
        """Add the result of a suite. One that failed without saying which test, or that ran none,
        counts as one failure."""
        self.counts.passed += counts.passed
        self.counts.failed += counts.failed
        self.counts.skipped += counts.skipped
        if status != 0 and counts.failed == 0:
            self.fail(f"{name}: exit status {status} without a failed test")
        elif counts.passed + counts.failed == 0:
            self.fail(f"{name}: no test ran")

    def fail(self, what: str) -> None:
        """Count and print one failure."""
        self.counts.failed += 1
        say(f"not ok - {what}")

    def _did_not_boot(self, name: str) -> None:
        self.unbooted += 1
        say(f"not run - {name}: the machine did not boot")

    def finish(self) -> int:
        """Print the sums. The exit status is zero only if something passed and nothing failed."""
        say()
        if self.counts.skipped:
            say(f"{self.counts.skipped} skipped")
        if self.unbooted:
            say(f"{self.unbooted} not run: the machine did not boot")
        say(f"{self.counts.passed} passed, {self.counts.failed} failed")
        return 0 if self.counts.passed and not self.counts.failed and not self.unbooted else 1
