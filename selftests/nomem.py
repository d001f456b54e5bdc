#!/usr/bin/python3 -IS
# SPDX-License-Identifier: GPL-2.0
"""Operations some of whose memory allocations are made to fail (fault injection).

    nomem.py attach [--read-only] IMAGE
    nomem.py detach|resize IMAGE
    nomem.py io DEVICE SECONDS

attach attaches the image and detaches it, again and again: first the 1st allocation fails, then the 2nd, and
so on, until there is none left to fail. Of the later ones more and more are passed over. detach and resize do
the same with the allocations of these: what was flushed is there afterwards, and the size is the old one or
the new.

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

ATTACH, DETACH, RESIZE = 0xC010C701, 0x4008C702, 0x4010C705
BLKDISCARD = 0x1277
BLOCK = 4096
FAIL_NTH = "/proc/thread-self/fail-nth"


def failing(nth, operation, *arguments):
    """Lets the nth allocation of an operation fail. Returns the outcome, and whether there were that many."""
    knob = os.open(FAIL_NTH, os.O_RDWR)
    os.pwrite(knob, b"%d\n" % nth, 0)
    try:
        operation(*arguments)
        done = None
    except OSError as error:
        done = error.errno
    left = int(os.pread(knob, 32, 0).strip(b"\0\n"))
    os.pwrite(knob, b"0\n", 0)
    os.close(knob)
    if left and done is not None:
        sys.exit(f"it failed with {errno.errorcode[done]} and without a failed allocation")
    return done, not left


def in_turn(what, allowed, attempt, least):
    """Calls attempt(nth), which returns what failing() does, with the 1st allocation to fail, then the 2nd, until
    there is none left. At least this many must exist, and make the operation fail."""
    nth, failed, survived = 1, 0, 0
    while True:
        done, reached = attempt(nth)
        if done not in (None, *allowed):
            sys.exit(f"allocation {nth} failed, and {what} said {errno.errorcode[done]}")
        if not reached:
            break
        failed += done is not None
        survived += done is None
        nth += 1 + nth // 25
    print(f"{what}: {failed} allocations that failed made it fail, {survived} did not")
    if failed + survived < least[0] or failed < least[1]:
        sys.exit(f"that is not what {what} allocates")


class Image:
    """An image, to be attached and detached."""

    def __init__(self, path, read_only=False):
        self.control = os.open("/dev/cloop-control", os.O_RDWR)
        self.file = os.open(path, os.O_RDONLY if read_only else os.O_RDWR)
        self.read_only = read_only

    def attach(self):
        request = bytearray(struct.pack("<iIiI", self.file, int(self.read_only), -1, 0))
        fcntl.ioctl(self.control, ATTACH, request)
        self.index = struct.unpack("<iIiI", request)[2]
        self.device = f"/dev/cloop{self.index}"

    def detach(self):
        fcntl.ioctl(self.control, DETACH, struct.pack("<iI", self.index, 0))

    def resize(self, size):
        fcntl.ioctl(self.control, RESIZE, struct.pack("<iIQ", self.index, 0, size))

    def size(self):
        device = os.open(self.device, os.O_RDONLY)
        size = os.lseek(device, 0, os.SEEK_END)
        os.close(device)
        return size

    def idle(self):
        """Waits until no process has the device open: udev looks at new devices."""
        for _ in range(100):
            try:
                os.close(os.open(self.device, os.O_RDONLY | os.O_EXCL))
                return
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                time.sleep(0.02)
        sys.exit("the device stays busy")

    def release(self):
        """Detaches; data that was not flushed may be lost."""
        self.idle()
        try:
            self.detach()
        except OSError as error:
            if error.errno not in (errno.ENOMEM, errno.EIO):
                raise
        if os.path.exists(self.device):
            sys.exit("the device is still there")


def attach(path, read_only):
    image = Image(path, read_only)

    def attempt(nth):
        done, reached = failing(nth, image.attach)
        if done is None:
            image.release()
        return done, reached

    # The block layer reports a failed allocation of its own as EINVAL now and then.
    in_turn("attach", [errno.ENOMEM, errno.EINVAL], attempt, (30, 8))


def detach(path):
    image = Image(path)
    buffer = mmap.mmap(-1, BLOCK)

    def attempt(nth):
        image.attach()
        device = os.open(image.device, os.O_RDWR | os.O_DIRECT)
        # Parts of the table all over the device are dirty; one block is flushed, and others are not.
        for i in range(20):
            buffer[:] = pattern(nth * 20 + i, nth)
            os.pwrite(device, buffer, (nth * 20 + i) * 1000 * BLOCK)
            if i == 0:
                os.fsync(device)
        os.close(device)
        image.idle()
        done, reached = failing(nth, image.detach)
        if os.path.exists(image.device):
            sys.exit("the device is still there")
        image.attach()
        device = os.open(image.device, os.O_RDWR | os.O_DIRECT)
        for i in range(1 if done else 20):
            os.preadv(device, [buffer], (nth * 20 + i) * 1000 * BLOCK)
            if buffer[:] != pattern(nth * 20 + i, nth):
                sys.exit(f"allocation {nth} failed, and block {i} is lost")
        os.close(device)
        image.release()
        return done, reached

    # Most failed allocations are retried, or are not essential.
    in_turn("detach", [errno.ENOMEM, errno.EIO], attempt, (4, 0))


def resize(path):
    image = Image(path)
    image.attach()
    small = image.size()

    def attempt(nth):
        old = image.size()
        # The table grows by a level now and then.
        new = old // 2 if old > small * 8 else old * 2
        done, reached = failing(nth, image.resize, new)
        allowed = [old, new] if done == errno.EIO else [old] if done else [new]
        if done == errno.EIO:
            # The backing file failed; only a detach ends this state.
            image.release()
            image.attach()
        if image.size() not in allowed:
            sys.exit(f"allocation {nth} failed, and {image.size()} bytes are left of {old} on the way to {new}")
        return done, reached

    in_turn("resize", [errno.ENOMEM, errno.EIO], attempt, (3, 0))
    image.release()


def pattern(block, generation):
    """A block: no two are the same, a third of them compresses, and none is zero."""
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
    # Memory can be allocated again, and everything else works again as well.
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
    elif what in ("detach", "resize"):
        {"detach": detach, "resize": resize}[what](rest[0])
    else:
        io(rest[0], float(rest[1]))


main()
