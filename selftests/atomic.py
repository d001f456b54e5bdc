#!/usr/bin/python3 -IS
# SPDX-License-Identifier: GPL-2.0
"""Atomic writes (RWF_ATOMIC), and large direct writes from memory of any alignment.

    atomic.py statx DEVICE               unit_min unit_max segments_max of statx(2)
    atomic.py write DEVICE OFFSET BYTES  one atomic write; prints the name of the errno if it fails
    atomic.py work DEVICE BYTES MAX      atomic writes of up to MAX bytes, all over the first BYTES, until it is killed
    atomic.py verify DEVICE BYTES        what `work` wrote: no write is there in part
    atomic.py direct DEVICE OFFSET BYTES SKEW
                                         one direct write from memory that begins SKEW bytes after a page

Each block that `work` writes says which write it is from, and which blocks that write has. Later writes
have higher numbers, so a block of a write that is there stands beside blocks of the same write or of later
ones.
"""

import ctypes
import errno
import mmap
import os
import random
import struct
import sys

BLOCK = 4096
RWF_ATOMIC = 0x40
AT_EMPTY_PATH, STATX_WRITE_ATOMIC = 0x1000, 0x10000
TAG = struct.Struct("<QQQ")  # number of the write, its first block, its number of blocks


def statx(device):
    buffer = ctypes.create_string_buffer(256)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.statx(device, b"", AT_EMPTY_PATH, STATX_WRITE_ATOMIC, buffer):
        sys.exit(errno.errorcode[ctypes.get_errno()])
    if not struct.unpack_from("<I", buffer)[0] & STATX_WRITE_ATOMIC:
        sys.exit("the kernel says nothing about atomic writes")
    print(*struct.unpack_from("<3I", buffer, 168))


def memory(length):
    """Anonymous memory whose neighbouring pages are no neighbours in the machine."""
    area = mmap.mmap(-1, length)
    # A kernel without huge pages does not know the advice.
    if os.path.isdir("/sys/kernel/mm/transparent_hugepage"):
        area.madvise(mmap.MADV_NOHUGEPAGE)
    pages = list(range(0, length, BLOCK))
    random.shuffle(pages)
    for page in pages:
        area[page] = 1
    return area


def write_atomically(device, data, offset):
    area = mmap.mmap(-1, len(data))
    area[:] = data
    if os.pwritev(device, [area], offset, RWF_ATOMIC) != len(data):
        sys.exit("an atomic write was short")


def work(device, size, most):
    units = [BLOCK << shift for shift in range(20) if BLOCK << shift <= most]
    number = 0
    while True:
        number += 1
        length = random.choice(units)
        offset = random.randrange(size // length) * length
        tag = TAG.pack(number, offset // BLOCK, length // BLOCK)
        # Some compress, most do not: those are what other writes are cut in.
        compressible = number % 4 == 0
        filler = bytes(BLOCK - TAG.size) if compressible else os.urandom(BLOCK - TAG.size)
        write_atomically(device, (tag + filler) * (length // BLOCK), offset)
        if number % 8 == 0:
            os.fdatasync(device)
        if number % 64 == 0:
            print(number, flush=True)


def verify(device, size):
    tags = []
    for _ in range(size // BLOCK):
        tags.append(TAG.unpack_from(os.read(device, BLOCK)))
    for block, (number, first, count) in enumerate(tags):
        if number == 0:
            continue
        if not first <= block < first + count:
            sys.exit(f"block {block} holds another block")
        for other in range(first, first + count):
            if tags[other][0] < number:
                sys.exit(f"write {number} of {count} blocks at {first} is torn: block {other} is of write {tags[other][0]}")
    print(max(number for number, _, _ in tags))


def main():
    command, path, *numbers = sys.argv[1:]
    numbers = [int(number) for number in numbers]
    modes = {"statx": os.O_RDONLY, "verify": os.O_RDONLY}
    device = os.open(path, modes.get(command, os.O_RDWR | os.O_DIRECT))
    try:
        if command == "statx":
            statx(device)
        elif command == "write":
            write_atomically(device, os.urandom(numbers[1]), numbers[0])
        elif command == "work":
            work(device, *numbers)
        elif command == "verify":
            verify(device, *numbers)
        else:
            offset, length, skew = numbers
            view = memoryview(memory(length + BLOCK))[skew:skew + length]
            if os.pwritev(device, [view], offset) != length:
                sys.exit("a direct write was short")
    except OSError as error:
        print(errno.errorcode[error.errno])
        sys.exit(1)


main()
