# SPDX-License-Identifier: GPL-2.0
"""A disk with a volatile write cache, for QEMU, whose power can be cut.

A disk is a file that an NBD server writes to. With each write it keeps what was there before, until
a flush. When the power is cut, all disks stop at the same moment, in the middle of a write; then the
writes that no flush has covered are taken back, and a random part of them is done again in any
sector of 512 bytes: so writes are lost, torn, and overtaken by later ones, as in a real cache.
"""

import os
import socket
import struct
import threading

SECTOR = 512
CHUNK = 1 << 20

# The protocol: doc/proto.md of the NBD project.
OPTION_MAGIC, REPLY_MAGIC = 0x49484156454F5054, 0x3E889045565A9
REQUEST_MAGIC, SIMPLE_REPLY_MAGIC = 0x25609513, 0x67446698
OPT_ABORT, OPT_GO = 2, 7
REP_ACK, REP_INFO, REP_ERR_UNSUP = 1, 3, (1 << 31) + 1
CMD_READ, CMD_WRITE, CMD_DISC, CMD_FLUSH, CMD_TRIM, CMD_WRITE_ZEROES = 0, 1, 2, 3, 4, 6
# has flags, flush, trim, write zeroes
TRANSMISSION_FLAGS = 1 << 0 | 1 << 2 | 1 << 5 | 1 << 6
EINVAL = 22


class Power:
    """The supply of all disks: one lock, so that they go out together."""

    def __init__(self):
        self.lock = threading.Lock()
        self.on = True
        self.writes = 0
        self.out = threading.Event()
        self.limit = None

    def cut_after(self, writes):
        with self.lock:
            self.limit = self.writes + writes

    def cut(self):
        with self.lock:
            self.on = False
            self.out.set()


class Disk:
    """One disk on a file, served at a socket until the power goes."""

    def __init__(self, file, socket_path, power, lying):
        self.power, self.lying = power, lying
        self.fd = os.open(file, os.O_RDWR)
        self.size = os.fstat(self.fd).st_size
        self.cached = []  # (offset, what was there, what was written), oldest first
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(socket_path)
        self.listener.listen()
        self.flushes = 0
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            connection, _ = self.listener.accept()
            threading.Thread(target=self.serve, args=[connection], daemon=True).start()

    def serve(self, connection):
        try:
            self.negotiate(connection)
            while self.answer(connection):
                pass
        except (ConnectionError, EOFError):
            pass

    def negotiate(self, connection):
        connection.sendall(b"NBDMAGIC" + struct.pack(">QH", OPTION_MAGIC, 1 | 2))
        receive(connection, 4)
        while True:
            _, option, length = struct.unpack(">QII", receive(connection, 16))
            receive(connection, length)

            def reply(kind, data=b""):
                connection.sendall(struct.pack(">QIII", REPLY_MAGIC, option, kind, len(data)) + data)
            if option == OPT_GO:
                reply(REP_INFO, struct.pack(">HQH", 0, self.size, TRANSMISSION_FLAGS))
                reply(REP_ACK)
                return
            if option == OPT_ABORT:
                raise EOFError
            reply(REP_ERR_UNSUP)

    def answer(self, connection):
        """Serve one request; false when there is nobody left to answer."""
        magic, _, command, handle, offset, length = struct.unpack(">IHHQQI", receive(connection, 28))
        if magic != REQUEST_MAGIC or command == CMD_DISC:
            return False
        data = receive(connection, length) if command == CMD_WRITE else b""
        error, result = 0, b""
        with self.power.lock:
            if not self.power.on:
                return False
            if command == CMD_READ:
                result = os.pread(self.fd, length, offset)
            elif command == CMD_WRITE:
                self.write(offset, data)
            elif command in (CMD_TRIM, CMD_WRITE_ZEROES):
                self.zero(offset, length)
            elif command == CMD_FLUSH:
                self.flushes += 1
                if not self.lying:
                    self.cached.clear()
            else:
                error = EINVAL
            if command in (CMD_WRITE, CMD_TRIM, CMD_WRITE_ZEROES):
                self.power.writes += 1
                if self.power.writes == self.power.limit:
                    self.power.on = False
                    self.power.out.set()
            if not self.power.on:
                return False
        connection.sendall(struct.pack(">IIQ", SIMPLE_REPLY_MAGIC, error, handle) + result)
        return True

    def write(self, offset, data):
        self.cached.append((offset, os.pread(self.fd, len(data), offset), data))
        os.pwrite(self.fd, data, offset)

    def zero(self, offset, length):
        """Zeros where there is data; holes are zeros already."""
        end = offset + length
        while offset < end:
            try:
                offset = os.lseek(self.fd, offset, os.SEEK_DATA)
                hole = os.lseek(self.fd, offset, os.SEEK_HOLE)
            except OSError:
                return
            while offset < min(hole, end):
                size = min(hole, end, offset + CHUNK) - offset
                self.write(offset, bytes(size))
                offset += size

    def lose(self, chance, kept, torn):
        """Of the writes in the cache, keep this part, and of each kept one perhaps only some sectors."""
        for offset, old, _ in reversed(self.cached):
            os.pwrite(self.fd, old, offset)
        for offset, _, new in self.cached:
            if chance.random() >= kept:
                continue
            if chance.random() >= torn:
                os.pwrite(self.fd, new, offset)
                continue
            for at in range(0, len(new), SECTOR):
                if chance.random() < 0.5:
                    os.pwrite(self.fd, new[at:at + SECTOR], offset + at)
        lost, self.cached = len(self.cached), []
        return lost

    def close(self):
        self.listener.close()
        os.close(self.fd)


def receive(connection, length):
    data = bytearray()
    while len(data) < length:
        more = connection.recv(length - len(data))
        if not more:
            raise EOFError
        data += more
    return bytes(data)
