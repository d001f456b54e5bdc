#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""vm_runner.py [--debug|--long]: a machine that does not boot is told from a script that fails.

Boots the VM (with --debug the debug kernel) with faults ordered through CLOOP_VM_BREAK. With --long
there is a power cut as well.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

SCRIPTS = pathlib.Path(__file__).resolve().parent.parent.parent / "scripts"
KERNEL = ["--debug"] if "--debug" in sys.argv else []
LONG = "--long" in sys.argv
AGAIN = "the machine stopped before its script began; booting it again"


class Runner(unittest.TestCase):
    """Each test orders a number of boots that fail."""

    def setUp(self) -> None:
        self.directory = tempfile.TemporaryDirectory(dir="/tmp")
        self.addCleanup(self.directory.cleanup)
        self.orders = pathlib.Path(self.directory.name, "orders")
        self.orders.mkdir()

    def run_broken(self, faults: int, *command: object) -> subprocess.CompletedProcess[str]:
        """Run the command, of whose boots the first `faults` fail."""
        for number in range(faults):
            (self.orders / str(number)).touch()
        return subprocess.run([str(word) for word in command], text=True, capture_output=True, check=False,
                              env=os.environ | {"CLOOP_VM_BREAK": str(self.orders)})

    def run_script(self, faults: int, script: str) -> subprocess.CompletedProcess[str]:
        """Run a script in such a machine."""
        file = pathlib.Path(self.directory.name, "script")
        file.write_text("#!/bin/bash\n" + script)
        return self.run_broken(faults, SCRIPTS / "vm", *KERNEL, "--bare", file)

    def test_boots_again(self) -> None:
        """One failed boot costs a sentence: output and exit status are the script's."""
        done = self.run_script(1, "printf 'hello\\n'; exit 7\n")
        self.assertEqual((done.returncode, done.stdout), (7, "hello\n"), done.stderr)
        self.assertIn(AGAIN, done.stderr)

    def test_gives_up(self) -> None:
        """Two failed boots are the end, and there is no output."""
        done = self.run_script(2, "printf 'hello\\n'\n")
        self.assertEqual((done.returncode, done.stdout), (125, ""), done.stderr)
        self.assertIn("vm: the machine did not boot", done.stderr)

    def test_stops_in_the_script(self) -> None:
        """A machine that stops during its script has booted: no second attempt."""
        done = self.run_script(0, "printf 'half\\n'; sleep 0.3; printf c >/proc/sysrq-trigger; sleep 60\n")
        self.assertEqual((done.returncode, done.stdout), (125, "half\n"), done.stderr)
        self.assertIn("vm: the machine stopped without a status", done.stderr)
        self.assertNotIn(AGAIN, done.stderr)

    @unittest.skipUnless(LONG, "takes minutes")
    def test_powercut_boots_again(self) -> None:
        """A boot that fails between power cuts is no lost file: the disks are looked at by the next."""
        done = self.run_broken(1, SCRIPTS / "powercut", "--count", "1", "ext4")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn("the machine did not boot; again, on the same disks\n", done.stdout)
        self.assertIn("1 power cuts, ", done.stdout)

    @unittest.skipIf(KERNEL, "power cuts are of QEMU")
    def test_powercut_gives_up(self) -> None:
        """Two of them are counted apart."""
        done = self.run_broken(2, SCRIPTS / "powercut", "--count", "1", "ext4")
        self.assertEqual(done.returncode, 125, done.stdout + done.stderr)
        self.assertIn("the machine did not boot; 0 power cuts until then, nothing lost\n", done.stdout)


if __name__ == "__main__":
    unittest.main(argv=[word for word in sys.argv if word not in ("--debug", "--long")], verbosity=2)
