// SPDX-License-Identifier: GPL-2.0
//! Offline verification of every structure and every record of an image. Nothing is written.

use crate::engine::access::Access;
use crate::engine::format::{
    fingerprint, Algorithm, Entry, Fingerprints, IncarnationId, Layout, NodeId, SegmentHeader,
    Superblock, BLOCK_SIZE, FINGERPRINTS, NODE_ENTRIES, NODE_SHIFT, SUPERBLOCK_OFFSETS, UNIT,
};
use crate::engine::map::load::Missing;
use crate::engine::map::table::Found;
use crate::engine::records::cache::place_of;
use crate::engine::recovery::open::{open, Expected, Opened};
use crate::engine::recovery::read_around;
use crate::engine::recovery::replay::replay;
use crate::engine::recovery::superblocks::{read_slot, Standing};
use crate::engine::store::Store;
use crate::engine::workspace::Workspace;
use crate::engine::{Error, Result};
use crate::platform::mem::{Buf, Vec};
use crate::platform::Platform;

/// One piece of damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What is wrong, and where in the image.
    pub error: Error,
    /// First block and number of blocks of the device that cannot be read because of it, or, with a wrong fingerprint, whose
    /// entries are not those of the checkpoint.
    pub blocks: Option<(u64, u64)>,
    /// The data of those blocks itself is damaged: a repair cannot bring it back.
    pub data: bool,
}

/// The result of a check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Data records verified.
    pub records: u64,
    /// Nodes of the sector table verified.
    pub nodes: u64,
    /// Blocks that the table maps.
    pub mapped_blocks: u64,
    /// Blocks that were discarded and are still counted as mapped.
    pub detached_blocks: u64,
    /// Bytes of the records that the blocks and the table refer to.
    pub live_bytes: u64,
    /// Findings reported.
    pub findings: u64,
    /// Log records that were replayed before the check.
    pub replayed: u64,
    /// The image had been closed cleanly.
    pub clean: bool,
    /// What the algorithms have compressed, by their tags.
    compressed: [Compressed; 3],
}

/// What one algorithm has compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compressed {
    /// Mapped blocks in records of the algorithm.
    pub blocks: u64,
    /// Bytes of these records that the blocks need.
    pub bytes: u64,
}

impl Summary {
    /// What is compressed with `algorithm`.
    pub fn compressed(&self, algorithm: Algorithm) -> Compressed {
        self.compressed[usize::from(algorithm.tag())]
    }
}

/// Bits that hold the number of units of the largest record.
const UNITS_BITS: u32 = 14;

/// The blocks that a record holds, and its space.
#[derive(Clone, Copy)]
struct Held {
    number: u64,
    mask: u32,
    units: u32,
    algorithm: u8,
}

/// Adds the charge of an entry to the count of its segment; false if it leads to none.
fn add(counts: &mut [u64], layout: &Layout, entry: Entry) -> bool {
    let index = layout.segment_of(entry.address());
    let (false, Some(index)) = (entry.is_hole(), index) else {
        return false;
    };
    if let Some(units) = counts.get_mut(index as usize) {
        *units += u64::from(entry.charge());
    }
    true
}

struct Check<'a, P: Platform> {
    store: &'a Store<P>,
    ws: Workspace<P>,
    /// Live units of each segment, counted from the table.
    live: Vec<u64>,
    /// The part of `live` that lies below detached nodes. Its records may be gone: after the log superseded them,
    /// their segment was free.
    detached: Vec<u64>,
    /// Fingerprints, counted from the table.
    fingerprints: Fingerprints,
    /// Places of the live records: address in units << [`UNITS_BITS`] | units.
    extents: Vec<u64>,
    /// Parts of the table could not be read.
    incomplete: bool,
    summary: Summary,
    report: &'a mut dyn FnMut(&Finding),
}

/// Checks the image in `file`. Calls `report` with each finding, and `progress` with the number of blocks that were
/// checked and that are mapped.
///
/// # Errors
///
/// Those of opening the image.
pub fn check<P: Platform>(
    file: P::File,
    report: &mut dyn FnMut(&Finding),
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Summary> {
    let Opened {
        store,
        replayed,
        clean,
        maintenance,
        spare,
        length: _,
    } = open::<P>(file, Access::Read, Expected::Complete)?;
    // All nodes stay in memory: their entries are counted at the end.
    store.map.set_limit(u64::MAX);
    let (segments, fingerprints) = {
        let map = store.map.lock();
        (map.segment_count() as usize, map.fingerprints().emptied()?)
    };
    let mut check = Check {
        ws: store.workspace()?,
        store: &store,
        live: Vec::filled(0, segments)?,
        detached: Vec::filled(0, segments)?,
        fingerprints,
        extents: Vec::new(),
        incomplete: false,
        summary: Summary {
            replayed: replayed.records,
            clean,
            ..Summary::default()
        },
        report,
    };
    if let Some(error) = spare {
        check.find(error, None, false);
    }
    let checkpoint = maintenance.checkpoint_state();
    check.superblocks(checkpoint.superblock().generation)?;
    check.table(progress)?;
    check.segments()?;
    check.counts(checkpoint.superblock().offset())?;
    check.fingerprints(checkpoint.superblock().offset())?;
    for entry in checkpoint.usage_entries() {
        check.extent(entry, entry.charge())?;
    }
    check.overlaps();
    // The log comes last, because its replay changes the table.
    check.log(checkpoint.superblock())?;
    Ok(check.summary)
}

impl<P: Platform> Check<'_, P> {
    fn find(&mut self, error: Error, blocks: Option<(u64, u64)>, data: bool) {
        self.summary.findings += 1;
        (self.report)(&Finding {
            error,
            blocks,
            data,
        });
    }

    fn damaged(&mut self, what: &'static str, offset: u64, blocks: Option<(u64, u64)>) {
        self.find(Error::Corrupt { what, offset }, blocks, false);
    }

    /// Verifies both superblocks: the older one is the spare of the newer one.
    fn superblocks(&mut self, newest: u64) -> Result {
        let mut page = Buf::zeroed(BLOCK_SIZE)?;
        for (slot, offset) in SUPERBLOCK_OFFSETS.into_iter().enumerate() {
            match read_slot::<P>(&self.store.file, slot, &mut page) {
                Ok(superblock) if superblock.exhausted() => {
                    self.damaged("superblock: counters near their end", offset, None);
                }
                Ok(superblock) if superblock.generation + 1 >= newest => {}
                Ok(_) => self.damaged("superblock: outdated copy", offset, None),
                Err(Error::NotAnImage) => {
                    self.damaged("superblock: no magic", offset, None);
                }
                Err(error) => self.find(error, None, false),
            }
        }
        Ok(())
    }

    /// Verifies the log of a cleanly closed image. Opening did not need it, but a repair may.
    fn log(&mut self, superblock: &Superblock) -> Result {
        if !superblock.clean {
            return Ok(());
        }
        let log_end = superblock.log_end;
        match replay(
            self.store,
            &mut self.ws,
            superblock,
            Standing::Sure,
            log_end,
            None,
        ) {
            Err(error) if error.is_damage() => self.find(error, None, false),
            Err(error) => return Err(error),
            // Nothing follows the last checkpoint.
            Ok(replayed) if replayed.records > 0 => {
                self.damaged("log: it goes on after a clean close", log_end, None);
            }
            Ok(_) => {}
        }
        Ok(())
    }

    /// Verifies that each segment in use begins with the header of the incarnation that its records belong to.
    fn segments(&mut self) -> Result {
        let layout = self.store.layout;
        let mut page = Buf::zeroed(BLOCK_SIZE)?;
        let mut used: Vec<(u64, u32)> = Vec::new();
        let detached = self.detached.iter();
        for ((index, segment), &detached) in
            (0..).zip(self.store.map.lock().segments()).zip(detached)
        {
            if !segment.is_dead() && segment.stored_live() > detached {
                used.push((index, segment.seed()))?;
            }
        }
        for &(index, seed) in used.iter() {
            let offset = layout.segment_offset(index);
            read_around::<P>(&self.store.file, &mut page[..BLOCK_SIZE], offset)?;
            let header = SegmentHeader::of_segment::<P>(&page, &layout, index);
            if header.is_none_or(|h| h.seed::<P>() != seed) {
                self.damaged("segment header", offset, None);
            }
        }
        Ok(())
    }

    /// Walks the table and verifies the records it points to.
    fn table(&mut self, progress: &mut dyn FnMut(u64, u64)) -> Result {
        let total = self.store.map.lock().mapped();
        // Detached subtrees may lie behind the end of a device that was shrunk.
        let blocks = self.store.map.lock().leaves() << NODE_SHIFT;
        let mut at = 0;
        while at < blocks {
            match self
                .store
                .loader()
                .leaf(&mut self.ws.read, at, Missing::Leave)
            {
                Ok(Found::Absent(id)) => at = id.end_block(),
                Ok(_) => {
                    self.summary.nodes += 1;
                    self.leaf(at)?;
                    at = NodeId::leaf(at).end_block();
                    progress(self.summary.mapped_blocks, total);
                }
                Err(error) if error.is_damage() => {
                    // All blocks below a node that cannot be loaded are lost.
                    let end = match self.store.map.lock().find(at) {
                        Found::Stored(id, _) => id.end_block().min(blocks),
                        _ => blocks,
                    };
                    self.find(error, Some((at, end - at)), false);
                    self.incomplete = true;
                    at = end;
                }
                Err(error) => return Err(error),
            }
        }
        self.detached_subtrees()?;
        let mut stored: Vec<Entry> = Vec::new();
        let mut result = Ok(());
        self.store.map.lock().for_each_stored(&mut |entry| {
            if let Err(error) = stored.push(entry) {
                result = Err(error);
            }
        });
        result?;
        for &entry in stored.iter() {
            self.count(entry);
            // A node that could be read is as long as its entry says.
            if !self.incomplete {
                self.extent(entry, entry.charge())?;
            }
        }
        Ok(())
    }

    /// Counts the records below detached nodes. All nodes above those are loaded.
    fn detached_subtrees(&mut self) -> Result {
        let mut at = 0;
        loop {
            let found = self.store.map.lock().next_detached(at);
            let Some((id, entry)) = found.filter(|(id, _)| id.end_leaf() > at) else {
                return Ok(());
            };
            self.detached_subtree(id, entry)?;
            at = id.end_leaf();
        }
    }

    // The recursion is as deep as the tree: at most 5 levels.
    fn detached_subtree(&mut self, id: NodeId, entry: Entry) -> Result {
        let (incarnation, segments) = {
            let map = self.store.map.lock();
            (map.incarnation(entry)?, map.segment_count())
        };
        let (store, ws) = (self.store, &mut self.ws);
        let words = match store
            .loader()
            .read(&mut ws.read, id, entry, incarnation, segments)
        {
            Ok(words) => words,
            Err(error) if error.is_damage() => {
                self.find(error, None, false);
                self.incomplete = true;
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        self.summary.nodes += 1;
        for (at, &word) in words.iter().enumerate().filter(|(_, &word)| word != 0) {
            self.count(Entry(word));
            if id.level == 0 {
                let block = id.first_block() + at as u64;
                self.fingerprints
                    .add(block, fingerprint(block, Entry(word)));
                add(&mut self.detached, &self.store.layout, Entry(word));
                self.summary.detached_blocks += 1;
                continue;
            }
            self.extent(Entry(word), Entry(word).charge())?;
            self.detached_subtree(id.child(at), Entry(word))?;
        }
        Ok(())
    }

    /// Verifies every record a leaf points to.
    fn leaf(&mut self, block: u64) -> Result {
        let mut run: Vec<(Entry, IncarnationId)> = Vec::with_capacity(NODE_ENTRIES)?;
        {
            let map = self.store.map.lock();
            let Some(leaf) = map.leaf(block) else {
                return Ok(());
            };
            for &word in leaf {
                let entry = Entry(word);
                let incarnation = match entry.is_hole() {
                    true => IncarnationId::before_opening(0),
                    false => map.incarnation(entry)?,
                };
                run.push((entry, incarnation))?;
            }
        }
        let first = NodeId::leaf(block).index * NODE_ENTRIES as u64;
        let blocks = self.store.blocks();
        // Address and blocks of the record that was verified last; no blocks if it is damaged.
        let mut last: Option<(u64, Option<Held>)> = None;
        // The block after the last one that was reported with that record.
        let mut reported = 0;
        for (block, &(entry, incarnation)) in (first..).zip(run.iter()) {
            if entry.is_hole() {
                continue;
            }
            self.summary.mapped_blocks += 1;
            self.count(entry);
            self.fingerprints.add(block, fingerprint(block, entry));
            if block >= blocks {
                let what = "sector table entry: it lies beyond the end of the device";
                self.damaged(what, entry.address(), Some((block, 1)));
            }
            let holds = match last {
                Some((address, holds))
                    if address == entry.address() && (holds.is_some() || block < reported) =>
                {
                    holds
                }
                _ => {
                    let lost = run.iter().skip((block - first) as usize);
                    let lost = lost
                        .take_while(|other| other.0.address() == entry.address())
                        .count();
                    reported = block + lost as u64;
                    self.record(entry, incarnation, (block, lost as u64))?
                }
            };
            last = Some((entry.address(), holds));
            let Some(held) = holds else { continue };
            let (address, index) = (entry.address(), entry.index());
            let count = held.mask.count_ones();
            if place_of(block, held.number, held.mask) != Some(index) {
                let error = Error::Corrupt {
                    what: "record: it holds another block",
                    offset: address,
                };
                self.find(error, Some((block, 1)), true);
            } else if entry != Entry::new(address, held.units, index as u32, count) {
                let what = "sector table entry: its record has another size";
                self.damaged(what, address, Some((block, 1)));
            } else if let Some(sum) = self.summary.compressed.get_mut(usize::from(held.algorithm)) {
                sum.blocks += 1;
                sum.bytes += u64::from(entry.charge()) * UNIT as u64;
            }
        }
        Ok(())
    }

    /// Verifies one record, its decompressed length included. `lost` names the blocks that depend on it: first and
    /// number.
    fn record(
        &mut self,
        entry: Entry,
        incarnation: IncarnationId,
        lost: (u64, u64),
    ) -> Result<Option<Held>> {
        self.summary.records += 1;
        let ws = &mut self.ws;
        let error = match self
            .store
            .records()
            .record(entry, incarnation, &mut ws.read.record)
        {
            Ok((header, payload)) => {
                let mask = header.mask(payload);
                let stored = usize::from(header.count) * BLOCK_SIZE;
                let codecs = &self.store.codecs;
                if let Some(mask) = mask.filter(|_| stored <= ws.read.blocks.len()) {
                    let packed = &payload[header.mask_len()..];
                    let blocks = &mut ws.read.blocks[..stored];
                    if codecs.decompress(header.algorithm, packed, blocks) {
                        let units = header.units();
                        self.extent(entry, units)?;
                        return Ok(Some(Held {
                            number: header.number,
                            mask,
                            units,
                            algorithm: header.algorithm,
                        }));
                    }
                }
                Error::Corrupt {
                    what: codecs.objection(header.algorithm),
                    offset: entry.address(),
                }
            }
            Err(error) if error.is_damage() => error,
            Err(error) => return Err(error),
        };
        self.find(error, Some(lost), true);
        Ok(None)
    }

    fn count(&mut self, entry: Entry) {
        if add(&mut self.live, &self.store.layout, entry) {
            self.summary.live_bytes += u64::from(entry.charge()) * UNIT as u64;
        }
    }

    /// Notes the place of a record.
    fn extent(&mut self, entry: Entry, units: u32) -> Result {
        if entry.is_hole() {
            return Ok(());
        }
        let unit = entry.address() / UNIT as u64;
        self.extents.push((unit << UNITS_BITS) | u64::from(units))
    }

    /// Verifies that records do not overlap: giving back the space of one must not destroy another.
    fn overlaps(&mut self) {
        self.extents.sort_unstable();
        let (mut end, mut before) = (0, 0);
        for at in 0..self.extents.len() {
            let word = self.extents[at];
            let unit = word >> UNITS_BITS;
            // Several entries may refer to the same record.
            if word != before && unit < end {
                let what = "record: it overlaps another one";
                self.damaged(what, unit * UNIT as u64, None);
            }
            before = word;
            end = end.max(unit + (word & ((1 << UNITS_BITS) - 1)));
        }
    }

    /// Compares the stored live counts with those of the table, unless a part of the table could not be read.
    fn counts(&mut self, superblock: u64) -> Result {
        if self.incomplete {
            return Ok(());
        }
        let layout = self.store.layout;
        let (mut wrong, mapped) = (Vec::new(), self.store.map.lock().mapped());
        {
            let map = self.store.map.lock();
            for ((index, segment), &live) in (0..).zip(map.segments()).zip(self.live.iter()) {
                if segment.stored_live() != live {
                    wrong.push(index)?;
                }
            }
        }
        for &index in wrong.iter() {
            let what = "segment usage: wrong live count";
            self.damaged(what, layout.segment_offset(index), None);
        }
        if mapped != self.summary.mapped_blocks + self.summary.detached_blocks {
            let what = "superblock: wrong count of mapped blocks";
            self.damaged(what, superblock, None);
        }
        Ok(())
    }

    /// Compares the known fingerprints with those of the table, unless a part of the table could not be read.
    fn fingerprints(&mut self, superblock: u64) -> Result {
        if self.incomplete {
            return Ok(());
        }
        // Runs of wrong ranges. A stripe has no place that could be named, and a wrong entry spoils its range as well.
        let (mut wrong, mut stripes): (Vec<(u64, u64)>, _) = (Vec::new(), false);
        {
            let map = self.store.map.lock();
            let (known, found) = (map.fingerprints(), &self.fingerprints);
            for part in 0..FINGERPRINTS {
                let stored = known.get(part);
                if stored.is_none() || stored == found.get(part) {
                    continue;
                }
                match (known.blocks_of(part), wrong.last_mut()) {
                    (None, _) => stripes = true,
                    (Some(blocks), Some(last)) if last.1 == blocks.start => last.1 = blocks.end,
                    (Some(blocks), _) => wrong.push((blocks.start, blocks.end))?,
                }
            }
        }
        let what = "superblock: wrong fingerprint of the sector table";
        for &(start, end) in wrong.iter() {
            self.damaged(what, superblock, Some((start, end - start)));
        }
        if stripes && wrong.is_empty() {
            self.damaged(what, superblock, None);
        }
        Ok(())
    }
}
