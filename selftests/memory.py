#!/usr/bin/python3 -IS
# SPDX-License-Identifier: GPL-2.0
"""memory.py MEBIBYTES SECONDS: fill memory, and verify its contents again and again.

With less memory than that, it is swapped out and in.
"""

import mmap
import os
import struct
import sys
import time

# Modules that random needs: importing random takes seconds under emulation.
import _random

PAGE = 4096


def page(number, generation):
    """A page: no two are the same, and some compress."""
    head = struct.pack("<QQ", number, generation)
    if number % 3 == 0:
        return head + _random.Random(number + generation).getrandbits(8 * (PAGE - len(head))).to_bytes(PAGE - len(head), "little")
    return head * (PAGE // len(head))


def main():
    size = int(sys.argv[1]) << 20
    end = time.monotonic() + float(sys.argv[2])
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    base = os.getpid() << 32
    generation = 0
    while generation < 2 or time.monotonic() < end:
        for at in range(0, size, PAGE):
            if generation and memory[at:at + PAGE] != page(base + at, generation - 1):
                sys.exit(f"page {at // PAGE} of generation {generation - 1} holds {memory[at:at + 32].hex()}")
            memory[at:at + PAGE] = page(base + at, generation)
        generation += 1
    print(f"{generation} generations of {sys.argv[1]} MiB")


main()
