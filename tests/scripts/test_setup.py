# SPDX-License-Identifier: GPL-2.0
"""Which stages a set-up runs, without running them."""

import contextlib
import io
import pathlib
import tempfile
import unittest
from unittest import mock

import places  # noqa: F401
from cloopci import debian, setup, stages
from cloopci.paths import Paths

ALL = ["host", "tree", "kernel", "rust", "vm"]


class Recorder(stages.Runner):
    """Does a stage by noting its name."""

    def __init__(self, stamps: pathlib.Path, kernel: pathlib.Path) -> None:
        super().__init__(stamps, stamps)
        self.kernel = kernel
        self.ran: list[str] = []

    def start(self, stage: stages.Stage) -> None:
        if self.is_done(stage.name, stage.key):
            return
        self.ran.append(stage.name)
        if stage.name == "kernel":
            self.kernel.mkdir(exist_ok=True)
            (self.kernel / "id").write_text(f"kernel {len(self.ran)}\n")
            (self.kernel / "release").write_text("7.0\n")
        (self.stamps / stage.name).write_text(stage.key)

    def finish(self, *names: str) -> None:
        assert all((self.stamps / name).exists() for name in names)


class Setup(unittest.TestCase):
    """A cache of its own."""

    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        cache = pathlib.Path(directory.name)
        self.where = Paths(**({name: cache / name for name in Paths._fields} | {"cache": cache}))
        self.where.stamps.mkdir()

    def run_setup(self, update: bool = False, debug: bool = False, bench: bool = False) -> list[str]:
        """The stages that run."""
        one = setup.Setup(self.where, update)
        one.runner = Recorder(self.where.stamps, self.where.kernel)
        with (contextlib.redirect_stderr(io.StringIO()), mock.patch.object(setup.debian, "find_mirror"),
              mock.patch.object(setup, "check_space")):
            one.all(debug, bench)
        return one.runner.ran

    def test_from_nothing(self) -> None:
        """Everything, in order; then nothing."""
        self.assertEqual(self.run_setup(), ALL)
        self.assertEqual(self.run_setup(), [])

    def test_update(self) -> None:
        """A newer kernel, and what is built for it. The kernel that was fetched may be the same."""
        self.run_setup()
        self.assertEqual(self.run_setup(update=True), ["kernel", "rust", "vm"])

    def test_debug(self) -> None:
        """The debug kernel only when it is asked for."""
        self.assertEqual(self.run_setup(debug=True), [*ALL, "debug-tree", "debug-kernel"])
        self.assertEqual(self.run_setup(debug=True), [])

    def test_bench(self) -> None:
        """What measurements need only when it is asked for; and again for another kernel."""
        self.assertEqual(self.run_setup(bench=True), [*ALL, "bench-tree", "bench-kernel"])
        self.assertEqual(self.run_setup(bench=True), [])
        self.assertEqual(self.run_setup(update=True, bench=True), ["kernel", "rust", "vm", "bench-kernel"])

    def test_resumes(self) -> None:
        """Only what is missing."""
        self.run_setup()
        (self.where.stamps / "vm").unlink()
        self.assertEqual(self.run_setup(), ["vm"])

    def test_packages(self) -> None:
        """Another package in the tree is another tree, and all that is built in it; not another VM."""
        self.run_setup()
        more = setup.TREE._replace(packages=(*setup.TREE.packages, "gdb"))
        with mock.patch.object(setup, "TREE", more):
            self.assertEqual(self.run_setup(), ["tree", "kernel", "rust", "vm"])
        self.assertNotEqual(more.key(), setup.TREE.key())

    def test_recipe(self) -> None:
        """The scripts of the stages are part of their keys."""
        self.run_setup()
        real = setup._recipe
        with mock.patch.object(setup, "_recipe", lambda name: real(name) + ("#" if name == "vm" else "")):
            self.assertEqual(self.run_setup(), ["vm"])

    def test_space(self) -> None:
        """A sentence, before anything is done."""
        with self.assertRaisesRegex(stages.Error, "MB free and setting up needs 99999999999: make room"):
            setup.check_space(self.where.cache, 99999999999)

    def test_usage(self) -> None:
        """An unknown option."""
        with self.assertRaises(stages.Error) as raised:
            setup.main(["--nothing"])
        self.assertEqual(raised.exception.status, 2)


class Mirror(unittest.TestCase):
    """What is made of apt's answers."""

    def find(self, mirrors: list[list[str]], *answers: tuple[int, str], update: str = "") -> str:
        """The mirror that is found."""
        with (tempfile.TemporaryDirectory() as directory,
              mock.patch.object(debian, "_listed_mirrors", side_effect=mirrors),
              mock.patch.object(debian, "_download", side_effect=answers) as download,
              mock.patch.object(debian, "output_of", return_value=(0, update))):
            found = debian.find_mirror("trixie", pathlib.Path(directory))
            self.assertIn("/dists/trixie-backports/InRelease", download.call_args.args[0])
            return found

    def test_first_that_answers(self) -> None:
        """In apt's order, without a slash at the end."""
        self.assertEqual(self.find([["http://a/", "http://b/"]], (1, "404"), (0, "")), "http://b")

    def test_update_first(self) -> None:
        """apt lists only what it has fetched the index of."""
        self.assertEqual(self.find([[], ["http://a"]], (0, "")), "http://a")

    def test_file_of_mirrors(self) -> None:
        """Its first address."""
        with tempfile.NamedTemporaryFile("w") as file:
            file.write("# mirrors\nhttps://c/debian\tpriority:1\n")
            file.flush()
            self.assertEqual(self.find([[f"mirror+file:{file.name}"]], (0, "")), "https://c/debian")

    def test_sentences(self) -> None:
        """Why there is none."""
        for sentence, mirrors, answers, update in (
                ("no package sources", [[], []], [], ""),
                (r"cannot be reached \(Could not resolve\)", [[], []], [], "Err:1 http://a\n  Could not resolve\n"),
                ("carries trixie-backports", [["http://a"]], [(1, "Err 404  Not Found")], ""),
                (r"cannot be reached \(timed out\)", [["http://a"]], [(1, "x\ntimed out\n")], "")):
            with self.assertRaisesRegex(stages.Error, sentence):
                self.find(mirrors, *answers, update=update)


if __name__ == "__main__":
    unittest.main()
