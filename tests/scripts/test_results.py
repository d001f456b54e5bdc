# SPDX-License-Identifier: GPL-2.0
"""What is made of the output of suites."""

import unittest

import places  # noqa: F401
from cloopci import results

TAP = """\
ok 1 - not a result of a plan? yes, it is one
# a diagnostic
noise of the machine
ok 2 - without the file system # SKIP this kernel has no xfs
not ok 3 - broken
# ok 4 - in a diagnostic
1..3
""".splitlines()

CARGO = """\
test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.10s
test hostile ... FAILED
test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s
""".splitlines()


class Results(unittest.TestCase):
    """Counts."""

    def test_tap(self) -> None:
        """A skipped test is no passed test, and only lines that begin so are results."""
        counts = results.of_tap(TAP)
        self.assertEqual((counts.passed, counts.failed, counts.skipped, counts.planned), (1, 1, 1, 3))
        self.assertEqual(counts.reported, 3)

    def test_cargo(self) -> None:
        """The sums over test programs."""
        counts = results.of_cargo(CARGO)
        self.assertEqual((counts.passed, counts.failed, counts.skipped), (15, 2, 1))

    def test_not_booted(self) -> None:
        """Only with the status of the runner, and with its words at the beginning of a line."""
        self.assertTrue(results.did_not_boot(125, "x\nvm: the machine did not boot; the end of\n"))
        self.assertTrue(results.did_not_boot(125, "the machine did not boot; 3 power cuts until then\n"))
        self.assertFalse(results.did_not_boot(1, "vm: the machine did not boot\n"))
        self.assertFalse(results.did_not_boot(125, "vm: the machine stopped without a status\n"))
        self.assertFalse(results.did_not_boot(125, "# stopped: the machine did not boot; again\n"))


if __name__ == "__main__":
    unittest.main()
