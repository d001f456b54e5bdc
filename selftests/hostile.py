#!/usr/bin/python3 -IS
# SPDX-License-Identifier: GPL-2.0
"""Attaches the images that cloop-hostile wrote, reads and writes them, and compares with what it saw.

    hostile.py DIRECTORY N

All are attached read-only, and every Nth of them for writing as well.
Prints what became of them. Any disagreement ends it with status 1.
"""

import errno
import fcntl
import mmap
import os
import struct
import sys
import time

ATTACH, DETACH = 0xC010C701, 0x4008C702
READ_ONLY = 1
BLOCK = 4096
# The errors that an attach may give: damaged, not an image, newer, not complete.
REFUSED = {errno.EUCLEAN, errno.EMEDIUMTYPE, errno.EOPNOTSUPP, errno.ENODATA}
# The errors that a request may give.
FAILED = {errno.EIO, errno.EILSEQ, errno.EUCLEAN}
# No image here justifies more memory than this.
MEMORY = 200 << 20

control = os.open("/dev/cloop-control", os.O_RDWR)
page = mmap.mmap(-1, BLOCK)
view = memoryview(page)


def available():
    with open("/proc/meminfo", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return 0


def attach(path, read_only):
    """The device's number, or None if the image is refused."""
    file = os.open(path, os.O_RDONLY if read_only else os.O_RDWR)
    buffer = bytearray(struct.pack("<iIiI", file, READ_ONLY if read_only else 0, -1, 0))
    try:
        fcntl.ioctl(control, ATTACH, buffer)
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        return None
    finally:
        os.close(file)
    return struct.unpack("<iIiI", buffer)[2]


def detach(index):
    """Detaches; udev may hold a new device open for a moment."""
    for _ in range(100):
        try:
            fcntl.ioctl(control, DETACH, struct.pack("<iI", index, 0))
            return True
        except OSError as error:
            if error.errno not in FAILED | {errno.EBUSY, errno.ENOSPC}:
                raise
            if error.errno != errno.EBUSY:
                return False
        time.sleep(0.05)
    raise TimeoutError("the device stays busy")


def read(device, block):
    """The block's contents, or None."""
    try:
        if os.preadv(device, [view], block * BLOCK) == BLOCK:
            return bytes(view)
    except OSError as error:
        if error.errno not in FAILED:
            raise
    return None


def write(device, block, data):
    view[:] = data
    try:
        return os.pwrite(device, view, block * BLOCK) == BLOCK
    except OSError as error:
        if error.errno not in FAILED:
            raise
    return False


def expected(path):
    """The verdict, and what each block may read as (None: an error)."""
    with open(path, "rb") as file:
        text = file.read()
    blocks, at = {}, 1
    while at < len(text):
        block, how = struct.unpack_from("<QB", text, at)
        at += 9
        content = text[at:at + BLOCK] if how else None
        at += BLOCK if how else 0
        # Whether the rest of its record was read before: udev looks at each new device.
        blocks[block] = (content, None) if how == 2 else (content,)
    return text[:1], blocks


def compare(path, index, blocks, what):
    device = os.open(f"/dev/cloop{index}", os.O_RDONLY | os.O_DIRECT)
    for block, right in blocks.items():
        found = read(device, block)
        if found not in right:
            sys.exit(f"{path}: {what}: block {block}: {(found or b'an error')[:16]}, not {(right[0] or b'an error')[:16]}")
    os.close(device)


def change(path, index, blocks):
    """Overwrites some blocks, which must then read back."""
    device = os.open(f"/dev/cloop{index}", os.O_RDWR | os.O_DIRECT)
    end = os.lseek(device, 0, os.SEEK_END) // BLOCK
    for block in list(blocks)[:4] + [min(40, end - 1), end - 1]:
        data = struct.pack("<Q", block + 77) * (BLOCK // 8)
        if write(device, block, data):
            found = read(device, block)
            if found not in (data, None):
                sys.exit(f"{path}: block {block} is not what was written")
    try:
        os.fsync(device)
    except OSError as error:
        if error.errno not in FAILED:
            raise
    os.close(device)


def main():
    directory, step = sys.argv[1], int(sys.argv[2])
    tally = {"refused": 0, "damaged": 0, "sound": 0, "refused for writing": 0}
    before = available()
    images = sorted(name for name in os.listdir(directory) if name.endswith(".img"))
    for number, name in enumerate(images):
        path = os.path.join(directory, name)
        verdict, blocks = expected(path[:-4] + ".blocks")
        index = attach(path, True)
        if (index is None) != (verdict == b"r"):
            sys.exit(f"{path}: attach: {'refused' if index is None else 'done'}, the tool says {verdict}")
        if index is not None:
            compare(path, index, blocks, "read-only")
            detach(index)
        if number % step != 0:
            pass
        elif (writable := attach(path, False)) is not None:
            if index is None:
                sys.exit(f"{path}: refused read-only, and not for writing")
            change(path, writable, blocks)
            clean = detach(writable)
            if verdict == b"s" and not clean:
                sys.exit(f"{path}: a sound image cannot be closed")
        elif index is not None:
            tally["refused for writing"] += 1
        tally[{b"r": "refused", b"d": "damaged", b"s": "sound"}[verdict]] += 1
        if available() < before - MEMORY:
            sys.exit(f"{path}: takes {(before - available()) >> 20} MiB of memory")
    print(", ".join(f"{count} {what}" for what, count in tally.items()))
    if min(tally["refused"], tally["damaged"], tally["sound"]) < 5:
        sys.exit("too few images of a kind")


main()
