#!/usr/bin/python3 -IS
# SPDX-License-Identifier: GPL-2.0
"""fuse.py DIRECTORY FILE [LOG]: mounts a file system on DIRECTORY whose only file, `image`, is FILE.

It is a file system that can hang: while this process is stopped (SIGSTOP), nobody answers. The kernel caches no
attributes, so each question about the file comes here. Prints "ready" once it is mounted. LOG gets a line for each
change of the file but writes: what it is, and the user for whom it is done.
"""

import ctypes
import errno
import os
import stat
import struct
import sys

LOOKUP, FORGET, GETATTR, SETATTR, OPEN, READ, WRITE, STATFS, RELEASE = 1, 2, 3, 4, 14, 15, 16, 17, 18
FSYNC, FLUSH, INIT, OPENDIR, RELEASEDIR, INTERRUPT, BATCH_FORGET, FALLOCATE = 20, 25, 26, 27, 29, 36, 42, 43
ROOT, IMAGE = 1, 2
CHANGES = {SETATTR: "setattr", FSYNC: "fsync", FALLOCATE: "fallocate"}
MAX_WRITE = 128 << 10
FATTR_SIZE = 1 << 3


class Server:
    def __init__(self, path, log):
        self.file = os.open(path, os.O_RDWR)
        self.log = open(log, "w", encoding="ascii")
        self.libc = ctypes.CDLL(None, use_errno=True)

    def attributes(self, node):
        if node == ROOT:
            return struct.pack("<6Q10I", ROOT, 0, 0, 0, 0, 0, 0, 0, 0, stat.S_IFDIR | 0o755, 2, 0, 0, 0, 4096, 0)
        st = os.fstat(self.file)
        return struct.pack("<6Q10I", IMAGE, st.st_size, st.st_blocks, 0, 0, 0, 0, 0, 0, stat.S_IFREG | 0o666, 1, 0, 0, 0,
                           4096, 0)

    def answer(self, operation, node, body):
        """The answer to a request, or nothing if there is none."""
        if operation == INIT:
            return struct.pack("<4I2H2I2H8I", 7, 31, 0, 0, 16, 12, MAX_WRITE, 1, MAX_WRITE >> 12, 0, *[0] * 8)
        if operation == LOOKUP:
            if body.rstrip(b"\0") != b"image":
                raise OSError(errno.ENOENT, "")
            return struct.pack("<4Q2I", IMAGE, 1, 0, 0, 0, 0) + self.attributes(IMAGE)
        if operation in (GETATTR, SETATTR):
            if operation == SETATTR:
                valid, _, _, size = struct.unpack_from("<2I2Q", body)
                if valid & FATTR_SIZE:
                    os.ftruncate(self.file, size)
            return struct.pack("<Q2I", 0, 0, 0) + self.attributes(node)
        if operation in (OPEN, OPENDIR):
            return bytes(16)
        if operation == READ:
            _, offset, size = struct.unpack_from("<2QI", body)
            return os.pread(self.file, size, offset)
        if operation == WRITE:
            _, offset, size = struct.unpack_from("<2QI", body)
            return struct.pack("<2I", os.pwrite(self.file, body[40:40 + size], offset), 0)
        if operation == FALLOCATE:
            _, offset, length, mode = struct.unpack_from("<3QI", body)
            if self.libc.fallocate(self.file, mode, ctypes.c_long(offset), ctypes.c_long(length)):
                raise OSError(ctypes.get_errno(), "")
            return b""
        if operation == FSYNC:
            os.fsync(self.file)
            return b""
        if operation == STATFS:
            return bytes(80)
        if operation in (RELEASE, FLUSH, RELEASEDIR):
            return b""
        if operation in (FORGET, INTERRUPT, BATCH_FORGET):
            return None
        raise OSError(errno.ENOSYS, "")

    def serve(self, directory):
        device = os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
        if self.libc.mount(b"selftest", os.fsencode(directory), b"fuse", 0, options):
            sys.exit(os.strerror(ctypes.get_errno()))
        print("ready", flush=True)
        while True:
            try:
                request = os.read(device, MAX_WRITE + 4096)
            except OSError as error:
                # ENODEV: it was unmounted. ENOENT: the request has gone.
                if error.errno == errno.ENODEV:
                    return
                continue
            length, operation, unique, node, user = struct.unpack_from("<2I2QI", request)
            if operation in CHANGES:
                print(CHANGES[operation], user, file=self.log, flush=True)
            status, body = 0, b""
            try:
                body = self.answer(operation, node, request[40:length])
            except OSError as error:
                status = -error.errno
            if body is not None:
                os.write(device, struct.pack("<IiQ", 16 + len(body), status, unique) + body)


Server(sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else "/dev/null").serve(sys.argv[1])
