// SPDX-License-Identifier: GPL-2.0
//! Repair of a damaged image: everything that is whole is found again, and what is not is named.
//!
//! The state of the device is put together in memory: from the newest superblock that is whole (or the copy of
//! one in the log), its table as far as that can be read, and the log behind it. Blocks below a node of the
//! table that cannot be read come from the records in all segments, in the order of the log. Only then
//! is anything written, as an ordinary opening would: a new epoch in fresh segments at the end of the
//! image, two checkpoints, and a clean close. Until the first of them is complete the image is as damaged
//! as it was and no more, so a repair can be interrupted and repeated.

mod lives;
mod replay;

use self::lives::{identify, newest_copy, Epoch, Life};
use crate::engine::access::Access;
use crate::engine::checkpoint::Checkpoint;
use crate::engine::format::{
    Entry, RecordHeader, SegmentHeader, Superblock, BLOCK_SIZE, DATA_START, NODE_ENTRIES,
    SEGMENT_HEADER, UNIT,
};
use crate::engine::freeing;
use crate::engine::io::cache::place_of;
use crate::engine::map::table::{NodeId, Table};
use crate::engine::map::usage::{Change, Class};
use crate::engine::map::Part;
use crate::engine::recovery::check::{self, Finding, Summary};
use crate::engine::space::{Allocator, Writer};
use crate::engine::store::Store;
use crate::engine::workspace::Workspace;
use crate::engine::{Error, Result};
use crate::platform::mem::{arc, Arc, Buf, Vec};
use crate::platform::{BackingFile, Monitor, Platform};

/// Segments that are believed to have been cut off the end of a file.
const MOST_CUT: u64 = 1 << 20;

/// Sequence numbers that are tried for all segments without a header: a second of computing. Honest images need a few
/// times the number of their segments for each.
const MOST_LIVES: u64 = 1 << 24;

/// What a repair did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repaired {
    /// Something was written. A whole image, and one that lost nothing but data, is left as it is.
    pub written: bool,
    /// Findings of the check before.
    pub before: u64,
    /// Places of the log that held changes nobody can name any more.
    pub unnamed: u64,
    /// What a check of the image as it is now says.
    pub summary: Summary,
}

/// What a repair tells while it works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// Damage, found before anything was written.
    Damage(Finding),
    /// These blocks were found again record by record. A block that was zeroed or discarded may hold
    /// older data, because nothing says so any more.
    Rebuilt(u64, u64),
    /// These bytes of the log are lost: which blocks they changed is not known, and those hold what they
    /// held before.
    Unnamed(u64, u64),
    /// What is still wrong afterwards.
    Left(Finding),
}

/// Repairs the image in the file that `open` opens (again and again), and checks it.
///
/// # Errors
///
/// [`Error::NotAnImage`] when there is nothing to go on with, and the errors of the backing file. Before the
/// first write: the image is unchanged.
pub fn repair<P: Platform>(
    open: &mut dyn FnMut() -> Result<P::File>,
    report: &mut dyn FnMut(&Report),
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Repaired> {
    let (mut before, mut structure) = (0, false);
    let found = check::check::<P>(
        open()?,
        &mut |finding| {
            before += 1;
            structure |= !finding.data;
            report(&Report::Damage(*finding));
        },
        progress,
    );
    match found {
        Ok(summary) if !structure => {
            return Ok(Repaired {
                written: false,
                before,
                unnamed: 0,
                summary,
            })
        }
        Ok(_) => {}
        Err(error @ (Error::Corrupt { .. } | Error::NotAnImage)) => {
            before += 1;
            report(&Report::Damage(Finding {
                error,
                blocks: None,
                data: false,
            }));
        }
        Err(error) => return Err(error),
    }
    let unnamed = rebuild::<P>(open()?, report)?;
    let left = &mut |finding: &Finding| report(&Report::Left(*finding));
    let summary = check::check::<P>(open()?, left, progress)?;
    Ok(Repaired {
        written: true,
        before,
        unnamed,
        summary,
    })
}

/// Bytes that must be put in place again.
struct Patch {
    offset: u64,
    bytes: [u8; SEGMENT_HEADER],
    len: usize,
}

struct Repair<'a, P: Platform> {
    store: Arc<Store<P>>,
    ws: Workspace<P>,
    page: Buf,
    segment: Buf,
    /// Segments the file has room for, and those that were cut off.
    segments: u64,
    /// Segments the file has.
    present: u64,
    /// Sequence numbers that may still be tried.
    tries: u64,
    /// The checkpoint to start from.
    base: Superblock,
    /// Seed of the present life of each segment; `None`: nothing is known of it.
    seeds: Vec<Option<u32>>,
    /// In the order of the log.
    lives: Vec<Life>,
    epochs: Vec<Epoch>,
    /// Segments whose life nobody can name, though its seed is known: what is live there must move.
    nameless: Vec<(u64, u32)>,
    /// Ranges of blocks below nodes that cannot be read: first and end.
    lost: Vec<(u64, u64)>,
    patches: Vec<Patch>,
    unnamed: u64,
    report: &'a mut dyn FnMut(&Report),
}

/// The first record at or after `at` that is whole.
fn next_record<P: Platform>(bytes: &[u8], seed: u32, at: u32) -> Option<(u32, RecordHeader)> {
    (at as usize..bytes.len()).step_by(UNIT).find_map(|at| {
        let (header, _) = RecordHeader::decode::<P>(&bytes[at..], seed, at as u32)?;
        Some((at as u32, header))
    })
}

/// Bytes of a record in its segment.
fn space(header: &RecordHeader) -> u32 {
    header.units() * UNIT as u32
}

/// Puts the image together and writes it. Returns how many places of the log are lost without a name.
fn rebuild<P: Platform>(file: P::File, report: &mut dyn FnMut(&Report)) -> Result<u64> {
    let mut page = Buf::zeroed(BLOCK_SIZE)?;
    let identity = identify::<P>(&file, &mut page)?;
    let base = match identity.slots.first() {
        Some(superblock) => *superblock,
        // Without any checkpoint there is no size of the device to go by.
        None => newest_copy::<P>(&file, &identity, &mut page)?.ok_or(Error::NotAnImage)?,
    };
    if base.read_only_compatible != 0 {
        return Err(Error::Feature(base.read_only_compatible));
    }
    let layout = base.layout;
    let bytes = file.len()?.saturating_sub(DATA_START);
    let fit = bytes.div_ceil(u64::from(layout.segment_size));
    // Of a file that was cut short the table knows more segments; they must not become those of the new log.
    let segments = base
        .segments
        .min(fit + MOST_CUT)
        .max(fit)
        .min(layout.max_segments());
    let mut superblock = base;
    superblock.epoch += 1;
    superblock.salt = P::random_u64();
    superblock.clean = false;
    // The table is put together without them.
    superblock.detached = false;
    let allocator = Allocator::new(segments, segments);
    let mut headers: Vec<Option<SegmentHeader>> = Vec::new();
    for index in 0..segments.min(fit) {
        file.read_at(&mut page[..BLOCK_SIZE], layout.segment_offset(index))?;
        let header = SegmentHeader::of_segment::<P>(&page, &layout, index).filter(|header| {
            // What only a forger would write must not overflow anything.
            header.seq >> (60 - layout.segment_shift()) == 0
                && header.first <= header.seq
                && header.epoch < u64::MAX / 2
        });
        if let Some(header) = header {
            superblock.epoch = superblock.epoch.max(header.epoch.saturating_add(1));
        }
        headers.push(header)?;
    }
    let table = Table::new(base.height, Entry::HOLE);
    let store = Store::<P>::new(arc(file)?, &superblock, table, allocator, Access::Write)?;
    let mut repair = Repair {
        ws: store.workspace()?,
        page,
        segment: Buf::zeroed(layout.segment_size as usize)?,
        store,
        segments,
        present: fit,
        tries: MOST_LIVES,
        base,
        seeds: Vec::new(),
        lives: Vec::new(),
        epochs: Vec::new(),
        nameless: Vec::new(),
        lost: Vec::new(),
        patches: Vec::new(),
        unnamed: 0,
        report,
    };
    repair.find_epochs(&identity, &headers)?;
    repair.find_lives(&headers)?;
    repair.find_durable(&identity)?;
    let root = NodeId {
        level: base.height - 1,
        index: 0,
    };
    repair.load(root, base.map_root)?;
    repair.replay()?;
    repair.recount()?;
    repair.commit(superblock)
}

impl<P: Platform> Repair<'_, P> {
    fn lsn(&self, seq: u64, offset: u32) -> u64 {
        (seq << self.store.layout.segment_shift()) + u64::from(offset)
    }

    fn log_start(&self) -> u64 {
        self.lsn(self.base.log_start.seq, self.base.log_start.offset)
    }

    /// Counts what is live in each segment, and what is mapped.
    fn recount(&mut self) -> Result {
        let (layout, blocks) = (self.store.layout, self.store.blocks());
        {
            let mut map = self.store.map.lock();
            let map = &mut *map;
            if let Some(last) = self.segments.checked_sub(1) {
                map.usage.grow(last)?;
            }
            for (index, seed) in (0..).zip(self.seeds.iter()) {
                map.usage.change(index, |segment| {
                    segment.seed = seed.unwrap_or(0);
                    segment.free = false;
                });
            }
            map.for_each_part(0, blocks, &mut |map, part| {
                let Part::Leaf(at, n) = part else {
                    return Ok(());
                };
                for i in 0..n {
                    let first = at as usize % NODE_ENTRIES;
                    let word = map.table.leaf(at).map_or(0, |leaf| leaf[first + i]);
                    map.usage.account(Entry(word), Class::Live, Change::Add)?;
                    map.mapped += u64::from(word != 0);
                }
                Ok(())
            })?;
        }
        if self.overfull().is_some() {
            self.drop_missing()?;
        }
        match self.overfull() {
            Some(index) => {
                let offset = layout.segment_offset(index);
                crate::engine::format::corrupt("segment: more live than it has room for", offset)
            }
            None => Ok(()),
        }
    }

    /// A segment in which more is live than it has room for.
    fn overfull(&self) -> Option<u64> {
        let size = u64::from(self.store.layout.segment_size);
        let map = self.store.map.lock();
        let found = map.usage.iter().position(|s| s.live_bytes() > size);
        found.map(|index| index as u64)
    }

    /// Drops blocks whose records are not there. A segment that the log superseded is used again, and where the log
    /// that did so is damaged, both what was there and what is there are counted.
    fn drop_missing(&mut self) -> Result {
        let (layout, blocks) = (self.store.layout, self.store.blocks());
        let size = u64::from(layout.segment_size);
        let mut doubtful: Vec<(u64, Entry, u32)> = Vec::new();
        self.store
            .map
            .lock()
            .for_each_part(0, blocks, &mut |map, part| {
                let Part::Leaf(at, n) = part else {
                    return Ok(());
                };
                let first = at as usize % NODE_ENTRIES;
                let words = map
                    .table
                    .leaf(at)
                    .map_or(&[][..], |leaf| &leaf[first..first + n]);
                for (block, &word) in (at..).zip(words) {
                    let index = layout.segment_of(Entry(word).address());
                    let segment = index.and_then(|index| map.usage.get(index));
                    if let Some(segment) = segment.filter(|s| word != 0 && s.live_bytes() > size) {
                        doubtful.push((block, Entry(word), segment.seed))?;
                    }
                }
                Ok(())
            })?;
        for &(block, entry, seed) in doubtful.iter() {
            let error = match self.store.record(entry, seed, &mut self.ws.record) {
                Ok((header, payload)) => {
                    let mask = header.mask(payload).unwrap_or(0);
                    if place_of(block, header.number, mask) == Some(entry.index()) {
                        continue;
                    }
                    Error::Corrupt {
                        what: "record: it holds another block",
                        offset: entry.address(),
                    }
                }
                Err(error @ Error::Corrupt { .. }) => error,
                Err(error) => return Err(error),
            };
            let mut map = self.store.map.lock();
            map.replace(block, 1, &mut |_| Entry::HOLE)?;
            drop(map);
            (self.report)(&Report::Damage(Finding {
                error,
                blocks: Some((block, 1)),
                data: true,
            }));
        }
        Ok(())
    }

    /// Writes it all.
    fn commit(self, superblock: Superblock) -> Result<u64> {
        let Self {
            store,
            ws,
            mut page,
            seeds,
            lives,
            nameless,
            patches,
            unnamed,
            segment,
            ..
        } = self;
        let last = lives.iter().map(|life| life.header.seq).max();
        let shift = store.layout.segment_shift();
        let known = (superblock.log_end >> shift).max(superblock.log_start.seq);
        let seq = known.max(last.unwrap_or(0)) + 1;
        start(&store, seq, &seeds)?;
        // The bytes around a patch stay as they are, so a power failure tears nothing.
        let patch = |page: &mut Buf, offset: u64, bytes: &[u8]| {
            let skip = (offset % BLOCK_SIZE as u64) as usize;
            let sector = offset - skip as u64;
            store.file.read_at(&mut page[..BLOCK_SIZE], sector)?;
            page[skip..skip + bytes.len()].copy_from_slice(bytes);
            store.file.write_at(&page[..BLOCK_SIZE], sector)
        };
        for p in patches.iter() {
            patch(&mut page, p.offset, &p.bytes[..p.len])?;
        }
        for life in lives.iter().filter(|life| !life.stored) {
            let offset = store.layout.segment_offset(life.header.index);
            patch(&mut page, offset, &life.header.encode::<P>())?;
        }
        store.file.sync()?;
        let mut checkpoint = Checkpoint::new(superblock, Vec::new(), ws, page);
        let mut bytes = segment;
        for &(index, seed) in nameless.iter() {
            let base = store.layout.segment_offset(index);
            store.file.read_at(&mut bytes, base)?;
            store.move_records(&mut checkpoint, &bytes, base, seed, Writer::Mover)?;
        }
        store.checkpoint(&mut checkpoint, false)?;
        store.checkpoint(&mut checkpoint, false)?;
        let before = checkpoint.superblock.length;
        store.checkpoint(&mut checkpoint, true)?;
        freeing::trim(&store, before.max(checkpoint.superblock.length))?;
        Ok(unnamed)
    }
}

/// Begins the new log behind everything there is; where that is impossible, in segments without any trace of
/// the image.
fn start<P: Platform>(store: &Store<P>, seq: u64, seeds: &[Option<u32>]) -> Result {
    match store.log.start(&store.file, seq) {
        Err(Error::NoSpace) => {
            for (index, _) in (0..).zip(seeds).filter(|(_, seed)| seed.is_none()) {
                store.log.lock().space.allocator.release(index)?;
            }
            store.log.start(&store.file, seq)
        }
        started => started,
    }
}
