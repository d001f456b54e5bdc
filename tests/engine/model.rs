// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The model: every block holds a tag, from which the bytes of the block follow.

use cloop::engine::Access;
use cloop::engine::{
    Algorithm, Compression, CreateOptions, Recompression, Volume, Workspace, BLOCK_SIZE,
};
use cloop::platform::sim::{Rng, SimFile};
use cloop::platform::std::Std;
use cloop::simulation;

pub(crate) use cloop::simulation::fill;

pub(crate) type Home = Std<SimFile>;
pub(crate) type Vol = Volume<Home>;

/// Blocks of the device under test: a little more than two leaves of the table.
pub(crate) const BLOCKS: u64 = 1100;

pub(crate) fn options(record_size: u32, algorithm: Algorithm) -> CreateOptions {
    CreateOptions {
        size: BLOCKS * BLOCK_SIZE as u64,
        record_size,
        segment_size: 256 * 1024,
        compression: Compression::of(algorithm),
        recompression: Recompression::OFF,
        uuid: *b"a simulated disk",
    }
}

/// A new image, opened.
pub(crate) fn fresh(record_size: u32) -> (SimFile, Vol) {
    let file = SimFile::new();
    Vol::create(&file, &options(record_size, Algorithm::Lz4)).unwrap();
    let volume = Vol::open(file.clone(), Access::Write).unwrap();
    (file, volume)
}

/// The tag of a block; panics if the block is not what its tag says.
pub(crate) fn tag_of(block: &[u8]) -> u32 {
    simulation::tag_of(block).expect("a block of mixed contents")
}

/// One change of the device in the order of the log: neighbouring blocks and their new tags.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) block: u64,
    pub(crate) tags: Vec<u32>,
}

/// A volume, its history, and the state to which the history leads.
pub(crate) struct Tested {
    pub(crate) volume: Vol,
    pub(crate) ws: Workspace<Home>,
    pub(crate) steps: Vec<Step>,
    /// Steps that a completed flush covers.
    pub(crate) durable: usize,
    /// State before the first step.
    pub(crate) start: Vec<u32>,
    next_tag: u32,
    record_blocks: u64,
}

impl Tested {
    pub(crate) fn new(volume: Vol, start: Vec<u32>, next_tag: u32) -> Self {
        let record_blocks = u64::from(volume.layout().record_size) / BLOCK_SIZE as u64;
        Self {
            ws: volume.workspace().unwrap(),
            volume,
            steps: Vec::new(),
            durable: 0,
            start,
            next_tag,
            record_blocks,
        }
    }

    pub(crate) fn next_tag(&self) -> u32 {
        self.next_tag
    }

    /// The state after the first `n` steps.
    pub(crate) fn state_after(&self, n: usize) -> Vec<u32> {
        let mut state = self.start.clone();
        for step in &self.steps[..n] {
            apply(&mut state, step);
        }
        state
    }

    /// The state after all steps.
    pub(crate) fn state(&self) -> Vec<u32> {
        self.state_after(self.steps.len())
    }

    /// Writes blocks with new tags, some of them zero. The parts are noted whether the write fails or
    /// not.
    pub(crate) fn write(&mut self, block: u64, count: u64, zeros: bool, rng: &mut Rng) -> bool {
        let mut tags = Vec::new();
        for _ in 0..count {
            self.next_tag += 1;
            let zero = zeros && rng.below(3) == 0;
            tags.push(if zero { 0 } else { self.next_tag });
        }
        let mut data = vec![0; tags.len() * BLOCK_SIZE];
        for (tag, block) in tags.iter().zip(data.chunks_exact_mut(BLOCK_SIZE)) {
            fill(*tag, block);
        }
        // Each record is a step of its own.
        let (mut at, mut rest) = (block, tags.as_slice());
        while !rest.is_empty() {
            let n = (self.record_blocks - at % self.record_blocks).min(rest.len() as u64);
            let (now, later) = rest.split_at(n as usize);
            self.steps.push(Step {
                block: at,
                tags: now.to_vec(),
            });
            (at, rest) = (at + n, later);
        }
        // Now and then in two halves.
        if self.next_tag % 4 != 0 {
            return self.volume.write(&mut self.ws, block, &data).is_ok();
        }
        let mut batch = self.volume.batch(data.len()).unwrap();
        self.volume
            .encode(&mut self.ws, block, &data, &mut batch)
            .and_then(|()| self.volume.write_batch(&mut self.ws, &batch))
            .is_ok()
    }

    pub(crate) fn zero(&mut self, block: u64, count: u64) -> bool {
        self.steps.push(Step {
            block,
            tags: vec![0; count as usize],
        });
        self.volume.zero(&mut self.ws, block, count).is_ok()
    }

    pub(crate) fn flush(&mut self) -> bool {
        let ok = self.volume.flush().is_ok();
        if ok {
            self.durable = self.steps.len();
        }
        ok
    }

    pub(crate) fn checkpoint(&mut self) -> bool {
        let ok = self.volume.checkpoint().is_ok();
        if ok {
            self.durable = self.steps.len();
        }
        ok
    }

    /// Performs one random operation; false if it failed.
    pub(crate) fn random_operation(&mut self, rng: &mut Rng) -> bool {
        let block = rng.below(BLOCKS);
        let rest = BLOCKS - block;
        match rng.below(20) {
            0..=8 => self.write(block, 1 + rng.below(rest.min(4)), false, rng),
            9..=11 => self.write(block, 1 + rng.below(rest.min(80)), true, rng),
            12..=13 => self.zero(block, 1 + rng.below(rest.min(8))),
            14 => self.zero(block, 1 + rng.below(rest)),
            15..=17 => self.flush(),
            18 => self.checkpoint(),
            _ => {
                let n = 1 + rng.below(rest.min(64));
                let expected = &self.state()[block as usize..(block + n) as usize];
                match read_tags(&self.volume, &mut self.ws, block, n) {
                    Some(tags) => {
                        assert_eq!(tags, expected, "reading {n} blocks at {block}");
                        true
                    }
                    None => false,
                }
            }
        }
    }
}

pub(crate) fn apply(state: &mut [u32], step: &Step) {
    let at = step.block as usize;
    state[at..at + step.tags.len()].copy_from_slice(&step.tags);
}

/// The tags of a range; `None` when reading fails.
pub(crate) fn read_tags(
    volume: &Vol,
    ws: &mut Workspace<Home>,
    block: u64,
    n: u64,
) -> Option<Vec<u32>> {
    let mut data = vec![0; n as usize * BLOCK_SIZE];
    volume.read(ws, block, &mut data).ok()?;
    Some(data.chunks_exact(BLOCK_SIZE).map(tag_of).collect())
}

/// The tags of the whole device.
pub(crate) fn read_all(volume: &Vol) -> Vec<u32> {
    let mut ws = volume.workspace().unwrap();
    read_tags(volume, &mut ws, 0, BLOCKS).expect("reading the device")
}

/// Every structure and record of a closed or crashed image is whole.
pub(crate) fn assert_checked(file: &SimFile, what: &str) {
    let mut findings = Vec::new();
    let summary = cloop::engine::check::check::<Home>(
        file.copy(),
        &mut |f| findings.push(*f),
        &mut |_, _| {},
    );
    assert!(findings.is_empty(), "{what}: {findings:?}");
    summary.unwrap_or_else(|e| panic!("{what}: {e}"));
}
