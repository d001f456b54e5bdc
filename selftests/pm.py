#!/usr/bin/python3 -IS
# SPDX-License-Identifier: GPL-2.0
"""Freezes the machine as hibernation does, and looks what happens meanwhile.

    pm.py frozen SECONDS DISK   take a snapshot of the memory, keep all tasks frozen for that time, and print how many
                                writes, discards and flushes the disk has got between the snapshot and the thaw
    pm.py write DEVICE FIRST COUNT
                                write COUNT blocks from FIRST on all the time, at random, with several requests under
                                way; print "ready", and SIGTERM ends it. Each block says which one it is.
    pm.py ahead DEVICE RATE     ask for RATE pages in a second, here and there, without waiting for them, and print the seconds
                                that have passed
    pm.py verify DEVICE FIRST COUNT
                                verify that such blocks are whole

This program is not frozen itself: it is the one that asked. It must not touch a file system meanwhile.
"""

import fcntl
import mmap
import os
import random
import signal
import struct
import sys
import threading
import time

# linux/suspend_ioctls.h
SNAPSHOT_FREEZE, SNAPSHOT_UNFREEZE, SNAPSHOT_FREE, SNAPSHOT_CREATE_IMAGE = 0x3301, 0x3302, 0x3305, 0x40043311
BLOCK = 4096
WRITERS = 8


def changes(stat):
    """Writes, discards and flushes that have ended at a disk, and requests under way."""
    os.lseek(stat, 0, os.SEEK_SET)
    fields = list(map(int, os.read(stat, 1024).split()))
    return fields[4] + fields[11] + fields[15], fields[8]


def frozen(seconds, disk):
    stat = os.open(f"/sys/block/{os.path.basename(disk)}/stat", os.O_RDONLY)
    changes(stat)
    snapshot = os.open("/dev/snapshot", os.O_RDONLY)
    fcntl.ioctl(snapshot, SNAPSHOT_FREEZE)
    try:
        fcntl.ioctl(snapshot, SNAPSHOT_CREATE_IMAGE, bytearray(4))
        before, _ = changes(stat)
        time.sleep(seconds)
        after, inflight = changes(stat)
        fcntl.ioctl(snapshot, SNAPSHOT_FREE)
    finally:
        fcntl.ioctl(snapshot, SNAPSHOT_UNFREEZE)
        os.close(snapshot)
    print(after - before + inflight)


def write(path, first, count, stop):
    device = os.open(path, os.O_RDWR | os.O_DIRECT)
    memory = mmap.mmap(-1, BLOCK)
    while not stop.is_set():
        block = first + random.randrange(count)
        head = struct.pack("<QQ", block, random.getrandbits(60))
        memory[:] = head + random.randbytes(BLOCK - 32) + head
        os.pwritev(device, [memory], block * BLOCK)


def writers(path, first, count):
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    threads = [threading.Thread(target=write, args=(path, first, count, stop)) for _ in range(WRITERS)]
    for thread in threads:
        thread.start()
    print("ready", flush=True)
    for thread in threads:
        while thread.is_alive():
            thread.join(0.5)


def ahead(path, rate):
    device = os.open(path, os.O_RDONLY)
    size = os.lseek(device, 0, os.SEEK_END)
    count = 0
    while True:
        # Not one after the other: the kernel would read more.
        os.posix_fadvise(device, count * 13 * 65536 % size, BLOCK, os.POSIX_FADV_WILLNEED)
        count += 1
        if count % rate == 0:
            print(count // rate, flush=True)
        time.sleep(1 / rate)


def verify(path, first, count):
    device = os.open(path, os.O_RDONLY | os.O_DIRECT)
    memory = mmap.mmap(-1, BLOCK)
    bad = 0
    for block in range(first, first + count):
        try:
            os.preadv(device, [memory], block * BLOCK)
            head = memory[:16]
            if any(memory[:]) and (struct.unpack("<QQ", head)[0] != block or memory[-16:] != head):
                raise OSError("wrong contents")
        except OSError as error:
            print(f"block {block}: {error}")
            bad += 1
    sys.exit(1 if bad else 0)


def main():
    command, *words = sys.argv[1:]
    if command == "frozen":
        frozen(float(words[0]), words[1])
    elif command == "ahead":
        ahead(words[0], int(words[1]))
    else:
        run = {"write": writers, "verify": verify}[command]
        run(words[0], int(words[1]), int(words[2]))


main()
