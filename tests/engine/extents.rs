// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Space in extents: one call allocates many segments, and one gives many back, because each call takes the whole backing
//! file and holds up all reads of it. The image stays as small as what is in it (P3).

use crate::model::{fill, options, Vol};
use crate::space::{reserved_at_rest, rest};
use cloop::bench::{Counted, Counts};
use cloop::engine::{Access, Algorithm, CreateOptions, Stats, Volume, Workspace, BLOCK_SIZE};
use cloop::platform::sim::SimFile;
use cloop::platform::std::{Std, StdFile};
use cloop::platform::{BackingFile, Platform};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const BLOCK: u64 = BLOCK_SIZE as u64;
const MIB: u64 = 1 << 20;
/// Blocks of a request.
const REQUEST: u64 = 32;

type Counting<F> = Volume<Std<Counted<F>>>;

/// A volume of 512 MiB on `file`, each operation of which takes `delay`.
fn volume<F: BackingFile>(file: F, delay: Duration) -> Counting<F> {
    let create = CreateOptions {
        size: 512 * MIB,
        segment_size: 1 << 20,
        ..options(65536, Algorithm::Raw)
    };
    Volume::<Std<F>>::create(&file, &create).unwrap();
    Volume::open(Counted::new(file, delay), Access::Write).unwrap()
}

/// An empty file in memory.
pub(crate) fn in_memory() -> StdFile {
    let file = tempfile::tempfile_in("/dev/shm").expect("a temporary file");
    StdFile::from_file(file).expect("a backing file")
}

/// Writes the blocks in `range`, and calls `look` after each request.
fn write<P: Platform>(
    volume: &Volume<P>,
    ws: &mut Workspace<P>,
    range: std::ops::Range<u64>,
    mut look: impl FnMut(u64),
) {
    let mut data = vec![0; (REQUEST * BLOCK) as usize];
    for at in range.step_by(REQUEST as usize) {
        for (n, block) in (at as u32..).zip(data.chunks_exact_mut(BLOCK_SIZE)) {
            fill(2 + 3 * n, block);
        }
        volume.write(ws, at, &data).unwrap();
        look(at + REQUEST);
    }
}

/// Waits until `done` says so of the figures.
fn wait_for<P: Platform>(volume: &Volume<P>, done: impl Fn(&Stats) -> bool) -> Stats {
    let began = Instant::now();
    loop {
        let stats = volume.stats().unwrap();
        if done(&stats) {
            return stats;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "{stats:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What `work` adds to the counts of the volume's file.
pub(crate) fn during<F: BackingFile>(volume: &Counting<F>, work: impl FnOnce()) -> Counts {
    let before = volume.file().counts();
    work();
    volume.file().counts() - before
}

/// A long write has its space allocated in a few calls, and never has half as much again as it has written. An idle device
/// has given back what it does not need.
#[test]
fn space_is_allocated_in_extents() {
    const END: u64 = 256 * MIB / BLOCK;
    let volume = volume(in_memory(), Duration::ZERO);
    let reserved = reserved_at_rest(&volume);
    let mut ws = volume.workspace().unwrap();
    let empty = volume.file().allocated().unwrap();
    let mut busy = 0;
    let counts = during(&volume, || {
        write(&volume, &mut ws, 0..END, |end| {
            busy = busy.max(volume.stats().unwrap().reserved_bytes);
            let allocated = volume.file().allocated().unwrap() - empty;
            let most = end * BLOCK * 3 / 2 + 8 * MIB;
            assert!(allocated <= most, "{allocated} bytes for {end} blocks");
        });
    });
    println!("256 segments written: {counts:?}");
    assert!(counts.allocates <= 32, "{counts:?}");
    assert!(busy > reserved, "{busy}, {reserved}");
    wait_for(&volume, |stats| stats.reserved_bytes <= reserved + MIB);
    rest(&volume);
    volume.close().unwrap();
    let size = volume.file().allocated().unwrap();
    assert!(size < END * BLOCK + 4 * MIB, "{size} bytes when closed");
}

/// What is allocated ahead is little where the backing file system has little left, and is given back when other files
/// have taken the rest.
#[test]
fn a_small_file_system_is_not_filled_ahead() {
    let file = SimFile::new();
    let create = CreateOptions {
        size: 64 * MIB,
        ..options(65536, Algorithm::Raw)
    };
    Vol::create(&file, &create).unwrap();
    let volume = Vol::open(file.clone(), Access::Write).unwrap();
    let reserved = reserved_at_rest(&volume);
    let mut ws = volume.workspace().unwrap();
    let half = 16 * MIB / BLOCK;
    // When the last write ends, the log may just have used up what was allocated.
    let mut most = 0;
    write(&volume, &mut ws, 0..half, |_| {
        most = most.max(volume.stats().unwrap().reserved_bytes);
    });
    assert!(most > reserved + MIB, "{most}, {reserved}");
    // Of 2 MiB that are left, no more than a 16th is held.
    file.limit(volume.stats().unwrap().allocated_bytes + 2 * MIB);
    volume.stats().unwrap();
    write(&volume, &mut ws, half..half + REQUEST, |_| {});
    let right = reserved..=reserved + MIB / 2;
    wait_for(&volume, |stats| right.contains(&stats.reserved_bytes));
    let refusals = file.refusals();
    write(&volume, &mut ws, half..half + MIB / BLOCK, |_| {
        let now = volume.stats().unwrap().reserved_bytes;
        assert!(now <= reserved + MIB, "{now}, {reserved}");
    });
    assert_eq!(file.refusals(), refusals);
    volume.close().unwrap();
}

/// Blocks that are read, and as many behind them that are discarded.
const HALF: u64 = 64 * MIB / BLOCK;
/// An operation of the backing file takes so long that one of the readers is always reading.
const SLOW: Duration = Duration::from_millis(1);

/// Runs `work` while users read blocks before [`HALF`] from the backing file without a break.
fn beside_reads<F: BackingFile>(volume: &Counting<F>, work: impl FnOnce()) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for reader in 0..4 {
            let (volume, done) = (&volume, &done);
            scope.spawn(move || {
                let mut ws = volume.workspace().unwrap();
                let mut block = vec![0; BLOCK_SIZE];
                let mut at = reader * HALF / 4;
                while !done.load(Ordering::Relaxed) {
                    volume.read(&mut ws, at, &mut block).unwrap();
                    at = (at + 16) % HALF;
                }
            });
        }
        work();
        done.store(true, Ordering::Relaxed);
    });
}

/// Discards what lies behind the blocks that are read, and has checkpoints make it free.
fn discard<F: BackingFile>(volume: &Counting<F>) {
    let mut ws = volume.workspace().unwrap();
    for at in (HALF..2 * HALF).step_by(256) {
        volume.zero(&mut ws, at, 256).unwrap();
    }
    (0..3).for_each(|_| volume.checkpoint().unwrap());
}

/// What users have discarded is given back when nothing is read, in a few calls: a punch would hold up the reads.
#[test]
fn space_is_given_back_when_nothing_is_read() {
    let volume = volume(in_memory(), SLOW);
    let mut ws = volume.workspace().unwrap();
    write(&volume, &mut ws, 0..2 * HALF, |_| {});
    let full = volume.file().allocated().unwrap();
    beside_reads(&volume, || {
        let counts = during(&volume, || {
            discard(&volume);
            std::thread::sleep(Duration::from_millis(500));
        });
        println!("64 segments discarded: {counts:?}");
        assert_eq!(counts.punches, 0, "{counts:?}");
    });
    let counts = during(&volume, || {
        wait_for(&volume, |stats| stats.allocated_bytes < full - 40 * MIB);
    });
    println!("and given back: {counts:?}");
    assert!(counts.punches <= 8, "{counts:?}");
    rest(&volume);
    volume.close().unwrap();
}

/// Where the backing file system has little left, space is given back beside reads as well: other files may need it.
#[test]
fn space_that_others_need_is_given_back_beside_reads() {
    let volume = volume(SimFile::new(), SLOW);
    let mut ws = volume.workspace().unwrap();
    write(&volume, &mut ws, 0..2 * HALF, |_| {});
    let full = volume.file().allocated().unwrap();
    volume.file().inner().limit(full + 8 * MIB);
    beside_reads(&volume, || {
        let counts = during(&volume, || {
            discard(&volume);
            wait_for(&volume, |stats| stats.allocated_bytes < full - 40 * MIB);
        });
        println!("64 segments discarded: {counts:?}");
        assert!((1..=16).contains(&counts.punches), "{counts:?}");
    });
    volume.close().unwrap();
}

/// A device that has been at rest, with nothing left to do, notices what is discarded afterwards.
#[test]
fn a_device_at_rest_notices_what_is_discarded() {
    let volume = volume(in_memory(), Duration::ZERO);
    let mut ws = volume.workspace().unwrap();
    write(&volume, &mut ws, 0..2 * HALF, |_| {});
    volume.flush().unwrap();
    let full = volume.file().allocated().unwrap();
    // Idle after five seconds, and then tidy.
    std::thread::sleep(Duration::from_secs(8));
    volume.zero(&mut ws, 0, 2 * HALF).unwrap();
    volume.flush().unwrap();
    wait_for(&volume, |stats| stats.allocated_bytes < full - 40 * MIB);
    rest(&volume);
    volume.close().unwrap();
}
