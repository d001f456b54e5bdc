# SPDX-License-Identifier: GPL-2.0
"""Which files of the source are what, for lint."""

import ast
import os
import pathlib
import re
import sys
from collections.abc import Iterator

# A file without one of these names needs a licence line if it can be executed.
LICENSED_NAMES = ("Kbuild", "Makefile")
LICENSED_SUFFIXES = (".rs", ".c", ".h", ".sh", ".py", ".toml")
LICENSED_PLACES = ("Kbuild", "Makefile", "Cargo.toml", ".ci", "scripts", "selftests", "src", "include", "tests", "fuzz")

_SHELL = re.compile(rb"#!(/bin/(ba)?sh|/bin/busybox sh|/usr/bin/env bash)")
_PYTHON = re.compile(rb"#!/usr/bin/(python3|env python3)")


def files(src: pathlib.Path, *places: str) -> Iterator[pathlib.Path]:
    """All files at or below these places, sorted, as paths from `src`."""
    for place in places:
        if (src / place).is_file():
            yield pathlib.Path(place)
        for directory, below, names in os.walk(src / place):
            below.sort()
            for name in sorted(names):
                yield pathlib.Path(directory, name).relative_to(src)


def _first_line(path: pathlib.Path) -> bytes:
    with open(path, "rb") as file:
        return file.readline(200)


def shell(src: pathlib.Path) -> list[str]:
    """Shell scripts: those that say so, and the library of them that is only sourced."""
    found = [str(path) for path in files(src, "scripts", "selftests", ".ci") if _SHELL.match(_first_line(src / path))]
    return [*found, "scripts/lib.sh"]


def python(src: pathlib.Path) -> list[pathlib.Path]:
    """Python programs and modules."""
    return [path for path in files(src, "scripts", "selftests", "tests")
            if path.suffix == ".py" or _PYTHON.match(_first_line(src / path))]


def kernel_c(src: pathlib.Path) -> list[str]:
    """C in the kernel's style; the list of headers for bindgen is none."""
    return [str(path) for path in files(src, "src", "include")
            if path.suffix in (".c", ".h") and path.name != "bindings_helper.h"]


def unlicensed(src: pathlib.Path) -> list[pathlib.Path]:
    """Source files without an SPDX line among their first two."""
    found = []
    for path in files(src, *LICENSED_PLACES):
        full = src / path
        if path.name in LICENSED_NAMES or path.suffix in LICENSED_SUFFIXES or os.access(full, os.X_OK):
            with open(full, "rb") as file:
                if b"SPDX-License-Identifier:" not in file.readline() + file.readline():
                    found.append(path)
    return found


def imports(text: str) -> set[str]:
    """The top-level modules that a Python file imports by their full name, wherever it does."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.partition(".")[0])
    return found


def own(src: pathlib.Path) -> set[str]:
    """The names of the modules and packages of this repository."""
    return {name for path in python(src) for name in (path.stem, path.parent.name)}


def foreign_imports(src: pathlib.Path, path: pathlib.Path, allowed: frozenset[str]) -> set[str]:
    """What a Python file imports that is neither in Python itself, nor in this repository, nor allowed."""
    return imports((src / path).read_text()) - set(sys.stdlib_module_names) - own(src) - allowed
