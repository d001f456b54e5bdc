# SPDX-License-Identifier: GPL-2.0
"""Stages run once, beside each other, and can be stopped."""

import contextlib
import io
import os
import pathlib
import tempfile
import time
import unittest
from collections.abc import Callable
from unittest import mock

import places  # noqa: F401
from cloopci import stages


class Stages(unittest.TestCase):
    """A runner with stamps and logs of its own."""

    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)
        self.runner = stages.Runner(self.directory, self.directory)
        self.addCleanup(self.runner.stop)
        self.said = io.StringIO()
        redirection = contextlib.redirect_stderr(self.said)
        redirection.__enter__()
        self.addCleanup(redirection.__exit__, None, None, None)

    def start(self, name: str, action: Callable[[], object], key: str = "key") -> None:
        """Start a stage."""
        self.runner.start(stages.Stage(name, "working", key, lambda: action() and None))

    def mark(self) -> None:
        """The work of a stage: one more character in a file."""
        with open(self.directory / "marks", "a") as file:
            file.write("x")

    def marks(self) -> int:
        """How often that has been done."""
        return len((self.directory / "marks").read_text())

    def test_once(self) -> None:
        """A stage that is done does not run again, in another process neither."""
        for _ in range(2):
            self.start("a", self.mark)
            self.runner.finish("a")
        self.assertEqual(self.marks(), 1)
        self.assertEqual((self.directory / "a").read_text(), "key")
        self.assertEqual(self.said.getvalue(), "[a] working\n[a] done in 0 s\n")

    def test_other_key(self) -> None:
        """With another key it does."""
        for key in ("one", "two"):
            self.start("a", self.mark, key)
            self.runner.finish("a")
        self.assertEqual(self.marks(), 2)

    def test_failure(self) -> None:
        """The end of the log is shown, there is no stamp, and the next run begins there."""
        def fail() -> None:
            print("reason", flush=True)
            raise stages.Error("a sentence")

        self.start("a", self.mark)
        self.runner.finish("a")
        self.start("b", fail)
        with self.assertRaisesRegex(stages.Error, "stage 'b' failed, see .*/b.log; running make again resumes there"):
            self.runner.finish("b")
        self.assertIn("  | reason\n  | setup: a sentence\n", self.said.getvalue())
        self.assertFalse(self.runner.is_done("b", "key"))
        self.assertTrue(self.runner.is_done("a", "key"))

    def test_a_failure_takes_away_the_old_stamp(self) -> None:
        """What is half made with a new key is not what the old one made."""
        self.start("a", self.mark, "old")
        self.runner.finish("a")
        self.start("a", lambda: 1 / 0, "new")
        with self.assertRaises(stages.Error):
            self.runner.finish("a")
        self.assertFalse(self.runner.is_done("a", "old"))
        self.assertIn("ZeroDivisionError", (self.directory / "a.log").read_text())

    def test_beside(self) -> None:
        """Two stages wait for each other: that only ends if both run."""
        def meet(mine: str, other: str) -> None:
            (self.directory / mine).touch()
            while not (self.directory / other).exists():
                time.sleep(0.01)

        self.start("a", lambda: meet("met-a", "met-b"))
        self.start("b", lambda: meet("met-b", "met-a"))
        self.runner.finish("a", "b")
        self.assertTrue(self.runner.is_done("a", "key") and self.runner.is_done("b", "key"))

    def stopped(self, trap: str, patience: float) -> None:
        """Stop a stage that runs a process which answers SIGTERM so. Afterwards there is none."""
        os.chdir(self.directory)
        self.addCleanup(os.chdir, "/")
        self.start("a", lambda: os.system(f"trap '{trap}' TERM; echo $$ >pid.new; mv pid.new pid; "
                                          "while :; do sleep 0.1; done"))
        while not (self.directory / "pid").exists():
            time.sleep(0.01)
        pid = int((self.directory / "pid").read_text())
        self.assertEqual(os.getpgid(pid), self.runner.running["a"].pid)
        with mock.patch.object(stages, "PATIENCE", patience):
            self.runner.stop()
        self.assertEqual(self.runner.running, {})
        self.assertFalse(self.runner.is_done("a", "key"))
        self.assertTrue(_is_gone(pid))

    def test_stop(self) -> None:
        """Stopping a stage stops what it has started, too, and waits until that has cleaned up."""
        self.stopped("sleep 0.5; touch cleaned; exit", 60)
        self.assertTrue((self.directory / "cleaned").exists())

    def test_stop_by_force(self) -> None:
        """What does not want to end is killed."""
        self.stopped(":", 0.5)

    def test_private_descriptors(self) -> None:
        """A stage does not keep the lock."""
        lock = os.open(self.directory / "lock", os.O_WRONLY | os.O_CREAT)
        self.addCleanup(os.close, lock)
        self.runner.private.append(lock)
        self.start("a", lambda: os.system("ls -l /proc/$PPID/fd"))
        self.runner.finish("a")
        log = (self.directory / "a.log").read_text()
        self.assertIn("/a.log\n", log)
        self.assertNotIn(str(self.directory / "lock"), log)

    def test_signs_of_life(self) -> None:
        """Without a terminal there is a line now and then, with the last line of the log."""
        def speak() -> None:
            print("one\ntwo\rthree\n\n", flush=True)
            time.sleep(0.6)

        with mock.patch.object(stages, "QUIET", 0.1):
            self.start("a", speak)
            self.runner.finish("a")
        self.assertIn("[a] ... 0 s: three\n", self.said.getvalue())


def _is_gone(pid: int) -> bool:
    """Whether the process is dead. Its entry stays for as long as the init of this machine does not ask for it."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


if __name__ == "__main__":
    unittest.main()
