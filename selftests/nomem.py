#!/usr/bin/python3 -IS
# SPDX-License-Identifier: GPL-2.0
"""Operations some of whose memory allocations are made to fail (fault injection).

    nomem.py attach [--read-only] IMAGE
    nomem.py io DEVICE SECONDS

attach attaches the image and detaches it, again and again: first the 1st allocation fails, then the 2nd, and
so on, until there is none left to fail. Of the later ones more and more are passed over.

io reads, writes, flushes and discards at random. What fails must fail with ENOMEM, what was read must be
what was written, and a failed write leaves each block old or new. It prints how much it did.

Which allocations these are is for the filters in debugfs to say.
"""

import errno
import fcntl
import mmap
import os
import struct
import sys
import time

import _random

ATTACH, DETACH = 0xC010CB01, 0x4008CB02
BLKDISCARD = 0x1277
BLOCK = 4096
FAIL_NTH = "/proc/thread-self/fail-nth"


def attach(path, read_only):
    control = os.open("/dev/cloop-control", os.O_RDWR)
    file = os.open(path, os.O_RDONLY if read_only else os.O_RDWR)
    knob = os.open(FAIL_NTH, os.O_RDWR)
    nth, failed, survived = 1, 0, 0
    while True:
        request = bytearray(struct.pack("<iIiI", file, int(read_only), -1, 0))
        os.pwrite(knob, b"%d\n" % nth, 0)
        try:
            fcntl.ioctl(control, ATTACH, request)
            done = None
        except OSError as error:
            done = error.errno
        left = int(os.pread(knob, 32, 0).strip(b"\0\n"))
        os.pwrite(knob, b"0\n", 0)
        if done is None:
            index = struct.unpack("<iIiI", request)[2]
            # Whoever looks at new devices may have it open for a moment.
            for _ in range(100):
                try:
                    fcntl.ioctl(control, DETACH, struct.pack("<iI", index, 0))
                    break
                except OSError as error:
                    if error.errno != errno.EBUSY:
                        raise
                    time.sleep(0.02)
            else:
                sys.exit("the device stays busy")
        elif done != errno.ENOMEM:
            sys.exit(f"allocation {nth} failed, and attach said {errno.errorcode[done]}")
        if left:
            if done is not None:
                sys.exit(f"attach failed with {errno.errorcode[done]} and without a failed allocation")
            break
        if done is None:
            survived += 1
        else:
            failed += 1
        nth += 1 + nth // 25
    print(f"{nth - left} allocations; {failed} made attach fail, {survived} did not")
    if failed < 8:
        sys.exit("that is not what attach allocates")


def pattern(block, generation):
    """No two are the same; a third compresses, none is zero."""
    head = struct.pack("<QQ", block + 1, generation)
    if generation % 3 == 0:
        return head * (BLOCK // len(head))
    noise = _random.Random(block * 1000003 + generation).getrandbits(8 * (BLOCK - len(head)))
    return head + noise.to_bytes(BLOCK - len(head), "little")


def io(path, seconds):
    device = os.open(path, os.O_RDWR | os.O_DIRECT)
    blocks = os.lseek(device, 0, os.SEEK_END) // BLOCK
    chance = _random.Random(1)
    buffer = mmap.mmap(-1, 64 * BLOCK)
    may_hold = {}  # block: generations; 0 is zeros
    contents = {}  # block, generation: bytes
    counts = {"done": 0, "failed": 0}

    def attempt(operation, *arguments):
        try:
            result = operation(*arguments)
            counts["done"] += 1
            return result
        except OSError as error:
            if error.errno != errno.ENOMEM:
                raise
            counts["failed"] += 1
            return None

    def check(first, count, data):
        for i in range(count):
            block = first + i
            got = bytes(data[i * BLOCK:(i + 1) * BLOCK])
            if not any(got == (pattern(block, g) if g else bytes(BLOCK)) for g in may_hold.get(block, {0})):
                sys.exit(f"block {block} holds {got[:16].hex()}, expected one of {may_hold.get(block, {0})}")

    end = time.monotonic() + seconds
    generation = 0
    while time.monotonic() < end:
        generation += 1
        kind = chance.random()
        count = 1 + int(2 ** (6 * chance.random())) % 64
        # All over the device, so that new parts of the table are needed; and to the same places again.
        first = int(chance.random() * (blocks - 64))
        if may_hold and chance.random() < 0.5:
            first = min(list(may_hold)[int(chance.random() * len(may_hold))], blocks - 64)
        where = first * BLOCK
        if kind < 0.5:
            buffer[:count * BLOCK] = b"".join(pattern(first + i, generation) for i in range(count))
            written = attempt(os.pwritev, device, [memoryview(buffer)[:count * BLOCK]], where)
            if written not in (None, count * BLOCK):
                sys.exit(f"{written} bytes of {count} blocks were written")
            for block in range(first, first + count):
                new = {generation}
                may_hold[block] = new if written else may_hold.get(block, {0}) | new
        elif kind < 0.6:
            done = attempt(fcntl.ioctl, device, BLKDISCARD, struct.pack("<QQ", where, count * BLOCK))
            for block in range(first, first + count):
                may_hold[block] = {0} if done is not None else may_hold.get(block, {0}) | {0}
        elif kind < 0.7:
            attempt(os.fsync, device)
        else:
            if attempt(os.preadv, device, [memoryview(buffer)[:count * BLOCK]], where):
                check(first, count, buffer)

    print(f"{counts['done']} operations, {counts['failed']} others failed for lack of memory", flush=True)
    # Memory is back, and with it everything else.
    for name in ("failslab", "fail_page_alloc"):
        with open(f"/sys/kernel/debug/{name}/probability", "w", encoding="ascii") as file:
            file.write("0")
    os.fsync(device)
    for block in sorted(may_hold):
        os.preadv(device, [memoryview(buffer)[:BLOCK]], block * BLOCK)
        check(block, 1, buffer)
    if counts["failed"] == 0:
        sys.exit("nothing failed")


def main():
    what, *rest = sys.argv[1:]
    if what == "attach":
        attach(rest[-1], "--read-only" in rest)
    else:
        io(rest[0], float(rest[1]))


main()
