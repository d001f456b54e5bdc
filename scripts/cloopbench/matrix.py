# SPDX-License-Identifier: GPL-2.0
"""What is measured: peers, loads in groups, and how much of it. Data only; the guest gets its part as JSON."""

from typing import NamedTuple

# Of everything that is written. 4 KiB blocks of it shrink to less than half with LZ4.
COMPRESSIBLE_PERCENT = 60


class Load(NamedTuple):
    """One thing that is measured. `kind` is the function of `work.KINDS` that does it, `options` are its arguments.
    `unit` says what is shown: "MB/s" and "IOPS" are better if larger, "ms" if smaller. Loads without a unit prepare
    others and are not shown."""

    name: str
    kind: str
    unit: str
    options: dict = {}
    cold: bool = False  # with empty page caches


class Group(NamedTuple):
    """Loads that follow each other on one fresh device. `disk` is what the device lies on: "ubd", or
    one of DISKS."""

    name: str
    title: str
    peers: tuple[str, ...]
    loads: tuple[Load, ...]
    disk: str = "ubd"
    filesystem: bool = False  # the loads work in an ext4 on the device


class Profile(NamedTuple):
    """How much is measured."""

    repetitions: int
    megabytes: int  # of a sequential load
    seconds: float  # of a random load
    files: bool  # the whole archive of files, or a tenth of it
    peers: tuple[str, ...] | None = None  # only these
    groups: tuple[str, ...] | None = None  # only these
    minutes: float | None = None  # no repetition begins that would not end by then


# In the order of the tables.
PEERS = {
    "raw": "the disk itself",
    "file": "a file on ext4",
    "loop-direct": "loop with direct I/O on ext4",
    "loop-buffered": "loop through the page cache on ext4",
    "dm-vdo": "dm-vdo on the disk, compression on, deduplication off",
    "btrfs-lzo": "a file on btrfs, compress-force=lzo, on loop on ext4",
    "btrfs-zstd": "a file on btrfs, compress-force=zstd:1, on loop on ext4",
    "zram": "zram with lz4: in memory, not on the disk",
    "squashfs": "a file in squashfs with lz4, 64K blocks, on the disk: for reading, through the page cache, because it has "
                "no direct I/O",
    "qemu-nbd": "qcow2 with compressed clusters (zstd) on ext4, through qemu-nbd: for reading",
    "cloop-64K": "cloop on ext4, records of 64K",
    "cloop-4K": "cloop on ext4, records of 4K",
    "cloop-none": "cloop on ext4 without compression",
    "cloop-disk": "cloop on the disk, records of 64K",
}

# What was left out, and why: the report says so as well.
LEFT_OUT = {
    "ublk": "Debian has no server that would give a compressed image to it: its QEMU exports through NBD, vhost-user "
            "and FUSE only",
    "writes to qcow2": "QEMU compresses a cluster only when it writes it for the first time and whole; "
                       "a device that is overwritten is not compressed",
}

_WRITABLE = ("raw", "loop-direct", "loop-buffered", "dm-vdo", "btrfs-lzo", "btrfs-zstd", "zram", "cloop-64K",
             "cloop-4K", "cloop-none")


def _fio(**options: object) -> dict:
    return options


def _sequential(name: str, **options: object) -> Load:
    return Load(name, "fio", "MB/s", _fio(iodepth=4, **options), cold=options["rw"] == "read")


def _random(name: str, cold: bool = False, **options: object) -> Load:
    return Load(name, "fio", "IOPS", _fio(timed=True, bs="4k", **options), cold)


_PREPARE = Load("prepare", "fio", "", _fio(rw="write", bs="128k", iodepth=4, end_fsync=1))
_SYNCED = _fio(ioengine="psync", bs="4k", fdatasync=1)

_SEQUENTIAL = (
    _sequential("write 128K", rw="write", bs="128k", end_fsync=1),
    _sequential("read 128K", rw="read", bs="128k"),
    _sequential("write 1M", rw="write", bs="1m", end_fsync=1),
    _sequential("read 1M", rw="read", bs="1m"),
)

GROUPS = (
    Group("sequential", "Sequential, depth 4", _WRITABLE, _SEQUENTIAL),
    Group("random", "Random 4K, of data written as 128K", _WRITABLE, (
        _PREPARE,
        _random("read, depth 1", True, rw="randread", iodepth=1),
        _random("read, depth 8", rw="randread", iodepth=8),
        _random("write, depth 1", rw="randwrite", iodepth=1),
        _random("write, depth 8", rw="randwrite", iodepth=8),
        _random("70/30, depth 8", rw="randrw", rwmixread=70, iodepth=8),
    )),
    Group("readers", "Reading what was stored once", ("loop-direct", "btrfs-lzo", "squashfs", "qemu-nbd", "cloop-64K",
                                                      "cloop-4K"), (
        Load("store", "store", ""),
        _sequential("read 128K", rw="read", bs="128k"),
        _sequential("read 1M", rw="read", bs="1m"),
        _random("read 4K, depth 1", True, rw="randread", iodepth=1),
        _random("read 4K, depth 8", rw="randread", iodepth=8),
    )),
    Group("flush", "Write 4K + fdatasync", ("raw", "loop-direct", "dm-vdo", "btrfs-lzo", "cloop-64K", "cloop-4K",
                                            "cloop-disk"), (
        Load("prepare", "fio", "", _fio(rw="write", bs="128k", iodepth=4, end_fsync=1)),
        Load("overwriting", "fio", "IOPS", _SYNCED | _fio(rw="randwrite", timed=True)),
    )),
    # The same on the file system itself: what a flush costs there in each state of a file.
    Group("flush-file", "Write 4K + fdatasync of a file on ext4", ("file",), (
        *(load for state in ("new", "preallocated", "written") for load in (
            Load(f"make {state}", "make_file", "", {"state": state}),
            Load(state, "fsync_file", "IOPS", {"state": state} | _SYNCED),
        )),
    )),
    Group("files", "Files on ext4 on the device", ("raw", "loop-direct", "dm-vdo", "btrfs-lzo", "btrfs-zstd", "zram",
                                                   "cloop-64K", "cloop-4K"), (
        Load("mkfs", "mkfs", "ms"),
        Load("untar", "untar", "ms"),
        Load("read all", "read_all", "ms", cold=True),
        Load("sqlite, 300 commits", "sqlite", "ms", {"commits": 300}),
        Load("128 MB + fsync", "big_file", "ms", {"megabytes": 128}),
    ), filesystem=True),
    Group("discard", "Discard of the whole written device", ("loop-direct", "dm-vdo", "cloop-64K"), (
        _PREPARE,
        Load("blkdiscard", "discard", "ms"),
    )),
    Group("throttled", "Sequential, depth 4, on a disk of 200 MB/s", ("raw", "loop-direct", "dm-vdo", "btrfs-lzo",
                                                                     "cloop-64K", "cloop-4K"),
          _SEQUENTIAL, disk="slow"),
    Group("late", "Random 4K, on a disk that answers after 1 ms", ("raw", "loop-direct", "dm-vdo", "cloop-64K",
                                                                   "cloop-4K"), (
        _PREPARE,
        _random("read, depth 1", True, rw="randread", iodepth=1),
        _random("read, depth 32", True, rw="randread", iodepth=32),
        _random("write, depth 32", rw="randwrite", iodepth=32),
    ), disk="late"),
)

# Disks in the memory of the guest, by settings of null_blk: the MiB that one transfers each second, in both directions
# together; the time in which the other answers.
DISKS = {
    "slow": {"irqmode": 0, "mbps": 190},
    "late": {"irqmode": 2, "completion_nsec": 1_000_000},
}
# The guest has 1500 MiB.
IN_MEMORY_MEGABYTES = 256

PROFILES = {
    "full": Profile(5, 512, 2, True),
    "quick": Profile(3, 192, 0.7, False, ("raw", "file", "loop-direct", "dm-vdo", "btrfs-lzo", "cloop-64K", "cloop-4K"),
                     ("sequential", "random", "flush", "flush-file", "files"), 3.8),
}


def in_memory(group: Group) -> bool:
    """Whether the data also lies in memory of the guest: on its disk, or in the file that readers are made from."""
    return group.disk in DISKS or group.loads[0].kind == "store"


def plan(peer: str, groups: tuple[str, ...], profile: Profile) -> list[dict]:
    """What the guest does with one peer, as JSON knows it: one entry for each of these groups that has the peer."""
    return [
        {
            "group": group.name,
            "peer": peer,
            "null_blk": DISKS.get(group.disk),
            "filesystem": group.filesystem,
            "megabytes": min(profile.megabytes, IN_MEMORY_MEGABYTES) if in_memory(group) else profile.megabytes,
            "seconds": profile.seconds,
            "files": profile.files,
            "compressible": COMPRESSIBLE_PERCENT,
            "loads": [load._asdict() for load in group.loads],
        }
        for group in GROUPS
        if group.name in groups and peer in group.peers
    ]


def peers_of(groups: tuple[str, ...], profile: Profile) -> list[str]:
    """The peers that these groups need."""
    wanted = {peer for group in GROUPS if group.name in groups for peer in group.peers}
    return [peer for peer in PEERS if peer in wanted and (profile.peers is None or peer in profile.peers)]
