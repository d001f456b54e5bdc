// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What a file system does for an image beside writing its bytes: it allocates and punches, which takes the whole file,
//! and it commits its journal when a part of the file was written for the first time.

use crate::extents::{during, in_memory};
use crate::model::{fill, options};
use crate::space::rest;
use cloop::bench::Counted;
use cloop::engine::{Access, Algorithm, CreateOptions, Error, Volume, Workspace, BLOCK_SIZE};
use cloop::platform::std::{Std, StdFile};
use cloop::platform::BackingFile;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const MIB: u64 = 1 << 20;

/// What the file system knows of the file.
#[derive(Default)]
struct Journal {
    /// Sectors that were written since they were allocated.
    written: BTreeSet<u64>,
    len: u64,
    /// A sector was written that was not since it was allocated, or the length has changed: the next sync is a commit.
    changed: bool,
    commits: u64,
}

impl Journal {
    fn lengthen(&mut self, len: u64) {
        if len > self.len {
            self.len = len;
            self.changed = true;
        }
    }
}

/// A file of which the file system keeps a journal.
struct Journaled {
    file: StdFile,
    journal: Arc<Mutex<Journal>>,
}

fn sectors(offset: u64, len: u64) -> std::ops::Range<u64> {
    let sector = BLOCK_SIZE as u64;
    offset / sector..(offset + len).div_ceil(sector)
}

impl BackingFile for Journaled {
    fn len(&self) -> Result<u64, Error> {
        self.file.len()
    }

    fn fixed_size(&self) -> bool {
        self.file.fixed_size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Error> {
        self.file.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), Error> {
        let mut journal = self.journal.lock().unwrap();
        journal.lengthen(offset + buf.len() as u64);
        for sector in sectors(offset, buf.len() as u64) {
            journal.changed |= journal.written.insert(sector);
        }
        drop(journal);
        self.file.write_at(buf, offset)
    }

    fn sync(&self) -> Result<(), Error> {
        let mut journal = self.journal.lock().unwrap();
        journal.commits += u64::from(std::mem::take(&mut journal.changed));
        drop(journal);
        self.file.sync()
    }

    fn allocate(&self, offset: u64, len: u64) -> Result<(), Error> {
        self.journal.lock().unwrap().lengthen(offset + len);
        self.file.allocate(offset, len)
    }

    fn punch(&self, offset: u64, len: u64) -> Result<(), Error> {
        let mut journal = self.journal.lock().unwrap();
        for sector in sectors(offset, len) {
            journal.written.remove(&sector);
        }
        drop(journal);
        self.file.punch(offset, len)
    }

    fn truncate(&self, len: u64) -> Result<(), Error> {
        let mut journal = self.journal.lock().unwrap();
        journal.written.split_off(&sectors(0, len).end);
        (journal.len, journal.changed) = (len, true);
        drop(journal);
        self.file.truncate(len)
    }

    fn free_space(&self) -> Result<Option<u64>, Error> {
        self.file.free_space()
    }

    fn allocated(&self) -> Result<u64, Error> {
        self.file.allocated()
    }
}

type Vol = Volume<Std<Counted<Journaled>>>;

/// A volume of 256 MiB on a file in memory, and the journal of that.
fn volume() -> (Vol, Arc<Mutex<Journal>>) {
    let file = in_memory();
    let create = CreateOptions {
        size: 256 * MIB,
        segment_size: 1 << 20,
        ..options(65536, Algorithm::Raw)
    };
    Volume::<Std>::create(&file, &create).unwrap();
    let journal = Arc::<Mutex<Journal>>::default();
    let file = Journaled {
        file,
        journal: journal.clone(),
    };
    let file = Counted::new(file, Duration::ZERO);
    (Volume::open(file, Access::Write).unwrap(), journal)
}

/// Who overwrites the same data again and again uses the same segments again and again: the file system hears nothing of
/// it. An idle device keeps none of them. Checkpoints come when the test wants them, so that it does not depend on the
/// speed of the background threads how many segments become free at once.
#[test]
fn segments_that_become_free_are_used_again() {
    const SIZE: u64 = 16 * MIB;
    let (volume, _) = volume();
    let mut ws = volume.workspace().unwrap();
    let mut data = vec![0; 32 * BLOCK_SIZE];
    let mut overwrite = |round: u32| {
        let end = if round == 0 { 12 * SIZE } else { SIZE };
        for block in (0..end / BLOCK_SIZE as u64).step_by(32) {
            for (i, out) in (0..).zip(data.chunks_exact_mut(BLOCK_SIZE)) {
                fill(round * 65536 + block as u32 + i, out);
            }
            volume.write(&mut ws, block, &data).unwrap();
        }
        for _ in 0..2 {
            volume.checkpoint().unwrap();
        }
    };
    for round in 0..4 {
        overwrite(round);
    }
    let counts = during(&volume, || (4..12).for_each(&mut overwrite));
    let segments = 8 * SIZE / MIB;
    println!("{segments} segments filled: {counts:?}");
    assert!(counts.allocates < segments / 4, "{counts:?}");
    assert!(counts.punches < segments / 4, "{counts:?}");
    rest(&volume);
    volume.close().unwrap();
}

/// Overwrites one block, the `n`th of a sequence.
fn scatter(volume: &Vol, ws: &mut Workspace<Std<Counted<Journaled>>>, n: u64) {
    let mut block = vec![0; BLOCK_SIZE];
    fill(n as u32, &mut block);
    volume.write(ws, n * 7919 % 16384, &block).unwrap();
}

/// Who flushes often has the file system commit its journal seldom.
#[test]
fn a_flush_seldom_commits_the_journal_of_the_file_system() {
    const FLUSHES: u64 = 20_000;
    let (volume, journal) = volume();
    let mut ws = volume.workspace().unwrap();
    let counts = during(&volume, || {
        for n in 0..FLUSHES {
            scatter(&volume, &mut ws, n);
            volume.flush().unwrap();
        }
    });
    // Those of the opening are among them.
    let commits = journal.lock().unwrap().commits;
    println!("{counts:?}, {commits} commits");
    assert!(counts.syncs >= FLUSHES, "{counts:?}");
    // One for a segment that is new, and those of the checkpoints.
    assert!(commits < FLUSHES / 10, "{commits}");
    volume.close().unwrap();
}

/// So it is soon after users have begun to flush often, although the log has a reserve then that is only allocated.
#[test]
fn a_reserve_is_written_before_it_is_needed() {
    const FLUSHES: u64 = 4000;
    let (volume, journal) = volume();
    let mut ws = volume.workspace().unwrap();
    (0..4096).for_each(|n| scatter(&volume, &mut ws, n));
    volume.flush().unwrap();
    let before = journal.lock().unwrap().commits;
    for n in 0..FLUSHES {
        scatter(&volume, &mut ws, n);
        volume.flush().unwrap();
    }
    let commits = journal.lock().unwrap().commits - before;
    println!("{commits} commits");
    // In the current segment, and one for each further one, if the thread that fills them is in time.
    assert!(commits < FLUSHES / 5, "{commits}");
    volume.close().unwrap();
}
