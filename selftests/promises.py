#!/usr/bin/python3 -IS
# SPDX-License-Identifier: GPL-2.0
"""Files that programs rely on: made durable, promised, and looked for after a crash.

    promises.py work [--writers N] [--seconds N] [--operations N] [--early] [--mark DM-DEVICE]
                     [--prefix TEXT] DIRECTORY
    promises.py verify [--newest LIST] LIST DIRECTORY...

Each of the writers performs operations 0, 1, 2 ... in a directory of its own and prints "PREFIX
DIRECTORY WRITER OPERATION" when what makes the operation durable has returned: fsync of the file, of
its directory, or the write itself with O_DIRECT|O_DSYNC. --early prints it before the operation, which
is a lie. --mark also writes "DIRECTORY/WRITER/OPERATION" into the log of a log-writes target.

Without --seconds and --operations it goes on until it gets a SIGTERM, or a writer an error.
Beside them a process writes files without promising anything, so that the caches also hold data that is
not being made durable.

What an operation does and what it writes follow from the name of the directory, the writer and the
number, so verify needs nothing but the last line of each writer. LIST has them, in any order and
together with any others. What was not promised yet may be there or not: up to what the newest list
has, and a little further.
"""

import errno
import mmap
import os
import sys
import time

# Modules that random, hashlib and signal need: importing those takes seconds under emulation.
import _md5
import _random
import _signal

BLOCK = 4096
REPLACED, UPDATED, DIRECT, APPENDED = 5, 32, 16, 2  # files; blocks; blocks; files
KINDS = ["replace"] * 8 + ["delete"] + ["update"] * 4 + ["direct"] * 3 + ["append"] * 4
AHEAD = 3  # operations behind the promised one that may have left a trace


class Chance:
    """Random numbers that follow from a name."""

    def __init__(self, name):
        self.source = _random.Random(int.from_bytes(_md5.md5(name).digest(), "little"))

    def below(self, end):
        return int(self.source.random() * end)

    def power(self, low, high):
        """A number between two powers of 2, each pair of which is equally likely."""
        return int(2 ** (low + self.source.random() * (high - low)))

    def bytes(self, count):
        return self.source.getrandbits(8 * count).to_bytes(count, "little")


class Operation:
    """The operation of a writer with one number: it follows from the name."""

    def __init__(self, directory, writer, number):
        self.name = f"{directory} {writer} {number}"
        self.number = number
        chance = Chance(self.name.encode())
        self.file = None
        self.kind = "begin" if number == 0 else KINDS[chance.below(len(KINDS))]
        if self.kind in ("replace", "delete"):
            self.file = f"replaced-{chance.below(REPLACED)}"
            self.size = chance.power(3, 17)
        elif self.kind == "append":
            self.file = f"appended-{chance.below(APPENDED)}"
            self.size = chance.power(3, 13)
        elif self.kind in ("update", "direct"):
            self.file = {"update": "updated", "direct": "direct"}[self.kind]
            self.count = 1 + chance.below(6)
            self.first = chance.below((UPDATED if self.kind == "update" else DIRECT) - self.count + 1)

    def block(self, index):
        """4 KiB that identify themselves: some compress, some do not."""
        head = f"{self.name} {index}\n".encode()
        digest = _md5.md5(head).digest()
        if digest[0] % 3 == 0:
            body = Chance(head).bytes(BLOCK - len(head))
        else:
            body = digest * (BLOCK // len(digest))
        return (head + body)[:BLOCK]

    def contents(self):
        blocks = -(-self.size // BLOCK)
        return b"".join(self.block(i) for i in range(blocks))[:self.size]


def sync_directory(path):
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(directory)
    os.close(directory)


def write_file(path, flags, data):
    file = os.open(path, os.O_WRONLY | os.O_CREAT | flags, 0o644)
    while data:
        data = data[os.write(file, data):]
    os.fsync(file)
    os.close(file)


def perform(operation, path):
    """Performs the operation, and makes it durable."""
    if operation.kind == "begin":
        os.mkdir(path)
        for name, blocks in ("updated", UPDATED), ("direct", DIRECT):
            file = os.open(f"{path}/{name}", os.O_WRONLY | os.O_CREAT, 0o644)
            os.ftruncate(file, blocks * BLOCK)
            os.fsync(file)
            os.close(file)
        for i in range(APPENDED):
            write_file(f"{path}/appended-{i}", 0, b"")
        sync_directory(path)
        sync_directory(os.path.dirname(path))
        return
    file = f"{path}/{operation.file}"
    if operation.kind == "replace":
        write_file(file + ".new", os.O_TRUNC, operation.contents())
        os.rename(file + ".new", file)
        sync_directory(path)
    elif operation.kind == "delete":
        try:
            os.unlink(file)
        except FileNotFoundError:
            pass
        sync_directory(path)
    elif operation.kind == "append":
        write_file(file, os.O_APPEND, operation.contents())
    elif operation.kind == "update":
        fd = os.open(file, os.O_WRONLY)
        for i in range(operation.first, operation.first + operation.count):
            os.pwrite(fd, operation.block(i), i * BLOCK)
        os.fsync(fd)
        os.close(fd)
    else:
        memory = mmap.mmap(-1, operation.count * BLOCK)
        for i in range(operation.count):
            memory[i * BLOCK:(i + 1) * BLOCK] = operation.block(operation.first + i)
        fd = os.open(file, os.O_WRONLY | os.O_DIRECT | os.O_DSYNC)
        if os.pwrite(fd, memory, operation.first * BLOCK) != len(memory):
            raise OSError(errno.EIO, "a short direct write")
        os.close(fd)


def writer(directory, number, options):
    name = os.path.basename(directory)
    end = time.monotonic() + float(options.get("--seconds", 1e9))
    operation = 0
    while time.monotonic() < end and operation < int(options.get("--operations", 1e9)):
        line = f"{name} {number} {operation}"
        if "--early" in options:
            os.write(1, f"{options['--prefix']} {line}\n".encode())
        perform(Operation(name, number, operation), f"{directory}/{number}")
        if "--mark" in options:
            mark = "mark " + line.replace(" ", "/")
            if os.spawnlp(os.P_WAIT, "dmsetup", "dmsetup", "message", options["--mark"], "0", mark):
                raise OSError(errno.EIO, "dmsetup failed")
        if "--early" not in options:
            os.write(1, f"{options['--prefix']} {line}\n".encode())
        operation += 1


def bystander(directory):
    data = b"".join(Operation(directory, "bystander", 1).block(i) for i in range(64))
    os.mkdir(f"{directory}/bystander")
    chance, number = Chance(directory.encode()), 0
    while True:
        path = f"{directory}/bystander/{number % 6}"
        with open(path, "wb") as file:
            for _ in range(1 + chance.below(8)):
                file.write(data[chance.below(len(data)):] + data)
        time.sleep(0.1)
        number += 1


def start(function, *arguments):
    child = os.fork()
    if child == 0:
        try:
            function(*arguments)
        except OSError as error:
            sys.stderr.write(f"{function.__name__}: {error}\n")
            os._exit(1)
        os._exit(0)
    return child


def work(directory, options):
    writers = [start(writer, directory, number, options) for number in range(int(options.get("--writers", 3)))]
    beside = start(bystander, directory)
    _signal.signal(_signal.SIGTERM, lambda *_: [os.kill(child, _signal.SIGKILL) for child in writers])
    failed = [child for child in writers if os.waitpid(child, 0)[1] != 0]
    os.kill(beside, _signal.SIGKILL)
    os.waitpid(beside, 0)
    return len(failed) > 0


def read(path):
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None


class Verifier:
    """Compares the promises of one writer with what is there."""

    def __init__(self, directory, writer, last, newest):
        self.path = f"{directory}/{writer}"
        name = os.path.basename(directory)
        operations = [Operation(name, writer, i) for i in range(max(last, newest) + 1 + AHEAD)]
        self.promised, self.ahead = operations[:last + 1], operations[last + 1:]
        self.faults = []

    def of(self, operations, file):
        return [o for o in operations if o.file == file]

    def fault(self, file, what):
        self.faults.append(f"{self.path}/{file}, promised up to operation {self.promised[-1].number}: {what}")

    def replaced(self, file):
        data = read(f"{self.path}/{file}")
        may = self.of(self.promised, file)[-1:] + self.of(self.ahead, file)
        if not self.of(self.promised, file) and data is None:
            return
        for operation in may:
            if data == (None if operation.kind == "delete" else operation.contents()):
                return
        says = "not there" if data is None else f"{len(data)} bytes that begin with {data[:60]!r}"
        self.fault(file, f"{says}; may be {[(o.kind, o.number, o.size) for o in may]}")

    def blocks(self, file, count):
        data = read(f"{self.path}/{file}")
        if data is None or len(data) != count * BLOCK:
            self.fault(file, "not there" if data is None else f"{len(data)} bytes")
            return
        for i in range(count):
            def covering(operations):
                return [o for o in self.of(operations, file) if o.first <= i < o.first + o.count]
            found = data[i * BLOCK:(i + 1) * BLOCK]
            may = covering(self.promised)[-1:] + covering(self.ahead)
            if not covering(self.promised) and not any(found):
                continue
            if found not in [o.block(i) for o in may]:
                self.fault(file, f"block {i} begins with {found[:60]!r}; may be of {[o.number for o in may]}")

    def appended(self, file):
        data = read(f"{self.path}/{file}")
        expected = b"".join(o.contents() for o in self.of(self.promised, file))
        if data is None or not data.startswith(expected):
            says = "not there" if data is None else f"{len(data)} bytes, not beginning with what was appended"
            self.fault(file, f"{says}; {len(expected)} bytes are promised")

    def run(self):
        for i in range(REPLACED):
            self.replaced(f"replaced-{i}")
        self.blocks("updated", UPDATED)
        self.blocks("direct", DIRECT)
        for i in range(APPENDED):
            self.appended(f"appended-{i}")
        return self.faults


def last_promises(path, directory):
    last = {}
    with open(path) as lines:
        for line in lines:
            *_, name, number, operation = line.split()
            if name == os.path.basename(directory):
                last[int(number)] = max(int(operation), last.get(int(number), 0))
    return last


def verify(path, newest_path, directory):
    last, newest = last_promises(path, directory), last_promises(newest_path, directory)
    faults = [fault for number in sorted(last)
              for fault in Verifier(directory, number, last[number], newest.get(number, 0)).run()]
    for fault in faults:
        print(fault)
    print(f"{directory}: {sum(last.values()) + len(last)} operations promised, {len(faults)} lost")
    return len(faults) > 0


def main():
    options, words = {"--prefix": "promise"}, []
    arguments = iter(sys.argv[1:])
    for word in arguments:
        if word == "--early":
            options[word] = True
        elif word.startswith("--"):
            options[word] = next(arguments)
        else:
            words.append(word)
    if words[0] == "work":
        sys.exit(work(words[1], options))
    newest = options.get("--newest", words[1])
    sys.exit(any([verify(words[1], newest, directory) for directory in words[2:]]))


main()
