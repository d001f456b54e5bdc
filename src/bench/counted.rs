// SPDX-License-Identifier: GPL-2.0 OR MIT
//! [`Counted`]: a backing file that counts what is asked of it.

use crate::engine::Error;
use crate::platform::BackingFile;
use core::ops::{Add, Sub};
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use std::sync::Arc;
use std::thread::sleep;

/// Operations of a backing file, and the bytes they transferred.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Reads.
    pub reads: u64,
    /// Bytes of the reads.
    pub read_bytes: u64,
    /// Writes.
    pub writes: u64,
    /// Bytes of the writes.
    pub written_bytes: u64,
    /// Times the file was made durable.
    pub syncs: u64,
    /// Reservations of a range.
    pub allocates: u64,
    /// Ranges given back.
    pub punches: u64,
}

impl Counts {
    /// What the counts are called, in the order of [`values`](Self::values).
    pub const NAMES: [&'static str; 7] = [
        "reads",
        "read_bytes",
        "writes",
        "written_bytes",
        "syncs",
        "allocates",
        "punches",
    ];

    /// The counts in the order of [`NAMES`](Self::NAMES).
    pub fn values(&self) -> [u64; 7] {
        [
            self.reads,
            self.read_bytes,
            self.writes,
            self.written_bytes,
            self.syncs,
            self.allocates,
            self.punches,
        ]
    }

    /// The inverse of [`values`](Self::values).
    pub fn from_values(values: [u64; 7]) -> Self {
        let [reads, read_bytes, writes, written_bytes, syncs, allocates, punches] = values;
        Self {
            reads,
            read_bytes,
            writes,
            written_bytes,
            syncs,
            allocates,
            punches,
        }
    }
}

impl Add for Counts {
    type Output = Self;

    fn add(self, more: Self) -> Self {
        let mut values = self.values();
        for (value, more) in values.iter_mut().zip(more.values()) {
            *value += more;
        }
        Self::from_values(values)
    }
}

impl Sub for Counts {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        let mut values = self.values();
        for (value, before) in values.iter_mut().zip(before.values()) {
            *value -= before;
        }
        Self::from_values(values)
    }
}

#[derive(Debug, Default)]
struct Counters {
    reads: AtomicU64,
    read_bytes: AtomicU64,
    writes: AtomicU64,
    written_bytes: AtomicU64,
    syncs: AtomicU64,
    allocates: AtomicU64,
    punches: AtomicU64,
}

/// A backing file that counts what is asked of it, and that can be as slow as a disk. Clones share the counts.
#[derive(Debug)]
pub struct Counted<F> {
    file: Arc<F>,
    counters: Arc<Counters>,
    delay: Duration,
}

impl<F> Clone for Counted<F> {
    fn clone(&self) -> Self {
        Self {
            file: Arc::clone(&self.file),
            counters: Arc::clone(&self.counters),
            delay: self.delay,
        }
    }
}

impl<F> Counted<F> {
    /// Counts the operations of `file`. Each read, write and sync takes at least `delay`, but any number of them at the
    /// same time takes no longer: the model of a disk with a latency and an unbounded queue.
    pub fn new(file: F, delay: Duration) -> Self {
        Self {
            file: Arc::new(file),
            counters: Arc::default(),
            delay,
        }
    }

    /// The file whose operations are counted.
    pub fn inner(&self) -> &F {
        &self.file
    }

    /// The counts so far.
    pub fn counts(&self) -> Counts {
        let counters = &*self.counters;
        Counts::from_values(
            [
                &counters.reads,
                &counters.read_bytes,
                &counters.writes,
                &counters.written_bytes,
                &counters.syncs,
                &counters.allocates,
                &counters.punches,
            ]
            .map(|counter| counter.load(Ordering::Relaxed)),
        )
    }

    fn wait(&self) {
        if !self.delay.is_zero() {
            sleep(self.delay);
        }
    }
}

fn count(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

impl<F: BackingFile> BackingFile for Counted<F> {
    fn len(&self) -> Result<u64, Error> {
        self.file.len()
    }

    fn fixed_size(&self) -> bool {
        self.file.fixed_size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Error> {
        count(&self.counters.reads, 1);
        count(&self.counters.read_bytes, buf.len() as u64);
        self.wait();
        self.file.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), Error> {
        count(&self.counters.writes, 1);
        count(&self.counters.written_bytes, buf.len() as u64);
        self.wait();
        self.file.write_at(buf, offset)
    }

    fn sync(&self) -> Result<(), Error> {
        count(&self.counters.syncs, 1);
        self.wait();
        self.file.sync()
    }

    fn allocate(&self, offset: u64, len: u64) -> Result<(), Error> {
        count(&self.counters.allocates, 1);
        self.file.allocate(offset, len)
    }

    fn punch(&self, offset: u64, len: u64) -> Result<(), Error> {
        count(&self.counters.punches, 1);
        self.file.punch(offset, len)
    }

    fn truncate(&self, len: u64) -> Result<(), Error> {
        self.file.truncate(len)
    }

    fn free_space(&self) -> Result<Option<u64>, Error> {
        self.file.free_space()
    }

    fn allocated(&self) -> Result<u64, Error> {
        self.file.allocated()
    }
}
