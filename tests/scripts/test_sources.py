# SPDX-License-Identifier: GPL-2.0
"""Lint sees what it has to see."""

import pathlib
import tempfile
import unittest

import places  # noqa: F401
from cloopci import sources


class Sources(unittest.TestCase):
    """A small source tree."""

    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.src = pathlib.Path(directory.name)
        for name in ("scripts", "selftests", "tests", "src"):
            (self.src / name).mkdir()

    def write(self, name: str, text: str, executable: bool = False) -> None:
        """A file."""
        (self.src / name).write_text(text)
        (self.src / name).chmod(0o755 if executable else 0o644)

    def test_shell(self) -> None:
        """By the first line, whatever the name."""
        self.write("scripts/a", "#!/bin/bash\n")
        self.write("scripts/b", "#!/bin/busybox sh\n")
        self.write("scripts/c", "#!/usr/bin/python3\n#!/bin/bash\n")
        self.assertEqual(sources.shell(self.src), ["scripts/a", "scripts/b", "scripts/lib.sh"])

    def test_python(self) -> None:
        """By the name or the first line."""
        self.write("scripts/a", "#!/usr/bin/python3 -B\n")
        self.write("tests/b.py", "")
        self.write("tests/c", "#!/bin/sh\n")
        self.assertEqual([str(path) for path in sources.python(self.src)], ["scripts/a", "tests/b.py"])

    def test_licence(self) -> None:
        """Programs and sources need it; other files do not."""
        self.write("scripts/good", "#!/bin/bash\n# SPDX-License-Identifier: GPL-2.0\n", True)
        self.write("scripts/late.py", "\n\n# SPDX-License-Identifier: GPL-2.0\n")
        self.write("scripts/program", "#!/bin/bash\n", True)
        self.write("src/bare.rs", "//! Nothing.\n")
        self.write("src/notes", "text\n")
        self.assertEqual([str(path) for path in sources.unlicensed(self.src)],
                         ["scripts/late.py", "scripts/program", "src/bare.rs"])

    def test_imports(self) -> None:
        """Everywhere in the file; relative ones are not of interest."""
        text = "import os.path, sys\nfrom . import a\ndef f():\n    from docutils.core import b\n"
        self.assertEqual(sources.imports(text), {"os", "sys", "docutils"})

    def test_foreign_imports(self) -> None:
        """Python's own, neighbours and exceptions are not foreign."""
        self.write("scripts/a.py", "import os\nimport b\nimport docutils\nimport requests\n")
        self.write("scripts/b.py", "")
        self.assertEqual(sources.foreign_imports(self.src, pathlib.Path("scripts/a.py"), frozenset(["docutils"])),
                         {"requests"})


if __name__ == "__main__":
    unittest.main()
