# SPDX-License-Identifier: GPL-2.0
"""The peers, inside the machine: how each is set up on a disk, and taken down again.

A peer is a context manager that gives the `Target` to measure. There is no udev: device-mapper devices are used by
their numbers, and a name that does not exist must not become a plain file, see `Target.check`.
"""

import contextlib
import os
import pathlib
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

# Bytes of each device under test.
SIZE = 2 << 30

_BACKING = pathlib.Path("/mnt/backing")
_UPPER = pathlib.Path("/mnt/upper")


class Trouble(Exception):
    """Something could not be set up or done, in a sentence."""


class Target(NamedTuple):
    """What the loads work on."""

    path: str
    is_device: bool
    direct: bool = True  # whether it can be read past the page cache

    def check(self) -> None:
        """Whether it is there and what it should be. Programs create a missing file, and would measure that."""
        try:
            mode = os.stat(self.path).st_mode
        except FileNotFoundError:
            raise Trouble(f"{self.path} is gone") from None
        if not (stat.S_ISBLK(mode) if self.is_device else stat.S_ISREG(mode)):
            raise Trouble(f"{self.path} is not a {'block device' if self.is_device else 'regular file'}")


def run(*words: str) -> str:
    """A command that must succeed. Returns what it prints."""
    done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).decode(errors="replace").strip()
        raise Trouble(f"{' '.join(words)}: exit status {done.returncode}: {said[-300:]}")
    return done.stdout.decode(errors="replace").strip()


@contextlib.contextmanager
def mounted(what: str, where: pathlib.Path, *options: str) -> Iterator[pathlib.Path]:
    """A file system while it is mounted."""
    where.mkdir(parents=True, exist_ok=True)
    run("mount", *options, what, str(where))
    try:
        yield where
    finally:
        run("umount", str(where))


@contextlib.contextmanager
def backing(disk: str) -> Iterator[pathlib.Path]:
    """An empty ext4 on the disk, with its inode tables written: nothing is left to do in the background."""
    run("mkfs.ext4", "-q", "-F", "-i", "65536", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard", disk)
    with mounted(disk, _BACKING, "-o", "discard") as directory:
        yield directory


@contextlib.contextmanager
def _loop(file: pathlib.Path, *options: str) -> Iterator[str]:
    device = run("losetup", "--find", "--show", *options, str(file))
    try:
        yield device
    finally:
        run("losetup", "--detach", device)


def _sparse(file: pathlib.Path, size: int = SIZE) -> pathlib.Path:
    with open(file, "wb") as opened:
        opened.truncate(size)
    return file


@contextlib.contextmanager
def _raw(disk: str) -> Iterator[Target]:
    yield Target(disk, True)


@contextlib.contextmanager
def _file(disk: str) -> Iterator[Target]:
    with backing(disk) as directory:
        yield Target(str(_sparse(directory / "file")), False)


def _looped(*options: str) -> Callable[[str], contextlib.AbstractContextManager[Target]]:
    @contextlib.contextmanager
    def peer(disk: str) -> Iterator[Target]:
        with backing(disk) as directory, _loop(_sparse(directory / "image"), *options) as device:
            yield Target(device, True)

    return peer


@contextlib.contextmanager
def _vdo(disk: str) -> Iterator[Target]:
    run("vdoformat", "--force", f"--logical-size={SIZE >> 20}M", disk)
    blocks = int(run("blockdev", "--getsz", disk)) // 8
    table = f"0 {SIZE >> 9} vdo V4 {disk} {blocks} 4096 32768 16380 deduplication off compression on"
    run("dmsetup", "create", "--noudevsync", "bench", "--table", table)
    try:
        numbers = run("dmsetup", "info", "-c", "--noheadings", "-o", "major,minor", "--separator", ":", "bench")
        yield Target(f"/dev/{pathlib.Path('/sys/dev/block', numbers).resolve().name}", True)
    finally:
        run("dmsetup", "remove", "--noudevsync", "bench")


def _btrfs(compression: str) -> Callable[[str], contextlib.AbstractContextManager[Target]]:
    @contextlib.contextmanager
    def peer(disk: str) -> Iterator[Target]:
        with backing(disk) as directory, _loop(_sparse(directory / "image", 2 * SIZE), "--direct-io=on") as device:
            run("mkfs.btrfs", "-q", "-f", device)
            with mounted(device, _UPPER, "-o", f"compress-force={compression},discard=async") as upper:
                yield Target(str(_sparse(upper / "file")), False)

    return peer


@contextlib.contextmanager
def _zram(_: str) -> Iterator[Target]:
    zram = pathlib.Path("/sys/block/zram0")
    (zram / "comp_algorithm").write_text("lz4")
    (zram / "disksize").write_text(str(SIZE))
    try:
        yield Target("/dev/zram0", True)
    finally:
        (zram / "reset").write_text("1")


def _cloop(*options: str) -> Callable[[str], contextlib.AbstractContextManager[Target]]:
    @contextlib.contextmanager
    def peer(disk: str) -> Iterator[Target]:
        run("modprobe", "cloop")
        with backing(disk) as directory:
            image = str(directory / "image")
            run("cloop", "create", "--size", str(SIZE), *options, image)
            device = run("cloop", "attach", image)
            try:
                yield Target(device, True)
            finally:
                run("cloop", "detach", device)

    return peer


@contextlib.contextmanager
def _cloop_disk(disk: str) -> Iterator[Target]:
    run("modprobe", "cloop")
    run("cloop", "create", "--force", "--size", str(SIZE), disk)
    device = run("cloop", "attach", disk)
    try:
        yield Target(device, True)
    finally:
        run("cloop", "detach", device)


PEERS: dict[str, Callable[[str], contextlib.AbstractContextManager[Target]]] = {
    "raw": _raw,
    "file": _file,
    "loop-direct": _looped("--direct-io=on"),
    "loop-buffered": _looped(),
    "dm-vdo": _vdo,
    "btrfs-lzo": _btrfs("lzo"),
    "btrfs-zstd": _btrfs("zstd:1"),
    "zram": _zram,
    "cloop-64K": _cloop(),
    "cloop-4K": _cloop("--record-size", "4K"),
    "cloop-none": _cloop("--compress", "none"),
    "cloop-disk": _cloop_disk,
}


# --- peers that are only read ------------------------------------------------------


@contextlib.contextmanager
def squashfs(disk: str, data: str) -> Iterator[Target]:
    """`data` in a squashfs on the disk."""
    run("mksquashfs", data, disk, "-comp", "lz4", "-b", "64K", "-noappend", "-quiet", "-no-progress")
    with mounted(disk, _UPPER, "-t", "squashfs", "-o", "ro") as upper:
        yield Target(str(upper / os.path.basename(data)), False, direct=False)


@contextlib.contextmanager
def qemu_nbd(disk: str, data: str) -> Iterator[Target]:
    """`data` in a compressed qcow2 on ext4 on the disk, attached as /dev/nbd0."""
    with backing(disk) as directory:
        image = str(directory / "image.qcow2")
        run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", "-o", "compression_type=zstd", data, image)
        # In the foreground, so that it ends here whatever happens.
        server = subprocess.Popen(["qemu-nbd", "--connect=/dev/nbd0", "--cache=none", "--aio=threads", image],
                                  stdin=subprocess.DEVNULL)
        try:
            _wait_for_size("/sys/block/nbd0/size", server)
            yield Target("/dev/nbd0", True)
        finally:
            subprocess.run(["qemu-nbd", "--disconnect", "/dev/nbd0"], stdout=subprocess.DEVNULL, check=False)
            server.terminate()
            server.wait()


def _wait_for_size(file: str, server: subprocess.Popen) -> None:
    for _ in range(200):
        if server.poll() is not None:
            raise Trouble(f"qemu-nbd: exit status {server.returncode}")
        if int(pathlib.Path(file).read_text()) > 0:
            return
        time.sleep(0.05)
    raise Trouble("qemu-nbd: the device does not appear within 10 s")


READERS: dict[str, Callable[[str, str], contextlib.AbstractContextManager[Target]]] = {
    "squashfs": squashfs,
    "qemu-nbd": qemu_nbd,
}


# --- disks ---------------------------------------------------------------------------


@contextlib.contextmanager
def null_disk(settings: dict[str, int]) -> Iterator[str]:
    """A disk in memory, made by null_blk."""
    name = "bench"
    directory = pathlib.Path("/sys/kernel/config/nullb", name)
    directory.mkdir()
    try:
        words = {"size": 8192, "blocksize": 4096, "memory_backed": 1, "queue_mode": 2} | settings | {"power": 1}
        for attribute, value in words.items():
            (directory / attribute).write_text(str(value))
        index = (directory / "index").read_text().strip()
        for disk in (f"nullb{index}", name):
            if pathlib.Path("/sys/block", disk).exists():
                yield f"/dev/{disk}"
                return
        raise Trouble("null_blk: the disk does not appear")
    finally:
        directory.rmdir()
