# SPDX-License-Identifier: GPL-2.0
"""Debian: the package mirror of this machine, and root file systems made of packages."""

import os
import pathlib
import re
import subprocess
from typing import NamedTuple

from .stages import Error, hash_of

ARCHITECTURE = "amd64"
_NETWORK = "check the network and apt's proxy settings"
_NOT_FOUND = re.compile("404|[Nn]ot [Ff]ound")
_NETWORK_OPTION = re.compile(r"Acquire::(https?::|Check-Valid-Until|ForceIPv)")


def run(*words: str, **environment: str) -> None:
    """A command of a stage, which fails with it."""
    status = subprocess.run(words, stdin=subprocess.DEVNULL, check=False, env=os.environ | environment).returncode
    if status != 0:
        raise Error(f"exit status {status} of: {' '.join(words)}")


def output_of(*words: str) -> tuple[int, str]:
    """Exit status of a command, and all that it says."""
    done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    return done.returncode, done.stdout.decode(errors="replace")


def _download(url: str, file: str) -> tuple[int, str]:
    """With the proxy and certificates that apt is set up with."""
    return output_of("/usr/lib/apt/apt-helper", "-oAPT::Sandbox::User=root", "download-file", url, file)


def _listed_mirrors() -> list[str]:
    """Those that apt has fetched the index of."""
    words = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Component: main"]
    done = subprocess.run(words, stdout=subprocess.PIPE, check=False)
    return sorted(set(done.stdout.decode().split()))


def _resolved(mirror: str) -> str | None:
    """The address of a mirror; of a file of mirrors the first one."""
    if mirror.startswith("mirror+file:"):
        try:
            text = pathlib.Path(mirror.removeprefix("mirror+file:")).read_text()
        except OSError:
            return None
        found = re.search(r"^[a-z]*://\S*", text, re.MULTILINE)
        if not found:
            return None
        mirror = found[0]
    return mirror.removesuffix("/")


def find_mirror(suite: str, directory: pathlib.Path) -> str:
    """The mirror this machine's apt uses that also carries the backports of this suite. `directory` is for a file
    that is gone afterwards."""
    mirrors = _listed_mirrors()
    said = ""
    if not mirrors:
        _, said = output_of("apt-get", "update")
        mirrors = _listed_mirrors()
    if not mirrors:
        reason = re.search(r"^Err:.*?^  *(.*?)$", said, re.MULTILINE | re.DOTALL)
        if reason:
            raise Error(f"the package mirror cannot be reached ({reason[1]}): {_NETWORK}")
        raise Error("apt on this machine has no package sources: set up a Debian mirror in /etc/apt")
    file = directory / f"InRelease.{os.getpid()}"
    try:
        for listed in mirrors:
            mirror = _resolved(listed)
            if mirror is None:
                continue
            status, said = _download(f"{mirror}/dists/{suite}-backports/InRelease", str(file))
            if status == 0:
                return mirror
    finally:
        file.unlink(missing_ok=True)
    if _NOT_FOUND.search(said):
        raise Error(f"no package mirror of this machine carries {suite}-backports: point apt at a full Debian mirror")
    last = said.strip().rpartition("\n")[2]
    raise Error(f"the package mirror cannot be reached ({last}): {_NETWORK}")


def network_options() -> list[str]:
    """apt's network settings, for the apt of another root."""
    dump = subprocess.run(["apt-config", "dump"], stdout=subprocess.PIPE, check=False).stdout.decode()
    return [line for line in dump.splitlines() if _NETWORK_OPTION.match(line) and not line.endswith(' "";')]


class Root(NamedTuple):
    """A Debian root file system: what mmdebstrap makes."""

    suite: str
    variant: str
    packages: tuple[str, ...]
    suites: tuple[str, ...]  # to install from
    options: tuple[str, ...] = ()

    def _words(self) -> list[str]:
        """What the result depends on, apart from the mirror's contents."""
        return [
            f"--variant={self.variant}", f"--architectures={ARCHITECTURE}", f"--include={','.join(self.packages)}",
            '--aptopt=APT::Install-Recommends "false"', '--aptopt=Acquire::Languages "none"',
            '--aptopt=Acquire::Retries "3"', "--dpkgopt=force-unsafe-io", "--skip=cleanup/apt/lists", *self.options,
        ]

    def key(self) -> str:
        """The hash of the recipe."""
        return hash_of(self.suite, *self._words(), *self.suites)

    def make(self, directory: pathlib.Path, mirror: str) -> None:
        """Make it. mmdebstrap mounts /proc and /sys in the new root: in a namespace of its own, so that they go
        away with it whatever happens."""
        options = [f"--aptopt={line}" for line in network_options()]
        sources = [f"deb {mirror} {suite} main" for suite in self.suites]
        run("unshare", "--mount", "--propagation", "private", "mmdebstrap", "--mode=root", *self._words(), *options,
            self.suite, str(directory), *sources)


def remove(directory: pathlib.Path) -> None:
    """A directory, but nothing that is mounted in it."""
    run("rm", "-rf", "--one-file-system", str(directory))


def replace(new: pathlib.Path, old: pathlib.Path) -> None:
    """Put `new` where `old` is, whose users may keep using it."""
    aside = old.with_name(old.name + ".old")
    remove(aside)
    if old.exists():
        old.rename(aside)
    new.rename(old)
    remove(aside)
