# SPDX-License-Identifier: GPL-2.0
"""What the measurements make of the output of programs, and of repetitions."""

import json
import pathlib
import tempfile
import unittest
import xml.dom.minidom
from unittest import mock

import places

BENCH = places.SOURCE / "scripts/cloopbench"
places.sys.path.insert(0, str(BENCH))

import figures  # noqa: E402
import machine  # noqa: E402
import matrix  # noqa: E402
import peers  # noqa: E402
import plot  # noqa: E402
import report  # noqa: E402
import work  # noqa: E402


def sample(peer: str, value: float, load: str = "write 128K", **more: object) -> dict:
    """One measurement of a sequential load."""
    return {"group": "sequential", "peer": peer, "load": load, "begin": 1.0, "end": 2.0, "cpu_s": 0.5,
            "bytes": 1 << 30, "operations": 8192, "mb_per_s": value, "iops": value * 8, "p99_us": None,
            "disk": {"reads": 1, "read_bytes": 4096, "writes": 2, "written_bytes": 8192}} | more


class Statistics(unittest.TestCase):
    """Medians and spread."""

    def test_median(self) -> None:
        """The order does not matter; of an even number the middle two count."""
        self.assertEqual(figures.median([3, 1, 2]), 2)
        self.assertEqual(figures.median([4, 1, 2, 3]), 2.5)
        with self.assertRaises(ValueError):
            figures.median([])

    def test_spread(self) -> None:
        """Half of the range in percent of the median."""
        self.assertEqual(figures.spread([90, 100, 110]), 10)
        self.assertEqual(figures.spread([5]), 0)

    def test_time_between_two_looks(self) -> None:
        """The CPU time at a moment, by proportion; unknown outside of what was watched."""
        series = [(10.0, 1.0), (11.0, 2.0), (13.0, 2.0), (14.0, 4.0)]
        for moment, value in ((10.0, 1.0), (10.5, 1.5), (12.0, 2.0), (13.5, 3.0), (14.0, 4.0)):
            self.assertEqual(figures.at(series, moment), value, moment)
        self.assertIsNone(figures.at(series, 9.9))
        self.assertIsNone(figures.at(series, 14.1))
        self.assertIsNone(figures.at([], 1.0))

    def test_cpu_of_a_sample(self) -> None:
        """The difference between its begin and its end."""
        samples = [{"begin": 10.5, "end": 13.5}, {"begin": 10.5, "end": 15.0}]
        figures.add_cpu(samples, [(10.0, 1.0), (11.0, 2.0), (13.0, 2.0), (14.0, 4.0)])
        self.assertEqual([one["cpu_s"] for one in samples], [1.5, None])


class Parsing(unittest.TestCase):
    """What programs and the kernel say."""

    def test_disk(self) -> None:
        """Fields of /sys/block/NAME/stat; sectors become bytes."""
        before = figures.disk_counters("1 0 8 5 2 0 16 7 0 9 9 0 0 0 0 0 0")
        after = figures.disk_counters("11 0 108 5 4 0 32 7 0 9 9 3 0 8 0 6 0")
        self.assertEqual(figures.difference(after, before), {
            "reads": 10, "read_bytes": 51200, "writes": 2, "written_bytes": 8192, "discards": 3,
            "discarded_bytes": 4096, "flushes": 6})

    def side(self, **more: object) -> dict:
        """One direction of a job of fio."""
        return {"io_bytes": 0, "total_ios": 0, "bw_bytes": 0, "iops": 0.0, "clat_ns": {}, "runtime": 0} | more

    def test_fio(self) -> None:
        """Both directions count; the latency is that of the busier one."""
        read = self.side(io_bytes=7 << 20, total_ios=1792, bw_bytes=7_000_000, iops=1700.0, runtime=1500,
                         clat_ns={"percentile": {"99.000000": 5000}})
        write = self.side(io_bytes=3 << 20, total_ios=768, bw_bytes=3_000_000, iops=700.0)
        job = {"error": 0, "job_start": 1_700_000_000_250, "read": read, "write": write}
        self.assertEqual(figures.of_fio({"jobs": [job]}), {
            "bytes": 10 << 20, "operations": 2560, "mb_per_s": 10.0, "iops": 2400.0, "p99_us": 5.0,
            "begin": 1_700_000_000.25, "end": 1_700_000_001.75})

    def test_fio_that_failed(self) -> None:
        """An error is an error, and so is nothing."""
        for job in ({"error": 5, "read": self.side(), "write": self.side()},
                    {"error": 0, "read": self.side(), "write": self.side()}):
            with self.assertRaises(ValueError):
                figures.of_fio({"jobs": [job]})

    def test_cpu_time(self) -> None:
        """All four times of /proc/PID/stat, whatever the process is called."""
        stat = "42 (a) R (b) S 1 42 42 0 -1 4194560 100 200 0 0 150 50 30 20 20 0 1 0 12345 1000 200"
        self.assertEqual(machine.cpu_time(stat), 2.5)


class Target(unittest.TestCase):
    """A peer that silently became a plain file is noticed."""

    def test_check(self) -> None:
        """A file is no device, and what is missing is neither."""
        with tempfile.TemporaryDirectory() as directory:
            path = pathlib.Path(directory, "dm-0")
            with self.assertRaisesRegex(peers.Trouble, "is gone"):
                peers.Target(str(path), True).check()
            path.touch()
            with self.assertRaisesRegex(peers.Trouble, "not a block device"):
                peers.Target(str(path), True).check()
            peers.Target(str(path), False).check()
            with self.assertRaisesRegex(peers.Trouble, "not a regular file"):
                peers.Target(directory, False).check()

    def test_a_command_that_fails(self) -> None:
        """Says which, and what it said."""
        with self.assertRaisesRegex(peers.Trouble, "exit status 3: why"):
            peers.run("sh", "-c", "echo why >&2; exit 3")


class Matrix(unittest.TestCase):
    """The data fits together."""

    def test_names(self) -> None:
        """Every peer of a group can be set up, every load can be done."""
        for group in matrix.GROUPS:
            for peer in group.peers:
                self.assertIn(peer, matrix.PEERS)
                self.assertIn(peer, peers.PEERS | peers.READERS)
            names = [load.name for load in group.loads]
            self.assertEqual(len(names), len(set(names)), group.name)
            for load in group.loads:
                self.assertIn(load.unit, ("", "MB/s", "IOPS", "ms"))
                self.assertIn(load.kind, {*work.KINDS, "store"})
        for profile in matrix.PROFILES.values():
            self.assertLessEqual(set(profile.peers or ()), set(matrix.PEERS))
            self.assertLessEqual(set(profile.groups or ()), {group.name for group in matrix.GROUPS})

    def test_only_readers_are_only_read(self) -> None:
        """A peer that cannot be written to is in groups only that store its data beforehand."""
        for group in matrix.GROUPS:
            if set(group.peers) & set(peers.READERS):
                self.assertEqual(group.loads[0].kind, "store", group.name)

    def test_plan(self) -> None:
        """A peer gets the groups that have it, as JSON."""
        profile = matrix.PROFILES["quick"]
        plan = json.loads(json.dumps(matrix.plan("cloop-disk", ("sequential", "flush"), profile)))
        self.assertEqual([group["group"] for group in plan], ["flush"])
        self.assertEqual(matrix.peers_of(("flush-file",), profile), ["file"])


class Report(unittest.TestCase):
    """Tables and pictures."""

    def setUp(self) -> None:
        samples = [sample("loop-direct", value) for value in (90, 100, 110)]
        samples += [sample("cloop-64K", value) for value in (150, 160, 140)]
        samples.append({"group": "sequential", "peer": "dm-vdo", "error": "vdoformat: exit status 1"})
        self.cells = report.cells(samples)

    def cell(self, peer: str) -> dict:
        """The cell of the load that was measured."""
        return next(cell for cell in self.cells if (cell["peer"], cell["load"]) == (peer, "write 128K"))

    def test_cells(self) -> None:
        """Medians; and what cost it."""
        cell = self.cell("cloop-64K")
        self.assertEqual((cell["n"], cell["median"], round(cell["spread"], 1)), (3, 150, 6.7))
        self.assertEqual(cell["cpu_s_per_gib"], 0.5)
        self.assertEqual(cell["disk_bytes_per_op"], 1.5)

    def test_a_failure_is_shown(self) -> None:
        """Of each load that did not come, with its reason."""
        self.assertEqual(self.cell("dm-vdo")["n"], 0)
        text = report.page({"about": {}, "cells": self.cells})
        self.assertIn("failed", text)
        self.assertIn("Failed: dm-vdo: vdoformat: exit status 1", text)

    def test_ratio(self) -> None:
        """Larger than 1 is faster, for times as well."""
        self.assertEqual(report.ratio(self.cell("cloop-64K"), self.cell("loop-direct")), 1.5)
        self.assertEqual(report.ratio({"median": 5, "unit": "ms"}, {"median": 10, "unit": "ms"}), 2)
        self.assertIsNone(report.ratio(self.cell("dm-vdo"), self.cell("loop-direct")))

    def test_table(self) -> None:
        """Columns are as wide as their widest word."""
        self.assertEqual(report.table(["", "a"], [["load", "1"], ["x", "1000"]]),
                         "|      |    a |\n|------|-----:|\n| load |    1 |\n| x    | 1000 |\n")

    def test_picture(self) -> None:
        """Well-formed, with one bar for each figure; names are escaped."""
        cells = [cell for cell in self.cells if cell["load"] == "write 128K"]
        document = xml.dom.minidom.parseString(plot.picture("a < b & c", cells))
        bars = document.getElementsByTagName("rect")
        self.assertEqual(len(bars), 3)
        widths = [float(bar.getAttribute("width")) for bar in bars[1:]]
        self.assertAlmostEqual(widths[1] / widths[0], 1.5, 2)


class Machine(unittest.TestCase):
    """The lines of a guest, and what runs below a process."""

    def test_run(self) -> None:
        """Marked lines are figures, others are kept; time on a CPU below the process counts."""
        log: list[str] = []
        script = 'echo hello; (i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done); echo \'BENCH {"a": 1}\'; exit 3'
        with mock.patch.object(machine, "PERIOD", 0.01):
            samples, series, status = machine.run(["sh", "-c", script], log.append)
        self.assertEqual((samples, log, status), ([{"a": 1}], ["hello"], 3))
        values = [value for _, value in series]
        self.assertEqual(values, sorted(values))


if __name__ == "__main__":
    unittest.main()
