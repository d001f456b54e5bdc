#!/usr/bin/python3 -IS
# SPDX-License-Identifier: GPL-2.0
"""latency.py DEVICE SECONDS BLOCKS [WRITERS]: how long reads and flushes take beside writers.

WRITERS threads write incompressible blocks of 4 KiB at random among the first BLOCKS all the time; one thread reads such
blocks, another one flushes. Prints, in milliseconds:

    reads NUMBER MEAN WORST
    flushes NUMBER MEAN WORST
    writes NUMBER MEAN WORST
"""

import mmap
import os
import random
import sys
import threading
import time

BLOCK = 4096


class Worker(threading.Thread):
    """Does the same thing until the time is over."""

    def __init__(self, path, end, blocks, kind):
        super().__init__()
        self.device = os.open(path, os.O_RDWR | os.O_DIRECT)
        self.end, self.blocks, self.kind = end, blocks, kind
        self.memory = mmap.mmap(-1, BLOCK)
        self.took = []

    def step(self):
        place = random.randrange(self.blocks) * BLOCK
        if self.kind == "writes":
            self.memory[:] = random.randbytes(BLOCK)
        began = time.monotonic()
        if self.kind == "writes":
            os.pwritev(self.device, [self.memory], place)
        elif self.kind == "reads":
            os.preadv(self.device, [self.memory], place)
        else:
            os.fsync(self.device)
        return (time.monotonic() - began) * 1000

    def run(self):
        while time.monotonic() < self.end:
            self.took.append(self.step())
            if self.kind == "flushes":
                time.sleep(0.1)


def main():
    path, seconds, blocks = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
    writers = int(sys.argv[4]) if len(sys.argv) > 4 else 64
    end = time.monotonic() + seconds
    kinds = ["reads", "flushes"] + ["writes"] * writers
    workers = [Worker(path, end, blocks, kind) for kind in kinds]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for kind in ("reads", "flushes", "writes"):
        took = [each for worker in workers if worker.kind == kind for each in worker.took]
        print(kind, len(took), round(sum(took) / max(1, len(took)), 1), round(max(took, default=0), 1))


main()
