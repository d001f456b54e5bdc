# SPDX-License-Identifier: GPL-2.0
"""The host's side of scripts/powercut: disks, power, and the list of what was promised."""

import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import threading
import time

import disk

HERE = pathlib.Path(__file__).resolve().parent
SOURCE = HERE.parent.parent
CACHE = pathlib.Path(os.environ["CLOOP_CACHE"])
DISK_SIZE = 1 << 30
CHAIN = 25  # cuts until there are new disks, and the images lie elsewhere
PATIENCE = 600  # seconds from power on until the work begins
WORK = 8  # seconds until the power goes at the latest
BOOTS = 2  # attempts to boot, as long as none of them wrote anything
COMPLAINTS = re.compile(r"WARNING: |BUG: |BUG |Oops|general protection|[Ll]ockup|blocked for more than|"
                        r"refcount_t:|rcu.*stall|Call Trace|panicked at|page allocation failure")


class Failed(Exception):
    """It did not go as it should, with the exit status."""

    def __init__(self, status, what):
        super().__init__(what)
        self.status = status


class NotBooted(Exception):
    """The machine stopped, or stood still, before the guest's side began."""


class Device:
    """A file system on cloop on a disk, from cut to cut."""

    def __init__(self, run, filesystem, place, lying):
        self.filesystem, self.place = filesystem, place
        self.file, self.socket = run / f"{filesystem}.disk", run / f"{filesystem}.socket"
        self.file.unlink(missing_ok=True)
        with open(self.file, "wb") as file:
            file.truncate(DISK_SIZE)
        if place == "file":
            subprocess.run(["mkfs.ext4", "-q", self.file], check=True)
        self.lying = lying
        self.power = None
        self.promised = {}  # (directory, writer): operation
        self.heard = 0
        self.state = "new"

    def connect(self):
        self.socket.unlink(missing_ok=True)
        self.disk = disk.Disk(self.file, str(self.socket), self.power, self.lying)

    def hear(self, words):
        """A line of the guest about this device."""
        if words[0] == "promise":
            self.promised[words[1], words[2]] = int(words[3])
            self.heard += 1
        elif words[0] == "removing":
            self.promised = {key: last for key, last in self.promised.items() if key[0] != words[1]}


class Machine:
    """One boot of the VM, from power on to the cut."""

    def __init__(self, run, boot, devices, mode):
        self.run, self.devices = run, devices
        self.lines, self.phases = [], []
        self.news = threading.Condition()
        listing = run / "promised"
        listing.mkdir(exist_ok=True)
        options, arguments = [], [str(boot), mode]
        for device in devices:
            device.connect()
            with open(listing / device.filesystem, "w") as file:
                for (directory, writer), last in device.promised.items():
                    file.write(f"promise {directory} {writer} {last}\n")
            options += ["--nbd", device.socket]
            arguments.append(f"{device.filesystem}:{device.place}:{device.state}")
        self.errors = open(run / "errors", "w+")
        self.process = subprocess.Popen(
            # So that the machine does not outlive a test that is stopped.
            ["setpriv", "--pdeathsig", "KILL", SOURCE / "scripts/vm", "--boots", "1", "--timeout", "3600",
             "--mem", "1G", *options,
             "--file", SOURCE / "selftests", "--file", listing, HERE / "guest", *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.errors, text=True)
        self.reader = threading.Thread(target=self.listen, daemon=True)
        self.reader.start()

    def listen(self):
        """FILESYSTEM WORD...: a phase, a promise, or anything else as it comes."""
        by_name = {device.filesystem: device for device in self.devices}
        for line in self.process.stdout:
            words = line.split()
            with self.news:
                self.lines.append(line)
                if len(words) > 1 and words[0] in by_name:
                    by_name[words[0]].hear(words[1:])
                    if words[1] in ("working", "FAILED", "verified"):
                        self.phases.append((words[0], words[1]))
                self.news.notify()
        with self.news:
            self.phases.append(("", "ended"))
            self.news.notify()

    def count(self, phase):
        return sum(what == phase for _, what in self.phases)

    def stopped(self, how):
        """The exception for a machine that did not get as far as it should."""
        return Failed(2, how) if self.lines else NotBooted(how)

    def wait(self, phase):
        """Until all devices are in this phase, or the power has gone before: then false."""
        end = time.monotonic() + PATIENCE
        while True:
            with self.news:
                if self.count("FAILED"):
                    raise Failed(1, "something is wrong after the cut, or in the work")
                if phase == "ended" and self.count(phase) and self.lines:
                    return True
                if phase != "ended" and self.count(phase) >= len(self.devices):
                    return True
                if self.devices[0].power.out.is_set():
                    return False
                if self.count("ended"):
                    raise self.stopped("the machine stopped by itself")
                if time.monotonic() > end:
                    raise self.stopped(f"not '{phase}' within {PATIENCE} s")
                self.news.wait(0.05)

    def console(self):
        try:
            return (CACHE / "run" / str(self.process.pid) / "console").read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def kill(self):
        """SIGKILL for QEMU, which has been without disks for a moment: its promises have arrived."""
        time.sleep(0.3)
        said = self.console()
        for process in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == self.process.pid and "qemu" in (process / "comm").read_text():
                    os.kill(int(process.name), signal.SIGKILL)
            except (FileNotFoundError, ProcessLookupError):
                pass
        self.process.wait()
        self.reader.join()
        found = COMPLAINTS.search(said)
        if found:
            begin = said.rfind("\n", 0, found.start()) + 1
            raise Failed(1, "the kernel complained:\n" + "\n".join(said[begin:].splitlines()[:60]))

    def evidence(self):
        self.errors.seek(0)
        keep = [line for line in self.lines if " promise " not in line]
        return "".join(keep[-60:]) + self.errors.read() + self.console()[-6000:]


def lose(devices, chance):
    """What the disks forget: nothing, all, or a part, some of it torn."""
    kept, torn = chance.choice([(1, 0), (0, 0), (0.2, 0.1), (0.5, 0.5), (0.9, 0.1), (0.97, 0)])
    lost = sum(device.disk.lose(chance, kept, torn) for device in devices)
    for device in devices:
        device.disk.close()
    return f"{lost} writes in the caches, {round(100 * kept)} % of them kept, {round(100 * torn)} % of those torn"


def power_on(run, number, devices, mode, phase, limit):
    """Boot, and wait until all devices are in this phase or the power has gone.

    The power goes with write number `limit`, if there is a limit. A machine that did not boot has
    not looked at the disks: unless one was written to, the same disks get one more boot. Returns the
    machine, its power, and whether the phase was reached.
    """
    for attempt in range(1, BOOTS + 1):
        power = disk.Power()
        if limit:
            power.cut_after(limit)
        for device in devices:
            device.power = power
        machine = Machine(run, number, devices, mode)
        try:
            return machine, power, machine.wait(phase)
        except Failed as failure:
            raise Failed(failure.status, f"{failure}\n{stop(machine, power)}") from None
        except NotBooted as failure:
            said = stop(machine, power)
            if attempt == BOOTS or power.writes:
                raise NotBooted(f"{failure}\n{said}") from None
            print(f"# {failure}: the machine did not boot; again, on the same disks", flush=True)
        for device in devices:
            device.disk.close()
    raise AssertionError("BOOTS is at least 1")


def stop(machine, power):
    """Stop the machine; what guest and kernel have said."""
    said = machine.evidence()
    power.cut()
    try:
        machine.kill()
    except Failed:
        pass
    return said


def cut(run, number, devices, chance, options):
    """One boot that ends with a cut. Returns what happened in words."""
    new = any(device.state == "new" for device in devices)
    # Now and then already while the images are recovered.
    early = not new and chance.random() < 0.2
    writes = int(2 ** chance.uniform(3, 8 if early else 12))
    when = "before the work began"
    machine, power, working = power_on(run, number, devices, "early" if options["early"] else "work", "working",
                                       writes if early else None)
    try:
        if working:
            if not early:
                power.cut_after(writes)
            power.out.wait(WORK)
            power.cut()
            with machine.news:
                if machine.count("FAILED"):
                    raise Failed(1, "the work failed")
            when = "in the work"
        machine.kill()
    except Failed as failure:
        raise Failed(failure.status, f"{failure}\n{stop(machine, power)}") from None
    for device in devices:
        device.state = "old"
    flushes = sum(device.disk.flushes for device in devices)
    promises = sum(device.heard for device in devices)
    return (f"{when}; {power.writes} writes, {flushes} flushes, {promises} promises so far; "
            f"{lose(devices, chance)}")


def finish(run, number, devices):
    """A boot that only looks, and detaches in good order."""
    machine, power, _ = power_on(run, number, devices, "final", "ended", None)
    machine.process.wait()
    if machine.process.returncode != 0 or machine.count("verified") < len(devices):
        raise Failed(2, f"not all was looked at after the last cut\n{stop(machine, power)}")
    for device in devices:
        device.disk.close()


def main():
    options = {"count": 3, "seed": int(time.time()), "early": False, "lying-disk": False}
    filesystems = []
    words = iter(sys.argv[1:])
    for word in words:
        name = word.removeprefix("--")
        if word in ("--count", "--seed"):
            options[name] = int(next(words))
        elif word in ("--early", "--lying-disk"):
            options[name] = True
        elif word in ("ext4", "xfs", "btrfs"):
            filesystems.append(word)
        else:
            filesystems.clear()
            break
    if not filesystems:
        print("usage: powercut [--count N] [--seed N] [--early] [--lying-disk] ext4|xfs|btrfs...", file=sys.stderr)
        sys.exit(2)
    run = CACHE / "run" / str(os.getpid())
    run.mkdir(parents=True)
    chance = random.Random(options["seed"])
    print(f"# power cuts: seed {options['seed']}, {' '.join(filesystems)}", flush=True)
    done = promises = status = 0
    try:
        for chain in range(-(-options["count"] // CHAIN)):
            devices = [Device(run, filesystem, ("file", "disk")[(chain + i + options["seed"]) % 2],
                              options["lying-disk"]) for i, filesystem in enumerate(filesystems)]
            print("# new disks: " + ", ".join(f"{d.filesystem} on cloop on "
                  + {"file": "a file on ext4", "disk": "the disk"}[d.place] for d in devices), flush=True)
            for number in range(min(CHAIN, options["count"] - chain * CHAIN)):
                began = time.monotonic()
                what = cut(run, number, devices, chance, options)
                done += 1
                print(f"cut {done}: {what} ({time.monotonic() - began:.0f} s)", flush=True)
            finish(run, CHAIN, devices)
            promises += sum(device.heard for device in devices)
        print(f"{done} power cuts, {promises} promises, nothing lost")
    except Failed as failure:
        print(f"FAILED after cut {done}, seed {options['seed']}: {failure}")
        status = failure.status
    except NotBooted as failure:
        print(f"{failure}\nthe machine did not boot; {done} power cuts until then, nothing lost")
        status = 125
    subprocess.run(["rm", "-rf", run], check=True)
    sys.exit(status)


if __name__ == "__main__":
    main()
