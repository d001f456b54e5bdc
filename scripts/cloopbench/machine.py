# SPDX-License-Identifier: GPL-2.0
"""Runs the machine of one peer, and watches how much CPU time the host spends on it."""

import json
import pathlib
import subprocess
import threading
import time
from collections.abc import Callable

MARK = "BENCH "
# Seconds between two looks at the CPU time: short beside a load, long beside what a look costs.
PERIOD = 0.02
_TICKS = 100  # of /proc/PID/stat, each second


def cpu_time(stat: str) -> float:
    """Seconds of CPU of a process and of its children that have ended, from /proc/PID/stat."""
    fields = stat.rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15]) / _TICKS


def _descendants(pid: int) -> list[int]:
    """A process and all below it."""
    found, left = [], [pid]
    while left:
        one = left.pop()
        found.append(one)
        for children in pathlib.Path(f"/proc/{one}/task").glob("*/children"):
            try:
                left += map(int, children.read_text().split())
            except (FileNotFoundError, ProcessLookupError):
                pass
    return found


def _total(pid: int) -> float:
    total = 0.0
    for one in _descendants(pid):
        try:
            total += cpu_time(pathlib.Path(f"/proc/{one}/stat").read_text(errors="replace"))
        except (FileNotFoundError, ProcessLookupError):
            pass
    return total


class Watcher(threading.Thread):
    """The CPU time of a process and all below it, over the time of day."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid = pid
        self.series: list[tuple[float, float]] = []
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(PERIOD):
            # A process that ends between two lists of processes is missing from one: time does not go back.
            total = _total(self.pid)
            last = self.series[-1][1] if self.series else 0.0
            self.series.append((time.time(), max(total, last)))

    def stop(self) -> None:
        """End, after a last look."""
        self.ended.set()
        self.join()


def run(words: list[str], log: Callable[[str], None]) -> tuple[list[dict], list[tuple[float, float]], int]:
    """Run the machine. Returns what its guest has measured, the CPU time, and the exit status."""
    samples = []
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        watcher = Watcher(process.pid)
        watcher.start()
        for line in process.stdout:
            text = line.decode(errors="replace").rstrip("\n")
            if text.startswith(MARK):
                samples.append(json.loads(text.removeprefix(MARK)))
            else:
                log(text)
        watcher.stop()
    return samples, watcher.series, process.returncode
