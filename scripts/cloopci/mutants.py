# SPDX-License-Identifier: GPL-2.0
"""mutants [SECONDS]: change the engine in small ways, and see that a test fails each time.

cargo-mutants makes the changes (mutants), in the parts of the engine that the promises rest on most. It takes
them in random order for so long (default: an hour); what earlier runs in this cache have seen caught is not
tried again, so that runs after each other get through all of them.

A mutant that no test notices must be in tests/mutants.txt, with the reason why it is no gap in the tests.
"""

import pathlib
import re
import subprocess
import sys
from collections.abc import Iterable

from . import paths
from .paths import tool

# The newest that the toolchain's compiler builds.
VERSION = "26.0.0"
ROOMS = ("format", "log", "checkpoint", "space")
EXPLAINED = "tests/mutants.txt"
# The tests that are to notice: those of the engine on the host, without the simulation, which takes minutes. The build
# is told as well: it is most of the time that a mutant takes, and would be one of all tests and programs.
TESTS = ("--lib", "--test=engine")
# A build that is quick, incremental and without debugging information; such tests are fast enough.
BUILD = ("CARGO_PROFILE_TEST_OPT_LEVEL=1", "CARGO_PROFILE_TEST_DEBUG=0", "CARGO_INCREMENTAL=1")

_PLACE = re.compile(r"^([^:]+):\d+:\d+: ")


def without_place(mutant: str) -> str:
    """The name of a mutant without line and column, which move with every change above."""
    return _PLACE.sub(r"\1: ", mutant.strip())


def explained(text: str) -> tuple[dict[str, str], list[str]]:
    """The mutants of a list with their reasons, and what is wrong with the list. A mutant is a line; its reason is
    the indented lines below."""
    found: dict[str, str] = {}
    wrong = []
    current = ""
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if line[0].isspace():
            if current:
                found[current] += line.strip()
            else:
                wrong.append(f"a reason without a mutant: {line.strip()}")
            continue
        current = line.strip()
        if current in found:
            wrong.append(f"twice: {current}")
        found.setdefault(current, "")
    wrong += [f"no reason: {mutant}" for mutant, reason in found.items() if not reason]
    return found, wrong


def judge(survivors: Iterable[str], known: Iterable[str], possible: Iterable[str]) -> list[str]:
    """What is wrong, in lines: survivors that nothing explains, and explanations of what is no mutant any more."""
    survivors, known = {without_place(one) for one in survivors}, set(known)
    possible = {without_place(one) for one in possible}
    return [*(f"not noticed by any test: {one}" for one in sorted(survivors - known)),
            *(f"explained in {EXPLAINED}, but no mutant: {one}" for one in sorted(known - possible))]


class Mutants:
    """cargo-mutants in this cache."""

    def __init__(self, where: paths.Paths) -> None:
        self.where = where
        self.root = f"cargo/mutants-{VERSION}"
        self.results = where.out / "mutants" / "mutants.out"

    def install(self) -> int:
        """Build it unless it is in the cache. The exit status."""
        if (self.where.cache / self.root / "bin/cargo-mutants").exists():
            return 0
        print(f"installing cargo-mutants {VERSION}", file=sys.stderr)
        log = self.where.logs / "mutants-setup.log"
        with open(log, "wb") as file:
            status = subprocess.run([tool("tree"), "cargo", "install", "--locked", "--version", VERSION, "--root",
                                     f"{self.where.tree_cache}/{self.root}", "cargo-mutants"], stdout=file, stderr=file,
                                    stdin=subprocess.DEVNULL, check=False).returncode
        if status != 0:
            print(f"mutants: that failed: see {log}", file=sys.stderr)
        return status

    def words(self, *more: str) -> list[str]:
        """The command. With a target directory of its own, because the mutants are no builds to keep."""
        cache = self.where.tree_cache
        rooms = [word for room in ROOMS for word in ("--file", f"src/engine/{room}/**")]
        return [tool("tree"), "env", f"PATH={cache}/{self.root}/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                f"CARGO_TARGET_DIR={cache}/out/mutants/target", *BUILD, *more, "--no-config", *rooms,
                "--output", f"{cache}/out/mutants"]

    def possible(self) -> list[str]:
        """All mutants there are."""
        done = subprocess.run(self.words("cargo", "mutants", "--list"), stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, check=True, text=True)
        return done.stdout.splitlines()

    def run(self, seconds: int) -> None:
        """Try mutants for so long. Results are in files, which a run that is stopped leaves as well."""
        self.results.parent.mkdir(parents=True, exist_ok=True)
        words = self.words("timeout", "--signal=INT", "--kill-after=60", str(seconds), "cargo", "mutants")
        cargo = ("--locked", *TESTS)
        subprocess.run([*words, "--iterate", "--shuffle", "--colors", "never", "--no-times", "--no-default-features",
                        *(f"--cargo-arg={word}" for word in cargo)], stdin=subprocess.DEVNULL, check=False)

    def found(self, kind: str) -> list[str]:
        """The mutants with this result in the last run."""
        try:
            return (self.results / f"{kind}.txt").read_text().splitlines()
        except FileNotFoundError:
            return []


def main(words: list[str]) -> int:
    """The exit status: zero if some mutants were tried, and each was noticed or is explained."""
    if len(words) > 1 or not all(word.isdigit() for word in words):
        print("usage: mutants [SECONDS]", file=sys.stderr)
        return 2
    where = paths.load()
    mutants = Mutants(where)
    if mutants.install() != 0:
        return 1
    known, wrong = explained(pathlib.Path(where.src, EXPLAINED).read_text())
    possible = mutants.possible()
    mutants.run(int(words[0]) if words else 3600)
    caught, missed = mutants.found("caught"), mutants.found("missed")
    slow, before = mutants.found("timeout"), mutants.found("previously_caught")
    wrong += judge(missed, known, possible)
    tried = len(caught) + len(missed) + len(slow)
    print(f"{len(possible)} mutants, {len(before)} of them noticed in earlier runs; tried {tried}: {len(caught)} "
          f"noticed, {len(slow)} noticed because the tests hang, {len(missed)} not noticed")
    if not tried and not before:
        wrong.append("no mutant was tried")
    for line in wrong:
        print(line)
    return 1 if wrong else 0
