# SPDX-License-Identifier: GPL-2.0
"""How the selftests' runner reads topics and the kernel's log, without a machine."""

import contextlib
import dataclasses
import io
import pathlib
import subprocess
import tempfile
import unittest
import warnings
from unittest import mock

import places
import runner

SELFTESTS = places.SOURCE / "selftests"
PLACES = runner.Places(*(pathlib.Path("/nonexistent", name) for name in ("state", "b", "m", "m2", "t", "d1", "d2")))

TOPIC = """\
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
good() { printf 'figure: %s\\n' "$1 ${long:-0}"; }
check "a good test" good one
deep() { false; printf 'not reached\\n'; }
bad() { deep; }
check "a bad test" bad
skipped() { skip "no reason"; }
check "a skipped test" skipped
hangs() { sleep 3; }
"""


class Kernel(unittest.TestCase):
    """What the kernel says."""

    def test_after(self) -> None:
        """Since the mark, without it."""
        self.assertEqual(runner.after("mark", ["a", "the mark", "b", "c"]), ["b", "c"])
        self.assertEqual(runner.after("mark", ["a"]), [])

    def test_complaints(self) -> None:
        """Only lines of bugs."""
        lines = ["cloop0: attached", "BUG: unable to handle", "INFO: rcu_sched self-detected stall", "Call Trace:"]
        self.assertEqual(runner.complaints(lines, False), lines[1:])

    def test_failed_allocations(self) -> None:
        """The backtrace of an allocation that failed on purpose is none, the next one is."""
        lines = ["fio: page allocation failure: order:0", "Call Trace:", "Call Trace:"]
        self.assertEqual(runner.complaints(lines, True), ["Call Trace:"])
        self.assertEqual(runner.complaints(lines, False), ["Call Trace:", "Call Trace:"])


class Topics(unittest.TestCase):
    """Topics through topic.sh, in the shell."""

    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.here = pathlib.Path(directory.name)
        for name in ("lib.sh", "topic.sh"):
            (self.here / name).write_bytes((SELFTESTS / name).read_bytes())
        (self.here / "topic.sh").chmod(0o755)
        (self.here / "sample.sh").write_text(TOPIC)
        self.kernel_says: list[str] = []
        self.problem: list[str] | None = None
        for patch in (mock.patch.object(runner, "HERE", self.here), mock.patch.object(runner, "tainted", lambda: 0),
                      mock.patch.object(runner, "kernel_log", lambda: [self.mark, *self.kernel_says]),
                      mock.patch.object(runner.pathlib.Path, "write_text", self.written),
                      mock.patch.object(runner.Runner, "clean_up", lambda _: self.problem)):
            patch.start()
            self.addCleanup(patch.stop)
        self.mark = ""
        self.written_to: list[str] = []

    def written(self, text: str) -> None:
        """Instead of the kernel's files: the mark of the test."""
        self.mark = text if text.startswith("selftest ") else self.mark
        self.written_to.append(text)

    def topic(self) -> runner.Topic:
        """The sample, as the shell lists it."""
        listing = subprocess.run([str(self.here / "topic.sh"), "list", "sample"], stdout=subprocess.PIPE, check=True)
        return runner.parse_listing("sample", listing.stdout.decode())[0]

    def run_tests(self, *tests: runner.Test, limit: int = 60, allocations_fail: bool = False) -> tuple[runner.Runner, str]:
        """The runner after these tests, and what it printed."""
        one = runner.Runner(dataclasses.replace(PLACES, state=self.here), limit, {"complaints": "x", "taints": "0"})
        said = io.StringIO()
        self.said = said
        with contextlib.redirect_stdout(said):
            one.topic(runner.Topic("sample", allocations_fail, list(tests)))
        return one, said.getvalue()

    def test_listing(self) -> None:
        """Descriptions and commands."""
        topic = self.topic()
        self.assertFalse(topic.allocations_fail)
        self.assertEqual([(test.description, test.command) for test in topic.tests],
                         [("a good test", ["good", "one"]), ("a bad test", ["bad"]), ("a skipped test", ["skipped"])])

    def test_every_topic_can_be_listed(self) -> None:
        """And the runner knows them all, in the order in which they run."""
        with mock.patch.object(runner, "HERE", SELFTESTS):
            topics, where = runner.read_topics(runner.TOPICS, {"complaints": "", "taints": "0"})
        self.assertTrue(all(topic.tests for topic in topics))
        self.assertEqual(str(where.state), "/run/cloop-selftests")
        shell = {path.stem for path in SELFTESTS.glob("*.sh")} - {"lib", "topic"}
        self.assertEqual(shell, set(runner.TOPICS))

    def test_results(self) -> None:
        """A line for each, numbered; figures of good tests, the whole output of bad ones."""
        one, said = self.run_tests(*self.topic().tests)
        self.assertEqual((one.number, one.failed, one.skipped), (3, 1, 1))
        lines = said.splitlines()
        self.assertEqual(lines[:2], ["ok 1 - sample: a good test", "# one 0"])
        self.assertIn("not ok 2 - sample: a bad test", lines)
        self.assertIn("# status 1 of: false", lines)
        self.assertIn("#   in deep, sample.sh:4", lines)
        self.assertIn("#   in bad, sample.sh:5", lines)
        self.assertNotIn("not reached", said)
        self.assertIn("ok 3 - sample: a skipped test # SKIP no reason", lines)

    def test_the_kernel_complains(self) -> None:
        """That fails a test which passed otherwise."""
        self.kernel_says = ["WARNING: at cloop"]
        one, said = self.run_tests(self.topic().tests[0])
        self.assertEqual(one.failed, 1)
        self.assertIn("# WARNING: at cloop\n# the kernel complained\n", said)

    def test_hangs(self) -> None:
        """Nothing can run after a test that does not end."""
        # The process is left alone, as there: it is evidence.
        warnings.simplefilter("ignore", ResourceWarning)
        with self.assertRaisesRegex(runner.BailOut, "the test did not end within 1 s"):
            self.run_tests(runner.Test("a test that hangs", ["hangs"]), limit=1)
        self.assertIn("not ok 1 - sample: a test that hangs\n", self.said.getvalue())
        self.assertIn("w\n", self.written_to)

    def test_cannot_clean_up(self) -> None:
        """Nor after one whose devices stay."""
        self.problem = ["/sys/block/cloop0"]
        with self.assertRaisesRegex(runner.BailOut, "could not clean up"):
            self.run_tests(self.topic().tests[0])
        self.assertIn("# /sys/block/cloop0\n", self.said.getvalue())


if __name__ == "__main__":
    unittest.main()
