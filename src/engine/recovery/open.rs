// SPDX-License-Identifier: GPL-2.0
//! Creating an image, and opening one: superblock, segment usage, replay of the log.

use crate::engine::checkpoint::Checkpoint;
use crate::engine::format::Algorithm;
use crate::engine::format::{
    corrupt, height_for, le64, seed, DeviceSize, Entry, Kind, Layout, LogStart, RecordHeader,
    SegmentHeader, Superblock, BLOCK_SIZE, DATA_START, NODE_ENTRIES, RECORD_SIZES, SEGMENT_HEADER,
    SEGMENT_SHIFTS, SUPERBLOCK_OFFSETS, UNIT,
};
use crate::engine::io::cache::RecordCache;
use crate::engine::io::write::{zero_end, Stored};
use crate::engine::log::{Log, Placed, Position};
use crate::engine::map::detached::Reaper;
use crate::engine::map::table::{NodeId, Table};
use crate::engine::map::usage::{Change, Class, Usage};
use crate::engine::map::Map;
use crate::engine::space::{Allocator, MAX_UNCOVERED};
use crate::engine::store::{Counters, Store, REPLAY_MEMORY};
use crate::engine::workspace::Workspace;
use crate::engine::{Error, Result};
use crate::platform::mem::{Buf, Vec};
use crate::platform::{BackingFile, Monitor, Platform, Rank, Sabotage};
use core::sync::atomic::{AtomicBool, AtomicU64};

/// Bytes of memory for the sector table of a volume that was not told otherwise.
pub const DEFAULT_TABLE_LIMIT: u64 = 32 << 20;

/// What a new image is to be.
#[derive(Clone, Copy, Debug)]
pub struct CreateOptions {
    /// Device size in bytes: a multiple of 4096, at most 1 PiB.
    pub size: u64,
    /// Most bytes one record holds: a power of two from 4096 to 131072.
    pub record_size: u32,
    /// Bytes of a log segment: a power of two from 256 KiB to 4 MiB;
    /// [`DEFAULT_SEGMENT_SIZE`](crate::engine::DEFAULT_SEGMENT_SIZE) suits all but tests.
    pub segment_size: u32,
    /// Compression of the data.
    pub algorithm: Algorithm,
    /// Identity; random.
    pub uuid: [u8; 16],
}

/// Writes an empty image into `file`. What is in the first MiB of it is lost, and a longer file is cut.
pub(crate) fn create<P: Platform>(file: &P::File, options: &CreateOptions) -> Result {
    let size = DeviceSize::from_bytes(options.size)?;
    if !options.record_size.is_power_of_two() || !RECORD_SIZES.contains(&options.record_size) {
        return Err(Error::Invalid(
            "record size: it must be a power of two from 4096 to 131072 bytes",
        ));
    }
    let segment_shift = options.segment_size.trailing_zeros();
    if !options.segment_size.is_power_of_two() || !SEGMENT_SHIFTS.contains(&segment_shift) {
        return Err(Error::Invalid(
            "segment size: it must be a power of two from 256 KiB to 4 MiB",
        ));
    }
    let mut superblock = Superblock {
        compatible: 0,
        read_only_compatible: 0,
        layout: Layout {
            record_size: options.record_size,
            segment_size: options.segment_size,
            uuid: options.uuid,
        },
        algorithm: options.algorithm,
        size,
        clean: true,
        detached: false,
        generation: 1,
        epoch: 0,
        salt: P::random_u64(),
        log_start: LogStart {
            segment: 0,
            offset: SEGMENT_HEADER as u32,
            seq: 0,
        },
        log_end: 0,
        segments: 0,
        mapped: 0,
        height: size.table_height(),
        map_root: Entry::HOLE,
        usage_root: Entry::HOLE,
        usage_segments: 0,
        length: SUPERBLOCK_OFFSETS[1] + BLOCK_SIZE as u64,
    };
    let mut page = Buf::zeroed(BLOCK_SIZE)?;
    if !file.fixed_size() {
        file.truncate(0)?;
    }
    for generation in [1, 2] {
        superblock.generation = generation;
        superblock.encode::<P>(&mut page);
        file.write_at(&page, superblock.offset())?;
    }
    file.sync()
}

/// Reads one superblock slot.
pub(crate) fn read_slot<P: Platform>(
    file: &P::File,
    slot: usize,
    page: &mut Buf,
) -> Result<Superblock> {
    let offset = SUPERBLOCK_OFFSETS[slot];
    file.read_at(&mut page[..BLOCK_SIZE], offset)?;
    Superblock::decode::<P>(&mut page[..BLOCK_SIZE], offset)
}

/// The valid superblocks, the one of the higher generation first.
///
/// # Errors
///
/// When there is none, when they belong to different images, and when either was written by newer
/// software: what that means is not ours to judge.
fn read_superblocks<P: Platform>(
    file: &P::File,
    page: &mut Buf,
) -> Result<(Superblock, Option<Superblock>)> {
    let first = read_slot::<P>(file, 0, page);
    let second = read_slot::<P>(file, 1, page);
    for slot in [&first, &second] {
        if let Err(error @ (Error::Version(_) | Error::Feature(_))) = slot {
            return Err(*error);
        }
    }
    match (first, second) {
        (Ok(a), Ok(b)) if a.layout != b.layout => corrupt(
            "superblock: the two copies belong to different images",
            SUPERBLOCK_OFFSETS[1],
        ),
        (Ok(a), Ok(b)) if a.generation > b.generation => Ok((a, Some(b))),
        (Ok(a), Ok(b)) => Ok((b, Some(a))),
        (Ok(only), Err(_)) | (Err(_), Ok(only)) => Ok((only, None)),
        (Err(Error::NotAnImage), Err(error)) | (Err(error), Err(_)) => Err(error),
    }
}

/// What replay found.
pub(crate) struct Replayed {
    /// Data and zero records applied.
    pub(crate) records: u64,
    /// Highest sequence number seen.
    seq: u64,
}

/// An image as it was found, replayed in memory.
pub(crate) struct Opened<P: Platform> {
    pub(crate) store: Store<P>,
    pub(crate) checkpoint: Checkpoint<P>,
    pub(crate) replayed: Replayed,
    /// The superblock said that the image was closed cleanly.
    pub(crate) clean: bool,
    /// The newest checkpoint is damaged in this way, and the one before it was used: its log leads to
    /// the same state.
    pub(crate) spare: Option<Error>,
    /// Either superblock says that the file is at least so long, in bytes.
    pub(crate) length: u64,
}

/// Opens an image. Writes nothing to it.
pub(crate) fn open<P: Platform>(file: P::File, read_only: bool) -> Result<Opened<P>> {
    let mut page = Buf::zeroed(BLOCK_SIZE)?;
    if !read_only {
        // What is about to be replayed must not be lost afterwards.
        file.sync()?;
    }
    let (newest, older) = read_superblocks::<P>(&file, &mut page)?;
    if !read_only && newest.read_only_compatible != 0 {
        return Err(Error::Feature(newest.read_only_compatible));
    }
    if !read_only && newest.exhausted() {
        return corrupt("superblock: counters near their end", newest.offset());
    }
    let length = file.len()?;
    if length < newest.length {
        return corrupt("image: the file was cut short, it ends", length);
    }
    let longest = older.map_or(0, |older| older.length).max(newest.length);
    let (file, error) = match attempt(file, &newest, &newest, page, read_only) {
        Ok(mut opened) => {
            opened.length = longest;
            return Ok(opened);
        }
        Err(failed) => failed,
    };
    match (error, older) {
        (Error::Corrupt { .. }, Some(older)) => {
            let page = Buf::zeroed(BLOCK_SIZE)?;
            match attempt(file, &older, &newest, page, read_only) {
                Ok(mut opened) => {
                    opened.spare = Some(error);
                    opened.length = longest;
                    Ok(opened)
                }
                // What is wrong with the newest is the better explanation.
                Err(_) => Err(error),
            }
        }
        _ => Err(error),
    }
}

/// Opens the image as of the checkpoint `found`. Gives the file back when that fails.
fn attempt<P: Platform>(
    file: P::File,
    found: &Superblock,
    newest: &Superblock,
    page: Buf,
    read_only: bool,
) -> core::result::Result<Opened<P>, (P::File, Error)> {
    let mut superblock = *found;
    superblock.generation = newest.generation;
    if !read_only {
        superblock.epoch = newest.epoch + 1;
        superblock.salt = P::random_u64();
    }
    // The size is the newest, whichever checkpoint leads to it.
    superblock.size = newest.size;
    superblock.algorithm = newest.algorithm;
    let parts = (|| {
        let layout = newest.layout;
        let allocator = Allocator::new(found.segments, found.usage_segments);
        let (epoch, salt) = (superblock.epoch, superblock.salt);
        let mut table = Table::new(found.height, found.map_root);
        table.grow(newest.height)?;
        table.may_have_detached = found.detached;
        let map = Map {
            table,
            usage: Usage::new(layout),
            writing: false,
            mapped: found.mapped,
            mapped_after: 0,
        };
        Ok((
            Log::new(layout, newest.size, epoch, salt, allocator, !read_only)?,
            P::Monitor::new(map, Rank::Map)?,
            RecordCache::new(&layout)?,
            Workspace::new(&layout)?,
        ))
    })();
    let (log, map, cache, mut ws) = match parts {
        Ok(parts) => parts,
        Err(error) => return Err((file, error)),
    };
    let store = Store {
        file,
        layout: newest.layout,
        algorithm: newest.algorithm,
        log,
        map,
        cache,
        table_limit: AtomicU64::new(0),
        table_memory: AtomicU64::new(0),
        // What is replayed may have happened on a larger device.
        blocks: AtomicU64::new(newest.size.max(found.size).blocks()),
        detached: AtomicBool::new(found.detached),
        closed: AtomicBool::new(false),
        counters: Counters::default(),
    };
    store.limit_table(DEFAULT_TABLE_LIMIT);
    let mut page = page;
    let loaded = (|| {
        let limit = store.segment_limit(found)?;
        if found.segments > limit || found.log_start.segment >= limit {
            return corrupt(
                "superblock: more segments than the file has",
                found.offset(),
            );
        }
        let usage_nodes = store.load_usage(&mut ws, found, &mut page)?;
        let replayed = if found.clean && found == newest {
            // Only the checkpoint itself lies in the log. What is damaged there is found when it is
            // read, and costs no more than its blocks.
            Replayed {
                records: 0,
                seq: found.log_end >> store.layout.segment_shift(),
            }
        } else {
            store.replay(&mut ws, found, newest.log_end, limit)?
        };
        store.list_free()?;
        store.set_size(newest.size);
        Ok((usage_nodes, replayed))
    })();
    match loaded {
        Ok((usage_nodes, replayed)) => Ok(Opened {
            store,
            checkpoint: Checkpoint {
                superblock,
                usage_nodes,
                ws,
                page,
                segment: None,
                reaper: Reaper::new(found.detached),
                victims: Vec::new(),
            },
            replayed,
            clean: found.clean,
            spare: None,
            length: 0,
        }),
        Err(error) => Err((store.file, error)),
    }
}

impl<P: Platform> Store<P> {
    /// Scratch memory for one request.
    pub(crate) fn workspace(&self) -> Result<Workspace<P>> {
        Workspace::new(&self.layout)
    }

    /// Most segments the file can have: what fits into it, and a few that were reserved when the
    /// power failed and did not make it longer. A file may be long and empty, so it is also bounded by
    /// what the stored usage covers.
    pub(crate) fn segment_limit(&self, superblock: &Superblock) -> Result<u64> {
        const RESERVED: u64 = 8;
        let bytes = self.file.len()?.saturating_sub(DATA_START);
        let fit = bytes.div_ceil(u64::from(self.layout.segment_size));
        let covered = superblock.usage_segments + MAX_UNCOVERED;
        Ok(self.layout.max_segments().min(fit + RESERVED).min(covered))
    }

    /// Loads the segment usage; returns where its nodes are.
    pub(crate) fn load_usage(
        &self,
        ws: &mut Workspace<P>,
        superblock: &Superblock,
        page: &mut Buf,
    ) -> Result<Vec<Vec<u64>>> {
        let mut levels: Vec<Vec<u64>> = Vec::new();
        let root = superblock.usage_root;
        if root.is_hole() != (superblock.usage_segments == 0) {
            return corrupt("superblock", superblock.offset());
        }
        if root.is_hole() {
            return self.finish_usage(superblock, levels);
        }
        let height = height_for(superblock.usage_segments);
        for _ in 0..height {
            levels.push(Vec::new())?;
        }
        levels[usize::from(height) - 1].push(root.0)?;
        for level in (0..height).rev() {
            let nodes = levels[usize::from(level)].len();
            let reach = NODE_ENTRIES.pow(u32::from(level));
            let pages = superblock.usage_segments.div_ceil(NODE_ENTRIES as u64) as usize;
            for index in 0..nodes {
                let id = NodeId {
                    level,
                    index: index as u64,
                };
                let entry = Entry(levels[usize::from(level)][index]);
                if entry.is_hole() || !entry.plausible(&self.layout, superblock.segments) {
                    return corrupt("segment usage", entry.address());
                }
                let seed = self.seed_on_disk(entry, page)?;
                let words = self.node(ws, Kind::UsageNode, id, entry, seed)?;
                if level == 0 {
                    let segments = superblock.usage_segments;
                    let detached = superblock.detached && !P::sabotaged(Sabotage::StrictCounts);
                    let usage = &mut self.map.lock().usage;
                    usage.load_page(&words, segments, detached)?;
                } else {
                    // The nodes of the level below that exist. Without a division, because objtool
                    // takes the panic on a zero divisor for a function that returns.
                    let step = reach / NODE_ENTRIES;
                    for (slot, &word) in words.iter().enumerate() {
                        if (index * NODE_ENTRIES + slot) * step >= pages {
                            break;
                        }
                        levels[usize::from(level) - 1].push(word)?;
                    }
                }
            }
        }
        self.finish_usage(superblock, levels)
    }

    /// Completes the loaded usage by what its pages do not say.
    fn finish_usage(
        &self,
        superblock: &Superblock,
        levels: Vec<Vec<u64>>,
    ) -> Result<Vec<Vec<u64>>> {
        let mut map = self.map.lock();
        if let Some(last) = superblock.segments.checked_sub(1) {
            map.usage.grow(last)?;
        }
        for &word in levels.iter().flat_map(|level| level.iter()) {
            map.usage.account(Entry(word), Class::Own, Change::Add)?;
        }
        for index in 0..superblock.segments {
            map.usage.change_unstored(index, |segment| {
                // The stored usage itself may have gone to a segment that was free when its page was
                // written.
                segment.free &= segment.dead();
                // Free is what the checkpoint before this one does not need either.
                if segment.dead() && !segment.free {
                    segment.dead_since = superblock.generation;
                }
            });
        }
        Ok(levels)
    }

    /// The seed of the segment an entry points into, from the segment's header.
    fn seed_on_disk(&self, entry: Entry, page: &mut Buf) -> Result<u32> {
        let index = self.layout.segment_of(entry.address()).unwrap_or(0);
        let offset = self.layout.segment_offset(index);
        self.file.read_at(&mut page[..BLOCK_SIZE], offset)?;
        match SegmentHeader::of_segment::<P>(page, &self.layout, index) {
            Some(header) => Ok(header.seed::<P>()),
            None => corrupt("segment header", offset),
        }
    }

    /// Applies the log from the checkpoint on, up to the first thing that does not follow.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] when the log ends before `log_end`, up to where it was durable when the newest
    /// superblock was written: that is damage, not a crash.
    pub(crate) fn replay(
        &self,
        ws: &mut Workspace<P>,
        superblock: &Superblock,
        log_end: u64,
        limit: u64,
    ) -> Result<Replayed> {
        let layout = &self.layout;
        let size = layout.segment_size;
        let mut segment_bytes = Buf::zeroed(size as usize)?;
        let LogStart {
            mut segment,
            mut offset,
            mut seq,
        } = superblock.log_start;
        let mut replayed = Replayed {
            records: 0,
            seq: seq.max(log_end >> layout.segment_shift()),
        };
        let mut before = None;
        loop {
            let base = layout.segment_offset(segment);
            self.file.read_at(&mut segment_bytes, base)?;
            let header = SegmentHeader::of_segment::<P>(&segment_bytes, layout, segment);
            let mut end = offset;
            let mut next = None;
            let header = header.filter(|header| {
                let incarnation = (header.seq, header.epoch, header.salt);
                incarnation == (seq, superblock.epoch, superblock.salt)
                    || P::sabotaged(Sabotage::StaleSegment)
            });
            if let Some(header) = header {
                let seed = header.seed::<P>();
                let mut map = self.map.lock();
                // The checkpoint may not have known the segment yet.
                map.usage.grow(segment)?;
                map.enter(&Placed {
                    address: base,
                    segment,
                    seq,
                    seed,
                    before,
                })?;
                drop(map);
                replayed.seq = replayed.seq.max(seq);
                while let Some((header, payload)) =
                    RecordHeader::decode::<P>(&segment_bytes[end as usize..], seed, end)
                {
                    let address = base + u64::from(end);
                    end += header.units() * UNIT as u32;
                    if end > size {
                        return corrupt("log record", address);
                    }
                    match header.kind {
                        Kind::Link => {
                            next = Some(le64(payload, 0));
                            break;
                        }
                        Kind::Data | Kind::Zero => {
                            self.apply(ws, &header, payload, address)?;
                            replayed.records += 1;
                            if self.map.lock().table.memory > REPLAY_MEMORY {
                                return Err(Error::NoMemory);
                            }
                        }
                        Kind::Pad | Kind::MapNode | Kind::UsageNode | Kind::Checkpoint => {}
                    }
                    if end >= size {
                        break;
                    }
                }
            }
            match next {
                Some(index) if index < limit => {
                    let used = end.next_multiple_of(BLOCK_SIZE as u32);
                    before = Some((segment, layout.tail_of(used)));
                    (segment, offset, seq) = (index, SEGMENT_HEADER as u32, seq + 1);
                    let mut tail = self.log.lock();
                    tail.space.allocator.count = tail.space.allocator.count.max(index + 1);
                }
                _ => {
                    let after = Position {
                        segment,
                        offset: end,
                        seq,
                    };
                    let durable = self.durable_after(&mut segment_bytes, superblock, after)?;
                    if self.log.lsn_of(after) < durable.max(log_end) {
                        return corrupt("log", base + u64::from(end));
                    }
                    return Ok(replayed);
                }
            }
        }
    }

    /// How far the log was durable, as far as what lies behind its apparent end `after` tells: a log position,
    /// 0 if nothing does.
    ///
    /// What was not durable yet may be lost in any order, so something valid behind a gap is no sign of
    /// damage. But headers, pads and links say what was durable when they were written.
    /// `segment_bytes` holds the segment of `after`.
    fn durable_after(
        &self,
        segment_bytes: &mut Buf,
        superblock: &Superblock,
        after: Position,
    ) -> Result<u64> {
        let layout = &self.layout;
        let limit = self.segment_limit(superblock)?;
        let (mut at, mut durable) = (after, 0);
        // A segment has one incarnation at a time, so an honest chain ends before that.
        for _ in 0..limit {
            let (salt, epoch) = (superblock.salt, superblock.epoch);
            let seed = seed::<P>(&layout.uuid, salt, at.seq, at.segment);
            let header = SegmentHeader::of_segment::<P>(segment_bytes, layout, at.segment)
                .filter(|header| (header.seq, header.epoch, header.salt) == (at.seq, epoch, salt));
            let mut next = header.map(|header| header.next);
            durable = durable.max(header.map_or(0, |header| header.durable));
            for offset in (at.offset..layout.segment_size).step_by(UNIT) {
                let bytes = &segment_bytes[offset as usize..];
                if let Some((header, payload)) =
                    RecordHeader::decode_ending::<P>(bytes, seed, offset)
                {
                    let lsn = self.log.lsn_of(Position { offset, ..at });
                    durable = durable.max(header.durable(lsn).unwrap_or(0));
                    if header.kind == Kind::Link {
                        next = Some(le64(payload, 0));
                    }
                }
            }
            let Some(segment) = next.filter(|&next| next < limit) else {
                break;
            };
            at = Position {
                segment,
                offset: SEGMENT_HEADER as u32,
                seq: at.seq + 1,
            };
            self.file
                .read_at(segment_bytes, layout.segment_offset(segment))?;
        }
        Ok(durable)
    }

    /// Makes the change of one record again.
    fn apply(
        &self,
        ws: &mut Workspace<P>,
        header: &RecordHeader,
        payload: &[u8],
        address: u64,
    ) -> Result {
        let layout = &self.layout;
        let (block, damaged) = (header.number, corrupt("log record", address));
        if header.kind == Kind::Zero {
            let count = le64(payload, 0);
            if zero_end(block, count).is_none_or(|end| end > self.blocks()) {
                return damaged;
            }
            loop {
                let count = count >> u32::from(P::sabotaged(Sabotage::ShortZero));
                let stored = self.unmap(&mut self.map.lock(), block, count)?;
                match stored {
                    Some(at) => self.prepare(ws, at, false)?,
                    None => return Ok(()),
                };
            }
        }
        let span = u64::from(header.span);
        let shift = layout.record_blocks().trailing_zeros();
        // Records lie within one natural unit of the record size, and so within one leaf.
        let inside = block >> shift == (block + span - 1) >> shift && block + span <= self.blocks();
        let (Some(mask), true) = (header.mask(payload), inside) else {
            return damaged;
        };
        self.prepare(ws, block, true)?;
        let stored = Stored {
            block,
            span: span as usize,
            mask,
            units: header.units(),
            address,
        };
        self.map_record(&mut self.map.lock(), &stored)
    }

    /// Hands the segments that are free to the log: dead in the checkpoint and not in the chain that
    /// was replayed over it (entering those took the mark off).
    fn list_free(&self) -> Result {
        let mut tail = self.log.lock();
        let mut map = self.map.lock();
        let count = tail.space.allocator.count;
        if let Some(last) = count.checked_sub(1) {
            map.usage.grow(last)?;
        }
        for index in (0..count).rev() {
            if map.usage.get(index).is_some_and(|s| s.free) {
                tail.space.allocator.release(index)?;
            }
        }
        Ok(())
    }
}

impl Replayed {
    /// The first sequence number of the new epoch.
    pub(crate) fn next_seq(&self) -> u64 {
        self.seq + 1
    }
}
