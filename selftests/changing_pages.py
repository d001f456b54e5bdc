#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""changing_pages.py DEVICE ROUNDS: direct writes from memory that another process is changing."""

import mmap
import os
import sys

SIZE = 256 * 1024
device = os.open(sys.argv[1], os.O_RDWR | os.O_DIRECT)
memory = mmap.mmap(-1, SIZE)
memory[:] = b"compressible " * (SIZE // 13) + b"." * (SIZE % 13)
child = os.fork()
if child == 0:
    view = memoryview(memory)
    number = 0
    while True:
        number += 1
        stamp = number.to_bytes(8, "little")
        for at in range(number % 64 * 8, SIZE, 1531):
            view[at:at + 8] = stamp[:len(view[at:at + 8])]
try:
    for i in range(int(sys.argv[2])):
        os.pwritev(device, [memory], i % 8 * SIZE)
    os.fsync(device)
finally:
    os.kill(child, 9)
    os.waitpid(child, 0)
