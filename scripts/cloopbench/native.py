# SPDX-License-Identifier: GPL-2.0
"""What is measured on the host itself: the engine, and the making of images by cloop and by others."""

import json
import os
import pathlib
import subprocess
import time
from collections.abc import Callable

import figures


def _built(name: str) -> str:
    """A program that cargo has built."""
    return str(pathlib.Path(os.environ["CARGO_TARGET_DIR"], "release", name))


def _engine(run: pathlib.Path, quick: bool) -> list[dict]:
    """`cloop-bench`: every path of the engine, on memory and on a file of 1 ms."""
    program, output = _built("cloop-bench"), run / "engine.json"
    common = ["--directory", str(run), "--json", str(output), "--mib", "64" if quick else "256",
              "--repeat", "1" if quick else "5"]
    results = []
    for words in (["--records", "64,4,none", "--threads", "1,2" if quick else "1,2,4,8"],
                  ["--records", "64" if quick else "64,4,none", "--delay", "1000", "--load", "4k", "--threads", "1,8"]):
        subprocess.run([program, *common, *words], check=True, stdout=subprocess.DEVNULL)
        results += json.loads(output.read_text())
        output.unlink()
    return results


def _timed(words: list[str], result: pathlib.Path) -> tuple[float, float]:
    """Seconds that a command takes, and megabytes of its result."""
    result.unlink(missing_ok=True)
    began = time.monotonic()
    subprocess.run(words, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    taken = time.monotonic() - began
    return taken, result.stat().st_blocks * 512 / 1e6


def _images(bench: pathlib.Path, run: pathlib.Path, quick: bool) -> list[dict]:
    """Making and unpacking images of the same files. The peers' programs are those of the tree of the measurements."""
    raw, image, other, back = (run / name for name in ("raw", "image", "other", "back"))
    files = bench / "tree/usr"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", str(files), str(raw), "600M"], check=True,
                   stdout=subprocess.DEVNULL)
    tool = _built("cloop")
    foreign = ["chroot", str(bench / "tree")]
    # The tree sees nothing of the host: what its programs work on lies in it.
    inside = bench / "tree/tmp/bench"
    inside.mkdir(exist_ok=True)
    inside_raw, inside_other = inside / "raw", inside / "other"
    commands = {
        "cloop import": ([tool, "import", str(raw), str(image)], image),
        "cloop export": ([tool, "export", str(image), str(back)], back),
        "mksquashfs lz4": ([*foreign, "mksquashfs", "/tmp/bench/raw", "/tmp/bench/other", "-comp", "lz4", "-b", "64K",
                            "-noappend", "-quiet", "-no-progress"], inside_other),
        "qemu-img convert, zstd": ([*foreign, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", "-o",
                                    "compression_type=zstd", "/tmp/bench/raw", "/tmp/bench/other"], inside_other),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    errors: dict[str, str] = {}
    subprocess.run(["mount", "-t", "tmpfs", "bench", str(inside)], check=True)
    try:
        subprocess.run(["cp", "--sparse=always", str(raw), str(inside_raw)], check=True)
        for _ in range(1 if quick else 5):
            for name, (words, result) in commands.items():
                try:
                    times[name].append(_timed(words, result))
                except subprocess.CalledProcessError as error:
                    errors[name] = f"exit status {error.returncode}"
    finally:
        subprocess.run(["umount", str(inside)], check=True)
        inside.rmdir()
        for path in (raw, image, other, back):
            path.unlink(missing_ok=True)
    results = []
    for name, taken in times.items():
        if not taken:
            results.append({"what": name, "error": errors[name]})
            continue
        seconds = [one for one, _ in taken]
        results.append({"what": name, "median": figures.median(seconds), "spread": figures.spread(seconds),
                        "values": seconds, "megabytes": taken[-1][1]})
    return results


def measure(bench: pathlib.Path, run: pathlib.Path, quick: bool, say: Callable[[str], None]) -> dict:
    """All of it."""
    say("the engine by itself")
    engine = _engine(run, quick)
    say("making images")
    return {"engine": engine, "images": _images(bench, run, quick)}
