// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The submitters: what they do to the volume, and what they expect of it while it runs.

use super::{fill, round, tag_of, Plan, Profile, Shared, BLOCKS};
use crate::engine::{Error, Volume, Workspace, BLOCK_SIZE};
use crate::platform::sim::{self, Placed, Rng, Sim};
use std::format;
use std::vec::Vec;

pub(super) fn apply(state: &mut [u32], change: &Placed) {
    let at = change.block as usize;
    state[at..at + change.tags.len()].copy_from_slice(&change.tags);
}

/// One submitter. It stops at the first error that is not about space or memory.
pub(super) fn submit(volume: &Volume<Sim>, shared: &Shared, plan: Plan, name: u64, rng: Rng) {
    let Ok(mut site) = Submitter::new(volume, shared, name, rng) else {
        return;
    };
    site.incompressible = plan.profile == Profile::Pressure;
    for _ in 0..plan.operations {
        let result = match plan.profile {
            Profile::Mixed => site.mixed(),
            Profile::Pressure => site.press(),
        };
        match result {
            Ok(()) | Err(Error::NoSpace | Error::NoMemory) => {}
            Err(Error::Corrupt { .. }) if volume.file().harmed() => {}
            Err(Error::Corrupt { what, offset }) => {
                let text = format!("damaged {what} at {offset}, without any damage done");
                return round(shared).object(text);
            }
            Err(error) => {
                return round(shared).say(format_args!("{name}: stops, {error}"));
            }
        }
    }
}

pub(super) struct Submitter<'a> {
    volume: &'a Volume<Sim>,
    shared: &'a Shared,
    name: u64,
    rng: Rng,
    ws: Workspace<Sim>,
    /// Nearly nothing it writes can be compressed.
    incompressible: bool,
}

impl<'a> Submitter<'a> {
    pub(super) fn new(
        volume: &'a Volume<Sim>,
        shared: &'a Shared,
        name: u64,
        rng: Rng,
    ) -> Result<Self, Error> {
        Ok(Self {
            ws: volume.workspace()?,
            volume,
            shared,
            name,
            rng,
            incompressible: false,
        })
    }

    /// Any operation.
    fn mixed(&mut self) -> Result<(), Error> {
        let block = match self.rng.below(4) {
            0 => self.rng.below(BLOCKS),
            1 => 500 + self.rng.below(24),
            _ => self.rng.below(40),
        };
        let rest = BLOCKS - block;
        let size = self.rng.next_u64();
        let up_to = |max: u64| 1 + size % max.min(rest);
        match self.rng.below(20) {
            0..=4 => self.write(block, up_to(4)).map(|_| ()),
            16 => self.compact(),
            17 => self.resize(),
            18 => {
                self.volume.shed_table(u64::MAX);
                Ok(())
            }
            5 => self.write(block, up_to(64)).map(|_| ()),
            6 | 7 => self.write_through(block),
            8 | 9 => self.zero(block, up_to(16)),
            10 => self.zero(block, up_to(rest)),
            11 | 12 => self.flush(),
            13 => self.checkpoint(),
            _ => self.read(block, up_to(32)),
        }
    }

    /// What wears a small image out.
    fn press(&mut self) -> Result<(), Error> {
        const WORKING_SET: u64 = 400;
        let block = 300 + self.rng.below(WORKING_SET);
        let size = 1 + self.rng.below(64);
        match self.rng.below(16) {
            0..=3 => self.write(block, 1 + size % 4).map(|_| ()),
            4..=7 => self.write(block, size).map(|_| ()),
            8 => self.write_through(block),
            9 => self.zero(block, size),
            10 => self.zero(300, 2 * size),
            11 => self.flush(),
            12 => self.checkpoint(),
            13 => self.compact(),
            _ => self.read(block, size),
        }
    }

    fn compact(&mut self) -> Result<(), Error> {
        let mut steps = self.rng.below(4);
        let result = self.volume.compact(&mut |_| {
            steps = steps.saturating_sub(1);
            steps > 0
        });
        round(self.shared).say(format_args!("{}: compact: {result:?}", self.name));
        result
    }

    /// What lies beyond the first size is never written.
    fn resize(&mut self) -> Result<(), Error> {
        let blocks = [BLOCKS, BLOCKS + 500, 300_000, 1 << 20][self.rng.below(4) as usize];
        let size = blocks * BLOCK_SIZE as u64;
        let result = self.volume.resize(&mut self.ws, size, false);
        round(self.shared).say(format_args!(
            "{}: resize to {blocks}: {result:?}",
            self.name
        ));
        result
    }

    /// Notes the end of an operation that changed something: how far the order reaches with it.
    fn done(&self, what: &str, range: (u64, u64), reached: usize, result: Result<(), Error>) {
        if result.is_ok() {
            sim::completed(reached);
        }
        let (block, count) = range;
        round(self.shared).say(format_args!(
            "{}: {what} {count} at {block}: {result:?}, last change {reached}",
            self.name
        ));
    }

    fn next_tag(&mut self) -> u32 {
        if self.rng.below(6) == 0 {
            return 0;
        }
        let class = match self.rng.next_u64() {
            n if self.incompressible && n % 8 > 0 => 2,
            n => (n >> 8) % 3,
        };
        let mut round = round(self.shared);
        round.next_tag += 1;
        round.next_tag * 3 + class as u32
    }

    /// Writes new tags, some of them zero; answers with how far the order reaches with them.
    pub(super) fn write(&mut self, block: u64, count: u64) -> Result<usize, Error> {
        let tags: Vec<u32> = (0..count).map(|_| self.next_tag()).collect();
        self.write_tags(block, tags)
    }

    /// Writes blocks that cannot be compressed, none of them zero.
    pub(super) fn write_raw(&mut self, block: u64, count: u64) -> Result<usize, Error> {
        let mut tags = Vec::new();
        {
            let mut round = round(self.shared);
            for _ in 0..count {
                round.next_tag += 1;
                tags.push(round.next_tag * 3 + 2);
            }
        }
        self.write_tags(block, tags)
    }

    /// Writes blocks of zeros.
    pub(super) fn write_zeros(&mut self, block: u64, count: u64) -> Result<usize, Error> {
        self.write_tags(block, std::vec![0; count as usize])
    }

    fn write_tags(&mut self, block: u64, tags: Vec<u32>) -> Result<usize, Error> {
        let count = tags.len() as u64;
        let mut data = std::vec![0; tags.len() * BLOCK_SIZE];
        for (bytes, &tag) in data.chunks_exact_mut(BLOCK_SIZE).zip(&tags) {
            fill(tag, bytes);
        }
        let stores = tags.iter().any(|&tag| tag != 0);
        let end = sim::working_on(block, tags);
        let result = self.volume.write(&mut self.ws, block, &data);
        let reached = end();
        self.done("write", (block, count), reached, result);
        round(self.shared).wrote |= result.is_ok() && stores;
        result.map(|()| reached)
    }

    pub(super) fn write_through(&mut self, block: u64) -> Result<(), Error> {
        let reached = self.write(block, 1)?;
        let result = self.volume.force_unit_access();
        self.flushed("fua", reached, result)
    }

    pub(super) fn zero(&mut self, block: u64, count: u64) -> Result<(), Error> {
        let count = count.min(BLOCKS - block);
        let end = sim::working_on(block, std::vec![0; count as usize]);
        let result = self.volume.zero(&mut self.ws, block, count);
        let reached = end();
        self.done("zero", (block, count), reached, result);
        if result == Err(Error::NoSpace) && round(self.shared).wrote {
            // Promise P2: what gives space back finds some.
            round(self.shared).object(format!("a discard of {count} at {block} finds no space"));
        }
        result
    }

    pub(super) fn flush(&mut self) -> Result<(), Error> {
        let target = sim::mark().completed;
        let result = self.volume.flush();
        self.flushed("flush", target, result)
    }

    pub(super) fn checkpoint(&mut self) -> Result<(), Error> {
        let target = sim::mark().completed;
        let result = self.volume.checkpoint();
        if result.is_ok() {
            sim::promised(target);
            sim::checkpointed(target);
        }
        round(self.shared).say(format_args!(
            "{}: checkpoint of {target}: {result:?}",
            self.name
        ));
        result
    }

    /// Notes the end of an operation that makes the first `target` changes durable.
    fn flushed(&self, what: &str, target: usize, result: Result<(), Error>) -> Result<(), Error> {
        let mut round = round(self.shared);
        match result {
            Ok(()) => sim::promised(target),
            Err(Error::NoSpace) => {
                // Promise P2: what was acknowledged has its space.
                round.object(format!("a {what} of {target} changes finds no space"));
            }
            Err(_) => {}
        }
        round.say(format_args!(
            "{}: {what} of {target}: {result:?}",
            self.name
        ));
        result
    }

    /// Every block read is what it was when the read began, or what it became meanwhile.
    pub(super) fn read(&mut self, block: u64, count: u64) -> Result<(), Error> {
        let mut before = round(self.shared).start.clone();
        let length = sim::since(0, |order| {
            order.iter().for_each(|change| apply(&mut before, change));
            order.len()
        });
        let mut data = std::vec![0; count as usize * BLOCK_SIZE];
        self.volume.read(&mut self.ws, block, &mut data)?;
        for (b, bytes) in (block..).zip(data.chunks_exact(BLOCK_SIZE)) {
            let Some(tag) = tag_of(bytes) else {
                round(self.shared).object(format!("read: block {b} is a mixture"));
                return Ok(());
            };
            let right = before[b as usize] == tag
                || sim::since(length, |order| {
                    order.iter().any(|change| {
                        let at = b.wrapping_sub(change.block) as usize;
                        change.tags.get(at) == Some(&tag)
                    })
                });
            if !right {
                round(self.shared).object(format!(
                    "read: block {b} holds {tag}, was {} and became nothing else",
                    before[b as usize]
                ));
            }
        }
        Ok(())
    }
}
