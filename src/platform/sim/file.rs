// SPDX-License-Identifier: GPL-2.0 OR MIT
//! [`SimFile`]: a simulated backing file that loses power and makes mistakes.
//! Data that was written since the last completed fsync has the same freedom as on a real disk: after a
//! crash each sector of 512 bytes holds its last synced contents, or any contents that were written to it
//! since. The size of the file lags behind in the same way.
//! Pages are shared between copies, so a copy of the whole disk ([`Snapshot`]) costs almost nothing.

use super::{history, scheduling_point, Mark, Rng};
use crate::engine::Error;
use crate::platform::BackingFile;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::vec::Vec;

const SECTOR: usize = 512;
const PAGE: usize = 4096;
/// Sectors of a page.
const SECTORS: usize = PAGE / SECTOR;

type Page = [u8; PAGE];

/// Contents of a page that takes space but was never written.
static RESERVED: LazyLock<Arc<Page>> = LazyLock::new(|| Arc::new([0; PAGE]));

/// The pages of a file; a hole is `None`.
#[derive(Clone, Debug, Default)]
struct Pages(Vec<Option<Arc<Page>>>);

impl Pages {
    fn get(&self, at: usize) -> Option<&Arc<Page>> {
        self.0.get(at)?.as_ref()
    }

    fn set(&mut self, at: usize, page: Option<Arc<Page>>) {
        if at >= self.0.len() {
            if page.is_none() {
                return;
            }
            self.0.resize(at + 1, None);
        }
        self.0[at] = page;
    }

    /// Takes the sectors of `change` that `mask` names.
    fn apply(&mut self, change: &Change, mask: u8) {
        let mask = mask & change.mask;
        if mask == u8::MAX {
            return self.set(change.page, change.bytes.clone());
        }
        if mask == 0 || (change.bytes.is_none() && self.get(change.page).is_none()) {
            return;
        }
        let from = change.bytes.as_ref().unwrap_or(&RESERVED).clone();
        let mut page = self.get(change.page).unwrap_or(&RESERVED).clone();
        let to = Arc::make_mut(&mut page);
        for s in (0..SECTORS).filter(|s| (mask >> s) & 1 == 1) {
            let range = s * SECTOR..(s + 1) * SECTOR;
            to[range.clone()].copy_from_slice(&from[range]);
        }
        self.set(change.page, Some(page));
    }

    /// Forgets what lies behind `len` bytes.
    fn cut(&mut self, len: u64) {
        self.0.truncate(len.div_ceil(PAGE as u64) as usize);
        let rest = (len % PAGE as u64) as usize;
        if rest > 0 && self.0.len() == len.div_ceil(PAGE as u64) as usize {
            if let Some(Some(last)) = self.0.last_mut() {
                Arc::make_mut(last)[rest..].fill(0);
            }
        }
    }

    /// Pages that take space, when it is allocated in units of `unit` pages.
    fn occupied(&self, unit: usize) -> usize {
        let taken = |pages: &&[Option<Arc<Page>>]| pages.iter().any(Option::is_some);
        unit * self.0.chunks(unit).filter(taken).count()
    }

    /// True if the unit of `unit` pages that has page `at` takes space.
    fn takes(&self, at: usize, unit: usize) -> bool {
        let first = at - at % unit;
        (first..first + unit).any(|at| self.get(at).is_some())
    }

    /// Calls `change` with the byte at `offset`.
    fn change(&mut self, offset: u64, change: impl FnOnce(&mut u8)) {
        let at = (offset / PAGE as u64) as usize;
        if at >= self.0.len() {
            self.0.resize(at + 1, None);
        }
        let page = self.0[at].get_or_insert_with(|| RESERVED.clone());
        change(&mut Arc::make_mut(page)[(offset % PAGE as u64) as usize]);
    }

    fn flip(&mut self, offset: u64, mask: u8) {
        self.change(offset, |byte| *byte ^= mask);
    }

    fn put_byte(&mut self, offset: u64, byte: u8) {
        self.change(offset, |at| *at = byte);
    }
}

/// New contents of a page, and which of its sectors were written.
#[derive(Clone, Debug)]
struct Change {
    page: usize,
    bytes: Option<Arc<Page>>,
    mask: u8,
    /// The operation that did it.
    operation: u64,
}

/// The durable contents of the disk, and the changes that are not durable yet.
#[derive(Clone, Debug, Default)]
struct Media {
    /// What the last fsync made durable.
    durable: Pages,
    durable_len: u64,
    /// Changes since then, in order.
    pending: Vec<Change>,
    /// Lengths since then.
    lens: Vec<u64>,
}

/// The part of the changes that were not durable yet that is found after a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survival {
    /// None of them.
    Nothing,
    /// All of them.
    Everything,
    /// Of the operation under way this many first sectors; of the others all or none.
    Torn {
        /// Sectors that arrived.
        sectors: usize,
        /// Whether the earlier operations survive.
        others: bool,
    },
    /// Any of them, chosen by this seed.
    Random(u64),
}

impl Media {
    fn survive(&self, survival: Survival) -> (Pages, u64) {
        let mut pages = self.durable.clone();
        let last = self.pending.last().map_or(0, |change| change.operation);
        let newest = self.lens.last().copied().unwrap_or(self.durable_len);
        let len = match survival {
            Survival::Nothing => self.durable_len,
            Survival::Everything => {
                for change in &self.pending {
                    pages.apply(change, u8::MAX);
                }
                newest
            }
            Survival::Torn { sectors, others } => {
                let mut left = sectors;
                for change in &self.pending {
                    let mask = match change.operation == last {
                        true if left < SECTORS => (1 << core::mem::take(&mut left)) - 1,
                        true => {
                            left -= SECTORS;
                            u8::MAX
                        }
                        false if others => u8::MAX,
                        false => 0,
                    };
                    pages.apply(change, mask);
                }
                newest
            }
            Survival::Random(seed) => {
                let mut rng = Rng(seed);
                // Crashes differ in how much survives (nothing, everything, anything between), and in
                // whether whole operations or single sectors do.
                let kept = rng.below(9);
                let whole = rng.below(2) == 0;
                let (mut operation, mut mask) = (0, 0);
                for change in &self.pending {
                    if !whole {
                        mask =
                            (0..SECTORS).fold(0, |m, s| m | (u8::from(rng.below(8) < kept) << s));
                    } else if change.operation != operation {
                        operation = change.operation;
                        mask = if rng.below(8) < kept { u8::MAX } else { 0 };
                    }
                    pages.apply(change, mask);
                }
                match rng.below(self.lens.len() as u64 + 1) as usize {
                    _ if kept == 0 => self.durable_len,
                    _ if kept == 8 => newest,
                    0 => self.durable_len,
                    n => self.lens[n - 1],
                }
            }
        };
        pages.cut(len);
        (pages, len)
    }
}

/// The disk at one moment: what a power cut at this moment leaves to recover from.
#[derive(Clone, Debug)]
pub struct Snapshot {
    media: Media,
    keeps_punched: bool,
    corrupted: bool,
    /// The operation under way, counted from 1.
    pub operation: u64,
    /// What kind of operation that is.
    pub what: &'static str,
    /// How far the history had come.
    pub mark: Mark,
}

impl Snapshot {
    /// The file as a crash at this moment may leave it.
    pub fn crashed_disk(&self, survival: Survival) -> SimFile {
        let found = self.media.survive(survival);
        SimFile::durable(found, self.keeps_punched, self.corrupted)
    }

    /// Sectors of the operation under way.
    pub fn sectors(&self) -> usize {
        let under_way = |change: &&Change| change.operation == self.operation;
        SECTORS * self.media.pending.iter().filter(under_way).count()
    }
}

#[derive(Debug, Default)]
struct Disk {
    /// The contents that reads return.
    now: Pages,
    len: u64,
    media: Media,
    /// Changing operations so far.
    operations: u64,
    /// The operation at which the power goes.
    crash_at: Option<u64>,
    crashed: bool,
    /// Operations of each kind, for counting.
    syncs: u64,
    writes: u64,
    /// Operations that failed for lack of space.
    refusals: u64,
    /// Bytes that the file may occupy; operations that need more fail for lack of space.
    capacity: Option<u64>,
    /// Faults to come, by the number of the operation.
    faults: Vec<(u64, Fault)>,
    /// Every change fails from now on.
    broken: bool,
    /// Every read fails as well.
    dead: bool,
    /// A fault has put wrong bytes on the disk.
    corrupted: bool,
    /// Pages that cannot be read until they are written.
    bad: BTreeSet<usize>,
    /// Punching holes does nothing, as on many file systems and disks.
    keeps_punched: bool,
    /// Writes to come that fail for a reason that passes.
    passing: u32,
    /// Pages that are allocated together, 0 for one.
    unit: usize,
    /// The file may not become longer than this.
    longest: Option<u64>,
    /// It is a block device: its length does not change.
    device: bool,
    /// The read that fails, counted down.
    failing_read: Option<u64>,
    /// One of this many reads is slow.
    slow_reads: Option<(u64, Rng)>,
    /// One of this many long writes is slow.
    slow_writes: Option<(u64, Rng)>,
    /// A snapshot is taken at one of this many operations.
    schedule: Option<(u64, Rng)>,
    snapshots: Vec<Snapshot>,
}

/// A fault of the disk. The error is EIO unless the fault says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The operation fails and changes nothing.
    Error,
    /// As [`Error`](Self::Error), and so do all changes after it.
    Broken,
    /// As [`Broken`](Self::Broken), and reads fail as well.
    Dead,
    /// A write fails after a part of it has been done.
    Short,
    /// From this operation on, this many writes fail for a reason that passes, after a part of each has been done:
    /// ENOMEM, ENOSPC, EAGAIN or EINTR. All other operations work.
    Passing(u32),
    /// An fsync fails and drops the data it failed on, as in Linux: some of the pending sectors are never
    /// written, although reads still return them. The error is EIO or ENOMEM. Any other operation just fails.
    LostSync,
    /// The operation takes so long that many others overtake it.
    Slow,
    /// A write succeeds, but at another place. Any other operation works as usual.
    Misdirected,
    /// A durable bit flips unnoticed.
    Rot,
}

/// The simulated file; clones share the same disk.
#[derive(Clone, Debug, Default)]
pub struct SimFile(Arc<Mutex<Disk>>);

std::thread_local! {
    static READS: Cell<u64> = const { Cell::new(0) };
}

/// The error of every operation once the power has failed.
const GONE: Error = Error::Io(5);

impl SimFile {
    /// An empty file.
    pub fn new() -> Self {
        Self::default()
    }

    fn durable((pages, len): (Pages, u64), keeps_punched: bool, corrupted: bool) -> Self {
        Self(Arc::new(Mutex::new(Disk {
            now: pages.clone(),
            len,
            media: Media {
                durable: pages,
                durable_len: len,
                ..Media::default()
            },
            keeps_punched,
            corrupted,
            ..Disk::default()
        })))
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

    /// Whether a fault has put wrong bytes on the disk.
    pub fn corrupted(&self) -> bool {
        self.disk().corrupted
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

    /// Operations so far that failed for lack of space.
    pub fn refusals(&self) -> u64 {
        self.disk().refusals
    }

    /// Reads that the calling thread has made, of any file.
    pub fn reads_here() -> u64 {
        READS.get()
    }

    /// The file as it is found when the power is back: one of the possible outcomes, chosen by `rng`.
    pub fn after_crash(&self, rng: &mut Rng) -> Self {
        self.after(Survival::Random(rng.next_u64()))
    }

    /// The file as it is found when the power is back.
    pub fn after(&self, survival: Survival) -> Self {
        self.disk().look("the end").crashed_disk(survival)
    }

    /// A copy of the file as it is now, everything durable.
    pub fn copy(&self) -> Self {
        let disk = self.disk();
        let found = (disk.now.clone(), disk.len);
        let copy = Self::durable(found, disk.keeps_punched, disk.corrupted);
        copy.disk().bad = disk.bad.clone();
        copy
    }

    /// From now on takes a snapshot at one of `n` changing operations (1: at each), chosen by `rng`.
    pub fn snapshot_every(&self, n: u64, rng: Rng) {
        self.disk().schedule = Some((n, rng));
    }

    /// The snapshots taken since the last call.
    pub fn take_snapshots(&self) -> Vec<Snapshot> {
        core::mem::take(&mut self.disk().snapshots)
    }

    /// Inverts the bits of `mask` in the byte at `offset`.
    pub fn damage(&self, offset: u64, mask: u8) {
        self.disk().now.flip(offset, mask);
    }

    /// Replaces the bytes at `offset`, as damage that no operation of the disk did. What lies behind the end of the file
    /// stays as it is.
    pub fn overwrite(&self, offset: u64, bytes: &[u8]) {
        let mut disk = self.disk();
        let len = disk.len;
        for (at, &byte) in (offset..len).zip(bytes) {
            disk.now.put_byte(at, byte);
        }
    }

    /// From now on the pages in this range cannot be read until they are written. Other faults take them as they are.
    pub fn spoil(&self, offset: u64, len: u64) {
        let first = (offset / PAGE as u64) as usize;
        let end = (offset + len).div_ceil(PAGE as u64) as usize;
        self.disk().bad.extend(first..end);
    }

    /// From now on space is allocated and given back in units of so many bytes.
    pub fn allocate_in_units(&self, bytes: u64) {
        self.disk().unit = (bytes / PAGE as u64) as usize;
    }

    /// Limits the length of the file: what would make it longer fails for lack of space.
    pub fn limit_length(&self, bytes: u64) {
        self.disk().longest = Some(bytes);
    }

    /// An empty block device of `len` bytes.
    pub fn block_device(len: u64) -> Self {
        let file = Self::new();
        {
            let mut disk = file.disk();
            (disk.len, disk.media.durable_len) = (len, len);
            (disk.longest, disk.device) = (Some(len), true);
        }
        file
    }

    /// Cuts the file to `len` bytes, as damage.
    pub fn cut(&self, len: u64) {
        let mut disk = self.disk();
        disk.now.cut(len);
        disk.len = len;
    }

    /// All bytes of the file.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = std::vec![0; self.disk().len as usize];
        let whole = bytes.len().div_ceil(PAGE) * PAGE;
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

    /// From now on, one of `n` reads takes so long that many other operations overtake it, before or after it looks at
    /// the disk, as `rng` chooses.
    pub fn slow_reads(&self, n: u64, rng: Rng) {
        self.disk().slow_reads = Some((n, rng));
    }

    /// From now on, one of `n` long writes takes so long that many other operations overtake it before it changes anything.
    pub fn slow_writes(&self, n: u64, rng: Rng) {
        self.disk().slow_writes = Some((n, rng));
    }

    /// Removes every fault that is still to come or that lasts.
    pub fn repair(&self) {
        let mut disk = self.disk();
        disk.faults.clear();
        (disk.broken, disk.dead, disk.failing_read) = (false, false, None);
        disk.passing = 0;
        disk.bad.clear();
        (disk.capacity, disk.longest) = (None, None);
    }

    /// From now on, here and after crashes, punching holes does nothing.
    pub fn keep_punched(&self) {
        self.disk().keeps_punched = true;
    }

    /// Limits the number of bytes the file may occupy.
    pub fn limit(&self, capacity: u64) {
        self.disk().capacity = Some(capacity);
    }

    /// Called when an operation of the disk has begun or is about to return: other threads may run
    /// meanwhile, and do much while the operation is slow.
    fn pass(&self) {
        scheduling_point();
        let slow = {
            let disk = self.disk();
            let next = disk.operations + 1;
            disk.faults.contains(&(next, Fault::Slow))
        };
        if slow {
            linger(SLOW);
        }
    }

    /// As [`pass`](Self::pass), for a write of `len` bytes.
    fn pass_write(&self, len: usize) {
        self.pass();
        let slow = match &mut self.disk().slow_writes {
            Some((n, rng)) => len >= LONG && rng.below(*n) == 0,
            None => false,
        };
        linger(if slow { 5 * SLOW } else { 0 });
    }

    /// As [`pass`](Self::pass), for one of the two moments of a read.
    fn pass_read(&self) {
        scheduling_point();
        // Each of the two is slow half as often as reads are to be.
        let steps = match &mut self.disk().slow_reads {
            None => 0,
            Some((n, rng)) => match rng.below(16 * *n) {
                // Checkpoints come and go meanwhile, and segments are used again.
                0 => 30 * SLOW,
                1..=7 => SLOW,
                _ => 0,
            },
        };
        linger(steps);
    }
}

/// The error of a write that fails for a reason that passes, by the number of the operation.
fn passing_error(number: u64) -> Error {
    const EINTR: i32 = 4;
    const EAGAIN: i32 = 11;
    let errors = [
        Error::NoMemory,
        Error::NoSpace,
        Error::Io(EAGAIN),
        Error::Io(EINTR),
    ];
    errors[number as usize % errors.len()]
}

/// Bytes of a long write.
const LONG: usize = 128 << 10;

/// Scheduling points of a slow operation.
const SLOW: u32 = 100;

/// Lets others run at this many scheduling points.
fn linger(steps: u32) {
    for _ in 0..steps {
        scheduling_point();
    }
}

/// The outcome of an operation.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Go,
    Fail,
    /// The power fails during the operation.
    Crash,
    Short,
    Lose,
    Misdirect,
}

impl Disk {
    /// Counts a changing operation and returns its outcome.
    fn step(&mut self) -> Step {
        if self.crashed {
            return Step::Fail;
        }
        self.operations += 1;
        if self.crash_at.is_some_and(|at| self.operations > at) {
            self.crashed = true;
            return Step::Crash;
        }
        if self.broken {
            return Step::Fail;
        }
        let now = self.operations;
        match self.faults.iter().find(|f| f.0 == now).map(|f| f.1) {
            None | Some(Fault::Slow) => Step::Go,
            Some(Fault::Error) => Step::Fail,
            Some(fault @ (Fault::Broken | Fault::Dead)) => {
                self.broken = true;
                self.dead = fault == Fault::Dead;
                Step::Fail
            }
            Some(Fault::Short) => Step::Short,
            Some(Fault::Passing(writes)) => {
                self.passing += writes;
                Step::Go
            }
            Some(Fault::LostSync) => Step::Lose,
            Some(Fault::Misdirected) => Step::Misdirect,
            Some(Fault::Rot) => {
                self.rot();
                Step::Go
            }
        }
    }

    /// As [`step`](Self::step), for operations that happen as a whole or not at all.
    fn whole_step(&mut self) -> Result<(), Error> {
        match self.step() {
            Step::Go | Step::Misdirect => Ok(()),
            _ => Err(GONE),
        }
    }

    /// Flips a bit somewhere in the durable contents.
    fn rot(&mut self) {
        let mut rng = Rng(self.operations ^ self.len);
        let pages = &self.media.durable;
        let used: Vec<usize> = (0..pages.0.len())
            .filter(|&at| pages.get(at).is_some())
            .collect();
        if used.is_empty() {
            return;
        }
        let page = used[rng.below(used.len() as u64) as usize];
        let offset = (page * PAGE) as u64 + rng.below(PAGE as u64);
        let mask = 1 << rng.below(8);
        self.media.durable.flip(offset, mask);
        // A newer version of the page is still in memory.
        if self.media.pending.iter().all(|change| change.page != page) {
            self.now.flip(offset, mask);
        }
        self.corrupted = true;
    }

    fn put(&mut self, page: usize, bytes: Option<Arc<Page>>, mask: u8) {
        let change = Change {
            page,
            bytes,
            mask,
            operation: self.operations,
        };
        self.bad.remove(&page);
        self.now.apply(&change, u8::MAX);
        self.media.pending.push(change);
    }

    fn set_len(&mut self, len: u64) {
        if len != self.len {
            self.len = len;
            self.media.lens.push(len);
        }
    }

    /// Looks for space for the holes in a range of bytes.
    fn find_room(&mut self, offset: u64, len: u64) -> Result<(), Error> {
        let pages = self.holes(offset, len);
        let fits = self.capacity.is_none_or(|capacity| {
            pages == 0 || ((self.now.occupied(self.unit()) + pages) * PAGE) as u64 <= capacity
        });
        let end = offset + len;
        let fits = fits && self.longest.is_none_or(|most| end <= most.max(self.len));
        if !fits {
            self.refusals += 1;
            return Err(Error::NoSpace);
        }
        Ok(())
    }

    /// Pages that are allocated together.
    fn unit(&self) -> usize {
        self.unit.max(1)
    }

    /// Pages that are allocated for a range of bytes to have no holes.
    fn holes(&self, offset: u64, len: u64) -> usize {
        let (unit, pages) = (self.unit(), pages_of(offset, len));
        let first = pages.start - pages.start % unit;
        (first..pages.end)
            .step_by(unit)
            .filter(|&at| !self.now.takes(at, unit))
            .count()
            * unit
    }

    /// Takes a snapshot if it is time for one. Any part of the operation under way may have arrived.
    fn maybe_snapshot(&mut self, what: &'static str) {
        let Some((n, rng)) = &mut self.schedule else {
            return;
        };
        if self.crashed || rng.below(*n) > 0 {
            return;
        }
        let snapshot = self.look(what);
        self.snapshots.push(snapshot);
    }

    fn look(&self, what: &'static str) -> Snapshot {
        Snapshot {
            media: self.media.clone(),
            keeps_punched: self.keeps_punched,
            corrupted: self.corrupted,
            operation: self.operations,
            what,
            mark: history::mark(),
        }
    }
}

fn pages_of(offset: u64, len: u64) -> core::ops::Range<usize> {
    (offset / PAGE as u64) as usize..((offset + len) / PAGE as u64) as usize
}

impl BackingFile for SimFile {
    fn len(&self) -> Result<u64, Error> {
        Ok(self.disk().len)
    }

    fn fixed_size(&self) -> bool {
        self.disk().device
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Error> {
        self.pass_read();
        READS.set(READS.get() + 1);
        let mut disk = self.disk();
        if disk.crashed || disk.dead {
            return Err(GONE);
        }
        disk.failing_read = match disk.failing_read {
            Some(0) => {
                disk.failing_read = None;
                return Err(GONE);
            }
            n => n.map(|n| n - 1),
        };
        let first = (offset / PAGE as u64) as usize;
        let end = first + buf.len().div_ceil(PAGE);
        if disk.bad.range(first..end).next().is_some() {
            return Err(GONE);
        }
        for (at, out) in (first..).zip(buf.chunks_mut(PAGE)) {
            match disk.now.get(at) {
                Some(page) => out.copy_from_slice(&page[..out.len()]),
                None => out.fill(0),
            }
        }
        drop(disk);
        self.pass_read();
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), Error> {
        self.pass_write(buf.len());
        let mut disk = self.disk();
        disk.find_room(offset, buf.len() as u64)?;
        let step = disk.step();
        let passing = step == Step::Go && disk.passing > 0;
        disk.passing -= u32::from(passing);
        let sectors = match step {
            Step::Go if passing => buf.len() / SECTOR / 2,
            // Any of its sectors may arrive before the power is gone.
            Step::Go | Step::Crash | Step::Misdirect => buf.len() / SECTOR,
            Step::Short | Step::Lose => buf.len() / SECTOR / 2,
            Step::Fail => 0,
        };
        let mut first = (offset / PAGE as u64) as usize;
        if step == Step::Misdirect {
            let places = (disk.len / PAGE as u64).max(2);
            let by = 1 + Rng(disk.operations ^ offset).below(places - 1);
            first = (first + by as usize) % places as usize;
            disk.corrupted = true;
        }
        let mut left = sectors;
        for (at, bytes) in (first..).zip(buf.chunks_exact(PAGE)) {
            let n = left.min(SECTORS);
            if n == 0 {
                break;
            }
            left -= n;
            let mut page = [0; PAGE];
            page.copy_from_slice(bytes);
            disk.put(at, Some(Arc::new(page)), (0xff >> (SECTORS - n)) as u8);
        }
        if sectors > 0 {
            let end = (first * PAGE + sectors * SECTOR) as u64;
            let len = disk.len.max(end);
            disk.set_len(len);
        }
        disk.writes += 1;
        disk.maybe_snapshot("write");
        let number = disk.operations;
        drop(disk);
        scheduling_point();
        match step {
            Step::Go if passing => Err(passing_error(number)),
            Step::Go | Step::Misdirect => Ok(()),
            _ => Err(GONE),
        }
    }

    fn sync(&self) -> Result<(), Error> {
        scheduling_point();
        // Data that is written while the fsync runs may or may not be part of it; here it is not.
        let (covered, lens) = {
            let media = &self.disk().media;
            (media.pending.len(), media.lens.len())
        };
        self.pass();
        let mut disk = self.disk();
        disk.maybe_snapshot("fsync");
        let disk = &mut *disk;
        let step = disk.step();
        let media = &mut disk.media;
        let covered = media.pending.drain(..covered.min(media.pending.len()));
        match step {
            Step::Go | Step::Misdirect => {
                covered.for_each(|change| media.durable.apply(&change, u8::MAX));
                if let Some(len) = media.lens.drain(..lens.min(media.lens.len())).last() {
                    media.durable_len = len;
                    media.durable.cut(len);
                }
                disk.syncs += 1;
                Ok(())
            }
            Step::Lose => {
                let mut rng = Rng(disk.operations);
                covered.for_each(|change| {
                    media.durable.apply(&change, rng.next_u64() as u8);
                });
                // After a failed fsync even an error that passes is the end.
                match disk.operations % 2 {
                    0 => Err(GONE),
                    _ => Err(Error::NoMemory),
                }
            }
            _ => {
                // Nothing happened yet: the whole operation is still to come.
                let covered: Vec<Change> = covered.collect();
                media.pending.splice(..0, covered);
                Err(GONE)
            }
        }
    }

    fn allocate(&self, offset: u64, len: u64) -> Result<(), Error> {
        self.pass();
        let mut disk = self.disk();
        disk.whole_step()?;
        disk.find_room(offset, len)?;
        for at in pages_of(offset, len) {
            if disk.now.get(at).is_none() {
                disk.now.set(at, Some(RESERVED.clone()));
            }
        }
        let len = disk.len.max(offset + len);
        disk.set_len(len);
        disk.maybe_snapshot("allocate");
        drop(disk);
        scheduling_point();
        Ok(())
    }

    fn punch(&self, offset: u64, len: u64) -> Result<(), Error> {
        self.pass();
        let mut disk = self.disk();
        disk.whole_step()?;
        if !disk.keeps_punched {
            let (unit, pages) = (disk.unit(), pages_of(offset, len));
            for at in pages
                .clone()
                .filter(|&at| disk.now.get(at).is_some())
                .collect::<Vec<_>>()
            {
                let first = at - at % unit;
                // A part of a unit only becomes zeros.
                let whole = first >= pages.start && first + unit <= pages.end;
                let bytes = (!whole).then(|| RESERVED.clone());
                disk.put(at, bytes, u8::MAX);
            }
        }
        disk.maybe_snapshot("punch");
        drop(disk);
        scheduling_point();
        Ok(())
    }

    fn truncate(&self, len: u64) -> Result<(), Error> {
        self.pass();
        let mut disk = self.disk();
        if disk.device {
            return Ok(());
        }
        disk.whole_step()?;
        let end = len.div_ceil(PAGE as u64) as usize;
        for at in end..disk.now.0.len() {
            if disk.now.get(at).is_some() {
                disk.put(at, None, u8::MAX);
            }
        }
        disk.now.cut(len);
        disk.set_len(len);
        disk.maybe_snapshot("truncate");
        drop(disk);
        scheduling_point();
        Ok(())
    }

    fn free_space(&self) -> Result<Option<u64>, Error> {
        let disk = self.disk();
        let taken = (disk.now.occupied(disk.unit()) * PAGE) as u64;
        let capacity = disk.capacity.filter(|_| !disk.device);
        Ok(capacity.map(|capacity| capacity.saturating_sub(taken)))
    }

    fn allocated(&self) -> Result<u64, Error> {
        let disk = self.disk();
        if disk.device {
            return Ok(disk.len);
        }
        Ok((disk.now.occupied(disk.unit()) * PAGE) as u64)
    }
}
