#!/usr/bin/python3 -IS
# SPDX-License-Identifier: GPL-2.0
"""Replays the log of a log-writes target (the kernel's dm-log-writes): what a disk holds at some moment.

    replay.py list LOG                       "NUMBER flush|fua|write|discard|mark [TEXT]" for each entry
    replay.py apply LOG FILE FROM TO         entries FROM to TO, without TO
    replay.py apply LOG FILE FROM TO SEED    a random part of them, and of each write perhaps some sectors

The log holds writes in the order in which flushes made them durable: up to a flush, nothing but what
that flush had to make durable.
"""

import os
import random
import struct
import sys

MAGIC, VERSION = 0x6A736677736872, 1
FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8
SECTOR = 512


def entries(log):
    """The entries, each with its flags, place, length in bytes and text, and the place of its data."""
    magic, version, count, sector = struct.unpack("<QQQI", log.read(28))
    if magic != MAGIC or version != VERSION:
        sys.exit("not a log of log-writes")
    at = sector
    for _ in range(count):
        log.seek(at)
        where, sectors, flags, length = struct.unpack("<QQQQ", log.read(32))
        text = log.read(length).decode() if flags & MARK else ""
        at += sector
        yield flags, where * sector, sectors * sector, text, at
        if not flags & DISCARD:
            at += sectors * sector


def kind(flags):
    for flag, name in (MARK, "mark"), (FLUSH, "flush"), (FUA, "fua"), (DISCARD, "discard"):
        if flags & flag:
            return name
    return "write"


def apply(log, file, first, end, chance):
    for number, (flags, where, length, _, at) in enumerate(entries(log)):
        if number < first or number >= end or not length:
            continue
        # A write with FUA is durable by itself.
        if chance and not flags & FUA and chance.random() < 0.4:
            continue
        if flags & DISCARD:
            data = bytes(length)
        else:
            log.seek(at)
            data = log.read(length)
        if chance and not flags & (FUA | DISCARD) and chance.random() < 0.4:
            for sector in range(0, length, SECTOR):
                if chance.random() < 0.5:
                    os.pwrite(file, data[sector:sector + SECTOR], where + sector)
        else:
            os.pwrite(file, data, where)


def main():
    with open(sys.argv[2], "rb") as log:
        if sys.argv[1] == "list":
            for number, (flags, _, _, text, _) in enumerate(entries(log)):
                print(number, kind(flags), text)
        else:
            file = os.open(sys.argv[3], os.O_RDWR)
            chance = random.Random(int(sys.argv[6])) if len(sys.argv) > 6 else None
            apply(log, file, int(sys.argv[4]), int(sys.argv[5]), chance)


main()
