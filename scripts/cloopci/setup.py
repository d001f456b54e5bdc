# SPDX-License-Identifier: GPL-2.0
"""setup [--update] [--debug] [--bench]: make everything that building and testing stand on, in the cache.

That is a Debian tree with compilers and QEMU, the kernel to build against, and the root image of the
VM. Run by make; does nothing when all is there.

--update asks the mirror for a newer kernel; without it the one that was set up stays in use for as long as
the cache lives. --debug makes the debug kernel, too, which takes longer than all the rest. --bench makes
the kernel and the programs that measurements need, which takes as long.
"""

import fcntl
import os
import pathlib
import platform
import signal
import subprocess
import sys
import time

from . import debian, paths
from .paths import SCRIPTS, Paths, tool
from .stages import ENDING, Error, Runner, Stage, hash_of, note

SUITE = "trixie"
FLAVOUR = "cloud-amd64"
BACKPORTS = f"{SUITE}-backports"

# What runs inside the tree. erofs-utils and busybox make the VM's images.
TREE = debian.Root(SUITE, "minbase", tuple("""
    ca-certificates gcc libc6-dev make rustc rust-src rustfmt rust-clippy cargo
    bindgen flex bison bc libelf-dev libssl-dev pahole cpio xz-utils kmod perl
    python3-minimal patch debian-archive-keyring
    qemu-system-x86 busybox-static erofs-utils e2fsprogs jq shellcheck python3-docutils
    """.split()), (SUITE, BACKPORTS), tuple(
        f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("man", "doc", "locale", "info")))

# What tests find in the VM.
VM = debian.Root(SUITE, "essential", tuple("""
    bash coreutils util-linux mount e2fsprogs xfsprogs btrfs-progs fio dmsetup
    kmod procps psmisc findutils grep sed gawk diffutils tar gzip attr
    python3-minimal jq
    """.split()), (SUITE,))

# What the debug kernel is built with. Rust and KASAN together need clang; the gcc of
# user-mode Linux is for its host side.
DEBUG_TREE = debian.Root(SUITE, "minbase", tuple("""
    ca-certificates gcc libc6-dev clang lld llvm make rustc rust-src bindgen libclang-dev
    flex bison bc libelf-dev libssl-dev xz-utils kmod perl python3-minimal
    debian-archive-keyring
    """.split()), (SUITE, BACKPORTS), TREE.options)

# What measurements find in their VM: those programs, and what cloop is compared with. Some of it runs on the host
# as well, so this is a toolchain tree, too.
BENCH_TREE = debian.Root(SUITE, "essential", (*VM.packages, *"""
    ca-certificates python3 squashfs-tools qemu-utils vdo zstd
    """.split()), (SUITE,), TREE.options)

# The drivers the VM's initramfs needs before it has a root.
VM_BOOT_MODULES = ("virtio_blk", "erofs", "overlay")

# Where scripts/tree mounts things.
MOUNT_POINTS = ("host", ".cargo")
MOUNT_FILES = (".cargo/config.toml", "etc/resolv.conf", "etc/hosts")

# Measured: the tree takes 2 GB, the kernel 2 GB, the VM 1 GB, cargo's target
# directory and the temporary files of the stages the rest.
NEED_MB = 8000
NEED_DEBUG_MB = 6000
NEED_BENCH_MB = 4500


def preflight(where: Paths) -> None:
    """What this machine must be."""
    machine = platform.uname()
    if (machine.system, machine.machine) != ("Linux", "x86_64"):
        raise Error(f"only x86-64 Linux is supported, this is {machine.system} {machine.machine}")
    if os.getuid() != 0:
        raise Error("setting up needs root (it installs packages and uses chroot): run make as root")
    if not _found("apt-get"):
        raise Error("apt-get is missing: this runs on Debian 12 or later")
    _, architecture = debian.output_of("dpkg", "--print-architecture")
    if architecture.strip() != debian.ARCHITECTURE:
        raise Error(f"only Debian {debian.ARCHITECTURE} is supported, this is {architecture.strip()}")
    try:
        for directory in (where.cache, where.logs, where.stamps, where.run, where.out):
            directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        raise Error(f"cannot write to {where.cache}: set CLOOP_CACHE to another place") from None


def check_space(cache: pathlib.Path, need: int) -> None:
    """Whether the cache has so many MiB."""
    space = os.statvfs(cache)
    free = space.f_bavail * space.f_frsize >> 20
    if free < need:
        raise Error(f"{cache} has {free} MB free and setting up needs {need}: make room or set CLOOP_CACHE to "
                    "another place")


def _found(name: str) -> bool:
    """Whether there is such a command."""
    return any(os.access(os.path.join(directory, name), os.X_OK) for directory in os.get_exec_path())


def _recipe(name: str) -> str:
    """The text of a script of a stage."""
    return (SCRIPTS / "setup.d" / name).read_text()


class Setup:
    """The stages, and the keys that say whether they are done."""

    def __init__(self, where: Paths, update: bool) -> None:
        self.where = where
        self.update = update
        self.mirror = ""
        self.runner = Runner(where.stamps, where.logs)

    # --- keys ------------------------------------------------------------------

    def key(self, name: str) -> str:
        """What the stage depends on. Stages behind the kernel depend on its identity as it is now."""
        if name == "host":
            return "1"
        if name == "tree":
            return hash_of(TREE.key(), *MOUNT_POINTS, *MOUNT_FILES)
        if name == "kernel":
            return hash_of(self.key("tree"), FLAVOUR, _recipe("kernel"))
        kernel = self._kernel_id()
        if name == "rust":
            return hash_of(self.key("tree"), kernel, _recipe("rust"))
        if name == "vm":
            return hash_of(VM.key(), kernel, *VM_BOOT_MODULES, _recipe("vm"))
        if name == "debug-tree":
            return hash_of(DEBUG_TREE.key(), *MOUNT_POINTS, *MOUNT_FILES)
        if name == "debug-kernel":
            return hash_of(self.key("debug-tree"), kernel, _recipe("uml-kernel"), _recipe("debug-config"))
        if name == "bench-tree":
            return hash_of(BENCH_TREE.key(), *MOUNT_POINTS, *MOUNT_FILES, _recipe("bench-root"))
        assert name == "bench-kernel", name
        return hash_of(self.key("tree"), kernel, *map(_recipe, ("uml-kernel", "bench-config", "bench-crc32c.patch")))

    def _kernel_id(self) -> str:
        try:
            return (self.where.kernel / "id").read_text().strip()
        except FileNotFoundError:
            return ""

    def done(self, *names: str) -> bool:
        """Whether these stages are done."""
        return all(self.runner.is_done(name, self.key(name)) for name in names)

    # --- stages ------------------------------------------------------------------

    def host(self) -> None:
        """The one package the machine itself needs."""
        if _found("mmdebstrap") and os.path.exists("/usr/share/keyrings/debian-archive-keyring.gpg"):
            return
        # Old lists may do.
        subprocess.run(["apt-get", "update"], check=False)
        try:
            debian.run("apt-get", "install", "-y", "--no-install-recommends", "mmdebstrap", "debian-archive-keyring",
                       DEBIAN_FRONTEND="noninteractive")
        except Error:
            raise Error("apt cannot install mmdebstrap: check the network and the package sources in "
                        "/etc/apt") from None

    def make_tree(self, root: debian.Root, tree: pathlib.Path) -> None:
        """A root with compilers and tools, for scripts/tree."""
        new = tree.with_name(tree.name + ".new")
        tree.parent.mkdir(parents=True, exist_ok=True)
        debian.remove(new)
        root.make(new, self.mirror)
        for name in (str(self.where.tree_src), str(self.where.tree_cache), *MOUNT_POINTS):
            (new / name.lstrip("/")).mkdir(parents=True, exist_ok=True)
        for name in MOUNT_FILES:
            (new / name).touch()
        debian.replace(new, tree)

    def in_tree(self, name: str, *words: str, **environment: str) -> None:
        """A script of setup.d, inside the tree."""
        debian.run(tool("tree"), f"{self.where.tree_src}/scripts/setup.d/{name}", *words, **environment)

    def vm(self) -> None:
        """The root image of the VM."""
        new = self.where.vm.with_name("vm.new")
        debian.remove(new)
        new.mkdir()
        VM.make(new / "root", self.mirror)
        self.in_tree("vm", f"{self.where.tree_cache}/vm.new", *VM_BOOT_MODULES)
        debian.remove(new / "root")
        debian.replace(new, self.where.vm)

    def bench_tree(self) -> None:
        """The programs of the measurements, as a tree for the host and as a root image for the VM."""
        self.make_tree(BENCH_TREE, self.where.bench / "tree")
        self.in_tree("bench-root")

    # --- all of it -----------------------------------------------------------------

    def start(self, name: str, what: str) -> None:
        """Start the stage with this name unless it is done."""
        actions = {
            "host": self.host,
            "tree": lambda: self.make_tree(TREE, self.where.tree),
            "kernel": lambda: self.in_tree("kernel", SUITE, FLAVOUR, *(["--update"] if self.update else [])),
            "rust": lambda: self.in_tree("rust"),
            "vm": self.vm,
            "debug-tree": lambda: self.make_tree(DEBUG_TREE, self.where.debug / "tree"),
            "debug-kernel": lambda: self.in_tree("uml-kernel", "debug", CLOOP_TREE=str(self.where.debug / "tree")),
            "bench-tree": self.bench_tree,
            "bench-kernel": lambda: self.in_tree("uml-kernel", "bench"),
        }
        self.runner.start(Stage(name, what, self.key(name), actions[name]))

    def all(self, debug: bool, bench: bool) -> None:
        """Everything that is missing, in order."""
        cache = self.where.cache
        if self.update:
            self.runner.forget("kernel")
        if not self.done("tree", "kernel"):
            check_space(cache, NEED_MB)
        debug_stages = ("debug-tree", "debug-kernel") if debug else ()
        bench_stages = ("bench-tree", "bench-kernel") if bench else ()
        if self.done("tree", "kernel", "rust", "vm", *debug_stages, *bench_stages):
            return
        began = time.monotonic()
        finish = self.runner.finish
        self.start("host", "installing mmdebstrap")
        finish("host")
        self.mirror = debian.find_mirror(SUITE, cache)
        self.start("tree", f"installing compilers, cargo and QEMU of Debian {SUITE} into {cache} (1.5 minutes)")
        finish("tree")
        self.start("kernel", f"fetching Debian's kernel from {BACKPORTS} (half a minute)")
        finish("kernel")
        release = self.where.kernel_release()
        self.start("rust", f"rebuilding the Rust metadata of kernel {release} (2 minutes)")
        self.start("vm", "making the root image of the VM (1 minute)")
        finish("rust", "vm")
        if debug:
            if not self.done(*debug_stages):
                check_space(cache, NEED_DEBUG_MB)
            self.start("debug-tree", f"installing clang for the debug kernel into {cache} (1.5 minutes)")
            finish("debug-tree")
            self.start("debug-kernel", f"building kernel {release} with its checks on, as user-mode Linux (12 minutes)")
            finish("debug-kernel")
        if bench:
            if not self.done(*bench_stages):
                check_space(cache, NEED_BENCH_MB)
            self.start("bench-tree", f"installing what cloop is measured against into {cache} (1 minute)")
            self.start("bench-kernel", f"building kernel {release} for measurements, as user-mode Linux (10 minutes)")
            finish("bench-tree", "bench-kernel")
        left = [line for line in pathlib.Path("/proc/self/mounts").read_text().splitlines() if f" {cache}/" in line]
        if left:
            note("\n".join(left))
            raise Error("the mounts above were left behind: unmount them and report this as a bug")
        note(f"[setup] ready in {time.monotonic() - began:.0f} s")


def lock(cache: pathlib.Path) -> int:
    """Wait until no other set-up works in this cache. Returns what holds the lock."""
    descriptor = os.open(cache / "lock", os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        note(f"[setup] waiting for another set-up in {cache}")
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def _exit_by(number: int, _: object) -> None:
    """A signal ends this as it ends a shell; what runs is stopped on the way out."""
    sys.exit(128 + number)


def main(words: list[str]) -> int:
    """The exit status."""
    if set(words) - {"--update", "--debug", "--bench"}:
        raise Error("usage: setup [--update] [--debug] [--bench]", 2)
    where = paths.load()
    # Inside the tree all is there.
    if os.environ.get("CLOOP_IN_TREE") == "1" and where.tree_src.is_dir() and where.tree_cache.is_dir():
        return 0
    preflight(where)
    for number in ENDING:
        signal.signal(number, _exit_by)
    setup = Setup(where, "--update" in words)
    setup.runner.private.append(lock(where.cache))
    try:
        setup.all("--debug" in words, "--bench" in words)
    finally:
        setup.runner.stop()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Error as error:
        note(f"setup: {error}")
        sys.exit(error.status)
