# SPDX-License-Identifier: GPL-2.0
"""The checks that read the source instead of running it."""

import pathlib
import re
import subprocess
from typing import BinaryIO

from . import sources
from .paths import Paths, tool
from .tally import Step, Tally, command

# Prints the modules of python3-minimal in the tree: the files of its package, and what is built in. The host may be
# an older Debian, where the package has less.
MINIMAL = """
import subprocess, sys
package = f"libpython3.{sys.version_info.minor}-minimal"
print(*sys.builtin_module_names, subprocess.run(["dpkg-query", "-L", package], check=True, stdout=-1, text=True).stdout)
"""

NOT_IN_DEBIAN_12 = {"dataclasses", "json"}

# Where the programs are that run on the host, and what a file may import that is not Python's own.
HOST = (pathlib.Path("scripts"), pathlib.Path("scripts/cloopci"))
FOREIGN = {
    "scripts/cloopci/documents.py": frozenset(["docutils"]),
}


def _write(log: BinaryIO, *lines: str) -> None:
    for line in lines:
        log.write(line.encode() + b"\n")


def licence(paths: Paths) -> Step:
    """Every source file has its SPDX line."""

    def step(log: BinaryIO) -> int:
        found = sources.unlicensed(paths.src)
        _write(log, *(f"{path} has no SPDX line" for path in found))
        return 1 if found else 0

    return step


def python(paths: Paths) -> Step:
    """Every Python file compiles, and imports only what Python has itself or is of this repository."""

    def step(log: BinaryIO) -> int:
        bad = 0
        for path in sources.python(paths.src):
            try:
                compile((paths.src / path).read_bytes(), str(path), "exec")
            except SyntaxError as error:
                _write(log, f"{path}:{error.lineno}: {error.msg}")
                bad = 1
                continue
            allowed = FOREIGN.get(str(path), frozenset())
            for name in sorted(sources.foreign_imports(paths.src, path, allowed)):
                _write(log, f"{path} imports {name}, which Python does not have itself")
                bad = 1
        return bad

    return step


def host_python(paths: Paths) -> Step:
    """What runs on the host imports only what python3-minimal has, which is all that a small Debian 12 has."""

    def step(log: BinaryIO) -> int:
        said = subprocess.run([tool("tree"), "python3", "-c", MINIMAL], stdout=subprocess.PIPE, stderr=log, check=False,
                              text=True)
        minimal = set(re.findall(r"/python3\.[0-9]+/(?:lib-dynload/)?(\w+)", said.stdout))
        minimal |= set(said.stdout.partition("/")[0].split())
        bad = said.returncode
        for path in sources.python(paths.src):
            if path.parent not in HOST:
                continue
            found = sources.imports((paths.src / path).read_text()) - (minimal - NOT_IN_DEBIAN_12) - sources.own(paths.src)
            for name in sorted(found - FOREIGN.get(str(path), frozenset())):
                _write(log, f"{path} imports {name}, which python3-minimal does not have")
                bad = 1
        return bad

    return step


def kernel_c(paths: Paths) -> Step:
    """checkpatch over all C, and kernel-doc over its comments. CONST_STRUCT and friends need lists from the kernel
    tree, which --no-tree does without."""
    kernel = paths.tree_cache / "kernel/current/src/scripts"
    files = sources.kernel_c(paths.src)
    style = command(tool("tree"), "perl", str(kernel / "checkpatch.pl"), "--no-tree", "--no-summary", "--terse",
                    "--show-types", "--ignore", "CONST_STRUCT,FILE_PATH_CHANGES", "--file", *files)
    comments = command(tool("tree"), str(kernel / "kernel-doc"), "-none", "-Wall", "-Werror", *files)
    return lambda log: style(log) or comments(log)


def module(paths: Paths) -> Step:
    """A build of the module without a warning, by clippy as well. In a directory of its own: what was
    built before would not warn again."""

    def step(log: BinaryIO) -> int:
        output = paths.out / "lint"
        build = command(tool("build-module"), "--output", str(output), "CLIPPY=1", "KRUSTFLAGS=-Dwarnings",
                        "KCFLAGS=-Werror")
        kept = paths.logs / "module.log"
        with open(kept, "wb") as file:
            status = build(file)
        said = kept.read_text(errors="replace")
        warnings = [line for line in said.splitlines() if "warning" in line.lower()]
        _write(log, said, *warnings)
        if status == 0 and warnings:
            subprocess.run(["rm", "-rf", str(output)], check=True)
            return 1
        return status

    return step


def of_module(paths: Paths, script: str, *words: str) -> Step:
    """What a script of lint.d, which checks itself first, says about the module that `module` has built."""
    program = str(paths.tree_src / "scripts/lint.d" / script)
    itself = command(tool("tree"), program, "--self-check")
    check_module = command(tool("tree"), program, str(paths.tree_cache / "out/lint/cloop.ko"), *words)
    return lambda log: itself(log) or check_module(log)


def pages(paths: Paths) -> Step:
    """Paths and names on the pages exist in the source. Not those of the kernel's interfaces, which are not ours."""
    program = str(paths.tree_src / "scripts/lint.d/doc-paths")
    names = [str(path) for path in sources.files(paths.src, "README.md", "CONTRIBUTING.rst", "Documentation")
             if path.suffix in (".rst", ".md") and path.name != "kernel-interfaces.rst"]
    itself = command(tool("tree"), program, "--self-check")
    check_pages = command(tool("tree"), program, ".", *names)
    return lambda log: itself(log) or check_pages(log)


def documents(paths: Paths) -> Step:
    """docutils over every page, and the numbers of promises and invariants."""
    return command(tool("tree"), "python3", "-B", str(paths.tree_src / "scripts/cloopci/documents.py"),
                   str(paths.tree_src))


def check(tally: Tally, paths: Paths) -> None:
    """All of them."""
    tree = tool("tree")
    tally.one("rustfmt", command(tree, "cargo", "fmt", "--check"))
    tally.one("rustfmt of the driver", command(tree, "rustfmt", "--check", "--edition", "2021",
                                               "src/driver/cloop_main.rs"))
    tally.one("clippy", command(tree, "cargo", "clippy", "--locked", "--all-targets", "--quiet", "--", "-D",
                                "warnings"))
    tally.one("module: clippy and no warning", module(paths))
    tally.one("kernel interfaces", of_module(paths, "kernel-interfaces", "Documentation/kernel-interfaces.rst"))
    tally.one("stack frames", of_module(paths, "stack-frames"))
    tally.one("C in kernel style", kernel_c(paths))
    tally.one("shellcheck", command(tree, "shellcheck", *sources.shell(paths.src)))
    tally.one("Python: compiles, and needs nothing but Python", python(paths))
    tally.one("Python on the host needs nothing but python3-minimal", host_python(paths))
    tally.one("SPDX lines", licence(paths))
    tally.one("paths and names on the pages", pages(paths))
    tally.one("documents: docutils, and the numbers of promises and invariants", documents(paths))
