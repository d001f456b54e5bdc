# SPDX-License-Identifier: GPL-2.0
"""The checks that run something: on the host, in the virtual machine, for long."""

import subprocess
from typing import BinaryIO

from . import results
from .paths import Paths, tool
from .tally import Step, Tally, command

# What goes through the driver in a quarter of an hour on an idle machine. The rest is left to --long: io alone
# takes four minutes, others fill disks, or repeat for long what these do once.
DEBUG_TOPICS = ("attach", "control", "discard", "flush", "filesystems", "backing", "full", "resize",
                "compression", "compact", "sysfs",
                "crash", "idle", "unload", "faultinject", "debug")


def _runs(words: list[str], tally: Tally) -> bool:
    """Run what a suite needs beforehand, with its output shown. If it fails, the suite has."""
    status = subprocess.run(words, stdin=subprocess.DEVNULL, check=False).returncode
    if status != 0:
        tally.add(" ".join(words), results.Counts(), status)
    return status == 0


def host(tally: Tally, paths: Paths, long: bool) -> None:
    """Unit tests of the scripts, and cargo's tests."""
    tally.one("unit tests of the scripts", command(tool("tree"), "python3", "-B", "-m", "unittest", "discover", "-s",
                                                   "tests/scripts"))
    words = [tool("tree"), "env"]
    if long:
        words.append("CLOOP_TEST_LONG=1")
    words += ["cargo", "test", "--locked", "--no-fail-fast", "--"]
    if long:
        words.append("--include-ignored")
    tally.suite("cargo test", words, paths.logs / "host.log", results.of_cargo)


def fuzz(tally: Tally, _: Paths, __: bool) -> None:
    """The fuzzer, ten minutes for each target."""
    tally.one("fuzzing: images of any bytes", command(tool("fuzz"), "600", "image"))
    tally.one("fuzzing: forged images", command(tool("fuzz"), "600", "forgery"))


def mutants(tally: Tally, _: Paths, __: bool) -> None:
    """Small changes to the engine, for an hour."""
    tally.one("mutants: a test notices each, or it is explained", command(tool("mutants"), "3600"))


def _vm_runner(paths: Paths, *options: str) -> Step:
    """The test of scripts/vm itself."""
    return command(tool("tree"), "python3", "-B", str(paths.tree_src / "tests/scripts/vm_runner.py"), *options)


def _powercut_notices(option: str) -> Step:
    """The test of power cuts sees it when it is lied to: it fails, and with the status of a lost promise."""
    powercut = command(tool("powercut"), "--count", "10", option, "ext4", "xfs")

    def step(log: BinaryIO) -> int:
        status = powercut(log)
        if status == results.NOT_BOOTED_STATUS:
            return status
        return 0 if status == 1 else 1

    return step


def _selftests(tally: Tally, paths: Paths, name: str, options: list[str], topics: tuple[str, ...], long: bool) -> None:
    """The tests of the module, in a VM with these options; all topics, if there are none named."""
    if not _runs([tool("tree"), "cargo", "build", "--release", "--locked", "--no-default-features", "--features", "fuzz",
                  "--bin", "cloop-hostile"], tally):
        return
    fsx = subprocess.run([tool("fsx")], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False, text=True)
    if fsx.returncode != 0:
        tally.add("scripts/fsx", results.Counts(), fsx.returncode)
        return
    # setpriv: so that the VM does not outlive a check that is stopped.
    words = ["setpriv", "--pdeathsig", "TERM", tool("vm"), *options, "--scratch", "8G", "--scratch", "4G",
             "--file", "selftests:/root/", "--file", f"{paths.out}/target/release/cloop-hostile:/usr/local/bin/",
             "--file", f"{fsx.stdout.strip()}:/usr/local/bin/",
             "selftests/run", *(["--long"] if long else []), *topics]
    counts = tally.suite(name, words, paths.logs / "vm-check.log", results.of_tap)
    # Every plan must be answered by as many results.
    if counts and counts.planned != counts.reported:
        tally.fail(f"{counts.planned} tests planned in {name}, {counts.reported} reported")


def debug(tally: Tally, paths: Paths, long: bool) -> None:
    """The selftests in the debug kernel."""
    if not _runs(["make", "build-debug"], tally):
        return
    tally.one("a debug kernel that does not boot is told from a test that fails", _vm_runner(paths, "--debug"))
    options = ["--debug", "--timeout", "14400" if long else "5400"]
    _selftests(tally, paths, "the debug kernel", options, () if long else DEBUG_TOPICS, long)


def vm(tally: Tally, paths: Paths, long: bool) -> None:
    """The selftests in the stock kernel, and power cuts."""
    if not _runs(["make", "build"], tally):
        return
    tally.one("a machine that does not boot is told from a test that fails",
              _vm_runner(paths, *(["--long"] if long else [])))
    _selftests(tally, paths, "a VM that sleeps", ["--serial", "--mem", "1G", "--timeout", "3600"], ("pm",), long)
    _selftests(tally, paths, "the VM", ["--mem", "3G", "--timeout", "14400" if long else "3600"], (), long)
    if not long:
        tally.one("3 power cuts", command(tool("powercut"), "--count", "3", "ext4", "xfs"))
        return
    tally.one("50 power cuts", command(tool("powercut"), "--count", "50", "ext4", "xfs", "btrfs"))
    tally.one("power cuts: a promise before its fsync is noticed", _powercut_notices("--early"))
    tally.one("power cuts: a disk that does not flush is noticed", _powercut_notices("--lying-disk"))
