# SPDX-License-Identifier: GPL-2.0
"""Where things are. scripts/lib.sh decides that for all scripts; this asks it."""

import pathlib
import subprocess
from typing import NamedTuple

SCRIPTS = pathlib.Path(__file__).resolve().parent.parent


class Paths(NamedTuple):
    """The variables of lib.sh; `tree_src` and `tree_cache` are paths inside the toolchain tree."""

    tree_src: pathlib.Path
    tree_cache: pathlib.Path
    src: pathlib.Path
    cache: pathlib.Path
    tree: pathlib.Path
    kernel: pathlib.Path
    vm: pathlib.Path
    debug: pathlib.Path
    bench: pathlib.Path
    out: pathlib.Path
    logs: pathlib.Path
    run: pathlib.Path

    @property
    def stamps(self) -> pathlib.Path:
        """One file for each stage of the set-up that is done."""
        return self.cache / "stamps"

    def kernel_release(self) -> str:
        """The release name of the kernel that was set up, or an empty string."""
        try:
            return (self.kernel / "release").read_text().strip()
        except FileNotFoundError:
            return ""


def load() -> Paths:
    """Ask lib.sh, in this process's environment."""
    program = '. "$1"; shift; for name; do printf "%s\\0" "${!name}"; done'
    words = ["bash", "-euc", program, "paths", str(SCRIPTS / "lib.sh"), *Paths._fields]
    values = subprocess.run(words, stdout=subprocess.PIPE, check=True).stdout.decode().split("\0")
    return Paths(*map(pathlib.Path, values[:-1]))


def tool(name: str) -> str:
    """The path of a script beside this package."""
    return str(SCRIPTS / name)
