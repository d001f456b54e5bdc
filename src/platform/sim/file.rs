// SPDX-License-Identifier: GPL-2.0 OR MIT
//! [`SimFile`]: a simulated backing file that loses power and makes mistakes.
//!
//! What was written since the last completed fsync has, sector of 512 bytes by sector, the freedom it
//! has on a real disk: after a crash each holds its last synced contents or any of the
//! contents written to it since. The file's size lags behind in the same way.

use super::{scheduling_point, Rng};
use crate::engine::Error;
use crate::platform::BackingFile;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::vec::Vec;

const SECTOR: usize = 512;

type Sector = [u8; SECTOR];

#[derive(Clone, Debug, Default)]
struct Disk {
    /// What reads see.
    now: HashMap<u64, Sector>,
    len: u64,
    /// What the last fsync made durable.
    durable: HashMap<u64, Sector>,
    durable_len: u64,
    /// Sector writes since then, in order.
    pending: Vec<(u64, Sector)>,
    /// Changing operations so far.
    operations: u64,
    /// The operation at which the power goes.
    crash_at: Option<u64>,
    crashed: bool,
    /// Operations of each kind, for counting.
    syncs: u64,
    writes: u64,
    /// Bytes the file may occupy; what is beyond fails for lack of space.
    capacity: Option<u64>,
    /// Faults to come, by the number of the operation.
    faults: Vec<(u64, Fault)>,
    /// Every change fails from now on.
    broken: bool,
    /// Punching holes does nothing, as on many file systems and disks.
    keeps_punched: bool,
    /// The read that fails, counted down.
    failing_read: Option<u64>,
}

/// A fault of the disk. The errno is always EIO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The operation fails and changes nothing.
    Error,
    /// As [`Error`](Self::Error), and so do all changes after it.
    Broken,
    /// A write fails when a part of it has been done.
    Short,
    /// An fsync fails and drops what it failed on, as Linux does: some of the pending sectors are never
    /// written, though reads still see them. Any other operation just fails.
    LostSync,
}

/// The simulated file; clones share the same disk.
#[derive(Clone, Debug, Default)]
pub struct SimFile(Arc<Mutex<Disk>>);

/// What every operation says once the power is gone.
const GONE: Error = Error::Io(5);

impl SimFile {
    /// An empty file.
    pub fn new() -> Self {
        Self::default()
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the power fail at the `n`th changing operation from now (0: the next).
    pub fn crash_after(&self, n: u64) {
        let mut disk = self.disk();
        disk.crash_at = Some(disk.operations + n);
    }

    /// Whether the power has failed.
    pub fn crashed(&self) -> bool {
        self.disk().crashed
    }

    /// Changing operations (write, fsync, allocate, punch, truncate) so far.
    pub fn operations(&self) -> u64 {
        self.disk().operations
    }

    /// Completed fsyncs so far.
    pub fn syncs(&self) -> u64 {
        self.disk().syncs
    }

    /// Writes so far.
    pub fn writes(&self) -> u64 {
        self.disk().writes
    }

    /// The file as it is found after the power comes back: one of the possible outcomes, chosen by `rng`.
    pub fn after_crash(&self, rng: &mut Rng) -> Self {
        let disk = self.disk();
        let mut sectors = disk.durable.clone();
        // How much of it survives differs from crash to crash: nothing, all, and all between.
        let kept = rng.below(9);
        for (at, bytes) in &disk.pending {
            if rng.below(8) < kept {
                sectors.insert(*at, *bytes);
            }
        }
        let len = if rng.below(8) < kept {
            disk.len
        } else {
            disk.durable_len
        };
        sectors.retain(|at, _| at * (SECTOR as u64) < len);
        Self(Arc::new(Mutex::new(Disk {
            now: sectors.clone(),
            len,
            durable: sectors,
            durable_len: len,
            keeps_punched: disk.keeps_punched,
            ..Disk::default()
        })))
    }

    /// A copy of the file as it is now, everything durable.
    pub fn snapshot(&self) -> Self {
        let disk = self.disk();
        Self(Arc::new(Mutex::new(Disk {
            now: disk.now.clone(),
            len: disk.len,
            durable: disk.now.clone(),
            durable_len: disk.len,
            keeps_punched: disk.keeps_punched,
            ..Disk::default()
        })))
    }

    /// Inverts the bits of `mask` in the byte at `offset`.
    pub fn damage(&self, offset: u64, mask: u8) {
        let mut disk = self.disk();
        let at = offset / SECTOR as u64;
        let byte = (offset % SECTOR as u64) as usize;
        disk.now.entry(at).or_insert([0; SECTOR])[byte] ^= mask;
    }

    /// All bytes of the file.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = std::vec![0; self.disk().len as usize];
        let whole = bytes.len().div_ceil(4096) * 4096;
        bytes.resize(whole, 0);
        self.read_at(&mut bytes, 0)
            .expect("reading a simulated file");
        bytes
    }

    /// Lets the `n`th changing operation from now fail (0: the next).
    pub fn fail_after(&self, n: u64, fault: Fault) {
        let mut disk = self.disk();
        let at = disk.operations + n + 1;
        disk.faults.push((at, fault));
    }

    /// Lets the `n`th read from now fail (0: the next).
    pub fn fail_read_after(&self, n: u64) {
        self.disk().failing_read = Some(n);
    }

    /// From now on, here and after crashes, punching holes does nothing.
    pub fn keep_punched(&self) {
        self.disk().keeps_punched = true;
    }

    /// Limits the number of bytes the file may occupy.
    pub fn limit(&self, capacity: u64) {
        self.disk().capacity = Some(capacity);
    }
}

/// What becomes of an operation.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Go,
    Fail,
    /// The power fails while it is under way.
    Crash,
    Short,
    Lose,
}

impl Disk {
    /// Counts a changing operation and says what becomes of it.
    fn step(&mut self) -> Step {
        if self.crashed {
            return Step::Fail;
        }
        self.operations += 1;
        if self.crash_at.is_some_and(|at| self.operations > at) {
            self.crashed = true;
            return Step::Crash;
        }
        let now = self.operations;
        match self.faults.iter().find(|f| f.0 == now).map(|f| f.1) {
            _ if self.broken => Step::Fail,
            None => Step::Go,
            Some(Fault::Error) => Step::Fail,
            Some(Fault::Broken) => {
                self.broken = true;
                Step::Fail
            }
            Some(Fault::Short) => Step::Short,
            Some(Fault::LostSync) => Step::Lose,
        }
    }

    /// As [`step`](Self::step), for operations that happen or do not.
    fn whole_step(&mut self) -> Result<(), Error> {
        match self.step() {
            Step::Go => Ok(()),
            _ => Err(GONE),
        }
    }

    fn put(&mut self, at: u64, bytes: Sector) {
        self.pending.push((at, bytes));
        self.now.insert(at, bytes);
    }
}

impl BackingFile for SimFile {
    fn len(&self) -> Result<u64, Error> {
        Ok(self.disk().len)
    }

    fn fixed_size(&self) -> bool {
        false
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Error> {
        scheduling_point();
        let mut disk = self.disk();
        if disk.crashed {
            return Err(GONE);
        }
        disk.failing_read = match disk.failing_read {
            Some(0) => {
                disk.failing_read = None;
                return Err(GONE);
            }
            n => n.map(|n| n - 1),
        };
        let first = offset / SECTOR as u64;
        for (at, out) in (first..).zip(buf.chunks_mut(SECTOR)) {
            match disk.now.get(&at) {
                Some(sector) => out.copy_from_slice(sector),
                None => out.fill(0),
            }
        }
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), Error> {
        scheduling_point();
        let mut disk = self.disk();
        let step = disk.step();
        let sectors = match step {
            // Any of its sectors may arrive before the power is gone.
            Step::Go | Step::Crash => buf.len() / SECTOR,
            Step::Short | Step::Lose => buf.len() / SECTOR / 2,
            Step::Fail => 0,
        };
        let first = offset / SECTOR as u64;
        for (at, bytes) in (first..).zip(buf.chunks_exact(SECTOR).take(sectors)) {
            let mut sector = [0; SECTOR];
            sector.copy_from_slice(bytes);
            disk.put(at, sector);
        }
        if sectors > 0 {
            disk.len = disk.len.max(offset + (sectors * SECTOR) as u64);
        }
        disk.writes += 1;
        if step == Step::Go {
            Ok(())
        } else {
            Err(GONE)
        }
    }

    fn sync(&self) -> Result<(), Error> {
        scheduling_point();
        // What is being written while the fsync runs may or may not be part of it; here it is not.
        let covered = self.disk().pending.len();
        scheduling_point();
        let mut disk = self.disk();
        let disk = &mut *disk;
        let step = disk.step();
        let covered = covered.min(disk.pending.len());
        match step {
            Step::Go => {
                disk.durable.extend(disk.pending.drain(..covered));
                disk.durable_len = disk.len;
                disk.syncs += 1;
                Ok(())
            }
            Step::Lose => {
                let lost = disk.operations;
                let mut rng = Rng(lost);
                let kept = disk.pending.drain(..covered);
                disk.durable.extend(kept.filter(|_| rng.below(2) == 0));
                Err(GONE)
            }
            _ => Err(GONE),
        }
    }

    fn allocate(&self, offset: u64, len: u64) -> Result<(), Error> {
        scheduling_point();
        let mut disk = self.disk();
        disk.whole_step()?;
        if disk.capacity.is_some_and(|c| offset + len > c) {
            return Err(Error::NoSpace);
        }
        disk.len = disk.len.max(offset + len);
        Ok(())
    }

    fn punch(&self, offset: u64, len: u64) -> Result<(), Error> {
        scheduling_point();
        let mut disk = self.disk();
        disk.whole_step()?;
        if disk.keeps_punched {
            return Ok(());
        }
        for at in offset / SECTOR as u64..(offset + len) / SECTOR as u64 {
            if disk.now.contains_key(&at) {
                disk.put(at, [0; SECTOR]);
            }
        }
        Ok(())
    }

    fn truncate(&self, len: u64) -> Result<(), Error> {
        scheduling_point();
        let mut disk = self.disk();
        disk.whole_step()?;
        let end = len.div_ceil(SECTOR as u64);
        let cut: Vec<u64> = disk.now.keys().copied().filter(|&at| at >= end).collect();
        for at in cut {
            disk.put(at, [0; SECTOR]);
            disk.now.remove(&at);
        }
        disk.len = len;
        Ok(())
    }

    fn allocated(&self) -> Result<u64, Error> {
        let disk = self.disk();
        let used = disk.now.values().filter(|s| s.iter().any(|&b| b != 0));
        Ok((used.count() * SECTOR) as u64)
    }
}
