// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The submitters: their operations on the volume, and what they expect of it while it runs.

use super::{
    fill, round, site, tag_of, Plan, Profile, Shared, Trouble, BLOCKS, FAR, SEGMENT, SIZES,
};
use crate::engine::format::NODE_ENTRIES;
use crate::engine::{Algorithm, Compression, Error, Recompression, Volume, Workspace, BLOCK_SIZE};
use crate::platform::sim::{self, Placed, Rng, Sim};
use crate::platform::BackingFile;
use std::format;
use std::vec::Vec;

pub(super) fn apply(state: &mut [u32], change: &Placed) {
    let end = change.block + change.count;
    let near = change.block.min(BLOCKS) as usize..end.min(BLOCKS) as usize;
    match change.tags.get(..near.len()) {
        Some(tags) => state[near].copy_from_slice(tags),
        None => state[near].fill(0),
    }
    if end <= BLOCKS {
        return;
    }
    let first = FAR.partition_point(|&block| block < change.block);
    for (at, &block) in FAR.iter().enumerate().skip(first) {
        let Some(tag) = change.tag(block) else { break };
        state[BLOCKS as usize + at] = tag;
    }
}

/// Runs one submitter. It stops at the first error other than lack of space or memory.
pub(super) fn submit(volume: &Volume<Sim>, shared: &Shared, plan: Plan, name: u64, rng: Rng) {
    let Ok(mut site) = Submitter::new(volume, shared, name, rng) else {
        return;
    };
    site.bad_sectors = plan.trouble == Trouble::Sectors;
    // What is left of a record after a discard may gain something although it was compressed before.
    site.mapped_only = plan.profile == Profile::Cold;
    site.incompressible = matches!(
        plan.profile,
        Profile::Pressure | Profile::Refill | Profile::Crowd
    );
    let operations = match plan.profile {
        // Some of them write the whole device.
        Profile::Refill => plan.operations / 4,
        _ => plan.operations,
    };
    for _ in 0..operations {
        let result = match plan.profile {
            Profile::Mixed => site.mixed(),
            Profile::Pressure => site.press(),
            Profile::Leaves => site.roam(),
            Profile::Refill => site.refill(),
            Profile::Clash => site.clash(),
            Profile::Commits => site.commit(),
            Profile::Cold => site.cool(),
            Profile::Crowd => site.crowd(),
        };
        match result {
            Ok(()) | Err(Error::NoSpace | Error::NoMemory) => {}
            Err(Error::Corrupt { .. }) if volume.file().corrupted() => {}
            // Reads meet bad sectors, and so do writes below nodes there.
            Err(Error::Io(_)) if site.bad_sectors && volume.state().error.is_none() => {}
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

/// Promise P2: on a full disk, operations that give space back succeed, and after them writes do as well.
pub(super) fn make_room(volume: &Volume<Sim>, shared: &Shared, rng: Rng) {
    if let Ok(mut site) = Submitter::new(volume, shared, 0, rng) {
        let result = site.make_room();
        round(shared).say(format_args!("making room: {result:?}"));
    }
}

/// What a crash leaves of a write, all or nothing.
#[derive(Clone, Copy)]
enum Grain {
    /// Each block.
    Block,
    /// All blocks together.
    Whole,
}

pub(super) struct Submitter<'a> {
    volume: &'a Volume<Sim>,
    shared: &'a Shared,
    name: u64,
    rng: Rng,
    ws: Workspace<Sim>,
    /// Almost all data that it writes is incompressible.
    incompressible: bool,
    /// It writes no zeros.
    mapped_only: bool,
    /// What it writes is metadata of a file system.
    metadata: bool,
    /// Some sectors of the disk cannot be read. Nothing else goes wrong but for the power.
    bad_sectors: bool,
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
            mapped_only: false,
            metadata: false,
            bad_sectors: false,
        })
    }

    /// Performs any operation.
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
            0..=3 => self.write(block, up_to(4)).map(|_| ()),
            4 => self.write_atomic(block, up_to(32)).map(|_| ()),
            16 => self.compact(),
            17 => self.resize(),
            19 => self.far(|site, blocks| {
                let (from, most) = site.place(blocks);
                match size % 4 {
                    0 => site.zero(from, blocks - from),
                    _ => site.write(from, 1 + size % most).map(|_| ()),
                }
            }),
            18 => match size % 4 {
                0 => {
                    self.volume.trim();
                    Ok(())
                }
                1 => {
                    self.volume.shed(u64::MAX);
                    Ok(())
                }
                2 => self.compress(["zstd:1", "lz4", "zstd:4", "none"][(size / 4 % 4) as usize]),
                _ => self.recompress(["zstd:1", "lz4", "zstd:4", "none"][(size / 4 % 4) as usize]),
            },
            5 => self.write(block, up_to(64)).map(|_| ()),
            6 | 7 => self.write_through(block),
            8 | 9 => self.zero(block, up_to(16)),
            10 => self.zero(block, up_to(rest)),
            11 | 12 => self.flush(),
            13 => self.checkpoint(),
            _ => self.read(block, up_to(32)),
        }
    }

    /// Overlapping writes, discards and reads of few blocks on both sides of the ends of leaves, beside what moves
    /// them: checkpoints, compaction, segments that are used again, and leaves that leave memory.
    fn clash(&mut self) -> Result<(), Error> {
        const LEAF: u64 = NODE_ENTRIES as u64;
        let end = LEAF * (1 + self.rng.below(2));
        let block = end - 8 + self.rng.below(16);
        let size = self.rng.next_u64();
        let up_to = |max: u64| 1 + size % max;
        match self.rng.below(32) {
            0..=6 => self.write(block, up_to(4)).map(|_| ()),
            7 => self.write_atomic(block, up_to(4)).map(|_| ()),
            8 => self.write_through(block),
            // Over what was mostly never written: nothing to discard, unless others write there now.
            9 | 10 => self.zero(block + up_to(24), up_to(24)),
            11..=13 => self.zero(block, up_to(8)),
            14 => self.zero(end - LEAF, (LEAF + up_to(LEAF)).min(BLOCKS - end + LEAF)),
            15..=22 => self.read(block, up_to(16)),
            23 | 24 => {
                self.volume.shed(u64::MAX);
                Ok(())
            }
            25 | 26 => self.checkpoint(),
            27 => self.compact(),
            28 => self.flush(),
            // Fills the segment, so that those before it die.
            _ => self.write_raw(block, 16 + up_to(32)).map(|_| ()),
        }
    }

    /// Flushes each small write, as a database does, and writes much now and then: the next segment is filled beforehand.
    fn commit(&mut self) -> Result<(), Error> {
        let block = self.rng.below(BLOCKS - 64);
        let size = self.rng.next_u64();
        match self.rng.below(32) {
            0..=26 => {
                self.write(block % 64, 1 + size % 2)?;
                self.flush()
            }
            27 => self.write_through(block % 64),
            28 => self.read(block % 64, 1 + size % 16),
            29 => self.zero(block, 1 + size % 64),
            _ => self.write_raw(block, 16 + size % 48).map(|_| ()),
        }
    }

    /// Writes block by block and reads, while data that was written before is compressed again.
    fn cool(&mut self) -> Result<(), Error> {
        let block = self.rng.below(BLOCKS - 32);
        let size = self.rng.next_u64();
        match self.rng.below(32) {
            0..=9 => self.write(block % 64, 1 + size % 2).map(|_| ()),
            10..=12 => self.write(block, 1 + size % 32).map(|_| ()),
            13 => self.write_atomic(block % 64, 1 + size % 16).map(|_| ()),
            14..=19 => self.read(block % 64, 1 + size % 32),
            20 => self.flush(),
            21 => self.checkpoint(),
            22 => self.compact(),
            23 => {
                self.volume.shed(u64::MAX);
                Ok(())
            }
            24 => self.compress(["zstd:1", "lz4"][(size % 2) as usize]),
            25 | 26 => self.recompress(["zstd:1", "lz4", "zstd:4", "none"][(size % 4) as usize]),
            27 | 28 => {
                let compression = Compression::of(Algorithm::Zstd);
                let pass = self.volume.begin_recompression(compression)?;
                let mut left = size % 64;
                self.volume.recompress(&pass, &mut || {
                    left = left.saturating_sub(1);
                    left > 0
                })
            }
            _ => {
                // The others go on, and time passes.
                for _ in 0..size % 512 {
                    shuttle::thread::yield_now();
                }
                Ok(())
            }
        }
    }

    /// Overwrites a small device, so that the image reaches its largest size.
    fn crowd(&mut self) -> Result<(), Error> {
        let size = 1 + self.rng.below(32);
        let block = self.rng.below(BLOCKS - size);
        self.metadata = self.rng.below(8) == 0;
        let result = match self.rng.below(32) {
            0 => self.zero(block, size),
            1 => self.flush(),
            2 => self.read(block, size),
            3 => self.checkpoint(),
            _ => self.write_raw(block, size).map(|_| ()),
        };
        // Promise P3.
        let bound = self.volume.size().image_bound();
        let allocated = self.volume.file().allocated()?;
        // Segments with damage in them cannot be emptied.
        let whole = !self.bad_sectors && !self.volume.file().corrupted();
        if whole && allocated > bound {
            let text = format!("the image takes {allocated} bytes, and may take {bound}");
            round(self.shared).object(text);
        }
        result
    }

    /// Performs operations that use up the space of a small image.
    fn press(&mut self) -> Result<(), Error> {
        const WORKING_SET: u64 = 400;
        let block = 300 + self.rng.below(WORKING_SET);
        let size = 1 + self.rng.below(64);
        match self.rng.below(16) {
            0..=3 => self.write(block, 1 + size % 4).map(|_| ()),
            4..=6 => self.write(block, size).map(|_| ()),
            7 => self.write_atomic(block, size).map(|_| ()),
            8 => self.write_through(block),
            9 => self.zero(block, size),
            10 => self.zero(300, 2 * size),
            11 => self.flush(),
            12 => self.checkpoint(),
            13 => match size % 4 {
                0 => self.resize(),
                1 => self.recompress(["zstd:1", "lz4", "zstd:4", "none"][(size / 4 % 4) as usize]),
                _ => self.compact(),
            },
            _ => self.read(block, size),
        }
    }

    /// Fills the disk; one of the submitters discards whole leaves of the sector table, and fills them
    /// again.
    fn refill(&mut self) -> Result<(), Error> {
        let block = self.rng.below(BLOCKS - 48);
        let size = 1 + self.rng.below(48);
        match self.rng.below(12) {
            0..=3 if self.name == 0 => self.replace(),
            4 => self.flush(),
            5 => self.zero(block, size),
            6 => self.read(block, size),
            7 => {
                self.volume.shed(u64::MAX);
                Ok(())
            }
            8 => self.checkpoint(),
            9 => self.write_atomic_raw(block, size).map(|_| ()),
            _ => self.write_raw(block, size).map(|_| ()),
        }
    }

    /// Fills leaves of the sector table, discards them as a whole, and fills another one.
    fn replace(&mut self) -> Result<(), Error> {
        const LEAF: u64 = NODE_ENTRIES as u64;
        let spared = self.rng.below(2);
        let others = [(LEAF * (1 - spared), LEAF), (2 * LEAF, BLOCKS - 2 * LEAF)];
        let file = self.volume.file();
        file.limit(u64::MAX);
        for (block, count) in others {
            self.write_long(block, count)?;
        }
        for _ in 0..1 + self.rng.below(3) {
            self.checkpoint()?;
        }
        // Other programs take the rest of the disk.
        file.limit(file.allocated()? + self.rng.below(2) * u64::from(SEGMENT));
        // A replay applies this one first, and then has the nodes above the leaves in memory, but not the
        // leaves.
        let at = self.rng.below(LEAF);
        self.write_raw(spared * LEAF + at, 1)?;
        for (block, count) in others {
            self.zero(block, count)?;
        }
        self.flush()?;
        let count = self.rng.below(LEAF);
        self.write_long(spared * LEAF, count)
    }

    /// Writes many incompressible blocks, as long as there is space, with flushes in between.
    fn write_long(&mut self, block: u64, count: u64) -> Result<(), Error> {
        for at in (0..count).step_by(32) {
            match self.write_raw(block + at, 32.min(count - at)) {
                Ok(_) | Err(Error::NoSpace) => {}
                Err(error) => return Err(error),
            }
            if self.rng.below(4) == 0 {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Fills the disk to the last bytes, and gives most of it back.
    fn make_room(&mut self) -> Result<(), Error> {
        for (size, most) in [(32, 80), (1, 200)] {
            let full = (0..most).any(|n| {
                let block = (n * 37 + self.rng.below(8)) % (BLOCKS - size);
                self.write_raw(block, size) == Err(Error::NoSpace)
            });
            if !full {
                return Ok(());
            }
            // Pending changes take memory in every snapshot.
            self.flush()?;
        }
        // A part of each leaf stays, so that all leaves must be stored.
        for block in (0..BLOCKS).step_by(100) {
            self.zero(block, 90.min(BLOCKS - block))?;
        }
        for _ in 0..2 {
            let result = self.checkpoint();
            if result == Err(Error::NoSpace) && round(self.shared).wrote {
                round(self.shared).object("a checkpoint after discards finds no space".into());
            }
            result?;
        }
        let result = self.write_raw(0, 8);
        if result == Err(Error::NoSpace) && round(self.shared).wrote {
            round(self.shared).object("a write after discards finds no space".into());
        }
        result.map(|_| ())
    }

    fn compact(&mut self) -> Result<(), Error> {
        let mut steps = self.rng.below(4);
        let result = self.volume.compact(&mut |_| {
            steps = steps.saturating_sub(1);
            steps > 0
        });
        round(self.shared).say(format_args!("{}: compact: {result:?}", self.name));
        let works = self.volume.state().error.is_none() && !self.volume.file().crashed();
        if self.bad_sectors && works && matches!(result, Err(Error::Io(_))) {
            let text = "compaction stops at a sector that cannot be read";
            round(self.shared).object(text.into());
        }
        result
    }

    /// Changes the size; all data must stay, except, by force, the data beyond the new end.
    fn resize(&mut self) -> Result<(), Error> {
        let new = SIZES[self.rng.below(SIZES.len() as u64) as usize];
        let force = self.rng.below(2) == 0;
        let old = {
            let mut round = round(self.shared);
            if round.far > 0 || round.resizing || round.stuck {
                return Ok(());
            }
            round.resizing = true;
            round.blocks
        };
        sim::sized(old, new);
        let end = sim::working_on(Placed::zeros(new, old.saturating_sub(new)));
        let result = self
            .volume
            .resize(&mut self.ws, new * BLOCK_SIZE as u64, force);
        let reached = end();
        let mut round = round(self.shared);
        match result {
            Ok(()) => {
                sim::promised(reached);
                sim::sized(new, new);
                (round.blocks, round.resizing) = (new, false);
            }
            Err(Error::InUse) => {
                sim::sized(old, old);
                round.resizing = false;
            }
            // Until the next opening a superblock may have the new size, but it is not used.
            Err(_) => (round.resizing, round.stuck) = (false, true),
        }
        round.say(format_args!("{}: resize to {new}: {result:?}", self.name));
        match result {
            Err(Error::InUse) => Ok(()),
            result => result,
        }
    }

    /// Calls `f` with the size, for an operation that reaches beyond the smallest size. Does nothing if the
    /// size is about to change, or is not larger.
    fn far(&mut self, act: impl FnOnce(&mut Self, u64) -> Result<(), Error>) -> Result<(), Error> {
        let blocks = {
            let mut round = round(self.shared);
            if round.resizing || round.blocks == BLOCKS {
                return Ok(());
            }
            round.far += 1;
            round.blocks
        };
        let result = act(self, blocks);
        round(self.shared).far -= 1;
        result
    }

    /// A block beyond the smallest size, and the number of blocks from there on that are ever written.
    fn place(&mut self, blocks: u64) -> (u64, u64) {
        let reached = FAR.partition_point(|&block| block < blocks) as u64;
        let at = self.rng.below(reached);
        let run = &FAR[at as usize..reached as usize];
        let near = (run[0]..).zip(run).take_while(|(b, &far)| *b == far);
        (run[0], near.count() as u64)
    }

    /// Performs operations all over the device: few blocks in many leaves.
    fn roam(&mut self) -> Result<(), Error> {
        let what = self.rng.below(24);
        let size = self.rng.next_u64();
        match what {
            0 => self.resize(),
            1 => self.compact(),
            2 | 3 => self.checkpoint(),
            4 | 5 => self.flush(),
            6 => {
                self.volume.shed_table(size % (256 << 10));
                Ok(())
            }
            7 => {
                let block = self.rng.below(BLOCKS - 8);
                self.write(block, 1 + size % 8).map(|_| ())
            }
            8 => {
                let block = self.rng.below(BLOCKS - 32);
                self.write_atomic(block, 1 + size % 32).map(|_| ())
            }
            // From any block to any block, mostly to the end.
            9..=11 => self.far(|site, blocks| {
                let from = match size % 4 {
                    0 => site.rng.below(blocks),
                    1 => 0,
                    _ => site.place(blocks).0,
                };
                let count = match site.rng.below(3) {
                    0 => 1 + site.rng.below(blocks - from),
                    1 => (512 << site.rng.below(6)).min(blocks - from),
                    _ => blocks - from,
                };
                site.zero(from, count)
            }),
            12..=14 => self.far(|site, blocks| {
                let (from, most) = site.place(blocks);
                site.read(from, 1 + size % most)
            }),
            16 | 17 => self.far(|site, blocks| {
                // Some neighbouring sites, mostly as many leaves.
                let at = site.rng.below(FAR.len() as u64) as usize;
                let reached = FAR.iter().skip(at).take_while(|&&block| block < blocks);
                for &block in reached.take(1 + size as usize % 24) {
                    site.write(block, 1)?;
                }
                Ok(())
            }),
            15 => self.far(|site, blocks| {
                let (from, _) = site.place(blocks);
                site.write_through(from)
            }),
            _ => self.far(|site, blocks| {
                let (from, most) = site.place(blocks);
                site.write(from, 1 + size % most).map(|_| ())
            }),
        }
    }

    /// Notes the end of an operation that changed something, and how far the order reaches with it.
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
        if !self.mapped_only && self.rng.below(6) == 0 {
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

    /// Writes new tags, some of them zero. Returns how far the order reaches with them.
    pub(super) fn write(&mut self, block: u64, count: u64) -> Result<usize, Error> {
        let tags = (0..count).map(|_| self.next_tag()).collect();
        self.write_tags(block, tags, Grain::Block)
    }

    /// Writes new tags, some of them zero, all or none of which survive a crash: those of the `count` blocks that one
    /// record can hold. Returns how far the order reaches with them.
    pub(super) fn write_atomic(&mut self, block: u64, count: u64) -> Result<usize, Error> {
        let count = count.min(self.volume.layout().left_in_natural_unit(block));
        let tags = (0..count).map(|_| self.next_tag()).collect();
        self.write_tags(block, tags, Grain::Whole)
    }

    /// Writes incompressible blocks, none of them zero.
    pub(super) fn write_raw(&mut self, block: u64, count: u64) -> Result<usize, Error> {
        let tags = self.raw_tags(count);
        self.write_tags(block, tags, Grain::Block)
    }

    /// As [`write_atomic`](Self::write_atomic), with incompressible blocks, none of them zero.
    pub(super) fn write_atomic_raw(&mut self, block: u64, count: u64) -> Result<usize, Error> {
        let tags = self.raw_tags(count.min(self.volume.layout().left_in_natural_unit(block)));
        self.write_tags(block, tags, Grain::Whole)
    }

    fn raw_tags(&mut self, count: u64) -> Vec<u32> {
        let mut round = round(self.shared);
        let next_tag = |_| {
            round.next_tag += 1;
            round.next_tag * 3 + 2
        };
        (0..count).map(next_tag).collect()
    }

    /// Writes blocks of zeros.
    pub(super) fn write_zeros(&mut self, block: u64, count: u64) -> Result<usize, Error> {
        self.write_tags(block, std::vec![0; count as usize], Grain::Block)
    }

    fn write_tags(&mut self, block: u64, tags: Vec<u32>, grain: Grain) -> Result<usize, Error> {
        let count = tags.len() as u64;
        let mut data = std::vec![0; tags.len() * BLOCK_SIZE];
        for (bytes, &tag) in data.chunks_exact_mut(BLOCK_SIZE).zip(&tags) {
            fill(tag, bytes);
        }
        let stores = tags.iter().any(|&tag| tag != 0);
        let began = sim::mark().placed;
        let refusals = self.volume.file().refusals();
        let change = Placed::write(block, tags.clone());
        let (what, result, reached) = match grain {
            Grain::Block => {
                let end = sim::working_on(change);
                let result = match self.metadata {
                    true => self.volume.write_metadata(&mut self.ws, block, &data),
                    false => self.volume.write(&mut self.ws, block, &data),
                };
                ("write", result, end())
            }
            Grain::Whole => {
                let end = sim::working_atomically_on(change);
                let result = self.volume.write_atomic(&mut self.ws, block, &data);
                ("atomic write", result, end())
            }
        };
        self.done(what, (block, count), reached, result);
        if result == Err(Error::NoSpace) && self.volume.file().refusals() == refusals {
            // Promise P2: only the file system says that it is full.
            round(self.shared).object(format!(
                "a write of {count} at {block} finds no space, and the disk has some"
            ));
        }
        if result.is_ok() {
            round(self.shared).wrote |= stores;
            self.expect_moment(what, began, block, &tags);
        }
        result.map(|()| reached)
    }

    pub(super) fn write_through(&mut self, block: u64) -> Result<(), Error> {
        let reached = self.write(block, 1)?;
        let result = self.volume.force_unit_access();
        self.flushed("fua", reached, result)
    }

    pub(super) fn zero(&mut self, block: u64, count: u64) -> Result<(), Error> {
        let began = sim::mark().placed;
        let end = sim::working_on(Placed::zeros(block, count));
        let result = self.volume.zero(&mut self.ws, block, count);
        let reached = end();
        self.done("zero", (block, count), reached, result);
        if result == Err(Error::NoSpace) && round(self.shared).wrote {
            // Promise P2: operations that give space back find some.
            round(self.shared).object(format!("a discard of {count} at {block} finds no space"));
        }
        if result.is_ok() {
            // Also if nothing was mapped and the log never heard of it.
            let near = BLOCKS.saturating_sub(block).min(count);
            self.expect_moment("discard", began, block, &std::vec![0; near as usize]);
            for &far in FAR.iter().filter(|&&b| (block..block + count).contains(&b)) {
                self.expect_moment("discard", began, far, &[0]);
            }
        }
        result
    }

    pub(super) fn flush(&mut self) -> Result<(), Error> {
        let target = sim::mark().completed;
        let result = self.volume.flush();
        self.flushed("flush", target, result)
    }

    /// Changes the compression of what is written from now on.
    pub(super) fn compress(&mut self, with: &str) -> Result<(), Error> {
        let compression = Compression::parse(with).ok_or(Error::Invalid("compression"))?;
        let result = self.volume.set_compression(compression);
        round(self.shared).say(format_args!(
            "{}: compress with {with}: {result:?}",
            self.name
        ));
        result
    }

    /// Changes how cold data is compressed again. What users wrote is cold as soon as the device is idle.
    fn recompress(&mut self, with: &str) -> Result<(), Error> {
        let compression = Compression::parse(with).filter(|c| c.algorithm() != Algorithm::Raw);
        let result = self.volume.set_recompression(Recompression {
            compression,
            after: 0,
            rate: 0,
        });
        round(self.shared).say(format_args!(
            "{}: recompress with {with}: {result:?}",
            self.name
        ));
        result
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
                // Promise P2: acknowledged data has its space.
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

    /// Every block that is read has contents that it had at some moment while the read was under way.
    pub(super) fn read(&mut self, block: u64, count: u64) -> Result<(), Error> {
        let began = sim::mark().placed;
        let mut data = std::vec![0; count as usize * BLOCK_SIZE];
        self.volume.read(&mut self.ws, block, &mut data)?;
        let mut tags = Vec::new();
        for (b, bytes) in (block..).zip(data.chunks_exact(BLOCK_SIZE)) {
            let Some(tag) = tag_of(bytes) else {
                round(self.shared).object(format!("read: block {b} is a mixture"));
                return Ok(());
            };
            tags.push(tag);
        }
        self.expect_moment("read", began, block, &tags);
        Ok(())
    }

    /// Each block from `block` on held the tag that is given for it at some moment since the order was `began`
    /// changes long: the operation that began then, and has just completed, says so.
    fn expect_moment(&self, what: &str, began: usize, block: u64, tags: &[u32]) {
        let mut at_first = None;
        for (b, &tag) in (block..).zip(tags) {
            let became = |order: &[Placed]| order.iter().any(|change| change.tag(b) == Some(tag));
            if sim::since(began, became) {
                continue;
            }
            let at_first = at_first.get_or_insert_with(|| {
                let mut state = round(self.shared).start.clone();
                sim::since(0, |order| {
                    order[..began]
                        .iter()
                        .for_each(|change| apply(&mut state, change));
                });
                state
            });
            let was = site(b).map_or(0, |at| at_first[at]);
            if was != tag {
                let text = format!(
                    "{what}: block {b} is said to hold {tag}, was {was} and became nothing else meanwhile"
                );
                return round(self.shared).object(text);
            }
        }
    }
}
