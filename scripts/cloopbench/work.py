# SPDX-License-Identifier: GPL-2.0
"""The loads, inside the machine. Each returns what it has moved, or nothing if only its time counts."""

import json
import os
import pathlib
import sqlite3
import subprocess
from collections.abc import Callable
from typing import NamedTuple

import figures
import peers

ARCHIVE = "/tmp/files.tar"
FILE_SIZE = 64 << 20
MOUNT = pathlib.Path("/mnt/files")


class Place(NamedTuple):
    """Where a load works: the target, the directory if there is a file system on it, and the group's plan."""

    target: peers.Target
    directory: pathlib.Path
    plan: dict


def run_fio(path: str, plan: dict, timed: bool = False, **options: object) -> dict:
    """fio with these options on a file or device, for a time or once over it."""
    words = {
        "name": "bench", "filename": path, "ioengine": "libaio", "direct": 1, "group_reporting": 1,
        "output-format": "json", "randrepeat": 1, "allow_file_create": 0,
        "buffer_compress_percentage": plan["compressible"],
        "size": f"{plan['megabytes']}m",
    } | options
    if timed:
        words |= {"time_based": 1, "runtime": f"{round(plan['seconds'] * 1000)}ms"}
    command = ["fio", *(f"--{name}={value}" for name, value in words.items())]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
    if done.returncode != 0:
        raise peers.Trouble(f"fio: exit status {done.returncode}: {done.stderr.decode(errors='replace')[-300:]}")
    return figures.of_fio(json.loads(done.stdout))


def fio(place: Place, **options: object) -> dict:
    """fio on the target."""
    return run_fio(place.target.path, place.plan, **{"direct": int(place.target.direct)} | options)


def _file_of(place: Place, state: str) -> str:
    return str(pathlib.Path(place.target.path).with_name(f"file-{state}"))


def make_file(place: Place, state: str) -> None:
    """The file of `fsync_file`."""
    path = _file_of(place, state)
    if state == "written":
        run_fio(path, place.plan, rw="write", bs="1m", size=FILE_SIZE, end_fsync=1, allow_file_create=1)
    else:
        with open(path, "wb") as file:
            if state == "preallocated":
                os.posix_fallocate(file.fileno(), 0, FILE_SIZE)
            os.fsync(file.fileno())
    os.sync()


def fsync_file(place: Place, state: str, **options: object) -> dict:
    """4 KiB after the other into a file that was new, preallocated or written before, with fdatasync after each."""
    return run_fio(_file_of(place, state), place.plan, rw="write", size=FILE_SIZE, runtime=f"{round(place.plan['seconds'] * 1000)}ms",
                fallocate="none", overwrite=int(state == "written"), **({"file_append": 1} if state == "new" else {}),
                **options)


def discard(place: Place) -> None:
    """Discard the whole device."""
    peers.run("blkdiscard", place.target.path)


def mkfs(place: Place) -> None:
    """An ext4 on the target, as one makes it."""
    if place.target.is_device:
        peers.run("mkfs.ext4", "-q", "-F", place.target.path)


def untar(place: Place) -> None:
    """Unpack the archive, and wait until all is on the disk."""
    peers.run("tar", "-C", str(place.directory), "-xf", ARCHIVE)
    peers.run("sync", "-f", str(place.directory))


def read_all(place: Place) -> None:
    """Read every file."""
    buffer = bytearray(1 << 20)
    for directory, _, names in os.walk(place.directory):
        for name in names:
            path = os.path.join(directory, name)
            if os.path.isfile(path) and not os.path.islink(path):
                with open(path, "rb", buffering=0) as file:
                    while file.readinto(buffer):
                        pass


def sqlite(place: Place, commits: int) -> None:
    """Small transactions in a database, each of them durable."""
    path = place.directory / "bench.db"
    base = sqlite3.connect(path, isolation_level=None)
    base.execute("pragma synchronous=FULL")
    base.execute("create table bench (a integer primary key, b text)")
    for number in range(commits):
        base.execute("insert into bench (b) values (?)", (f"row {number} " * 40,))
    base.close()


def big_file(place: Place, megabytes: int) -> dict:
    """One file, through the page cache, and fsync."""
    path = str(place.directory / "big")
    return run_fio(path, place.plan, rw="write", bs="1m", size=f"{megabytes}m", direct=0, ioengine="psync", end_fsync=1,
                allow_file_create=1)


# By the name that `matrix.Load.kind` has.
KINDS: dict[str, Callable[..., dict | None]] = {
    "fio": fio,
    "make_file": make_file,
    "fsync_file": fsync_file,
    "discard": discard,
    "mkfs": mkfs,
    "untar": untar,
    "read_all": read_all,
    "sqlite": sqlite,
    "big_file": big_file,
}
