// SPDX-License-Identifier: GPL-2.0
//! Repair of a damaged image: everything that is whole is found again, and what is not is named.
//!
//! The state of the device is put together in memory: from the newest superblock that is whole (or the copy of
//! one in the log), its table as far as that can be read, and the log behind it. Blocks below a node of the
//! table that cannot be read come from the records in all segments, in the order of the log. Only then
//! is anything written, as an ordinary opening would: a new epoch in fresh segments at the end of the
//! image, two checkpoints, and a clean close. Until the first of them is complete the image is as damaged
//! as it was and no more, so a repair can be interrupted and repeated.

use super::cache::RecordCache;
use super::check::{self, Finding, Summary};
use super::checkpoint::Checkpoint;
use super::format::{
    le64, seed, Entry, Kind, RecordHeader, SegmentHeader, Superblock, BLOCK_SIZE, DATA_START,
    NODE_ENTRIES, NODE_SHIFT, SEGMENT_HEADER, SEGMENT_SHIFTS, UNIT,
};
use super::log::Log;
use super::map::{Map, Part};
use super::open::read_slot;
use super::orphans::Orphanage;
use super::shared::{Counters, Shared};
use super::space::Allocator;
use super::table::{Found, NodeId, Table};
use super::usage::{Change, Class, Usage};
use super::workspace::Workspace;
use super::{Error, Result};
use crate::platform::mem::{Buf, Vec};
use crate::platform::{BackingFile, Monitor, Platform, Rank};
use core::sync::atomic::{AtomicBool, AtomicU64};

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

/// One life of a segment that belongs to the image.
#[derive(Clone, Copy)]
struct Life {
    header: SegmentHeader,
    /// The header on the medium says so.
    stored: bool,
}

/// The lives of one opening of the image.
#[derive(Clone, Copy)]
struct Epoch {
    epoch: u64,
    salt: u64,
    /// Its first sequence number.
    first: u64,
    /// The first sequence number of the one after it.
    end: u64,
    /// The log was durable at least up to here: what is missing before is damage (or was given back),
    /// what is missing after is the end.
    durable: u64,
}

/// Bytes that must be put in place again.
struct Patch {
    offset: u64,
    bytes: [u8; SEGMENT_HEADER],
    len: usize,
}

struct Repair<'a, P: Platform> {
    shared: Shared<P>,
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

/// What the file says of itself: the superblocks that are whole and of one image, newest first, and the uuid
/// and log2 of the segment size of that image.
struct Identity {
    slots: Vec<Superblock>,
    uuid: [u8; 16],
    shift: u32,
}

fn identify<P: Platform>(file: &P::File, page: &mut Buf) -> Result<Identity> {
    let mut slots: Vec<Superblock> = Vec::new();
    for slot in [0, 1] {
        match read_slot::<P>(file, slot, page) {
            Ok(superblock) => {
                let at = slots.partition_point(|s| s.generation > superblock.generation);
                slots.insert(at, superblock)?;
            }
            Err(Error::Corrupt { .. } | Error::NotAnImage) => {}
            Err(error) => return Err(error),
        }
    }
    let one = slots
        .iter()
        .all(|s| s.geometry.uuid == slots[0].geometry.uuid);
    if let (Some(newest), true) = (slots.first(), one) {
        let (uuid, shift) = (newest.geometry.uuid, newest.geometry.segment_shift());
        return Ok(Identity { slots, uuid, shift });
    }
    // Whose segments are these?
    let mut votes: Vec<([u8; 16], u32, u64)> = Vec::new();
    let length = file.len()?;
    let mut offset = DATA_START;
    while offset < length {
        file.read_at(&mut page[..BLOCK_SIZE], offset)?;
        if let Some(header) = SegmentHeader::decode::<P>(page) {
            let shift = u32::from(header.segment_shift);
            let place = (offset - DATA_START) >> shift.min(63);
            if SEGMENT_SHIFTS.contains(&shift) && header.index == place {
                match votes
                    .iter_mut()
                    .find(|v| (v.0, v.1) == (header.uuid, shift))
                {
                    Some(vote) => vote.2 += 1,
                    None => votes.push((header.uuid, shift, 1))?,
                }
            }
        }
        offset += 1 << *SEGMENT_SHIFTS.start();
    }
    let most = votes.iter().max_by_key(|vote| vote.2);
    let Some(&(uuid, shift, _)) = most else {
        return Err(Error::NotAnImage);
    };
    let mut own = Vec::new();
    for slot in slots.iter().filter(|s| s.geometry.uuid == uuid) {
        own.push(*slot)?;
    }
    Ok(Identity {
        slots: own,
        uuid,
        shift,
    })
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

/// The newest copy of a superblock in the log of this image, for when no slot has one.
fn newest_copy<P: Platform>(
    file: &P::File,
    identity: &Identity,
    page: &mut Buf,
) -> Result<Option<Superblock>> {
    let size = 1u64 << identity.shift;
    let mut bytes = Buf::zeroed(size as usize)?;
    let (mut newest, mut offset): (Option<Superblock>, _) = (None, DATA_START);
    let length = file.len()?;
    while offset < length {
        file.read_at(&mut bytes, offset)?;
        let header = SegmentHeader::decode::<P>(&bytes).filter(|h| h.uuid == identity.uuid);
        if let Some(header) = header {
            let (seed, mut at) = (header.seed::<P>(), SEGMENT_HEADER as u32);
            while let Some((place, record)) = next_record::<P>(&bytes, seed, at) {
                if record.kind == Kind::Checkpoint {
                    let payload = &bytes[place as usize + UNIT..];
                    let copy = Superblock::from_record::<P>(payload, &mut page[..BLOCK_SIZE]);
                    if let Ok(copy) = copy {
                        let key = |s: &Superblock| (s.epoch, s.generation);
                        if copy.geometry.uuid == identity.uuid
                            && newest.as_ref().is_none_or(|n| key(n) < key(&copy))
                        {
                            newest = Some(copy);
                        }
                    }
                }
                at = place + space(&record);
            }
        }
        offset += size;
    }
    Ok(newest)
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
    let geo = base.geometry;
    let bytes = file.len()?.saturating_sub(DATA_START);
    let fit = bytes.div_ceil(u64::from(geo.segment_size));
    // Of a file that was cut short the table knows more segments; they must not become those of the new log.
    let segments = base
        .segments
        .min(fit + MOST_CUT)
        .max(fit)
        .min(geo.max_segments());
    let mut superblock = base;
    superblock.epoch += 1;
    superblock.salt = P::random_u64();
    superblock.clean = false;
    let map = Map {
        table: Table::new(base.height, Entry::HOLE),
        usage: Usage::new(),
        writing: false,
        mapped: 0,
        mapped_after: 0,
    };
    let allocator = Allocator::new(segments, segments);
    let mut headers: Vec<Option<SegmentHeader>> = Vec::new();
    for index in 0..segments.min(fit) {
        file.read_at(&mut page[..BLOCK_SIZE], geo.segment_offset(index))?;
        let header = SegmentHeader::of_segment::<P>(&page, &geo, index).filter(|header| {
            // What only a forger would write must not overflow anything.
            header.seq >> (60 - geo.segment_shift()) == 0
                && header.first <= header.seq
                && header.epoch < u64::MAX / 2
        });
        if let Some(header) = header {
            superblock.epoch = superblock.epoch.max(header.epoch.saturating_add(1));
        }
        headers.push(header)?;
    }
    let shared: Shared<P> = Shared {
        log: Log::new(geo, superblock.epoch, superblock.salt, allocator, true)?,
        map: P::Monitor::new(map, Rank::Map)?,
        cache: RecordCache::new(&geo)?,
        file,
        geo,
        table_limit: AtomicU64::new(u64::MAX),
        table_memory: AtomicU64::new(0),
        blocks: AtomicU64::new(geo.blocks),
        orphans: AtomicBool::new(false),
        closed: AtomicBool::new(false),
        counters: Counters::default(),
    };
    let mut repair = Repair {
        ws: shared.workspace()?,
        page,
        segment: Buf::zeroed(geo.segment_size as usize)?,
        shared,
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
        (seq << self.shared.geo.segment_shift()) + u64::from(offset)
    }

    fn log_start(&self) -> u64 {
        self.lsn(self.base.log_start.seq, self.base.log_start.offset)
    }

    /// The openings of the image, oldest first, from superblocks and headers.
    fn find_epochs(&mut self, identity: &Identity, headers: &[Option<SegmentHeader>]) -> Result {
        let known = headers.iter().flatten().map(|h| (h.epoch, h.salt, h.first));
        let slots = identity.slots.iter();
        let slots = slots.map(|s| (s.epoch, s.salt, s.log_start.seq));
        let base = (self.base.epoch, self.base.salt, self.base.log_start.seq);
        for (epoch, salt, first) in known.chain(slots).chain([base]) {
            // A later epoch than the newest superblock's never got as far as a change by a user.
            if epoch > self.base.epoch {
                continue;
            }
            let key = (epoch, salt);
            let at = self.epochs.partition_point(|e| (e.epoch, e.salt) < key);
            match self.epochs.get(at).map(|e| (e.epoch, e.salt)) {
                Some(other) if other == key => {
                    let first = first.min(self.epochs[at].first);
                    self.epochs[at].first = first;
                }
                _ => self.epochs.insert(
                    at,
                    Epoch {
                        epoch,
                        salt,
                        first,
                        end: u64::MAX,
                        durable: 0,
                    },
                )?,
            }
        }
        for at in 0..self.epochs.len() {
            let later = self.epochs[at + 1..].iter();
            let end = later
                .filter(|e| e.epoch > self.epochs[at].epoch)
                .map(|e| e.first)
                .min();
            self.epochs[at].end = end.unwrap_or(u64::MAX);
        }
        Ok(())
    }

    /// Which life each segment has, where its header is damaged too.
    fn find_lives(&mut self, headers: &[Option<SegmentHeader>]) -> Result {
        let stored = self.stored_seeds()?;
        for index in 0..self.segments {
            let header = headers.get(index as usize).copied().flatten();
            let word = stored.get(index as usize).copied().flatten();
            // A segment with something live in it was not used again since the checkpoint.
            let trusted = header.filter(|h| word.is_none_or(|seed| seed == h.seed::<P>()));
            let (seed, found) = match trusted {
                Some(header) => {
                    let stored = true;
                    (Some(header.seed::<P>()), Some(Life { header, stored }))
                }
                None => {
                    let (seed, header) = self.recognise(index, word)?;
                    let stored = false;
                    (seed, header.map(|header| Life { header, stored }))
                }
            };
            self.seeds.push(seed)?;
            if let (Some(seed), None) = (seed, found) {
                self.nameless.push((index, seed))?;
            }
            if let Some(life) = found {
                let key = |l: &Life| (l.header.epoch, l.header.seq);
                let at = self.lives.partition_point(|other| key(other) < key(&life));
                self.lives.insert(at, life)?;
            }
        }
        Ok(())
    }

    /// The seeds of segments with something live in them, as the checkpoint's segment usage has them; none if
    /// that cannot be read.
    fn stored_seeds(&mut self) -> Result<Vec<Option<u32>>> {
        let mut seeds = Vec::new();
        if self.base.segments > self.segments {
            return Ok(seeds);
        }
        let loaded = self
            .shared
            .load_usage(&mut self.ws, &self.base, &mut self.page);
        let mut map = self.shared.map.lock();
        match loaded {
            Ok(_) => {
                for segment in map.usage.iter() {
                    seeds.push((segment.stored_live() > 0).then_some(segment.seed))?;
                }
            }
            Err(Error::Corrupt { .. }) => {}
            Err(error) => return Err(error),
        }
        map.usage = Usage::new();
        Ok(seeds)
    }

    /// Finds out by its records which seed and life a segment without a header has. `known`: its seed, if that
    /// is stored elsewhere.
    fn recognise(
        &mut self,
        index: u64,
        known: Option<u32>,
    ) -> Result<(Option<u32>, Option<SegmentHeader>)> {
        let geo = self.shared.geo;
        if index >= self.present {
            return Ok((known, None));
        }
        self.shared
            .file
            .read_at(&mut self.segment, geo.segment_offset(index))?;
        let bytes = &*self.segment;
        // Two neighbours that agree on a seed.
        let agree = (SEGMENT_HEADER..bytes.len()).step_by(UNIT).find_map(|at| {
            let (header, seed) = RecordHeader::measure::<P>(&bytes[at..], at as u32)?;
            let next = at + space(&header) as usize;
            let (_, other) = RecordHeader::measure::<P>(bytes.get(next..)?, next as u32)?;
            (seed == other).then_some(seed)
        });
        let Some(wanted) = known.or(agree) else {
            return Ok((None, None));
        };
        let link = (SEGMENT_HEADER..bytes.len()).step_by(UNIT).find_map(|at| {
            let ending = RecordHeader::decode_ending::<P>(&bytes[at..], wanted, at as u32)?;
            (ending.0.kind == Kind::Link).then(|| le64(ending.1, 0))
        });
        for epoch in self.epochs.iter() {
            // The log may have gone on since the checkpoint, but not for longer than there are segments.
            let last = self.base.log_end >> geo.segment_shift();
            let last = last.max(self.base.log_start.seq) + self.segments;
            let last = last.min(epoch.end);
            let first = epoch.first.max(last.saturating_sub(self.tries));
            self.tries -= last.saturating_sub(first);
            // Newest first: that is what is live.
            for seq in (first..last).rev() {
                if seed::<P>(&geo.uuid, epoch.salt, seq, index) == wanted {
                    let header = SegmentHeader {
                        segment_shift: geo.segment_shift() as u8,
                        index,
                        seq,
                        epoch: epoch.epoch,
                        salt: epoch.salt,
                        uuid: geo.uuid,
                        next: link.unwrap_or(u64::MAX),
                        durable: 0,
                        first: epoch.first,
                    };
                    return Ok((Some(wanted), Some(header)));
                }
            }
        }
        Ok((Some(wanted), None))
    }

    /// How far the log of each epoch was certainly durable.
    fn find_durable(&mut self, identity: &Identity) -> Result {
        let geo = self.shared.geo;
        for at in 0..self.epochs.len() {
            let epoch = self.epochs[at];
            let mut durable = 0;
            for slot in identity.slots.iter().chain([&self.base]) {
                if (slot.epoch, slot.salt) == (epoch.epoch, epoch.salt) {
                    durable = slot.log_end.max(self.lsn(slot.log_start.seq, 0));
                }
            }
            if epoch.end != u64::MAX {
                // All but its last segment was there when the epoch after it began.
                durable = durable.max(self.lsn(epoch.end.saturating_sub(1), 0));
            }
            self.epochs[at].durable = durable;
        }
        for life in self.lives.iter() {
            let header = life.header;
            let key = (header.epoch, header.salt);
            let Some(epoch) = self.epochs.iter_mut().find(|e| (e.epoch, e.salt) == key) else {
                continue;
            };
            if header.seq >= epoch.end {
                continue;
            }
            epoch.durable = epoch.durable.max(header.durable);
            let offset = geo.segment_offset(header.index);
            self.shared.file.read_at(&mut self.segment, offset)?;
            let seed = header.seed::<P>();
            for at in (SEGMENT_HEADER..self.segment.len()).step_by(UNIT) {
                let ending = RecordHeader::decode_ending::<P>(&self.segment[at..], seed, at as u32);
                if let Some((record, _)) = ending {
                    let lsn = (header.seq << geo.segment_shift()) + at as u64;
                    epoch.durable = epoch.durable.max(record.durable(lsn).unwrap_or(0));
                }
            }
        }
        Ok(())
    }

    /// Takes the stored table over, as far as it can be read.
    // As deep as the tree: at most 5 levels.
    fn load(&mut self, id: NodeId, entry: Entry) -> Result {
        // What an orphan refers to is counted no more.
        if entry.is_hole() || entry.is_orphan() {
            return Ok(());
        }
        let index = self.shared.geo.segment_of(entry.address()).unwrap_or(0);
        let seed = self.seeds.get(index as usize).copied().flatten();
        let words = match seed {
            Some(seed) => {
                let (ws, segments) = (&mut self.ws, self.segments);
                self.shared.map_node(ws, id, entry, seed, segments)
            }
            None => Err(Error::NotAnImage),
        };
        let shift = NODE_SHIFT * u32::from(id.level);
        let first = (id.index << NODE_SHIFT) << shift;
        match words {
            Ok(words) => {
                for (at, &word) in words.iter().enumerate() {
                    let block = first + ((at as u64) << shift);
                    if word == 0 || block >= self.shared.geo.blocks {
                        continue;
                    }
                    if id.level == 0 {
                        self.set(block, Entry(word))?;
                    } else {
                        let kid = NodeId {
                            level: id.level - 1,
                            index: (id.index << NODE_SHIFT) + at as u64,
                        };
                        self.load(kid, Entry(word))?;
                    }
                }
                Ok(())
            }
            Err(Error::Corrupt { .. } | Error::NotAnImage) => {
                let end = first + ((NODE_ENTRIES as u64) << shift);
                let end = end.min(self.shared.geo.blocks);
                (self.report)(&Report::Rebuilt(first, end - first));
                self.lost.push((first, end))
            }
            Err(error) => Err(error),
        }
    }

    /// Points a block to `entry`.
    fn set(&mut self, block: u64, entry: Entry) -> Result {
        let mut map = self.shared.map.lock();
        loop {
            match map.table.find(block) {
                Found::Absent(_) if entry.is_hole() => return Ok(()),
                Found::Absent(id) => {
                    let words = Vec::filled(0, NODE_ENTRIES)?;
                    map.table.install(id, Entry::HOLE, words)?;
                }
                _ => break,
            }
        }
        if let Some((leaf, _)) = map.table.leaf_mut(block) {
            leaf[block as usize % NODE_ENTRIES] = entry.0;
        }
        Ok(())
    }

    /// Applies the log to the table: from log start on all of it, before that what is about lost blocks.
    fn replay(&mut self) -> Result {
        // Where the log of the epoch goes on: the sequence number expected.
        let mut going: Option<(u64, u64, u64)> = None;
        let start = self.log_start();
        let shift = self.shared.geo.segment_shift();
        for at in 0..self.lives.len() {
            let header = self.lives[at].header;
            let key = (header.epoch, header.salt);
            let epoch = self.epochs.iter().find(|e| (e.epoch, e.salt) == key);
            let Some(&epoch) = epoch.filter(|e| header.seq < e.end) else {
                continue;
            };
            let expected = match going {
                Some((e, s, seq)) if (e, s) == key => seq,
                _ => epoch.first,
            };
            if expected == u64::MAX {
                // The end of this epoch's log lies before.
                continue;
            }
            let current = key == (self.base.epoch, self.base.salt);
            let replayed = current && header.seq >= self.base.log_start.seq;
            if !replayed && self.lost.is_empty() {
                going = Some((key.0, key.1, header.seq + 1));
                continue;
            }
            if header.seq > expected && expected << shift >= epoch.durable {
                going = Some((key.0, key.1, u64::MAX));
                continue;
            }
            if replayed && header.seq > expected.max(self.base.log_start.seq) {
                // A whole segment of the log is gone.
                self.unnamed(self.shared.geo.segment_offset(header.index), 0);
            }
            let ended = self.replay_life(&header, &epoch, start, current)?;
            let next = if ended { u64::MAX } else { header.seq + 1 };
            going = Some((key.0, key.1, next));
        }
        let key = (self.base.epoch, self.base.salt);
        let reached = match going {
            Some((epoch, salt, seq)) if (epoch, salt) == key => seq,
            _ => self.base.log_start.seq,
        };
        let epoch = self.epochs.iter().find(|e| (e.epoch, e.salt) == key);
        if reached != u64::MAX && epoch.is_some_and(|e| reached << shift < e.durable) {
            self.unnamed(self.shared.geo.segment_offset(self.segments), 0);
        }
        Ok(())
    }

    /// A part of the log is lost, and nothing says which blocks it was about. After a clean close nothing
    /// was.
    fn unnamed(&mut self, offset: u64, len: u64) {
        if !self.base.clean {
            self.unnamed += 1;
            (self.report)(&Report::Unnamed(offset, len));
        }
    }

    /// Applies one segment; true when the log ends in it.
    fn replay_life(
        &mut self,
        header: &SegmentHeader,
        epoch: &Epoch,
        start: u64,
        current: bool,
    ) -> Result<bool> {
        let geo = self.shared.geo;
        let base = geo.segment_offset(header.index);
        self.shared.file.read_at(&mut self.segment, base)?;
        let seed = header.seed::<P>();
        let size = geo.segment_size;
        let mut at = SEGMENT_HEADER as u32;
        loop {
            let found = next_record::<P>(&self.segment, seed, at);
            let to = found.map_or(size, |(place, _)| place);
            if to > at {
                let lsn = self.lsn(header.seq, at);
                if lsn >= epoch.durable {
                    return Ok(true);
                }
                let late = current && lsn >= start;
                if late || !self.lost.is_empty() {
                    if self.heal(base, seed, at, to)? {
                        continue;
                    }
                    self.gap(base, at, to, late)?;
                }
            }
            let Some((place, record)) = found else {
                return Ok(false);
            };
            let late = current && self.lsn(header.seq, place) >= start;
            self.apply(&record, place, base, late)?;
            at = place + space(&record);
            if record.kind == Kind::Link {
                return Ok(false);
            }
            if at >= size {
                return Ok(false);
            }
        }
    }

    /// Puts a single flipped bit in the header of the record at `at` right, in memory and among the patches.
    fn heal(&mut self, base: u64, seed: u32, at: u32, to: u32) -> Result<bool> {
        let place = at as usize;
        for bit in 0..UNIT * 8 {
            let byte = place + bit / 8;
            self.segment[byte] ^= 1 << (bit % 8);
            let whole = RecordHeader::decode::<P>(&self.segment[place..], seed, at);
            if whole.is_some_and(|(header, _)| at + space(&header) <= to) {
                let mut bytes = [0; SEGMENT_HEADER];
                bytes[0] = self.segment[byte];
                self.patches.push(Patch {
                    offset: base + byte as u64,
                    bytes,
                    len: 1,
                })?;
                return Ok(true);
            }
            self.segment[byte] ^= 1 << (bit % 8);
        }
        Ok(false)
    }

    /// Deals with the bytes from `at` to `to` of a segment, in which no record is whole. Where their headers
    /// lead from one end to the other, they are believed: the blocks they name point to them, and so
    /// cannot be read.
    fn gap(&mut self, base: u64, at: u32, to: u32, late: bool) -> Result {
        let mut named: Vec<(u32, RecordHeader, Option<u32>)> = Vec::new();
        let mut place = at;
        while place < to {
            let Some((header, seed)) =
                RecordHeader::measure::<P>(&self.segment[place as usize..], place)
            else {
                break;
            };
            // A whole record of another life lies here by mistake, and says nothing of what was here.
            let stray = self.seeds.iter().any(|&known| known == Some(seed));
            if stray || header.kind == Kind::Zero || header.kind == Kind::Link {
                break;
            }
            let payload = &self.segment[place as usize + UNIT..][..header.payload];
            let mask = match header.kind {
                Kind::Data => header.mask(payload),
                _ => None,
            };
            if header.kind == Kind::Data && (mask.is_none() || !self.inside(&header)) {
                break;
            }
            named.push((place, header, mask))?;
            place += space(&header);
        }
        if place != to {
            if late {
                self.unnamed(base + u64::from(at), u64::from(to - at));
            }
            return Ok(());
        }
        for &(place, header, mask) in named.iter() {
            if let Some(mask) = mask {
                self.map_record(&header, mask, base + u64::from(place), late)?;
            }
        }
        Ok(())
    }

    /// Whether a data record keeps to its bounds.
    fn inside(&self, header: &RecordHeader) -> bool {
        let (block, span) = (header.number, u64::from(header.span));
        let shift = self.shared.geo.record_blocks().trailing_zeros();
        block + span <= self.shared.geo.blocks && block >> shift == (block + span - 1) >> shift
    }

    /// Whether what the log says of a block counts.
    fn wanted(&self, block: u64, late: bool) -> bool {
        late || self.lost.iter().any(|r| (r.0..r.1).contains(&block))
    }

    /// Makes the change of one whole record again.
    fn apply(&mut self, header: &RecordHeader, place: u32, base: u64, late: bool) -> Result {
        let payload = &self.segment[place as usize + UNIT..][..header.payload];
        let mask = match header.kind {
            Kind::Data => header.mask(payload),
            _ => None,
        };
        match header.kind {
            Kind::Data => match mask {
                Some(mask) if self.inside(header) => {
                    self.map_record(header, mask, base + u64::from(place), late)
                }
                _ => Ok(()),
            },
            Kind::Zero => {
                let end = header.number.saturating_add(le64(payload, 0));
                let whole = [(0, self.shared.geo.blocks)];
                let ranges: &[(u64, u64)] = if late { &whole } else { &self.lost };
                let mut map = self.shared.map.lock();
                for &(from, to) in ranges {
                    let (from, to) = (from.max(header.number), to.min(end));
                    if from < to {
                        map.for_each_part(from, to - from, &mut |map, part| {
                            let Part::Leaf(at, n) = part else {
                                return Ok(());
                            };
                            if map.maps(at, n) {
                                if let Some((leaf, _)) = map.table.leaf_mut(at) {
                                    let first = at as usize % NODE_ENTRIES;
                                    leaf[first..first + n].fill(0);
                                }
                            }
                            Ok(())
                        })?;
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Points the blocks of a data record to it.
    fn map_record(&mut self, header: &RecordHeader, mask: u32, address: u64, late: bool) -> Result {
        let mut index = 0;
        for i in 0..u64::from(header.span) {
            let stored = (mask >> i) & 1 == 1;
            let block = header.number + i;
            if self.wanted(block, late) {
                let entry = if stored {
                    Entry::new(address, header.units(), index, u32::from(header.count))
                } else {
                    Entry::HOLE
                };
                self.set(block, entry)?;
            }
            index += u32::from(stored);
        }
        Ok(())
    }

    /// Counts what is live in each segment, and what is mapped.
    fn recount(&mut self) -> Result {
        let geo = self.shared.geo;
        let mut map = self.shared.map.lock();
        let map = &mut *map;
        if let Some(last) = self.segments.checked_sub(1) {
            map.usage.grow(last)?;
        }
        for (index, seed) in (0..).zip(self.seeds.iter()) {
            if let Some(segment) = map.usage.get_mut(index) {
                segment.seed = seed.unwrap_or(0);
                segment.free = false;
            }
        }
        map.for_each_part(0, geo.blocks, &mut |map, part| {
            let Part::Leaf(at, n) = part else {
                return Ok(());
            };
            for i in 0..n {
                let first = at as usize % NODE_ENTRIES;
                let word = map.table.leaf(at).map_or(0, |leaf| leaf[first + i]);
                map.usage
                    .account(&geo, Entry(word), Class::Live, Change::Add)?;
                map.mapped += u64::from(word != 0);
            }
            Ok(())
        })?;
        for (index, segment) in (0..).zip(map.usage.iter()) {
            if segment.live_bytes() > u64::from(geo.segment_size) {
                let offset = geo.segment_offset(index);
                return super::format::corrupt("segment: more live than it has room for", offset);
            }
        }
        Ok(())
    }

    /// Writes it all.
    fn commit(self, superblock: Superblock) -> Result<u64> {
        let Self {
            shared,
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
        let shift = shared.geo.segment_shift();
        let known = (superblock.log_end >> shift).max(superblock.log_start.seq);
        let seq = known.max(last.unwrap_or(0)) + 1;
        start(&shared, seq, &seeds)?;
        // The bytes around a patch stay as they are, so a power failure tears nothing.
        let patch = |page: &mut Buf, offset: u64, bytes: &[u8]| {
            let skip = (offset % BLOCK_SIZE as u64) as usize;
            let sector = offset - skip as u64;
            shared.file.read_at(&mut page[..BLOCK_SIZE], sector)?;
            page[skip..skip + bytes.len()].copy_from_slice(bytes);
            shared.file.write_at(&page[..BLOCK_SIZE], sector)
        };
        for p in patches.iter() {
            patch(&mut page, p.offset, &p.bytes[..p.len])?;
        }
        for life in lives.iter().filter(|life| !life.stored) {
            let offset = shared.geo.segment_offset(life.header.index);
            patch(&mut page, offset, &life.header.encode::<P>())?;
        }
        shared.file.sync()?;
        let mut checkpoint = Checkpoint {
            superblock,
            usage_nodes: Vec::new(),
            ws,
            page,
            segment: None,
            orphanage: Orphanage::default(),
        };
        let mut bytes = segment;
        for &(index, seed) in nameless.iter() {
            let base = shared.geo.segment_offset(index);
            shared.file.read_at(&mut bytes, base)?;
            shared.move_records(&mut checkpoint, &bytes, base, seed)?;
        }
        shared.checkpoint(&mut checkpoint, false)?;
        shared.checkpoint(&mut checkpoint, false)?;
        let before = checkpoint.superblock.length;
        shared.checkpoint(&mut checkpoint, true)?;
        shared.trim(before.max(checkpoint.superblock.length))?;
        Ok(unnamed)
    }
}

/// Begins the new log behind everything there is; where that is impossible, in segments without any trace of
/// the image.
fn start<P: Platform>(shared: &Shared<P>, seq: u64, seeds: &[Option<u32>]) -> Result {
    match shared.log.start(&shared.file, seq) {
        Err(Error::NoSpace) => {
            for (index, _) in (0..).zip(seeds).filter(|(_, seed)| seed.is_none()) {
                shared.log.lock().space.allocator.release(index)?;
            }
            shared.log.start(&shared.file, seq)
        }
        started => started,
    }
}
