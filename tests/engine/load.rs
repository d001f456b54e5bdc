// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Real threads on a real file: overlapping writes, discards and reads beside checkpoints, compaction and eviction.
//!
//! Each thread has blocks of its own, of which it knows the contents, and all of them share some blocks. There every
//! operation notes when it began and when it ended, so a read can be judged: it answers with something that may
//! have been the newest content at some moment while it was under way. `CLOOP_TEST_LONG` makes it long.

use cloop::engine::check::check;
use cloop::engine::{
    Access, Algorithm, Compression, CreateOptions, Recompression, Volume, Workspace, BLOCK_SIZE,
};
use cloop::platform::sim::Rng;
use cloop::platform::std::{Std, StdFile};
use cloop::simulation::{fill, tag_of};
use std::collections::BTreeMap;
use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::Mutex;

type Home = Std<StdFile>;

const THREADS: u64 = 4;

/// Blocks that all threads share: on both sides of the end of a leaf of the sector table.
const SHARED: std::ops::Range<u64> = 480..544;

/// Blocks of its own that a thread has side by side.
const NEAR: u64 = 1000;

/// Leaves of the sector table in which each thread has a few blocks: more than the smallest limit on its memory holds.
const LEAVES: u64 = 600;

const LEAF: u64 = 512;

/// One change of a shared block: its tag, and between which moments it was made.
struct Change {
    tag: u32,
    from: u64,
    to: u64,
}

/// What the threads know together.
struct Board {
    clock: AtomicU64,
    next_tag: AtomicU32,
    /// Changes of each shared block since the round began.
    changes: Vec<Mutex<Vec<Change>>>,
}

impl Board {
    fn new(tags: &[u32], next_tag: u32) -> Self {
        let start = |&tag| {
            let (from, to) = (0, 0);
            Mutex::new(vec![Change { tag, from, to }])
        };
        Self {
            clock: AtomicU64::new(1),
            next_tag: AtomicU32::new(next_tag),
            changes: tags.iter().map(start).collect(),
        }
    }

    fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    /// A new tag, whose contents compress well, badly or not at all.
    fn tag(&self) -> u32 {
        self.next_tag.fetch_add(1, Ordering::Relaxed)
    }

    /// Makes a change of shared blocks.
    fn change(&self, block: u64, tags: &[u32], make: impl FnOnce()) {
        let of = |at: usize| {
            self.changes[(block - SHARED.start) as usize + at]
                .lock()
                .unwrap()
        };
        let (from, to) = (self.now(), u64::MAX);
        for (at, &tag) in tags.iter().enumerate() {
            of(at).push(Change { tag, from, to });
        }
        make();
        let end = self.now();
        for at in 0..tags.len() {
            let mut changes = of(at);
            let ours = changes.iter_mut().find(|c| c.from == from);
            ours.expect("it was noted").to = end;
        }
    }

    /// A read of a shared block between these moments found this.
    fn judge(&self, block: u64, tag: u32, from: u64, to: u64) {
        let changes = self.changes[(block - SHARED.start) as usize]
            .lock()
            .unwrap();
        // What ended before this began was superseded before the read.
        let ended = changes.iter().filter(|c| c.to < from);
        let last_began = ended.map(|c| c.from).max().unwrap_or(0);
        let fits = |c: &Change| c.tag == tag && c.from < to && c.to >= last_began;
        let fits = changes.iter().any(fits);
        let last = changes.iter().rev().take(8);
        assert!(
            fits,
            "block {block} held {tag} between {from} and {to}; it became {:?}",
            last.map(|c| (c.tag, c.from, c.to)).collect::<Vec<_>>()
        );
    }
}

/// A thread: its blocks and what they hold.
struct Worker<'a> {
    volume: &'a Volume<Home>,
    ws: Workspace<Home>,
    board: &'a Board,
    number: u64,
    rng: Rng,
    own: &'a mut BTreeMap<u64, u32>,
}

fn read(volume: &Volume<Home>, ws: &mut Workspace<Home>, block: u64, count: u64) -> Vec<u32> {
    let mut data = vec![0xee; count as usize * BLOCK_SIZE];
    volume.read(ws, block, &mut data).unwrap();
    let tags = (block..).zip(data.chunks_exact(BLOCK_SIZE));
    tags.map(|(b, bytes)| tag_of(bytes).unwrap_or_else(|| panic!("block {b} is a mixture")))
        .collect()
}

impl Worker<'_> {
    /// A range of its own blocks, at most `most` long.
    fn place(&mut self, most: u64) -> (u64, u64) {
        let (first, len) = match self.rng.below(2) {
            0 => (LEAF * 4 + NEAR * self.number, NEAR),
            _ => (LEAF * (20 + self.rng.below(LEAVES)) + 8 * self.number, 8),
        };
        let at = self.rng.below(len);
        (first + at, 1 + self.rng.below(most.min(len - at)))
    }

    fn shared_place(&mut self, most: u64) -> (u64, u64) {
        let at = self.rng.below(SHARED.end - SHARED.start);
        let rest = SHARED.end - SHARED.start - at;
        (SHARED.start + at, 1 + self.rng.below(most.min(rest)))
    }

    /// New tags, and the contents that follow from them.
    fn contents(&mut self, count: u64) -> (Vec<u32>, Vec<u8>) {
        let mut tags = Vec::new();
        for _ in 0..count {
            tags.push(match self.rng.below(8) {
                0 => 0,
                _ => self.board.tag(),
            });
        }
        let mut data = vec![0; tags.len() * BLOCK_SIZE];
        for (tag, bytes) in tags.iter().zip(data.chunks_exact_mut(BLOCK_SIZE)) {
            fill(*tag, bytes);
        }
        (tags, data)
    }

    fn operate(&mut self) {
        let volume = self.volume;
        match self.rng.below(24) {
            0..=5 => {
                let (block, count) = self.place(32);
                let (tags, data) = self.contents(count);
                volume.write(&mut self.ws, block, &data).unwrap();
                self.own.extend((block..).zip(tags));
            }
            6 | 7 => {
                let (block, count) = self.place(64);
                volume.zero(&mut self.ws, block, count).unwrap();
                self.own.extend((block..block + count).map(|b| (b, 0)));
            }
            8..=10 => {
                let (block, count) = self.place(64);
                let found = read(volume, &mut self.ws, block, count);
                for (b, tag) in (block..).zip(found) {
                    let known = self.own.get(&b).copied().unwrap_or(0);
                    assert_eq!(tag, known, "block {b} of thread {}", self.number);
                }
            }
            11..=14 => {
                let (block, count) = self.shared_place(4);
                let (tags, data) = self.contents(count);
                let (board, ws) = (self.board, &mut self.ws);
                board.change(block, &tags, || volume.write(ws, block, &data).unwrap());
            }
            15 | 16 => {
                let (block, count) = self.shared_place(16);
                let (board, ws) = (self.board, &mut self.ws);
                let zeros = vec![0; count as usize];
                board.change(block, &zeros, || volume.zero(ws, block, count).unwrap());
            }
            17..=21 => {
                let (block, count) = self.shared_place(16);
                let from = self.board.now();
                let found = read(volume, &mut self.ws, block, count);
                let to = self.board.now();
                for (b, tag) in (block..).zip(found) {
                    self.board.judge(b, tag, from, to);
                }
            }
            22 => volume.flush().unwrap(),
            _ => volume.force_unit_access().unwrap(),
        }
    }
}

/// What goes on beside the threads, until they are done.
fn disturb(volume: &Volume<Home>, done: &AtomicBool, mut rng: Rng) {
    while !done.load(Ordering::Relaxed) {
        match rng.below(4) {
            0 => volume.checkpoint().unwrap(),
            1 => {
                let mut steps = 1 + rng.below(3);
                let mut go_on = |_| {
                    steps -= 1;
                    steps > 0 && !done.load(Ordering::Relaxed)
                };
                volume.compact(&mut go_on).unwrap();
            }
            _ => volume.shed_table(rng.below(2 << 20)),
        }
        std::thread::yield_now();
    }
}

/// The volume after a clean close, or after everything was flushed and nobody closed it.
fn reopen(file: &File, volume: Option<Volume<Home>>, clean: bool) -> Volume<Home> {
    if let Some(volume) = volume {
        match clean {
            true => volume.close().unwrap(),
            false => volume.flush().unwrap(),
        }
    }
    let file = StdFile::from_file(file.try_clone().unwrap()).unwrap();
    let volume = Volume::open(file, Access::Write).unwrap();
    volume.set_table_limit(1 << 20);
    volume
}

fn load(record_size: u32, rounds: u64, operations: u64) {
    let file = tempfile::tempfile().unwrap();
    let options = CreateOptions {
        size: 4 << 30,
        record_size,
        segment_size: 256 << 10,
        compression: Compression::of(Algorithm::Lz4),
        recompression: Recompression::OFF,
        uuid: *b"a file for tests",
    };
    let image = || StdFile::from_file(file.try_clone().unwrap()).unwrap();
    Volume::<Home>::create(&image(), &options).unwrap();
    let mut volume = reopen(&file, None, true);
    let mut own = vec![BTreeMap::new(); THREADS as usize];
    let mut shared = vec![0; (SHARED.end - SHARED.start) as usize];
    let mut next_tag = 1;
    for round in 0..rounds {
        let board = Board::new(&shared, next_tag);
        let done = AtomicBool::new(false);
        let seed = |n| Rng((round << 32) | (u64::from(record_size) << 8) | n);
        let disturbance = seed(99);
        std::thread::scope(|scope| {
            let other = scope.spawn(|| disturb(&volume, &done, disturbance));
            let workers: Vec<_> = (0..)
                .zip(&mut own)
                .map(|(number, own)| {
                    let mut worker = Worker {
                        ws: volume.workspace().unwrap(),
                        volume: &volume,
                        board: &board,
                        number,
                        rng: seed(number),
                        own,
                    };
                    scope.spawn(move || (0..operations).for_each(|_| worker.operate()))
                })
                .collect();
            let ended: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
            // Whatever became of them: otherwise this one would go on for ever.
            done.store(true, Ordering::Relaxed);
            other.join().unwrap();
            for result in ended {
                result.unwrap();
            }
        });
        volume = reopen(&file, Some(volume), round % 2 == 0);
        let mut ws = volume.workspace().unwrap();
        for (number, own) in own.iter().enumerate() {
            for (&block, &tag) in own {
                let found = read(&volume, &mut ws, block, 1);
                assert_eq!(found, [tag], "block {block} of thread {number}, reopened");
            }
        }
        let (begin, end) = (SHARED.start, SHARED.end);
        shared = read(&volume, &mut ws, begin, end - begin);
        let now = board.now();
        for (block, &tag) in (begin..).zip(&shared) {
            board.judge(block, tag, now, now + 1);
        }
        next_tag = board.tag();
    }
    volume.close().unwrap();
    let mut findings = Vec::new();
    check::<Home>(image(), &mut |f| findings.push(*f), &mut |_, _| {}).unwrap();
    assert!(findings.is_empty(), "{findings:?}");
}

#[test]
fn threads_share_blocks() {
    let (rounds, operations) = match std::env::var_os("CLOOP_TEST_LONG") {
        Some(_) => (100, 5000),
        None => (3, 800),
    };
    for record_size in [4096, 65_536] {
        load(record_size, rounds, operations);
    }
}
