# SPDX-License-Identifier: GPL-2.0
"""bench [OPTION]...: measure cloop beside its peers, see --help. Runs inside the tree, as scripts/bench starts it."""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import figures  # noqa: E402
import machine  # noqa: E402
import matrix  # noqa: E402
import native  # noqa: E402
import plot  # noqa: E402
import report  # noqa: E402

SOURCE = HERE.parent.parent
CACHE = pathlib.Path(os.environ["CLOOP_CACHE"])
BENCH = CACHE / "bench"
# The disks lie in memory: how fast the disk of the host is must not be of interest.
MEMORY = pathlib.Path("/dev/shm")
DISK_SIZE = 8 << 30
# Bytes at the beginning of the disk that are written beforehand: the host gives a file in memory its pages when they
# are first written, which costs the first load more than the next.
WARM = 2 << 30
TIMEOUT = 900
GROUPS = tuple(group.name for group in matrix.GROUPS)


def say(text: str) -> None:
    """To the user, at once."""
    print(text, flush=True)


def arguments(words: list[str]) -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(prog="bench", description="Measure cloop beside its peers.")
    parser.add_argument("--quick", action="store_true", help="fewer peers and repetitions, within 5 minutes")
    parser.add_argument("--repetitions", type=int, metavar="N")
    parser.add_argument("--groups", help=f"only these of {', '.join((*GROUPS, 'native'))}, with commas between them")
    parser.add_argument("--peers", help="only these, with commas between them")
    parser.add_argument("--cpus", type=int, default=1, help="of the machine; more than one is for scaling only, and "
                                                            "user-mode Linux is not reliable then")
    parser.add_argument("--output", type=pathlib.Path, default=BENCH, help="where the report goes")
    args = parser.parse_args(words)
    args.profile = matrix.PROFILES["quick" if args.quick else "full"]
    args.groups = tuple(args.groups.split(",")) if args.groups else (*(args.profile.groups or GROUPS), "native")
    if unknown := set(args.groups) - {*GROUPS, "native"}:
        parser.error(f"there is no group {', '.join(sorted(unknown))}")
    if args.peers and (unknown := set(args.peers.split(",")) - set(matrix.PEERS)):
        parser.error(f"there is no peer {', '.join(sorted(unknown))}")
    return args


def profile_of(args: argparse.Namespace) -> matrix.Profile:
    """How much is measured."""
    profile = args.profile
    if args.repetitions:
        profile = profile._replace(repetitions=args.repetitions, minutes=None)
    if args.peers:
        profile = profile._replace(peers=tuple(args.peers.split(",")))
    return profile


def about(profile: matrix.Profile, args: argparse.Namespace) -> dict:
    """What one has to know about the figures."""
    def said(*words: str) -> str:
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
        return done.stdout.decode().strip()

    model = next((line.partition(":")[2].strip() for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), "unknown")
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "commit": os.environ.get("CLOOP_COMMIT", "unknown"),
        "kernel": f"{(BENCH / 'kernel/release').read_text().strip()}, user-mode Linux, CPUs: {args.cpus}",
        "host": f"{model}, CPUs: {os.cpu_count()}, load at the begin: {os.getloadavg()[0]:.1f}",
        "fio": said("chroot", str(BENCH / "tree"), "fio", "--version"),
        "profile": f"{'quick' if args.quick else 'full'}, {profile.megabytes} MiB, {profile.seconds} s",
    }


def make_disk(path: pathlib.Path) -> None:
    """An empty disk in memory."""
    with open(path, "wb") as file:
        for _ in range(WARM >> 20):
            file.write(bytes(1 << 20))
        file.truncate(DISK_SIZE)


def make_archive(path: pathlib.Path, whole: bool) -> None:
    """Files as a distribution has them, in the same order each time."""
    places = ["usr/lib/python3.13", "usr/bin"] if whole else ["usr/lib/python3.13"]
    words = ["tar", "--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--format=gnu", "-C", str(BENCH / "tree"),
             "-cf", str(path), *places]
    subprocess.run(words, check=True)


class Measurement:
    """All that is measured in one call of bench."""

    def __init__(self, args: argparse.Namespace, run: pathlib.Path) -> None:
        self.args = args
        self.run_directory = run
        self.profile = profile_of(args)
        self.samples: list[dict] = []
        self.disk, self.archive = run / "disk", run / "files.tar"
        self.log = open(args.output / "bench.log", "w")

    def note(self, line: str) -> None:
        """What the machine says apart from figures."""
        self.log.write(line + "\n")
        self.log.flush()

    def peer(self, peer: str, repetition: int) -> None:
        """One repetition of everything on one peer: one machine, that boots for it."""
        plan = matrix.plan(peer, self.args.groups, self.profile)
        path = self.run_directory / "plan.json"
        path.write_text(json.dumps(plan))
        # setpriv: so that the machine does not outlive a bench that is stopped.
        words = ["setpriv", "--pdeathsig", "TERM", str(SOURCE / "scripts/vm"), "--bench", "--smp", str(self.args.cpus),
                 "--timeout", str(TIMEOUT), "--disk", str(self.disk), "--disk", str(self.archive),
                 "--file", f"{HERE}:/root/", "--file", f"{path}:/root/plan.json", str(HERE / "guest"),
                 "/root/plan.json"]
        self.note(f"=== {peer}, repetition {repetition}")
        began = time.monotonic()
        samples, series, status = machine.run(words, self.note)
        complete = bool(samples) and samples[-1].get("complete")
        samples = [sample for sample in samples if not sample.get("complete")]
        if not complete:
            done = {(sample["group"], sample.get("load")) for sample in samples}
            samples += [{"group": group["group"], "peer": peer, "error": f"the machine stopped, exit status {status}"}
                        for group in plan if (group["group"], group["loads"][-1]["name"]) not in done]
        figures.add_cpu([sample for sample in samples if "error" not in sample], series)
        self.samples += [sample | {"repetition": repetition} for sample in samples]
        errors = [sample["error"] for sample in samples if "error" in sample]
        say(f"{peer}, repetition {repetition}: {len(samples) - len(errors)} figures in {time.monotonic() - began:.0f} s"
            + "".join(f"\n  {error}" for error in errors))

    def matrix(self) -> None:
        """Repetitions in turn: each peer once, then each once more, so that a change of the machine's speed meets
        all of them."""
        peers = matrix.peers_of(self.args.groups, self.profile)
        if not peers:
            return
        make_disk(self.disk)
        make_archive(self.archive, self.profile.files)
        began = time.monotonic()
        for repetition in range(1, self.profile.repetitions + 1):
            for peer in peers:
                self.peer(peer, repetition)
            taken = time.monotonic() - began
            if self.profile.minutes and taken * (repetition + 1) / repetition > self.profile.minutes * 60:
                say(f"{repetition} repetitions took {taken:.0f} s: no more of them")
                break

    def write(self) -> None:
        """The report: everything as JSON, a page of tables, a picture of each group."""
        result = {"about": about(self.profile, self.args) | {"load at the end": f"{os.getloadavg()[0]:.1f}"},
                  "cells": report.cells(self.samples), "samples": self.samples}
        if "native" in self.args.groups:
            result["native"] = native.measure(BENCH, self.run_directory, self.args.quick, say)
        output = self.args.output
        (output / "bench.json").write_text(json.dumps(result, indent=1) + "\n")
        (output / "bench.md").write_text(report.page(result))
        for group in matrix.GROUPS:
            cells = [cell for cell in result["cells"] if cell["group"] == group.name]
            if cells:
                (output / f"{group.name}.svg").write_text(plot.picture(group.title, cells))


def main(words: list[str]) -> int:
    """The exit status: 1 if something that should have been measured was not."""
    args = arguments(words)
    args.output.mkdir(parents=True, exist_ok=True)
    run = MEMORY / f"cloop-bench.{os.getpid()}"
    run.mkdir()
    try:
        measurement = Measurement(args, run)
        measurement.matrix()
        measurement.write()
    finally:
        for file in run.iterdir():
            file.unlink()
        run.rmdir()
    say((args.output / "bench.md").read_text())
    return 1 if any(sample.get("error") for sample in measurement.samples) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
