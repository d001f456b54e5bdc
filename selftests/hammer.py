#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""hammer.py [--verify] DEVICE [SECONDS]: writers, discards and readers on the same blocks.

Each block that is written says which one it is and has the same generation at its beginning and its
end: what is read has to be such a block, of the right number, or all zeros.
"""

import fcntl
import mmap
import os
import random
import struct
import sys
import time

BLOCK = 4096
HOT = 256  # blocks that all processes fight for
BLKDISCARD, BLKZEROOUT = 0x1277, 0x127F


def fill(memory, first, count, generation):
    for i in range(count):
        head = struct.pack("<QQ", first + i, generation)
        middle = b"%016x" % generation * 254 if generation % 2 else random.randbytes(254 * 16)
        memory[i * BLOCK:(i + 1) * BLOCK] = head + middle + head


def verify(memory, first, count):
    for i in range(count):
        block = memory[i * BLOCK:(i + 1) * BLOCK]
        head = block[:16]
        if not any(block):
            continue
        if struct.unpack("<QQ", head)[0] != first + i or block[-16:] != head:
            sys.exit(f"block {first + i} holds {head.hex()} ... {block[-16:].hex()}")


def run(path, role, end):
    random.seed(role)
    device = os.open(path, os.O_RDWR | os.O_DIRECT)
    memory = mmap.mmap(-1, 32 * BLOCK)
    done = 0
    while time.monotonic() < end:
        count = random.choice([1, 2, 7, 8, 16, 31])
        first = random.randrange(HOT - count)
        view = memoryview(memory)[:count * BLOCK]
        if role < 3:
            fill(memory, first, count, random.getrandbits(60))
            os.pwritev(device, [view], first * BLOCK)
        elif role < 5:
            os.preadv(device, [view], first * BLOCK)
            verify(memory, first, count)
        else:
            command = random.choice([BLKDISCARD, BLKZEROOUT])
            fcntl.ioctl(device, command, struct.pack("<QQ", first * BLOCK, count * BLOCK))
            if random.random() < 0.1:
                os.fsync(device)
        done += 1
    return done


def main():
    if sys.argv[1] == "--verify":
        with open(sys.argv[2], "rb") as device:
            verify(device.read(HOT * BLOCK), 0, HOT)
        return
    end = time.monotonic() + int(sys.argv[2])
    children = []
    for role in range(6):
        child = os.fork()
        if child == 0:
            done = run(sys.argv[1], role, end)
            print(f"process {role}: {done} operations", flush=True)
            os._exit(0 if done > 0 else 1)
        children.append(child)
    bad = [child for child in children if os.waitpid(child, 0)[1] != 0]
    sys.exit(1 if bad else 0)


main()
