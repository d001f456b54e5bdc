// SPDX-License-Identifier: GPL-2.0 OR MIT
//! A simulated backing file that loses power.
//!
//! What was written since the last completed fsync has, sector of 512 bytes by sector, the freedom it
//! has on a real disk: after a crash each holds its last synced contents or any of the
//! contents written to it since. The file's size lags behind in the same way.

use super::BackingFile;
use crate::engine::Error;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::vec::Vec;

const SECTOR: usize = 512;

type Sector = [u8; SECTOR];

/// A small, fast, seeded generator (splitmix64); not for secrets.
#[derive(Clone, Debug)]
pub struct Rng(pub u64);

impl Rng {
    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`, which is not 0.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next_u64() % n
    }
}

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

    /// Limits the number of bytes the file may occupy.
    pub fn limit(&self, capacity: u64) {
        self.disk().capacity = Some(capacity);
    }
}

impl Disk {
    /// Counts a changing operation; an error when the power is gone or goes now.
    fn step(&mut self) -> Result<(), Error> {
        if self.crashed {
            return Err(GONE);
        }
        self.operations += 1;
        if self.crash_at.is_some_and(|at| self.operations > at) {
            self.crashed = true;
            return Err(GONE);
        }
        Ok(())
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
        let disk = self.disk();
        if disk.crashed {
            return Err(GONE);
        }
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
        let mut disk = self.disk();
        let step = disk.step();
        if step.is_err() && disk.operations != disk.crash_at.map_or(0, |at| at + 1) {
            return step;
        }
        // The write at which the power fails is on its way: any of its sectors may arrive.
        let first = offset / SECTOR as u64;
        for (at, bytes) in (first..).zip(buf.chunks_exact(SECTOR)) {
            let mut sector = [0; SECTOR];
            sector.copy_from_slice(bytes);
            disk.put(at, sector);
        }
        disk.writes += 1;
        disk.len = disk.len.max(offset + buf.len() as u64);
        if step.is_err() {
            // It was counted once; nothing else happens after it.
            disk.crash_at = None;
        }
        step
    }

    fn sync(&self) -> Result<(), Error> {
        let mut disk = self.disk();
        disk.step()?;
        let disk = &mut *disk;
        disk.durable.extend(disk.pending.drain(..));
        disk.durable_len = disk.len;
        disk.syncs += 1;
        Ok(())
    }

    fn allocate(&self, offset: u64, len: u64) -> Result<(), Error> {
        let mut disk = self.disk();
        disk.step()?;
        if disk.capacity.is_some_and(|c| offset + len > c) {
            return Err(Error::NoSpace);
        }
        disk.len = disk.len.max(offset + len);
        Ok(())
    }

    fn punch(&self, offset: u64, len: u64) -> Result<(), Error> {
        let mut disk = self.disk();
        disk.step()?;
        for at in offset / SECTOR as u64..(offset + len) / SECTOR as u64 {
            if disk.now.contains_key(&at) {
                disk.put(at, [0; SECTOR]);
            }
        }
        Ok(())
    }

    fn truncate(&self, len: u64) -> Result<(), Error> {
        let mut disk = self.disk();
        disk.step()?;
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
