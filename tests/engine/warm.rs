// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What a file system does for an image beside writing its bytes: it allocates and punches, which takes the whole file,
//! and it commits its journal when a part of the file was written for the first time.

use crate::model::fill;
use cloop::engine::{Access, Algorithm, CreateOptions, Error, Volume, BLOCK_SIZE};
use cloop::platform::std::{Std, StdFile};
use cloop::platform::BackingFile;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

/// What the file was asked for.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    allocations: u64,
    punches: u64,
    syncs: u64,
    /// Syncs before which a sector was written that was not since it was allocated, or the file became longer.
    commits: u64,
}

#[derive(Default)]
struct Counted {
    counts: Counts,
    /// Sectors that were written since they were allocated.
    written: BTreeSet<u64>,
    len: u64,
    /// The next sync is a commit.
    changed: bool,
}

impl Counted {
    fn lengthen(&mut self, len: u64) {
        if len > self.len {
            self.len = len;
            self.changed = true;
        }
    }
}

/// A file that counts what the file system has to do for it.
#[derive(Clone)]
struct CountedFile {
    file: Arc<StdFile>,
    counted: Arc<Mutex<Counted>>,
}

fn sectors(offset: u64, len: u64) -> std::ops::Range<u64> {
    let sector = BLOCK_SIZE as u64;
    offset / sector..(offset + len).div_ceil(sector)
}

impl BackingFile for CountedFile {
    fn len(&self) -> Result<u64, Error> {
        self.file.len()
    }

    fn fixed_size(&self) -> bool {
        false
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Error> {
        self.file.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), Error> {
        let mut counted = self.counted.lock().unwrap();
        counted.lengthen(offset + buf.len() as u64);
        for sector in sectors(offset, buf.len() as u64) {
            counted.changed |= counted.written.insert(sector);
        }
        drop(counted);
        self.file.write_at(buf, offset)
    }

    fn sync(&self) -> Result<(), Error> {
        let mut counted = self.counted.lock().unwrap();
        counted.counts.syncs += 1;
        counted.counts.commits += u64::from(counted.changed);
        counted.changed = false;
        drop(counted);
        self.file.sync()
    }

    fn allocate(&self, offset: u64, len: u64) -> Result<(), Error> {
        let mut counted = self.counted.lock().unwrap();
        counted.counts.allocations += 1;
        counted.lengthen(offset + len);
        drop(counted);
        self.file.allocate(offset, len)
    }

    fn punch(&self, offset: u64, len: u64) -> Result<(), Error> {
        let mut counted = self.counted.lock().unwrap();
        counted.counts.punches += 1;
        for sector in sectors(offset, len) {
            counted.written.remove(&sector);
        }
        drop(counted);
        self.file.punch(offset, len)
    }

    fn truncate(&self, len: u64) -> Result<(), Error> {
        let mut counted = self.counted.lock().unwrap();
        let end = sectors(0, len).end;
        counted.written.split_off(&end);
        counted.len = len;
        counted.changed = true;
        drop(counted);
        self.file.truncate(len)
    }

    fn free_space(&self) -> Result<Option<u64>, Error> {
        self.file.free_space()
    }

    fn allocated(&self) -> Result<u64, Error> {
        self.file.allocated()
    }
}

/// A volume of 256 MiB on a file in memory, and the counts of that.
fn volume() -> (Volume<Std<CountedFile>>, Arc<Mutex<Counted>>) {
    let file = tempfile::tempfile_in("/dev/shm").expect("a temporary file");
    let file = StdFile::from_file(file).expect("a backing file");
    let options = CreateOptions {
        size: 256 * MIB,
        record_size: 65536,
        segment_size: 1 << 20,
        algorithm: Algorithm::Raw,
        uuid: *b"a file that's it",
    };
    Volume::<Std>::create(&file, &options).unwrap();
    let counted = Arc::<Mutex<Counted>>::default();
    let file = CountedFile {
        file: Arc::new(file),
        counted: counted.clone(),
    };
    (Volume::open(file, Access::Write).unwrap(), counted)
}

/// What `work` adds to the counts.
fn during(counted: &Mutex<Counted>, work: impl FnOnce()) -> Counts {
    let before = counted.lock().unwrap().counts;
    work();
    let after = counted.lock().unwrap().counts;
    Counts {
        allocations: after.allocations - before.allocations,
        punches: after.punches - before.punches,
        syncs: after.syncs - before.syncs,
        commits: after.commits - before.commits,
    }
}

/// Who overwrites the same data again and again uses the same segments again and again: the file system hears nothing of
/// it. An idle device keeps none of them. Checkpoints come when the test wants them, so that it does not depend on the
/// speed of the background threads how many segments become free at once.
#[test]
fn segments_that_become_free_are_used_again() {
    const SIZE: u64 = 16 * MIB;
    let (volume, counted) = volume();
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
    let counts = during(&counted, || (4..12).for_each(&mut overwrite));
    let segments = 8 * SIZE / MIB;
    println!("{segments} segments filled: {counts:?}");
    assert!(counts.allocations < segments / 4, "{counts:?}");
    assert!(counts.punches < segments / 4, "{counts:?}");
    let began = Instant::now();
    loop {
        let stats = volume.stats().unwrap();
        if stats.allocated_bytes <= stats.live_bytes * 105 / 100 + 16 * MIB {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "{stats:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
    volume.close().unwrap();
}

/// Who flushes often has the file system commit its journal seldom.
#[test]
fn a_flush_seldom_commits_the_journal_of_the_file_system() {
    const FLUSHES: u64 = 20_000;
    let (volume, counted) = volume();
    let mut ws = volume.workspace().unwrap();
    let mut block = vec![0; BLOCK_SIZE];
    let counts = during(&counted, || {
        for n in 0..FLUSHES {
            fill(n as u32, &mut block);
            volume.write(&mut ws, n * 7919 % 16384, &block).unwrap();
            volume.flush().unwrap();
        }
    });
    println!("{counts:?}");
    assert!(counts.syncs >= FLUSHES, "{counts:?}");
    // One for a segment that is new, and those of the checkpoints.
    assert!(counts.commits < FLUSHES / 10, "{counts:?}");
    volume.close().unwrap();
}
