#!/usr/bin/python3 -IS
# SPDX-License-Identifier: GPL-2.0
"""Talks to /dev/cloop-control without the cloop tool.

    control.py version
    control.py info NUMBER [FIELD]
    control.py attach [--read-only] [--flags N] [--index N] [--reserved N] [--open r|w|rw] [--user UID] PATH
    control.py detach [--flags N] [--user UID] NUMBER
    control.py compact [--flags N] [--user UID] [--alarm SECONDS] NUMBER
    control.py resize [--flags N] [--user UID] NUMBER BYTES
    control.py set [--user UID] NUMBER FLAGS ALGORITHM LEVEL [RESERVED]
    control.py ioctl NUMBER         (with a buffer of 1 KiB of zeros)

attach takes no lock and prints the number of the device. A failed ioctl prints the name of its
errno and exits with status 1. --user gives up root after opening the control device. --alarm has a
signal come after that time.
"""

import errno
import fcntl
import os
import signal
import struct
import sys

VERSION, ATTACH, DETACH, INFO = 0x8020C700, 0xC010C701, 0x4008C702, 0xC240C703
COMPACT, RESIZE, SET, RECOMPRESS = 0x4008C704, 0x4010C705, 0x4020C706, 0x4010C707
HEAD = "flags size record_size algorithm uuid segment_size error".split()
STATS = """mapped_blocks live_bytes stored_bytes allocated_bytes segments free_segments table_memory
bytes_written bytes_read log_bytes flushes syncs checkpoints damaged errors replayed backing_dev
backing_ino""".split()
TAIL = """table_limit garbage_bytes moved_bytes freed_segments reserved_bytes stuck_segments memory level
replaced""".split()
AGAIN = """recompress_algorithm recompress_level recompress_after recompress_rate recompressed_bytes
pending_bytes""".split()
LAYOUT = "<iIQII16sII" + "Q" * len(STATS) + "256s" + "Q" * len(TAIL) + "IIIIQQ"
SIZE = 576


def info(control, index):
    buffer = bytearray(SIZE)
    struct.pack_into("<i", buffer, 0, index)
    fcntl.ioctl(control, INFO, buffer)
    values = struct.unpack_from(LAYOUT, buffer)
    fields = dict(zip(["index"] + HEAD + STATS + ["backing_file"] + TAIL + AGAIN, values))
    fields["uuid"] = fields["uuid"].hex()
    fields["backing_file"] = fields["backing_file"].split(b"\0")[0].decode()
    if any(buffer[struct.calcsize(LAYOUT):]):
        sys.exit("reserved bytes are not zero")
    return fields


def arguments(words):
    """Options that take a value unless they are named here, and one word that is none."""
    options, what = {}, None
    words = iter(words)
    for word in words:
        if word == "--read-only":
            options[word] = 1
        elif word.startswith("--"):
            options[word] = next(words)
        else:
            what = [word] if what is None else what + [word]
    return options, what or []


def main():
    command = sys.argv[1]
    options, what = arguments(sys.argv[2:])
    flags = int(options.get("--flags", 0)) | options.get("--read-only", 0)
    control = os.open("/dev/cloop-control", os.O_RDWR)
    if command == "attach":
        modes = {"r": os.O_RDONLY, "w": os.O_WRONLY, "rw": os.O_RDWR}
        file = os.open(what[0], modes[options.get("--open", "rw")])
    if "--user" in options:
        os.setuid(int(options["--user"]))
    try:
        if command == "version":
            buffer = bytearray(32)
            fcntl.ioctl(control, VERSION, buffer)
            abi, reserved, text = struct.unpack("<II24s", buffer)
            print(abi, reserved, text.rstrip(b"\0").decode())
        elif command == "info":
            fields = info(control, int(what[0]))
            if len(what) > 1:
                print(fields[what[1]])
            else:
                for name, value in fields.items():
                    print(name, value)
        elif command == "attach":
            index, reserved = int(options.get("--index", -1)), int(options.get("--reserved", 0))
            buffer = bytearray(struct.pack("<iIiI", file, flags, index, reserved))
            fcntl.ioctl(control, ATTACH, buffer)
            print(struct.unpack("<iIiI", buffer)[2])
        elif command == "detach":
            fcntl.ioctl(control, DETACH, struct.pack("<iI", int(what[0]), flags))
        elif command == "compact":
            if "--alarm" in options:
                signal.signal(signal.SIGALRM, lambda *_: None)
                signal.setitimer(signal.ITIMER_REAL, float(options["--alarm"]))
            fcntl.ioctl(control, COMPACT, struct.pack("<iI", int(what[0]), flags))
        elif command == "resize":
            fcntl.ioctl(control, RESIZE, struct.pack("<iIQ", int(what[0]), flags, int(what[1])))
        elif command == "set":
            values = [int(word) for word in what] + [0] * (8 - len(what))
            fcntl.ioctl(control, SET, struct.pack("<iIIIIIII", *values))
        elif command == "recompress":
            fcntl.ioctl(control, RECOMPRESS, struct.pack("<iIII", *(int(word) for word in what)))
        else:
            fcntl.ioctl(control, int(what[0], 0), bytearray(1024))
    except OSError as error:
        print(errno.errorcode[error.errno])
        sys.exit(1)


main()
