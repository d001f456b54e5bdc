#!/usr/bin/python3 -IS
# SPDX-License-Identifier: GPL-2.0
"""Touches a device at regular places.

    scatter.py write|verify|discard DEVICE FIRST STEP LENGTH COUNT [STRIDE]

write puts a pattern that says where it is at FIRST, FIRST + STEP and so on, COUNT times, and verify
reads it back; both bypass the page cache. discard discards LENGTH bytes at each of these places.
With a STRIDE that has no divisor in common with COUNT they come in another order: the first, the one
STRIDE places further, and so on around.
"""

import fcntl
import mmap
import os
import struct
import sys

BLKDISCARD = 0x1277


def main():
    what, path = sys.argv[1:3]
    first, step, length, count = map(int, sys.argv[3:7])
    stride = int(sys.argv[7]) if len(sys.argv) > 7 else 1
    device = os.open(path, os.O_RDWR | (0 if what == "discard" else os.O_DIRECT))
    buffer = mmap.mmap(-1, length)
    for i in range(count):
        place = first + i * stride % count * step
        pattern = struct.pack("<Q", place) * (length // 8)
        if what == "discard":
            fcntl.ioctl(device, BLKDISCARD, struct.pack("<QQ", place, length))
        elif what == "write":
            buffer[:] = pattern
            os.pwrite(device, buffer, place)
        else:
            os.preadv(device, [buffer], place)
            if buffer[:] != pattern:
                sys.exit(f"wrong data at {place}")
    if what != "verify":
        os.fsync(device)


main()
