# SPDX-License-Identifier: GPL-2.0
"""What scripts/powercut makes of a machine that does not boot, without a machine."""

import contextlib
import io
import os
import pathlib
import sys
import unittest
from unittest import mock

DIRECTORY = pathlib.Path(__file__).resolve().parent.parent.parent / "scripts/powercut.d"
sys.path.insert(0, str(DIRECTORY))
with mock.patch.dict(os.environ, CLOOP_CACHE="/nonexistent"):
    import host  # pylint: disable=import-error


class FakeDevice:
    """A device whose disk counts how often it was closed."""

    def __init__(self) -> None:
        self.power = None
        self.disk = mock.Mock()


class PowerOn(unittest.TestCase):
    """The boots that power_on makes, each of which ends as the list says."""

    def power_on(self, *ends: object, writes: int = 0) -> tuple[object, FakeDevice, mock.Mock]:
        """Call it; an exception is returned, too."""
        device = FakeDevice()

        def wait(_: str) -> bool:
            device.power.writes += writes
            end = next(left)
            if isinstance(end, Exception):
                raise end
            return end

        left = iter(ends)
        with (mock.patch.object(host, "Machine") as machine, contextlib.redirect_stdout(io.StringIO())):
            machine.return_value.wait.side_effect = wait
            machine.return_value.evidence.return_value = "what was said"
            try:
                result = host.power_on("run", 1, [device], "work", "working", None)[2]
            except (host.Failed, host.NotBooted) as failure:
                result = failure
        return result, device, machine

    def test_second_boot(self) -> None:
        """A machine that did not boot, and then did: nothing has happened."""
        result, device, machine = self.power_on(host.NotBooted("stopped"), True)
        self.assertIs(result, True)
        self.assertEqual(machine.call_count, 2)
        self.assertEqual(device.disk.close.call_count, 1)
        self.assertTrue(device.power.on)

    def test_two_boots_are_all(self) -> None:
        """Then it is counted apart."""
        result, _, machine = self.power_on(host.NotBooted("stopped"), host.NotBooted("stopped"))
        self.assertIsInstance(result, host.NotBooted)
        self.assertEqual(machine.call_count, 2)

    def test_no_second_boot_after_writes(self) -> None:
        """The same disks would not be the same."""
        result, _, machine = self.power_on(host.NotBooted("stopped"), True, writes=1)
        self.assertIsInstance(result, host.NotBooted)
        self.assertEqual(machine.call_count, 1)

    def test_failures_are_failures(self) -> None:
        """What the guest found wrong is not looked at again."""
        result, _, machine = self.power_on(host.Failed(1, "lost"), True)
        self.assertIsInstance(result, host.Failed)
        self.assertEqual(result.status, 1)
        self.assertEqual(machine.call_count, 1)


class Stopped(unittest.TestCase):
    """Which exception a machine is that ended too early."""

    def stopped(self, lines: list[str]) -> Exception:
        """Of a machine that said this."""
        machine = host.Machine.__new__(host.Machine)
        machine.lines = lines
        return machine.stopped("stopped")

    def test_silent(self) -> None:
        """The guest's side says something before it touches a disk."""
        self.assertIsInstance(self.stopped([]), host.NotBooted)

    def test_spoke(self) -> None:
        """After that, a machine that stops is a failure."""
        self.assertIsInstance(self.stopped(["booted\n"]), host.Failed)


if __name__ == "__main__":
    unittest.main()
