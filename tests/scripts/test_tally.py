# SPDX-License-Identifier: GPL-2.0
"""What a check counts, prints and exits with."""

import contextlib
import io
import pathlib
import sys
import tempfile
import unittest

import places  # noqa: F401
from cloopci import results
from cloopci.tally import Tally, command


class Output(io.TextIOWrapper):
    """Standard output as a tally uses it: as text, and the bytes below."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), write_through=True)

    def text(self) -> str:
        """All of it."""
        return self.buffer.getvalue().decode()


class TallyTest(unittest.TestCase):
    """Each test has a tally of its own."""

    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.logs = pathlib.Path(directory.name)
        self.tally = Tally(self.logs)
        self.output = Output()
        redirection = contextlib.redirect_stdout(self.output)
        redirection.__enter__()
        self.addCleanup(redirection.__exit__, None, None, None)

    def finish(self) -> tuple[int, str]:
        """Exit status and last line."""
        status = self.tally.finish()
        return status, self.output.text().splitlines()[-1]

    def suite(self, program: str) -> None:
        """A suite that prints TAP."""
        self.tally.suite("the suite", [sys.executable, "-c", program], self.logs / "suite.log", results.of_tap)

    def test_nothing(self) -> None:
        """A check without tests is none."""
        self.assertEqual(self.finish(), (1, "0 passed, 0 failed"))

    def test_passed(self) -> None:
        """The output of what passed is not shown."""
        self.tally.one("good", command("echo", "words"))
        self.assertNotIn("words", self.output.text())
        self.assertRegex(self.output.text(), r"ok - good \([0-9]+ s\)")
        self.assertEqual(self.finish(), (0, "1 passed, 0 failed"))

    def test_failed(self) -> None:
        """The output of what failed is."""
        self.tally.one("good", command("true"))
        self.tally.one("bad", command("sh", "-c", "echo words; exit 3"))
        self.assertIn("not ok - bad\n  | words\n", self.output.text())
        self.assertEqual(self.finish(), (1, "1 passed, 1 failed"))

    def test_error(self) -> None:
        """A check that has a bug has failed, and the others run."""
        self.tally.one("buggy", lambda log: 1 // 0)
        self.tally.one("good", command("true"))
        self.assertIn("  | ZeroDivisionError", self.output.text())
        self.assertEqual(self.finish(), (1, "1 passed, 1 failed"))

    def test_not_booted(self) -> None:
        """Neither passed nor failed, and not zero."""
        self.tally.one("good", command("true"))
        self.tally.one("cuts", command("sh", "-c", "echo 'the machine did not boot'; exit 125"))
        self.suite("print('vm: the machine did not boot'); exit(125)")
        self.assertIn("not run - cuts: the machine did not boot\n", self.output.text())
        self.assertEqual(self.finish(), (1, "1 passed, 0 failed"))
        self.assertIn("\n2 not run: the machine did not boot\n", self.output.text())

    def test_suite(self) -> None:
        """Its output is shown and kept, and its results are added."""
        self.suite("print('ok 1 - a\\nok 2 - b # SKIP c\\n1..2')")
        self.assertIn("ok 1 - a\n", self.output.text())
        self.assertIn("ok 1 - a\n", (self.logs / "suite.log").read_text())
        self.assertEqual(self.finish(), (0, "1 passed, 0 failed"))
        self.assertIn("\n1 skipped\n", self.output.text())

    def test_suite_that_fails_silently(self) -> None:
        """An exit status without a failed test is one failure."""
        self.suite("print('ok 1 - a'); exit(9)")
        self.assertIn("not ok - the suite: exit status 9 without a failed test\n", self.output.text())
        self.assertEqual(self.finish(), (1, "1 passed, 1 failed"))

    def test_suite_that_runs_nothing(self) -> None:
        """So is no test at all."""
        self.suite("print('1..0')")
        self.assertEqual(self.finish(), (1, "0 passed, 1 failed"))


if __name__ == "__main__":
    unittest.main()
