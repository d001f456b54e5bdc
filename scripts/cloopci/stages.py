# SPDX-License-Identifier: GPL-2.0
"""Stages: pieces of work that run beside each other, are done once, and are seen to move.

A stage runs in a process of its own, which leads a process group, with its output in a log. It is done when
its stamp, a file, holds its key: the hash of everything that it depends on.
"""

import hashlib
import os
import pathlib
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, NoReturn

# Seconds between two signs of life, where there is no terminal to write over.
QUIET = 15
# Lines of the log of a stage that failed.
SHOWN = 20
# Seconds that a stage which is stopped has for cleaning up.
PATIENCE = 10
# The signals that end a set-up.
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Error(Exception):
    """A sentence for the user; the set-up ends with it."""

    def __init__(self, sentence: str, status: int = 1) -> None:
        super().__init__(sentence)
        self.status = status


def note(line: str) -> None:
    """To the user."""
    print(line, file=sys.stderr, flush=True)


def hash_of(*words: str) -> str:
    """A key that differs if any of the words does."""
    return hashlib.sha256(b"".join(word.encode() + b"\0" for word in words)).hexdigest()


class Stage(NamedTuple):
    """`action` raises an exception, or returns: then the stage is done."""

    name: str
    what: str
    key: str
    action: Callable[[], None]


class _Running(NamedTuple):
    stage: Stage
    pid: int
    began: float

    @property
    def seconds(self) -> int:
        return int(time.monotonic() - self.began)


class Runner:
    """Starts stages and waits for them."""

    def __init__(self, stamps: pathlib.Path, logs: pathlib.Path) -> None:
        self.stamps = stamps
        self.logs = logs
        self.running: dict[str, _Running] = {}
        # File descriptors that a stage must not keep: a lock would live as long as it does.
        self.private: list[int] = []

    def is_done(self, name: str, key: str) -> bool:
        """Whether the stage has been done with this key."""
        try:
            return (self.stamps / name).read_text() == key
        except FileNotFoundError:
            return False

    def forget(self, name: str) -> None:
        """So that the stage runs again."""
        (self.stamps / name).unlink(missing_ok=True)

    def start(self, stage: Stage) -> None:
        """Start a stage unless it is done."""
        if self.is_done(stage.name, stage.key):
            return
        self.forget(stage.name)
        note(f"[{stage.name}] {stage.what}")
        sys.stdout.flush()
        sys.stderr.flush()
        # A signal between fork() and the note of it would leave a stage that nothing stops.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        pid = os.fork()
        if pid == 0:
            self._become(stage, before)
        # Both sides, because either may be first: from here on the group can be stopped as one.
        try:
            os.setpgid(pid, pid)
        except OSError:
            pass
        self.running[stage.name] = _Running(stage, pid, time.monotonic())
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _become(self, stage: Stage, mask: Iterable[int]) -> NoReturn:
        """The process of the stage, with this signal mask."""
        status = 1
        try:
            for name in ENDING:
                signal.signal(name, signal.SIG_DFL)
            os.setpgid(0, 0)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            for descriptor in self.private:
                os.close(descriptor)
            null = os.open("/dev/null", os.O_RDONLY)
            log = os.open(self.logs / f"{stage.name}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            for old, new in ((null, 0), (log, 1), (log, 2)):
                os.dup2(old, new)
            sys.stdout = os.fdopen(1, "w", closefd=False)
            sys.stderr = os.fdopen(2, "w", closefd=False)
            stage.action()
            status = 0
        except Error as error:
            note(f"setup: {error}")
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def finish(self, *names: str) -> None:
        """Wait for these stages, showing that they move."""
        shown = time.monotonic()
        while running := [self.running[name] for name in names if name in self.running]:
            for one in running:
                pid, status = os.waitpid(one.pid, os.WNOHANG)
                if pid:
                    del self.running[one.stage.name]
                    self._ended(one, os.waitstatus_to_exitcode(status))
            shown = self._show([one for one in running if one.stage.name in self.running], shown)
            time.sleep(0.2)

    def _ended(self, one: _Running, status: int) -> None:
        name = one.stage.name
        if sys.stderr.isatty():
            sys.stderr.write("\r\033[K")
        log = self.logs / f"{name}.log"
        if status != 0:
            for line in log.read_text(errors="replace").splitlines()[-SHOWN:]:
                note(f"  | {line}")
            raise Error(f"stage '{name}' failed, see {log}; running make again resumes there")
        new = self.stamps / f"{name}.new"
        new.write_text(one.stage.key)
        new.rename(self.stamps / name)
        note(f"[{name}] done in {one.seconds} s")

    def _show(self, running: Sequence[_Running], shown: float) -> float:
        """A sign of life: on a terminal one line for all, else a line for each now and then. Returns when the last
        was given."""
        if not running:
            return shown
        if sys.stderr.isatty():
            one = running[int(time.monotonic() / 3) % len(running)]
            width = max(_columns() - 24, 10)
            sys.stderr.write(f"\r\033[K[{one.stage.name}] {one.seconds} s: {self._last_line(one)[:width]}")
            sys.stderr.flush()
        elif time.monotonic() - shown >= QUIET:
            shown = time.monotonic()
            for one in running:
                note(f"[{one.stage.name}] ... {one.seconds} s: {self._last_line(one)}")
        return shown

    def _last_line(self, one: _Running) -> str:
        """What the stage said last."""
        try:
            with open(self.logs / f"{one.stage.name}.log", "rb") as file:
                file.seek(max(os.fstat(file.fileno()).st_size - 2000, 0))
                said = file.read().decode(errors="replace")
        except FileNotFoundError:
            return ""
        lines = [line for line in said.replace("\r", "\n").split("\n") if line.strip()]
        return lines[-1][:100] if lines else ""

    def stop(self) -> None:
        """End what still runs, and wait until it is gone: the next set-up in this cache removes what it works on."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            for one in self.running.values():
                try:
                    os.killpg(one.pid, number)
                except ProcessLookupError:
                    pass
            deadline = time.monotonic() + PATIENCE
            while self.running and time.monotonic() < deadline:
                alive = _groups()
                self.running = {name: one for name, one in self.running.items() if one.pid in alive}
                time.sleep(0.01)


def _groups() -> set[int]:
    """The process groups that have a living process. What is dead counts no longer, whether or not the init of this
    machine has asked for it: in a container it may never do so."""
    found = set()
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group = stat.read_text(errors="replace").rpartition(") ")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state not in "ZX":
            found.add(int(group))
    return found


def _columns() -> int:
    """The width of the terminal."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except OSError:
        return 80
