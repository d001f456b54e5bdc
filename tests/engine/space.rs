// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Promises P2 (space before acknowledgement), P3 (bounded size), P4 (zero is free) and P6 (bounded memory).

use crate::model::{assert_checked, fill, options, tag_of, Home, Vol};
use crate::repair::{overwrite, records};
use cloop::engine::format::Kind;
use cloop::engine::repair::{repair, Doubtful, Report};
use cloop::engine::Access;
use cloop::engine::{
    check, Algorithm, Compression, CreateOptions, Error, Recompression, Stats, Volume, Workspace,
    BLOCK_SIZE,
};
use cloop::platform::sim::{Rng, SimFile};
use cloop::platform::std::{Std, StdFile};
use cloop::platform::{BackingFile, Platform};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const BLOCK: u64 = BLOCK_SIZE as u64;
const MIB: u64 = 1 << 20;

/// An image in an unnamed temporary file.
fn on_disk(size: u64, record_size: u32) -> Volume<Std> {
    let file = tempfile::tempfile().expect("a temporary file");
    let file = StdFile::from_file(file).expect("a backing file");
    let create = CreateOptions {
        size,
        record_size,
        segment_size: 1 << 20,
        compression: Compression::of(Algorithm::Lz4),
        recompression: Recompression::OFF,
        uuid: *b"an image on disk",
    };
    Volume::<Std>::create(&file, &create).unwrap();
    Volume::open(file, Access::Write).unwrap()
}

/// Contents that do not compress.
fn noise(n: u32, out: &mut [u8]) {
    for (i, block) in (0..).zip(out.chunks_exact_mut(BLOCK_SIZE)) {
        fill(2 + 3 * (n + i), block);
    }
}

fn write_noise<P: Platform>(
    volume: &Volume<P>,
    ws: &mut Workspace<P>,
    block: u64,
    n: u32,
    count: u64,
) {
    let mut data = vec![0; (count * BLOCK) as usize];
    noise(n, &mut data);
    volume.write(ws, block, &data).unwrap();
}

/// P3: incompressible data takes at most 1.01 times the device and 16 MiB, even while it is overwritten.
#[test]
fn the_worst_case_stays_within_its_bound() {
    const SIZE: u64 = 160 * MIB;
    let bound = SIZE / 100 * 101 + 16 * MIB;
    for record_size in [4096, 65536, 131_072] {
        let volume = on_disk(SIZE, record_size);
        let mut ws = volume.workspace().unwrap();
        let mut model = vec![0; (SIZE / BLOCK) as usize];
        let within = |when: &str| {
            let stats = volume.stats().unwrap();
            assert!(
                stats.allocated_bytes <= bound,
                "{record_size}: more than {bound} bytes {when}: {stats:?}"
            );
        };
        for at in (0..model.len() as u64).step_by(32) {
            write_noise(&volume, &mut ws, at, at as u32, 32);
            (0..32).for_each(|i| model[(at + i) as usize] = at as u32 + i as u32);
        }
        within("when full");
        let mut rng = Rng(u64::from(record_size));
        // Overwrite half of the blocks, with a flush now and then.
        for round in 0..model.len() as u32 / 2 {
            let at = rng.below(model.len() as u64);
            let n = 1_000_000 + round;
            write_noise(&volume, &mut ws, at, n, 1);
            model[at as usize] = n;
            if rng.below(64) == 0 {
                volume.flush().unwrap();
            }
            if round % 256 == 0 {
                within("while overwriting");
            }
        }
        let mut block = vec![0; BLOCK_SIZE];
        for (at, &n) in (0..).zip(&model) {
            volume.read(&mut ws, at, &mut block).unwrap();
            assert_eq!(tag_of(&block), 2 + 3 * n, "block {at}");
        }
        let stats = volume.stats().unwrap();
        assert!(stats.moved_bytes > 0, "{stats:?}");
        println!(
            "records of {record_size}: write amplification {:.1}, {} of {bound} bytes",
            stats.log_bytes as f64 / stats.bytes_written as f64,
            stats.allocated_bytes
        );
        volume.close().unwrap();
        within("when closed");
    }
}

/// Overwrites random blocks of a full device with `threads` threads at once, `total` bytes in all. Every write must
/// succeed, because the file system has space, and the image must stay within its bound.
fn crowd(size: u64, threads: u64, total: u64) {
    const RECORD: u64 = 16;
    let bound = size / 100 * 101 + 16 * MIB;
    let volume = on_disk(size, 65536);
    let records = size / BLOCK / RECORD;
    let refused = AtomicU64::new(0);
    let most = AtomicU64::new(0);
    let write = |ws: &mut Workspace<Std>, record: u64, n: u64| {
        let mut data = vec![0; (RECORD * BLOCK) as usize];
        noise(n as u32, &mut data);
        match volume.write(ws, record * RECORD, &data) {
            Ok(()) => {}
            Err(Error::NoSpace) => {
                refused.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => panic!("{error}"),
        }
        most.fetch_max(volume.file().allocated().unwrap(), Ordering::Relaxed);
    };
    let mut ws = volume.workspace().unwrap();
    (0..records).for_each(|record| write(&mut ws, record, record));
    let each = total / (RECORD * BLOCK) / threads;
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (volume, write) = (&volume, &write);
            scope.spawn(move || {
                let mut ws = volume.workspace().unwrap();
                let mut rng = Rng(thread);
                for n in 0..each {
                    write(&mut ws, rng.below(records), (thread << 24) + n);
                    if rng.below(64) == 0 {
                        volume.flush().unwrap();
                    }
                }
            });
        }
    });
    let stats = volume.stats().unwrap();
    let (refused, most) = (refused.into_inner(), most.into_inner());
    println!("{threads} writers: {refused} refused, at most {most} of {bound} bytes, {stats:?}");
    assert_eq!(refused, 0, "{threads} writers: {stats:?}");
    assert!(
        most <= bound,
        "{threads} writers: {most} bytes, more than {bound}: {stats:?}"
    );
    volume.close().unwrap();
}

/// P7: a full device degrades smoothly. Each write waits until about the space that it takes is gained, and not until many
/// segments are emptied.
#[test]
fn a_full_device_degrades_smoothly() {
    const SIZE: u64 = 96 * MIB;
    const RECORD: u64 = 16;
    const RECORDS: u64 = SIZE / BLOCK / RECORD;
    let volume = on_disk(SIZE, 65536);
    let mut ws = volume.workspace().unwrap();
    let mut rng = Rng(SIZE);
    let mut moved = Vec::new();
    let mut before = 0;
    for n in 0..3 * RECORDS {
        // Once everything is written, the image reaches its largest size.
        let record = match n < RECORDS {
            true => n,
            false => rng.below(RECORDS),
        };
        write_noise(&volume, &mut ws, record * RECORD, n as u32, RECORD);
        let now = volume.stats().unwrap().moved_bytes;
        if n >= 2 * RECORDS {
            moved.push(now - before);
        }
        before = now;
    }
    moved.sort_unstable();
    let mean = moved.iter().sum::<u64>() / RECORDS;
    let most = moved[moved.len() * 99 / 100];
    let worst = moved[moved.len() - 1];
    let stats = volume.stats().unwrap();
    println!("moved for a write: mean {mean}, 99 of 100 at most {most}, worst {worst}; {stats:?}");
    // In rounds of 16 segments, and only when there is no space left, it is 12 MB and 40 MB.
    assert!(
        mean > 65536 && stats.space_waits > 0,
        "there was space to spare"
    );
    assert!(
        most < 8 * MIB && worst < 26 * MIB,
        "{most}, {worst}: {stats:?}"
    );
    volume.close().unwrap();
}

/// P2, P3: the number of writers changes neither the bound nor what is refused.
#[test]
fn a_crowd_of_writers_stays_within_the_bound() {
    for threads in [1, 8, 64] {
        crowd(64 * MIB, threads, 128 * MIB);
    }
    if std::env::var_os("CLOOP_TEST_LONG").is_some() {
        crowd(256 * MIB, 64, 512 * MIB);
        crowd(1024 * MIB, 32, 2048 * MIB);
    }
}

/// P2: a device that has grown while it was in use keeps as much in reserve as if it had been opened with that size.
#[test]
fn a_larger_device_has_a_larger_reserve() {
    let file = SimFile::new();
    Vol::create(&file, &options(16384, Algorithm::Lz4)).unwrap();
    let volume = Vol::open(file.clone(), Access::Write).unwrap();
    let small = reserved_at_rest(&volume);
    let mut ws = volume.workspace().unwrap();
    volume.resize(&mut ws, 2 << 30, false).unwrap();
    let grown = reserved_at_rest(&volume);
    assert!(grown > small, "{grown}, {small}");
    volume.close().unwrap();
    let volume = Vol::open(file, Access::Write).unwrap();
    assert_eq!(reserved_at_rest(&volume), grown);
}

/// The bytes reserved while the background has nothing to do: when the figure stays.
pub(crate) fn reserved_at_rest<P: Platform>(volume: &Volume<P>) -> u64 {
    let (mut reserved, mut began) = (0, Instant::now());
    while began.elapsed() < Duration::from_millis(500) {
        let now = volume.stats().unwrap().reserved_bytes;
        if now != reserved {
            (reserved, began) = (now, Instant::now());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    reserved
}

/// Waits until no background work is left and the image has the size that is allowed when idle.
pub(crate) fn rest<P: Platform>(volume: &Volume<P>) {
    let began = Instant::now();
    loop {
        let stats = volume.stats().unwrap();
        if stats.allocated_bytes <= stats.live_bytes * 105 / 100 + 16 * MIB {
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "{stats:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Every block up to `end` holds what [`write_noise`] wrote to it if it was `kept`, and zeros otherwise.
fn expect_noise<P: Platform>(volume: &Volume<P>, end: u64, kept: impl Fn(u64) -> bool) {
    let mut ws = volume.workspace().unwrap();
    let mut block = vec![0; BLOCK_SIZE];
    for at in 0..end {
        volume.read(&mut ws, at, &mut block).unwrap();
        let expected = if kept(at) { 2 + 3 * at as u32 } else { 0 };
        assert_eq!(tag_of(&block), expected, "block {at}");
    }
}

/// Fills the blocks before `end`, and discards those that are not `kept`, which scatters the live ones over all segments.
fn thin_out(volume: &Volume<Std>, ws: &mut Workspace<Std>, end: u64, kept: impl Fn(u64) -> bool) {
    for at in (0..end).step_by(16) {
        write_noise(volume, ws, at, at as u32, 16);
    }
    for at in (0..end).filter(|&at| !kept(at)) {
        volume.zero(ws, at, 1).unwrap();
    }
}

/// P3: when the device is idle, garbage is reclaimed without a request.
#[test]
fn an_idle_volume_gives_back_what_is_dead() {
    const END: u64 = 96 * MIB / BLOCK;
    let volume = on_disk(256 * MIB, 65536);
    let mut ws = volume.workspace().unwrap();
    let kept = |at: u64| at % 8 == 3;
    thin_out(&volume, &mut ws, END, kept);
    rest(&volume);
    expect_noise(&volume, END, kept);
    volume.close().unwrap();
}

/// Before the machine sleeps, a volume comes to rest with everything in a checkpoint, and no background work begins
/// until it wakes up. Users can go on writing.
#[test]
fn a_quiet_volume_does_no_background_work() {
    const END: u64 = 32 * MIB / BLOCK;
    let volume = on_disk(256 * MIB, 65536);
    let mut ws = volume.workspace().unwrap();
    let kept = |at: u64| at % 8 == 3;
    thin_out(&volume, &mut ws, END, kept);
    volume.quiesce().unwrap();
    let quiet = volume.stats().unwrap();
    assert!(quiet.checkpoints > 2, "{quiet:?}");
    write_noise(&volume, &mut ws, END, END as u32, 16);
    volume.flush().unwrap();
    let written = volume.stats().unwrap();
    // Longer than the time after which a device counts as idle.
    std::thread::sleep(Duration::from_secs(7));
    let later = volume.stats().unwrap();
    let work = |stats: &Stats| (stats.log_bytes, stats.syncs, stats.checkpoints);
    assert_eq!(work(&later), work(&written));
    assert!(later.garbage_bytes > 16 * MIB, "{later:?}");
    volume.wake();
    rest(&volume);
    let awake = volume.stats().unwrap();
    assert!(awake.garbage_bytes < 8 * MIB, "{awake:?}");
    expect_noise(&volume, END, kept);
    volume.close().unwrap();
}

/// P3: garbage that lies together is given back without relocating anything. Compaction finds the live
/// records between the holes.
#[test]
fn what_lies_together_is_given_back_in_place() {
    const END: u64 = 96 * MIB / BLOCK;
    let volume = on_disk(256 * MIB, 65536);
    let mut ws = volume.workspace().unwrap();
    for at in (0..END).step_by(16) {
        write_noise(&volume, &mut ws, at, at as u32, 16);
    }
    let kept = |at: u64| at % 128 < 64;
    for at in (0..END).step_by(128) {
        volume.zero(&mut ws, at + 64, 64).unwrap();
    }
    rest(&volume);
    let stats = volume.stats().unwrap();
    // Except in segments with old nodes of the table, which checkpoints have just written again.
    let moved = stats.moved_bytes;
    assert!(moved < stats.live_bytes / 4, "{stats:?}");
    expect_noise(&volume, END, kept);
    volume.compact(&mut |_| true).unwrap();
    expect_noise(&volume, END, kept);
    let stats = volume.stats().unwrap();
    assert!(stats.moved_bytes > stats.live_bytes / 4, "{stats:?}");
    assert!(
        stats.segments * MIB < stats.live_bytes + 16 * MIB,
        "{stats:?}"
    );
    let file = volume.file().as_file().try_clone().unwrap();
    volume.close().unwrap();
    let file = StdFile::from_file(file).unwrap();
    let summary = check::check::<Std>(file, &mut |f| panic!("{f:?}"), &mut |_, _| {}).unwrap();
    assert_eq!(summary.mapped_blocks, END / 2);
}

/// P3: punches count only if the file system gives something back. It may allocate in units of 64 KiB, or give back nothing
/// at all.
#[test]
fn only_what_is_given_back_counts() {
    const END: u64 = 80 * MIB / BLOCK;
    for keeps_punched in [false, true] {
        let file = SimFile::new();
        file.allocate_in_units(65536);
        if keeps_punched {
            file.keep_punched();
        }
        let create = CreateOptions {
            size: 256 * MIB,
            ..options(65536, Algorithm::Lz4)
        };
        Vol::create(&file, &create).unwrap();
        let volume = Vol::open(file.clone(), Access::Write).unwrap();
        let mut ws = volume.workspace().unwrap();
        for at in (0..END).step_by(16) {
            write_noise(&volume, &mut ws, at, at as u32, 16);
        }
        // Every second piece of 64 KiB, but few of them lie in one unit of the file.
        let kept = |at: u64| at % 32 < 16;
        for at in (0..END).step_by(32) {
            volume.zero(&mut ws, at + 16, 16).unwrap();
        }
        if keeps_punched {
            // The image becomes no smaller, but can use the space again.
            let began = Instant::now();
            while volume.stats().unwrap().garbage_bytes > 8 * MIB {
                let stats = volume.stats().unwrap();
                assert!(began.elapsed() < Duration::from_secs(60), "{stats:?}");
                std::thread::sleep(Duration::from_millis(200));
            }
        } else {
            rest(&volume);
        }
        expect_noise(&volume, END, kept);
        volume.close().unwrap();
        assert_checked(&file, "at the end");
    }
}

/// What is damaged holds up only itself: with a sector that cannot be read, or a damaged leaf of the table, compaction
/// gains everything else, and a full file is written on.
#[test]
fn reclaim_goes_around_damage() {
    const END: u64 = 24 * MIB / BLOCK;
    for damage in [Kind::Data, Kind::MapNode] {
        let file = SimFile::new();
        let create = CreateOptions {
            size: 32 * MIB,
            ..options(16384, Algorithm::Lz4)
        };
        Vol::create(&file, &create).unwrap();
        let volume = Vol::open(file.clone(), Access::Write).unwrap();
        let mut ws = volume.workspace().unwrap();
        for at in (0..END).step_by(4) {
            write_noise(&volume, &mut ws, at, at as u32, 4);
        }
        for at in (0..END).step_by(16) {
            volume.zero(&mut ws, at + 4, 12).unwrap();
        }
        volume.checkpoint().unwrap();
        volume.shed_table(u64::MAX);
        // The newest copy of the first leaf, or the record of block 0.
        let found = records(&file);
        let mut wanted = found.iter().filter(|(_, header)| {
            header.kind == damage
                && header.number == 0
                && (damage == Kind::Data || header.count == 0)
        });
        let (at, _) = wanted.next_back().expect("there is such a record");
        match damage {
            Kind::Data => file.spoil(*at as u64, 1),
            _ => file.damage(*at as u64 + 100, 1),
        }
        let mut block = vec![0; BLOCK_SIZE];
        let refused = volume.read(&mut ws, 0, &mut block);
        assert!(
            matches!(refused, Err(Error::Io(_) | Error::Corrupt { .. })),
            "{refused:?}"
        );
        volume.compact(&mut |_| true).unwrap();
        let stats = volume.stats().unwrap();
        assert!(stats.stuck_segments > 0, "{damage:?}: {stats:?}");
        assert!(stats.garbage_bytes < 4 * MIB, "{damage:?}: {stats:?}");
        // The file system is full: each write depends on reclaim.
        file.limit(file.allocated().unwrap() + 4 * MIB);
        for n in 0..1000 {
            let at = END / 2 + n * 16 % (END / 2);
            write_noise(&volume, &mut ws, at, at as u32, 4);
        }
        for at in (512..END).step_by(16) {
            volume.read(&mut ws, at, &mut block).unwrap();
            assert_eq!(tag_of(&block), 2 + 3 * at as u32, "{damage:?}: block {at}");
        }
    }
}

/// P2: before writes fail there is a warning, and it goes when space is there again.
#[test]
fn a_file_runs_low_before_it_is_full() {
    const BLOCKS: u64 = 6000;
    const RECORD: u64 = 4;
    let (file, volume) = on_a_small_disk(BLOCKS);
    let mut ws = volume.workspace().unwrap();
    let mut data = vec![0; (RECORD * BLOCK) as usize];
    let mut warned_at = None;
    let mut full_at = None;
    for at in (0..BLOCKS).step_by(RECORD as usize) {
        noise(at as u32, &mut data);
        if volume.write(&mut ws, at, &data) == Err(Error::NoSpace) {
            full_at = Some(at * BLOCK);
            break;
        }
        if warned_at.is_none() && volume.stats().unwrap().low == 1 {
            warned_at = Some(at * BLOCK);
        }
    }
    let (warned_at, full_at) = (warned_at.expect("a warning"), full_at.expect("a full file"));
    assert!(volume.low() && volume.full());
    // 5 % of the device, less what is reserved.
    assert!(warned_at + MIB / 4 < full_at, "{warned_at}, {full_at}");
    assert!(warned_at > 6 * MIB, "{warned_at}");
    file.limit(32 * MIB);
    assert_eq!(volume.stats().unwrap().low, 0);
    file.limit(12 * MIB);
    assert_eq!(volume.stats().unwrap().low, 1);
    volume.set_warn_percent(0);
    assert!(!volume.low());
}

/// P2: a block device has no file system that says what is left, but the warning comes all the same.
#[test]
fn a_block_device_runs_low_before_it_is_full() {
    const BLOCKS: u64 = 6000;
    const RECORD: u64 = 4;
    let file = SimFile::block_device(16 * MIB);
    let create = CreateOptions {
        size: BLOCKS * BLOCK,
        ..options(16384, Algorithm::Lz4)
    };
    Vol::create(&file, &create).unwrap();
    let volume = Vol::open(file.clone(), Access::Write).unwrap();
    assert_eq!(volume.stats().unwrap().low, 0);
    let mut ws = volume.workspace().unwrap();
    let mut data = vec![0; (RECORD * BLOCK) as usize];
    let mut warned_at = None;
    let full_at = (0..BLOCKS).step_by(RECORD as usize).find(|&at| {
        noise(at as u32, &mut data);
        let full = volume.write(&mut ws, at, &data) == Err(Error::NoSpace);
        if warned_at.is_none() && volume.stats().unwrap().low == 1 {
            warned_at = Some(at);
        }
        full
    });
    let (warned_at, full_at) = (
        warned_at.expect("a warning"),
        full_at.expect("a full device"),
    );
    let (warned_at, full_at) = (warned_at * BLOCK, full_at * BLOCK);
    assert!(warned_at + MIB / 4 < full_at, "{warned_at}, {full_at}");
    assert!(warned_at > 8 * MIB, "{warned_at}");
    volume.zero(&mut ws, 0, BLOCKS / 2).unwrap();
    (0..3).for_each(|_| volume.checkpoint().unwrap());
    assert_eq!(volume.stats().unwrap().low, 0);
    volume.close().unwrap();
    assert_checked(&file, "at the end");
}

/// An image with this many blocks on a disk of 12 MiB.
fn on_a_small_disk(blocks: u64) -> (SimFile, Vol) {
    let file = SimFile::new();
    let create = CreateOptions {
        size: blocks * BLOCK,
        ..options(16384, Algorithm::Lz4)
    };
    Vol::create(&file, &create).unwrap();
    file.limit(12 * MIB);
    let volume = Vol::open(file.clone(), Access::Write).unwrap();
    (file, volume)
}

/// P2: a full file system is emptied through the device, again and again.
#[test]
fn a_full_file_is_emptied_and_filled_again() {
    const BLOCKS: u64 = 6000;
    let (file, mut volume) = on_a_small_disk(BLOCKS);
    let mut model = vec![0u32; BLOCKS as usize];
    let mut rng = Rng(99);
    let mut n = 0;
    for cycle in 0..10 {
        let mut ws = volume.workspace().unwrap();
        let mut written = 0;
        let error = loop {
            let at = rng.below(BLOCKS / 4) * 4;
            let mut data = vec![0; 4 * BLOCK_SIZE];
            n += 4;
            noise(n, &mut data);
            match volume.write(&mut ws, at, &data) {
                Ok(()) => {
                    (0..4).for_each(|i| model[(at + i) as usize] = 2 + 3 * (n + i as u32));
                    written += 1;
                }
                Err(error) => {
                    // A part of the data may have been written.
                    volume.zero(&mut ws, at, 4).unwrap();
                    model[at as usize..at as usize + 4].fill(0);
                    break error;
                }
            }
        };
        assert_eq!(error, Error::NoSpace, "cycle {cycle}");
        assert!(written >= 100, "cycle {cycle}: only {written} writes");
        assert_eq!(volume.stats().unwrap().full, 1);
        volume.flush().unwrap();
        volume.checkpoint().unwrap();
        let live = model.iter().filter(|&&tag| tag != 0).count() as u64 * BLOCK;
        assert!(live > 8 * MIB, "cycle {cycle}: full at {live} live bytes");
        // Discard half of the device, in small and in large pieces, and make each discard durable.
        for piece in 0..BLOCKS / 8 {
            let at = piece * 8 + rng.below(2) * 4;
            volume.zero(&mut ws, at, 4).unwrap();
            model[at as usize..at as usize + 4].fill(0);
            volume.flush().unwrap();
        }
        if cycle % 3 == 2 {
            volume.close().unwrap();
            assert_checked(&file, &format!("cycle {cycle}"));
            volume = Vol::open(file.clone(), Access::Write).unwrap();
        } else if cycle % 3 == 1 {
            // The power fails while the file system is full.
            drop(volume);
            volume = Vol::open(file.clone(), Access::Write).unwrap();
        }
        let mut ws = volume.workspace().unwrap();
        let mut block = vec![0; BLOCK_SIZE];
        for (at, &tag) in (0..).zip(&model) {
            volume.read(&mut ws, at, &mut block).unwrap();
            assert_eq!(tag_of(&block), tag, "cycle {cycle} block {at}");
        }
    }
    volume.close().unwrap();
    assert_checked(&file, "at the end");
}

/// P2: on a file system that other programs fill, space that is given back is lost, and with records of
/// 64 KiB the unused end of each segment was given back. The search for space, for writes and for
/// compaction, must still leave discards their share of the reserve.
#[test]
fn what_others_take_is_not_counted_on() {
    const BLOCKS: u64 = 2000;
    let mut refused = 0;
    for seed in 0..150 {
        let file = SimFile::new();
        let create = CreateOptions {
            size: BLOCKS * BLOCK,
            ..options(65536, Algorithm::Lz4)
        };
        Vol::create(&file, &create).unwrap();
        let volume = Vol::open(file.clone(), Access::Write).unwrap();
        let mut ws = volume.workspace().unwrap();
        let mut rng = Rng(seed);
        for at in (0..BLOCKS).step_by(16) {
            write_noise(&volume, &mut ws, at, at as u32, 16);
        }
        for n in 0..30 + rng.below(100) {
            write_noise(&volume, &mut ws, rng.below(BLOCKS - 4), n as u32, 4);
        }
        volume.flush().unwrap();
        file.limit(MIB);
        let mut data = vec![0; 16 * BLOCK_SIZE];
        noise(seed as u32, &mut data);
        for round in 0..40 {
            let at = rng.below(BLOCKS - 16);
            match volume.write(&mut ws, at, &data) {
                Ok(()) => {}
                Err(Error::NoSpace) => refused += 1,
                Err(error) => panic!("seed {seed}, round {round}: {error}"),
            }
            if round == 0 || rng.below(4) == 0 {
                volume.compact(&mut |_| true).unwrap();
            }
            let done = volume.zero(&mut ws, rng.below(BLOCKS - 4), 4);
            assert_eq!(
                done,
                Ok(()),
                "seed {seed}, round {round} {:?}",
                volume.stats()
            );
        }
        volume.close().unwrap();
        assert_checked(&file, &format!("seed {seed}"));
    }
    assert!(refused > 0, "{refused} writes refused");
}

/// P2: after a power failure on a full file system, a file system on the device replays its journal. It
/// writes to scattered blocks and does not mark them as metadata. Without these writes it cannot be
/// mounted, and nothing can be deleted.
#[test]
fn a_journal_is_replayed_on_a_full_file() {
    const BLOCKS: u64 = 6000;
    const JOURNAL: u64 = 96;
    for seed in 0..40 {
        let (file, volume) = on_a_small_disk(BLOCKS);
        let mut ws = volume.workspace().unwrap();
        let mut rng = Rng(seed);
        // The structures of the file system.
        for at in 0..BLOCKS / 16 {
            write_noise(&volume, &mut ws, at, at as u32, 1);
        }
        volume.flush().unwrap();
        let mut data = vec![0; 4 * BLOCK_SIZE];
        noise(7, &mut data);
        let mut n = 0;
        loop {
            // Files, each with some metadata behind it.
            let at = BLOCKS / 16 + rng.below(BLOCKS / 4 * 15 / 16) * 4;
            match volume.write(&mut ws, at, &data) {
                Ok(()) => {}
                Err(Error::NoSpace) => break,
                Err(error) => panic!("seed {seed}: {error}"),
            }
            n += 1;
            if n % 8 == 0 {
                let at = rng.below(BLOCKS / 16);
                volume
                    .write_metadata(&mut ws, at, &data[..BLOCK_SIZE])
                    .unwrap();
                volume.flush().unwrap();
            }
        }
        // The last commits of the journal, as long as there is room.
        for _ in 0..rng.below(200) {
            let at = rng.below(BLOCKS / 16);
            if volume
                .write_metadata(&mut ws, at, &data[..BLOCK_SIZE])
                .is_err()
            {
                break;
            }
            volume.flush().unwrap();
        }
        // The power fails again and again.
        let mut file = file;
        for round in 0..4 {
            file = file.after_crash(&mut rng);
            file.limit(12 * MIB);
            let volume = Vol::open(file.clone(), Access::Write)
                .unwrap_or_else(|e| panic!("seed {seed}, round {round}: {e}"));
            for block in 0..rng.below(JOURNAL) {
                let at = rng.below(BLOCKS / 16);
                let done = volume.write(&mut ws, at, &data[..BLOCK_SIZE]);
                assert_eq!(
                    done,
                    Ok(()),
                    "seed {seed}, round {round}, block {block} {:?}",
                    volume.stats()
                );
            }
            volume.flush().unwrap();
            // ext4 does not mark its superblock as metadata either, and gives up if the write fails.
            let done = volume.write(&mut ws, 0, &data[..BLOCK_SIZE]);
            assert_eq!(done, Ok(()), "seed {seed}, round {round}, superblock");
            volume.flush().unwrap();
        }
    }
}

/// I19: the space that a discard freed is used again while the discard is only in the log. After a crash
/// the leaves below it are detached, and refer to segments that have another incarnation, or none.
#[test]
fn records_of_a_detached_subtree_may_be_gone() {
    const BLOCKS: u64 = 6000;
    const LEAF: u64 = 512;
    let (mut detached, mut lost) = (0, 0);
    for seed in 0..60 {
        let (file, volume) = on_a_small_disk(BLOCKS);
        let mut ws = volume.workspace().unwrap();
        let mut rng = Rng(seed);
        let fill = |ws: &mut _, tag: u32, start: u64, end: u64| {
            let mut data = vec![0; 4 * BLOCK_SIZE];
            noise(tag, &mut data);
            (start / 4..end / 4)
                .filter(|at| volume.write(ws, at * 4, &data).is_ok())
                .count()
        };
        fill(&mut ws, 7, 0, BLOCKS);
        for _ in 0..3 {
            volume.checkpoint().unwrap();
        }
        // The leaves are in memory, so each block is subtracted from the counts at once.
        let leaves = 2 + rng.below(3);
        // The first operation of the replay loads a leaf with the nodes above it.
        volume.zero(&mut ws, leaves * LEAF + 8, 4).unwrap();
        volume.zero(&mut ws, 0, leaves * LEAF).unwrap();
        volume.flush().unwrap();
        // New data of the last leaf goes where the data of the first leaf was.
        let end = leaves * LEAF;
        fill(&mut ws, 9, end - LEAF, end - rng.below(LEAF));
        volume.flush().unwrap();
        let crashed = file.after_crash(&mut rng);
        assert_checked(&crashed, &format!("seed {seed}"));
        let summary = check::check::<Home>(crashed.copy(), &mut |_| {}, &mut |_, _| {}).unwrap();
        detached += summary.detached_blocks;
        let mut expected = vec![0; BLOCK_SIZE];
        let mut found = vec![0; BLOCK_SIZE];
        // A repair must not take the present incarnation of such a segment for damage either.
        let repaired = crashed.copy();
        repaired.damage([90, 65_536 + 90][seed as usize % 2], 4);
        let refuse = Doubtful::Refuse;
        let open = &mut || Ok(repaired.clone());
        repair::<Home>(open, refuse, &mut |_| {}, &mut |_, _| {}).unwrap();
        assert_checked(&repaired, &format!("seed {seed}, repaired"));
        let repaired = Vol::open(repaired, Access::Read).unwrap();
        // Without the discard, the old contents and the new ones do not fit into one segment.
        let forgetful = crashed.copy();
        for (at, _) in records(&crashed).iter().filter(|r| r.1.kind == Kind::Zero) {
            overwrite(&forgetful, *at, &[0xa5; 32]);
        }
        let mut reports = Vec::new();
        let mut report = |r: &Report| reports.push(*r);
        let open = &mut || Ok(forgetful.clone());
        let outcome = repair::<Home>(open, Doubtful::Keep, &mut report, &mut |_, _| {});
        let unnamed = outcome.unwrap().unnamed;
        assert!(
            unnamed > 0 || summary.detached_blocks == 0,
            "seed {seed}: {reports:?}"
        );
        let listed = |block| {
            let within =
                |f: &check::Finding| f.blocks.is_some_and(|(s, n)| (s..s + n).contains(&block));
            reports.iter().any(|r| match r {
                Report::Left(f) => within(f),
                Report::Damage(f) => within(f) && f.data,
                _ => false,
            })
        };
        let forgetful = Vol::open(forgetful, Access::Write).unwrap();
        let read_only = Vol::open(crashed.copy(), Access::Read).unwrap();
        let opened = Vol::open(crashed.clone(), Access::Write).unwrap();
        // Crash again, before the background has reaped much.
        let again = crashed.after_crash(&mut rng);
        assert_checked(&again, &format!("seed {seed}, again"));
        let again = Vol::open(again, Access::Read).unwrap();
        for at in 0..BLOCKS {
            volume.read(&mut ws, at, &mut expected).unwrap();
            for other in [&repaired, &read_only, &opened, &again] {
                other
                    .read(&mut other.workspace().unwrap(), at, &mut found)
                    .unwrap();
                assert!(found == expected, "seed {seed}: block {at}");
            }
            // Blocks whose discard was forgotten are there, or are listed.
            let read = forgetful.read(&mut ws, at, &mut found);
            let discarded = at < end + 12 && tag_of(&expected) == 0;
            if !listed(at) && !discarded {
                assert!(
                    read.is_ok() && found == expected,
                    "seed {seed}: block {at} forgotten"
                );
            }
            lost += u64::from(listed(at));
        }
        opened.close().unwrap();
        assert_checked(&crashed, &format!("seed {seed}, closed"));
    }
    assert!(detached > 0, "there were no detached subtrees");
    assert!(lost > 0, "nothing was lost with the discards");
}

#[test]
fn compaction_leaves_a_small_image() {
    let file = SimFile::new();
    let create = CreateOptions {
        size: 32 * MIB,
        ..options(65536, Algorithm::Lz4)
    };
    Vol::create(&file, &create).unwrap();
    let volume = Vol::open(file.clone(), Access::Write).unwrap();
    let mut ws = volume.workspace().unwrap();
    for at in (0..24 * MIB / BLOCK).step_by(16) {
        write_noise(&volume, &mut ws, at, at as u32, 16);
    }
    let keep = |at: u64| at % 16 == 5 || at % 64 == 6;
    for at in (0..24 * MIB / BLOCK).filter(|&at| !keep(at)) {
        volume.zero(&mut ws, at, 1).unwrap();
    }
    volume.compact(&mut |_| true).unwrap();
    volume.close().unwrap();
    let live = (0..24 * MIB / BLOCK).filter(|&at| keep(at)).count() as u64 * BLOCK;
    let (len, allocated) = (file.len().unwrap(), file.allocated().unwrap());
    // The superblocks' MiB, 3 %, and three segments. The file may be longer by the segments that were
    // reserved.
    let limit = MIB + live + live / 32 + 6 * 256 * 1024;
    assert!(
        allocated <= limit,
        "{allocated} bytes for {live} live bytes"
    );
    assert!(len < 20 * MIB, "{len} bytes long for {live} live bytes");
    assert_checked(&file, "compacted");
    expect_noise(
        &Vol::open(file, Access::Read).unwrap(),
        24 * MIB / BLOCK,
        keep,
    );
}

/// P2: a file system must write before it can delete: its journal and, after a crash, the contents of the
/// journal.
#[test]
fn a_full_file_takes_metadata() {
    const BLOCKS: u64 = 6000;
    let (file, mut volume) = on_a_small_disk(BLOCKS);
    let mut data = vec![0; BLOCK_SIZE];
    let mut full = 0;
    for cycle in 0..4u64 {
        let mut ws = volume.workspace().unwrap();
        // The first blocks are the journal.
        full = (100.max(full / 2)..BLOCKS)
            .find(|&at| {
                noise(at as u32, &mut data);
                volume.write(&mut ws, at, &data).is_err()
            })
            .expect("a full file");
        noise(0, &mut data);
        assert_eq!(volume.write(&mut ws, full, &data), Err(Error::NoSpace));
        for at in 0..32 {
            noise((cycle * 1000 + at) as u32, &mut data);
            volume.write_metadata(&mut ws, at, &data).unwrap();
        }
        // Reclaim may have found space for a few blocks meanwhile, where the old metadata was.
        full = (full..full + 64)
            .find(|&at| volume.write(&mut ws, at, &data) == Err(Error::NoSpace))
            .expect("a full file");
        assert_eq!(volume.stats().unwrap().full, 1, "cycle {cycle}");
        volume.flush().unwrap();
        if cycle % 2 == 1 {
            // The power fails.
            drop(volume);
            volume = Vol::open(file.clone(), Access::Write).unwrap();
            ws = volume.workspace().unwrap();
            for at in 0..32 {
                noise((cycle * 1000 + at) as u32, &mut data);
                volume.write(&mut ws, at, &data).unwrap();
            }
        }
        volume.zero(&mut ws, full / 2, full - full / 2).unwrap();
        for at in 0..32 {
            volume.read(&mut ws, at, &mut data).unwrap();
            let tag = 2 + 3 * (cycle * 1000 + at) as u32;
            assert_eq!(tag_of(&data), tag, "cycle {cycle} block {at}");
        }
    }
    volume.close().unwrap();
    assert_checked(&file, "at the end");
}

/// P6: the table of a large device with scattered blocks.
#[test]
fn the_table_stays_within_its_limit() {
    const LEAVES: u64 = 10_000;
    const LIMIT: u64 = 2 * MIB;
    let file = SimFile::new();
    let create = CreateOptions {
        size: LEAVES * 512 * BLOCK,
        ..options(4096, Algorithm::Lz4)
    };
    Vol::create(&file, &create).unwrap();
    let volume = Vol::open(file.clone(), Access::Write).unwrap();
    volume.set_table_limit(LIMIT);
    let mut ws = volume.workspace().unwrap();
    let place = |i: u64| (i * 1777 % LEAVES) * 512 + i % 512;
    let mut most = 0;
    for i in 0..LEAVES {
        write_noise(&volume, &mut ws, place(i), i as u32, 1);
        most = most.max(volume.table_memory());
    }
    let mut block = vec![0; BLOCK_SIZE];
    for i in (0..LEAVES).rev() {
        volume.read(&mut ws, place(i), &mut block).unwrap();
        assert_eq!(tag_of(&block), 2 + 3 * i as u32, "block {}", place(i));
        most = most.max(volume.table_memory());
    }
    assert!(most <= LIMIT + LIMIT / 4, "{most} bytes of table");
    // The limit also holds for the table that a replay has built.
    for i in 0..LEAVES / 10 {
        write_noise(&volume, &mut ws, place(i) ^ 1, i as u32, 1);
    }
    volume.flush().unwrap();
    let recovered = Vol::open(file.after_crash(&mut Rng(5)), Access::Write).unwrap();
    recovered.set_table_limit(LIMIT / 2);
    for i in 0..LEAVES {
        recovered.read(&mut ws, place(i), &mut block).unwrap();
        assert_eq!(tag_of(&block), 2 + 3 * i as u32, "block {}", place(i));
    }
    let memory = recovered.table_memory();
    assert!(
        memory <= LIMIT * 5 / 8,
        "{memory} bytes of table after recovery"
    );
    drop(recovered);
    volume.close().unwrap();
    assert_checked(&file, "a large table");
    let volume = Vol::open(file, Access::Write).unwrap();
    assert!(volume.table_memory() < 64 * 1024, "nothing was loaded yet");
    volume.shed_table(u64::MAX);
    assert_eq!(volume.stats().unwrap().mapped_blocks, LEAVES + LEAVES / 10);
}

/// P4, I19: a discard of leaves that are not in memory reads none of them. The blocks are subtracted from
/// the counts later, whatever happens in between.
#[test]
fn a_large_discard_leaves_its_counting_to_the_background() {
    const LEAVES: u64 = 6000;
    const MAPPED: u64 = 2 * LEAVES;
    let file = SimFile::new();
    let create = CreateOptions {
        size: LEAVES * 512 * BLOCK,
        ..options(4096, Algorithm::Lz4)
    };
    Vol::create(&file, &create).unwrap();
    let volume = Vol::open(file.clone(), Access::Write).unwrap();
    let mut ws = volume.workspace().unwrap();
    for i in 0..LEAVES {
        write_noise(&volume, &mut ws, i * 512 + 7, i as u32, 2);
    }
    volume.close().unwrap();
    let blocks = create.size / BLOCK;
    let mut detached = 0;
    // Discard everything; everything except a part of the first and the last leaf; and some leaves in the
    // middle.
    for (from, to) in [(0, blocks), (8, blocks - 504), (512 * 100, 512 * 3000)] {
        let file = file.copy();
        let volume = Vol::open(file.clone(), Access::Write).unwrap();
        let reads = SimFile::reads_here();
        volume.zero(&mut ws, from, to - from).unwrap();
        let reads = SimFile::reads_here() - reads;
        assert!(reads < 100, "{reads} reads to discard {from}..{to}");
        let kept = |at: u64| !(from..to).contains(&at);
        let expect = |volume: &Vol| {
            let mut ws = volume.workspace().unwrap();
            let mut block = vec![0; BLOCK_SIZE];
            for i in 0..LEAVES {
                for (n, at) in (i as u32..).zip(i * 512 + 7..i * 512 + 9) {
                    volume.read(&mut ws, at, &mut block).unwrap();
                    let tag = if kept(at) { 2 + 3 * n } else { 0 };
                    assert_eq!(tag_of(&block), tag, "block {at} of {from}..{to}");
                }
            }
        };
        // Write there at once, into a leaf that had contents and between its old blocks.
        write_noise(&volume, &mut ws, 512 * 200 + 9, 1, 1);
        volume.flush().unwrap();
        let crashed = file.after_crash(&mut Rng(from));
        let summary =
            check::check::<Home>(crashed.copy(), &mut |f| panic!("{f:?}"), &mut |_, _| {}).unwrap();
        detached += summary.detached_blocks;
        expect(&volume);
        for (volume, file) in [
            (volume, file),
            (Vol::open(crashed.clone(), Access::Write).unwrap(), crashed),
        ] {
            expect(&volume);
            volume.checkpoint().unwrap();
            volume.close().unwrap();
            // The next opening finds the subtrees that were left.
            let volume = Vol::open(file.clone(), Access::Write).unwrap();
            expect(&volume);
            let left = (0..LEAVES * 2)
                .filter(|n| kept(n / 2 * 512 + 7 + n % 2))
                .count() as u64
                + 1;
            let began = Instant::now();
            while volume.stats().unwrap().mapped_blocks != left {
                assert!(
                    began.elapsed() < Duration::from_secs(60),
                    "{left} of {MAPPED} should be left: {:?}",
                    volume.stats()
                );
                std::thread::sleep(Duration::from_millis(20));
            }
            volume.close().unwrap();
            assert_checked(&file, "after a discard");
            let summary = check::check::<Home>(file, &mut |_| {}, &mut |_, _| {}).unwrap();
            assert_eq!((summary.detached_blocks, summary.mapped_blocks), (0, left));
            assert!(
                summary.live_bytes < (left + 64) * (BLOCK + 128),
                "{summary:?}"
            );
        }
    }
    assert!(detached > 0, "the background was always faster");
}

/// P4: the search for zeros costs less than 2 % of a write of other data.
#[test]
fn looking_for_zeros_is_cheap() {
    let volume = on_disk(64 * MIB, 65536);
    let mut ws = volume.workspace().unwrap();
    let mut data = vec![0; 65536];
    let mut time = |block: u64, data: &[u8]| {
        let began = Instant::now();
        volume.write(&mut ws, block, data).unwrap();
        began.elapsed()
    };
    // The shortest of many times is one during which nothing else ran.
    let zeros = (0..1000).map(|_| time(512, &data)).min().unwrap();
    noise(1, &mut data);
    let other = (0..1000).map(|_| time(0, &data)).min().unwrap();
    println!("64 KiB of zeros: {zeros:?}, of noise: {other:?}");
    // Zeros where nothing is stored are only searched, which is almost all of the time. In a block that
    // is not zero only the first 64 bytes are searched, one part in 64.
    assert!(zeros / 64 * 50 <= other, "{zeros:?}, {other:?}");
    assert_eq!(volume.stats().unwrap().mapped_blocks, 16);
    volume.close().unwrap();
}

#[test]
fn a_device_grows_and_shrinks() {
    let file = SimFile::new();
    Vol::create(&file, &options(16384, Algorithm::Lz4)).unwrap();
    let volume = Vol::open(file.clone(), Access::Write).unwrap();
    let mut ws = volume.workspace().unwrap();
    let old = volume.size().blocks();
    write_noise(&volume, &mut ws, 7, 7, 4);
    let size = 600 << 30;
    let mut block = vec![0; BLOCK_SIZE];
    let beyond = volume.read(&mut ws, old, &mut block);
    assert!(matches!(beyond, Err(Error::Invalid(_))));
    volume.resize(&mut ws, size, false).unwrap();
    assert_eq!(volume.size().bytes(), size);
    let last = size / BLOCK - 1;
    write_noise(&volume, &mut ws, last, 99, 1);
    let expect = |volume: &Vol, at: u64, tag: u32| {
        let mut ws = volume.workspace().unwrap();
        let mut block = vec![0; BLOCK_SIZE];
        volume.read(&mut ws, at, &mut block).unwrap();
        assert_eq!(tag_of(&block), tag, "block {at}");
    };
    // After a crash and after a clean close it is the new size.
    volume.flush().unwrap();
    let crashed = Vol::open(file.after_crash(&mut Rng(1)), Access::Read).unwrap();
    assert_eq!(crashed.size().bytes(), size);
    expect(&crashed, last, 2 + 3 * 99);
    volume.close().unwrap();
    assert_checked(&file, "grown");
    let volume = Vol::open(file.clone(), Access::Write).unwrap();
    expect(&volume, last, 2 + 3 * 99);
    expect(&volume, 7, 2 + 3 * 7);
    let shrink = |force| volume.resize(&mut volume.workspace().unwrap(), 8 * BLOCK, force);
    assert_eq!(shrink(false), Err(Error::InUse));
    assert_eq!(volume.size().bytes(), size);
    shrink(true).unwrap();
    expect(&volume, 7, 2 + 3 * 7);
    assert!(matches!(
        volume.read(&mut ws, 8, &mut block),
        Err(Error::Invalid(_))
    ));
    volume.close().unwrap();
    assert_checked(&file, "shrunk");
    let volume = Vol::open(file.clone(), Access::Write).unwrap();
    volume
        .resize(&mut volume.workspace().unwrap(), size, false)
        .unwrap();
    // The contents from before the shrink must not come back.
    expect(&volume, 8, 0);
    expect(&volume, last, 0);
    volume.close().unwrap();
    assert_checked(&file, "grown again");
    let summary = check::check::<Home>(file, &mut |_| {}, &mut |_, _| {}).unwrap();
    assert_eq!(summary.mapped_blocks, 1);
}
