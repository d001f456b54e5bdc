# SPDX-License-Identifier: GPL-2.0
"""Runs topics as TAP and looks after each test: what it left, and what the kernel said. For `run`."""

import dataclasses
import os
import pathlib
import re
import subprocess
import sys
import time
from collections.abc import Iterable

HERE = pathlib.Path(__file__).resolve().parent
TOPICS = ("attach control io limits discard flush filesystems fsx backing full shrink space huge resize compression compact sysfs crash "
          "logwrites faults pressure damage hostile idle pm leak unload faultinject debug").split()

# What only a bug makes the kernel say. Also an ERE, for the topics.
COMPLAINTS = ("WARNING: |BUG: |BUG |Oops|general protection|[Ll]ockup|blocked for more than|scheduling while atomic|"
              "sleeping function|possible (circular|recursive) locking|inconsistent lock state|bad unlock balance|"
              "lock held when returning|suspicious RCU usage|non-static key|lockdep is turned off|ODEBUG|refcount_t:|"
              "UBSAN|KASAN|rcu.*stall|Call Trace|panicked at|workqueue: .* hogged")
# Taints: died, machine check, bad page, warned, soft lockup.
TAINTS = 1 << 7 | 1 << 4 | 1 << 5 | 1 << 9 | 1 << 14
SKIPPED = 4  # exit status of a test that shows nothing on this kernel

_COMPLAINT = re.compile(COMPLAINTS)
_ALLOCATION_FAILED = re.compile("vmalloc error|page allocation failure|SLUB: Unable to allocate")


class BailOut(Exception):
    """No further test can run."""


@dataclasses.dataclass(frozen=True)
class Test:
    """A test: what it shows, and the words of its command."""

    description: str
    command: list[str]


@dataclasses.dataclass(frozen=True)
class Topic:
    """A file of tests. `allocations_fail`: it makes the kernel's allocations fail on purpose."""

    name: str
    allocations_fail: bool
    tests: list[Test]


@dataclasses.dataclass(frozen=True)
class Places:
    """The paths that lib.sh decides."""

    state: pathlib.Path
    backing: pathlib.Path
    mnt: pathlib.Path
    mnt2: pathlib.Path
    tmp: pathlib.Path
    disk1: pathlib.Path
    disk2: pathlib.Path


def say(line: str) -> None:
    """A line of TAP, at once."""
    print(line, flush=True)


def indented(lines: Iterable[str]) -> None:
    """Diagnostics."""
    for line in lines:
        say(f"# {line}")


def parse_listing(name: str, listing: str) -> tuple[Topic, Places]:
    """What `topic.sh list` printed."""
    words = listing.split("\0")[:-1]
    tests = [Test(description, command.split()) for description, command in zip(words[8::2], words[9::2])]
    return Topic(name, bool(words[0]), tests), Places(*map(pathlib.Path, words[1:8]))


def after(mark: str, lines: Iterable[str]) -> list[str]:
    """The kernel's messages since the line with the mark."""
    found: list[str] = []
    seen = False
    for line in lines:
        if seen:
            found.append(line)
        seen = seen or mark in line
    return found


def complaints(lines: Iterable[str], allocations_fail: bool) -> list[str]:
    """The lines that only a bug makes the kernel say. Where allocations fail on purpose, the kernel tells of
    each, with a backtrace, which is none of them."""
    found = []
    told = False
    for line in lines:
        if allocations_fail and _ALLOCATION_FAILED.search(line):
            told = True
        if told and "Call Trace" in line:
            told = False
        elif _COMPLAINT.search(line):
            found.append(line)
    return found


def kernel_log() -> list[str]:
    """All that the kernel still has."""
    return subprocess.run(["dmesg"], stdout=subprocess.PIPE, check=False).stdout.decode(errors="replace").splitlines()


def tainted() -> int:
    """The taints that a bug causes."""
    return int(pathlib.Path("/proc/sys/kernel/tainted").read_text()) & TAINTS


def tail(path: pathlib.Path, count: int) -> list[str]:
    """The last lines of a file."""
    return path.read_text(errors="replace").splitlines()[-count:]


class Runner:
    """Runs tests one after the other, numbered through all topics."""

    def __init__(self, places: Places, limit: int, environment: dict[str, str]) -> None:
        self.places = places
        self.limit = limit  # seconds for one test
        self.environment = os.environ | environment
        self.log = places.state / "log"
        self.number = 0
        self.failed = 0
        self.skipped = 0

    def topic(self, topic: Topic) -> None:
        """Run all tests of a topic."""
        began = time.monotonic()
        for test in topic.tests:
            self.number += 1
            self.test(topic, test)
        say(f"# {topic.name}: {time.monotonic() - began:.0f} s")

    def test(self, topic: Topic, test: Test) -> None:
        """One line of TAP, and diagnostics when it is bad."""
        name = f"{self.number} - {topic.name}: {test.description}"
        mark = f"selftest {self.number}: {topic.name}: {test.description}"
        pathlib.Path("/dev/kmsg").write_text(mark + "\n")
        taint = tainted()
        began = time.monotonic()
        status = self.run(topic, test)
        if status is None:
            say(f"not ok {name}")
            indented(tail(self.log, 40))
            pathlib.Path("/proc/sysrq-trigger").write_text("w\n")
            indented(after(mark, kernel_log())[-200:])
            raise BailOut(f"the test did not end within {self.limit} s")
        problem = self.clean_up()
        since = after(mark, kernel_log())
        if problem is not None:
            say(f"not ok {name}")
            indented([*self.log.read_text(errors="replace").splitlines(), *problem][-60:])
            indented(since[-100:])
            raise BailOut("could not clean up after the test")
        said = self.log.read_text(errors="replace").splitlines()
        bad = complaints(since, topic.allocations_fail)
        if bad or tainted() != taint:
            said += [*bad, "the kernel complained"]
            status = 1
        if status == SKIPPED and said and said[-1].startswith("skip: "):
            say(f"ok {name} # SKIP {said[-1].removeprefix('skip: ')}")
            self.skipped += 1
        elif status == 0:
            say(f"ok {name}")
            indented(line.removeprefix("figure: ") for line in said if line.startswith("figure: "))
            say(f"# {(time.monotonic() - began) * 1000:.0f} ms")
        else:
            say(f"not ok {name}")
            indented(said[-60:])
            indented(since[-30:])
            self.failed += 1

    def run(self, topic: Topic, test: Test) -> int | None:
        """The exit status of the test, or nothing if it does not end."""
        with open(self.log, "wb") as log:
            process = subprocess.Popen([str(HERE / "topic.sh"), "test", topic.name, *test.command],
                                       stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment)
            try:
                return process.wait(self.limit)
            except subprocess.TimeoutExpired:
                return None

    def clean_up(self) -> list[str] | None:
        """Take away what a test has left. If that does not work: what was said."""
        said: list[str] = []

        def done(*words: str) -> bool:
            result = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                    check=False)
            said.extend(result.stdout.decode(errors="replace").splitlines())
            return result.returncode == 0

        keep = (str(self.places.backing), str(self.places.tmp))
        targets = [line.split()[1] for line in pathlib.Path("/proc/mounts").read_text().splitlines()]
        for target in reversed(targets):
            if target.startswith(f"{self.places.state}/") and target not in keep:
                _ = done("umount", target) or done("umount", "-l", target)
        if not done("cloop", "detach", "--all"):
            # A second time for devices that lay on others.
            done("losetup", "-D")
            done("dmsetup", "remove_all")
            if not done("cloop", "detach", "--all"):
                return said
        done("losetup", "-D")
        done("dmsetup", "remove_all")
        left = [str(path) for place in keep for path in pathlib.Path(place).iterdir() if not path.name.startswith(".")]
        if left:
            done("rm", "-rf", "--", *left)
        devices = [str(path) for path in pathlib.Path("/sys/block").glob("cloop*")]
        return [*said, *devices] if devices else None


def needed(message: str, *words: str) -> None:
    """A command without which no test can run."""
    if subprocess.run(words, stdin=subprocess.DEVNULL, check=False).returncode != 0:
        raise BailOut(message)


def write(path: str, text: str) -> None:
    """To a file of the kernel, if it is there."""
    try:
        pathlib.Path(path).write_text(text)
    except OSError:
        pass


def read_topics(names: list[str], environment: dict[str, str]) -> tuple[list[Topic], Places]:
    """The topics with these names."""
    found = []
    places = None
    for name in names:
        if not (HERE / f"{name}.sh").exists():
            raise BailOut(f"there is no topic '{name}'; the topics are: {' '.join(TOPICS)}")
        listing = subprocess.run([str(HERE / "topic.sh"), "list", name], stdin=subprocess.DEVNULL,
                                 stdout=subprocess.PIPE, check=False, env=os.environ | environment)
        if listing.returncode != 0:
            raise BailOut(f"cannot read {name}.sh")
        topic, places = parse_listing(name, listing.stdout.decode())
        found.append(topic)
    return found, places


def prepare(places: Places) -> None:
    """The disk for images, and the module."""
    write("/proc/sys/kernel/hung_task_timeout_secs", "60\n")
    for place in (places.backing, places.mnt, places.mnt2, places.tmp):
        place.mkdir(parents=True, exist_ok=True)
    needed(f"cannot format {places.disk1}", "mkfs.ext4", "-q", "-F", str(places.disk1))
    needed(f"cannot mount {places.disk1}", "mount", str(places.disk1), str(places.backing))
    needed("cannot mount a tmpfs", "mount", "-t", "tmpfs", "-o", "size=80%", "selftests", str(places.tmp))
    # What the kernel has lost until now is not ours.
    write("/sys/kernel/debug/kmemleak", "clear\n")
    needed("cannot load the module", "modprobe", "cloop")
    version = subprocess.run([str(HERE / "control.py"), "version"], stdout=subprocess.PIPE, check=False, text=True)
    say(f"# Linux {os.uname().release}, {os.cpu_count()} CPUs, {version.stdout.strip()}")


def main(words: list[str]) -> int:
    """The exit status: zero if no test failed."""
    long = "--long" in words
    names = [word for word in words if word != "--long"]
    if any(name.startswith("-") for name in names):
        print("usage: run [--long] [TOPIC...]", file=sys.stderr)
        return 2
    limit = 3600 if long else 900 if os.path.exists("/sys/kernel/debug/kmemleak") else 240
    environment = {"complaints": COMPLAINTS, "taints": str(TAINTS)} | ({"long": "1"} if long else {})
    try:
        topics, places = read_topics(names or TOPICS, environment)
        # The disks are overwritten: make sure that this is the VM.
        if not os.path.exists("/run/cloop/guest") or not all(disk.is_block_device() for disk in
                                                             (places.disk1, places.disk2)):
            print("run: only for a VM made by scripts/vm, with two scratch disks", file=sys.stderr)
            return 1
        total = sum(len(topic.tests) for topic in topics)
        say("TAP version 13")
        say(f"1..{total}")
        prepare(places)
        runner = Runner(places, limit, environment)
        for topic in topics:
            runner.topic(topic)
    except BailOut as reason:
        say(f"Bail out! {reason}")
        return 255
    passed = total - runner.failed - runner.skipped
    say(f"# {passed} passed, {runner.failed} failed, {runner.skipped} skipped")
    return 1 if runner.failed else 0
