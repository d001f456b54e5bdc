// SPDX-License-Identifier: GPL-2.0
//! Repair of a damaged image: every whole record is found again, and every lost one is reported.
//!
//! The repair puts the state of the device together in memory: from the newest whole superblock (or a copy of one in
//! the log), the readable part of its table, and the log behind it. Blocks below a node of the table that cannot be
//! read come from the records in all segments, in the order of the log. Only then it writes, as an ordinary opening
//! does: a new epoch in fresh segments at the end of the image, two checkpoints, and a clean close. Until the first
//! checkpoint is complete the image is as damaged as before and no more, so a repair can be interrupted and repeated.

mod doubt;
mod incarnations;
mod proof;
mod replay;

use self::incarnations::{identify, newest_copy, Epoch, Identity, Incarnation};
use self::proof::Proof;
use self::replay::Source;
use crate::engine::access::Access;
use crate::engine::checkpoint::{CheckpointKind, CheckpointState};
use crate::engine::format::{
    Entry, IncarnationId, NodeId, RecordHeader, SegmentHeader, Superblock, BLOCK_SIZE, DATA_START,
    NODE_ENTRIES, SEGMENT_HEADER, UNIT,
};
use crate::engine::freeing;
use crate::engine::map::range::Part;
use crate::engine::map::table::{Found, Table};
use crate::engine::map::Map;
use crate::engine::reclaim::Maintenance;
use crate::engine::records::cache::place_of;
use crate::engine::recovery::check::{self, Finding, Summary};
use crate::engine::recovery::read_around;
use crate::engine::recovery::superblocks::{read_fingerprints, Standing};
use crate::engine::space::{Allocator, SpaceClass};
use crate::engine::store::Store;
use crate::engine::workspace::Workspace;
use crate::engine::{Error, Result};
use crate::platform::mem::{arc, Arc, Buf, Vec};
use crate::platform::{BackingFile, Platform, Sabotage};

/// Largest number of segments that a repair takes for cut off the end of a file.
const MOST_CUT: u64 = 1 << 20;

/// Largest number of sequence numbers that are tried for all segments without a header together: a second of
/// computing. An honest image needs a few times the number of its segments for each.
const MOST_TRIES: u64 = 1 << 24;

/// What a repair does with blocks whose newest contents may be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubtful {
    /// They give an error until they are written. If a part of the log is lost and may have changed any block, nothing is
    /// written at all.
    Refuse,
    /// They keep the newest contents that are found, which may be older than what was lost.
    Keep,
}

/// The result of a repair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repaired {
    /// The repair wrote to the image. An image stays as it is if it is whole, if only records of data are damaged, and
    /// if any block may be affected by the loss of a part of the log, see [`Doubtful::Refuse`].
    pub written: bool,
    /// Findings of the check before the repair.
    pub before: u64,
    /// Places of the log that are lost together with the numbers of the blocks they changed, and one more if there may
    /// have been a newer checkpoint.
    pub unnamed: u64,
    /// Blocks whose newest contents may be lost.
    pub doubtful: u64,
    /// The result of a check after the repair; none if the image cannot be opened.
    pub summary: Option<Summary>,
}

impl Repaired {
    /// Whether anything is damaged or lost after the repair.
    pub fn leaves_damage(&self) -> bool {
        self.unnamed + self.doubtful > 0 || self.summary.is_none_or(|s| s.findings > 0)
    }
}

/// A report of a repair under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// Damage, found before the first write.
    Damage(Finding),
    /// First block and number of blocks below a node of the table that cannot be read. They were found again in the
    /// older table and in the log, except for those that are reported as doubtful.
    Rebuilt(u64, u64),
    /// First block and number of blocks whose newest contents may be lost.
    Doubtful(u64, u64),
    /// Byte offset and length of a lost part of the log. The blocks that it changed are unknown.
    Unnamed(u64, u64),
    /// Generation of the newest checkpoint that is left. Superblocks are lost, and a newer checkpoint may be lost with them:
    /// any block may have changed since.
    Unproven(u64),
    /// Damage that is left after the repair.
    Left(Finding),
}

/// Repairs the image in the file that `open` opens, once for each of up to three passes, and checks it.
///
/// # Errors
///
/// [`Error::NotAnImage`] without any superblock or copy of one, [`Error::Incomplete`] for an unfinished image, and the errors of the backing file. If an error comes
/// before the first write, the image is unchanged.
pub fn repair<P: Platform>(
    open: &mut dyn FnMut() -> Result<P::File>,
    choice: Doubtful,
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
                doubtful: 0,
                summary: Some(summary),
            })
        }
        Ok(_) => {}
        Err(error @ (Error::Corrupt { .. } | Error::Io(_) | Error::NotAnImage)) => {
            before += 1;
            report(&Report::Damage(Finding {
                error,
                blocks: None,
                data: false,
            }));
        }
        Err(error) => return Err(error),
    }
    let Rebuilt {
        unnamed,
        doubtful,
        written,
    } = rebuild::<P>(open()?, choice, Commit::Write, report)?;
    let left = &mut |finding: &Finding| report(&Report::Left(*finding));
    let summary = match written {
        true => Some(check::check::<P>(open()?, left, progress)?),
        false => None,
    };
    Ok(Repaired {
        written,
        before,
        unnamed,
        doubtful,
        summary,
    })
}

/// Reports the blocks that a repair would not bring back, for an image that cannot be opened. Writes nothing.
///
/// # Errors
///
/// Those of [`repair`].
pub fn survey<P: Platform>(file: P::File, report: &mut dyn FnMut(&Report)) -> Result {
    rebuild::<P>(file, Doubtful::Refuse, Commit::Leave, report).map(|_| ())
}

/// Whether the image that was put together is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Commit {
    /// It is.
    Write,
    /// It is not: only the report is wanted.
    Leave,
}

/// The result of putting an image together.
struct Rebuilt {
    /// See [`Repaired::unnamed`].
    unnamed: u64,
    /// Blocks whose newest contents may be lost.
    doubtful: u64,
    written: bool,
}

/// Bytes to be written back in place.
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
    /// Segments that fit into the file, and those that were cut off.
    segments: u64,
    /// Segments that fit into the file.
    present: u64,
    /// Sequence numbers that may still be tried, of [`MOST_TRIES`].
    tries: u64,
    /// The checkpoint to start from.
    base: Superblock,
    /// The checkpoint before it, if its superblock is valid.
    spare: Option<Superblock>,
    evidence: Evidence,
    /// The superblock of the new epoch.
    next: Superblock,
    choice: Doubtful,
    /// Seed of the present incarnation of each segment; `None` if it is unknown.
    seeds: Vec<Option<u32>>,
    /// The incarnations in the order of the log.
    incarnations: Vec<Incarnation>,
    epochs: Vec<Epoch>,
    /// Segments with a known seed and an unknown incarnation: their live records must move. Index and seed.
    nameless: Vec<(u64, u32)>,
    /// Ranges of blocks that the newest table has lost: first block, and the block after the last. The older table is used
    /// for them.
    older: Vec<(u64, u64)>,
    /// The part of `older` that both tables have lost.
    lost: Vec<(u64, u64)>,
    /// Blocks of `older` that the log has changed behind everything that is lost of it.
    certain: Map,
    proof: Proof,
    /// A part of the log is lost that brings the older table up to date.
    gapped: bool,
    /// Ranges of blocks whose newest contents may be lost.
    doubtful: Vec<(u64, u64)>,
    /// Number of blocks in `doubtful`.
    doubtful_blocks: u64,
    /// Ranges of blocks that are to give errors, and point to nothing yet.
    unmarked: Vec<(u64, u64)>,
    patches: Vec<Patch>,
    unnamed: u64,
    report: &'a mut dyn FnMut(&Report),
}

/// The first whole record at or after `at`.
fn next_record<P: Platform>(bytes: &[u8], seed: u32, at: u32) -> Option<(u32, RecordHeader)> {
    (at as usize..bytes.len()).step_by(UNIT).find_map(|at| {
        let (header, _) = RecordHeader::decode::<P>(&bytes[at..], seed, at as u32)?;
        Some((at as u32, header))
    })
}

/// Bytes that a record takes in its segment.
fn space(header: &RecordHeader) -> u32 {
    header.units() * UNIT as u32
}

/// Puts the image together and writes it, in the steps that Documentation/format.rst names under "Repair".
fn rebuild<P: Platform>(
    file: P::File,
    choice: Doubtful,
    commit: Commit,
    report: &mut dyn FnMut(&Report),
) -> Result<Rebuilt> {
    let start = Start::choose::<P>(&file)?;
    let headers = start.read_headers::<P>(&file)?;
    let mut repair = Repair::<P>::new(file, &start, &headers, choice, report)?;
    repair.find_segments(&start.identity, &headers)?;
    repair.load_tables()?;
    repair.replay()?;
    repair.judge_newest();
    repair.find_doubtful()?;
    let rebuilt = Rebuilt {
        doubtful: repair.drop_doubtful()?,
        unnamed: repair.unnamed,
        written: commit == Commit::Write && (repair.unnamed == 0 || choice == Doubtful::Keep),
    };
    if commit == Commit::Leave {
        repair.report_unreadable()?;
    }
    if rebuilt.written {
        repair.recount()?;
        repair.mark_lost()?;
        repair.commit()?;
    }
    Ok(rebuilt)
}

/// What tells whether there was a checkpoint newer than the one to start from.
struct Evidence {
    /// Where that one was found.
    base: BaseFrom,
    /// The rest of the superblocks tells this.
    standing: Standing,
    /// There is a segment of a later epoch.
    later: bool,
    /// The segment that the log behind the checkpoint leads to, by the link of the last segment that was replayed.
    link: Option<u64>,
    /// The log ends with that link, and the segment there has no header.
    unfollowed: bool,
}

/// Where the checkpoint to start from was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BaseFrom {
    /// In a slot.
    Slot,
    /// In the log: both slots are lost.
    Copy,
}

impl Evidence {
    /// Whether nothing newer can be lost than the checkpoint `base` and the log behind it. The checkpoint of a clean
    /// superblock is followed by those of an opening, which change nothing until both slots have them.
    fn is_newest<P: Platform>(&self, base: &Superblock) -> bool {
        if P::sabotaged(Sabotage::TrustLeft) {
            return true;
        }
        match (self.base, self.standing) {
            (BaseFrom::Slot, Standing::Sure) => true,
            (BaseFrom::Slot, Standing::Doubtful) => base.clean || !self.unfollowed,
            (BaseFrom::Copy, Standing::Sure) => !self.later && !self.unfollowed,
            (BaseFrom::Copy, Standing::Doubtful) => false,
        }
    }
}

/// The checkpoints to start from.
struct Start {
    identity: Identity,
    /// The newest one that there is a superblock, or a copy of one, of.
    base: Superblock,
    /// The one before it, if its superblock is valid.
    spare: Option<Superblock>,
    from: BaseFrom,
    standing: Standing,
    /// Segments that fit into the file.
    present: u64,
    /// These, and segments that were cut off.
    segments: u64,
}

impl Start {
    /// Chooses the newest checkpoint.
    ///
    /// # Errors
    ///
    /// [`Error::NotAnImage`] if there is none, [`Error::Incomplete`] and [`Error::Feature`] for an image that this
    /// software must not write.
    fn choose<P: Platform>(file: &P::File) -> Result<Self> {
        let mut page = Buf::zeroed(BLOCK_SIZE)?;
        let identity = identify::<P>(file, &mut page)?;
        let (base, from) = match identity.slots.first() {
            Some(superblock) => (*superblock, BaseFrom::Slot),
            // Without any checkpoint the size of the device is unknown.
            None => match newest_copy::<P>(file, &identity, &mut page)? {
                Some(copy) => (copy, BaseFrom::Copy),
                None => return Err(Error::NotAnImage),
            },
        };
        if base.incomplete {
            return Err(Error::Incomplete);
        }
        if base.read_only_compatible != 0 {
            return Err(Error::Feature(base.read_only_compatible));
        }
        let valid = [identity.slots.first(), identity.slots.get(1)];
        let standing = Standing::of::<P>(file, &base.layout, valid, &mut page)?;
        let spare = identity.slots.get(1).copied();
        let bytes = file.len()?.saturating_sub(DATA_START);
        let fit = bytes.div_ceil(u64::from(base.layout.segment_size));
        // The table of a file that was cut short refers to segments behind its end, which the new log must not use. There
        // is at least one, whose address marks lost blocks.
        let segments = base
            .segments
            .min(fit + MOST_CUT)
            .max(fit)
            .max(1)
            .min(base.layout.max_segments());
        Ok(Self {
            identity,
            base,
            spare: spare.filter(|s| s.generation + 1 == base.generation),
            from,
            standing,
            present: fit,
            segments,
        })
    }

    /// The superblock of the new epoch, with a table that is still empty.
    fn next_epoch<P: Platform>(&self, headers: &[Option<SegmentHeader>]) -> Superblock {
        let latest = headers.iter().flatten().map(|header| header.epoch).max();
        Superblock {
            epoch: self.base.epoch.max(latest.unwrap_or(0)) + 1,
            salt: P::random_u64(),
            clean: false,
            // The rebuilt table has no detached subtrees, and its blocks are counted while it is rebuilt.
            detached: false,
            mapped: 0,
            ..self.base
        }
    }

    /// The headers of the segments in the file; `None` for one that is damaged or has none.
    fn read_headers<P: Platform>(&self, file: &P::File) -> Result<Vec<Option<SegmentHeader>>> {
        let layout = &self.base.layout;
        let (mut page, mut headers) = (Buf::zeroed(BLOCK_SIZE)?, Vec::new());
        for index in 0..self.segments.min(self.present) {
            read_around::<P>(file, &mut page[..BLOCK_SIZE], layout.segment_offset(index))?;
            let header = SegmentHeader::of_segment::<P>(&page, layout, index);
            headers.push(header.filter(|header| {
                // Values that only a forger writes must not overflow any sum.
                header.seq >> (60 - layout.segment_shift()) == 0
                    && header.first <= header.seq
                    && header.epoch < u64::MAX / 2
            }))?;
        }
        Ok(headers)
    }
}

/// The root of the table that a superblock leads to.
fn root(superblock: &Superblock) -> NodeId {
    NodeId {
        level: superblock.height - 1,
        index: 0,
    }
}

impl<'a, P: Platform> Repair<'a, P> {
    /// A repair that starts from these checkpoints, with an empty table.
    fn new(
        file: P::File,
        start: &Start,
        headers: &[Option<SegmentHeader>],
        choice: Doubtful,
        report: &'a mut dyn FnMut(&Report),
    ) -> Result<Self> {
        let (base, layout) = (start.base, start.base.layout);
        let next = start.next_epoch::<P>(headers);
        let mut page = Buf::zeroed(BLOCK_SIZE)?;
        let expected = read_fingerprints::<P>(&file, &base, &mut page)?;
        let table = || Table::new(base.height, Entry::HOLE);
        let certain = Map::new(table(), layout, 0, expected.emptied()?)?;
        let allocator = Allocator::new(start.segments, start.segments);
        let store = Store::<P>::new(
            arc(file)?,
            &next,
            table(),
            expected.emptied()?,
            allocator,
            Access::Write,
        )?;
        Ok(Self {
            ws: store.workspace()?,
            page,
            segment: Buf::zeroed(layout.segment_size as usize)?,
            store,
            segments: start.segments,
            present: start.present,
            tries: MOST_TRIES,
            base,
            spare: start.spare,
            evidence: Evidence {
                base: start.from,
                standing: start.standing,
                later: headers.iter().flatten().any(|h| h.epoch > base.epoch),
                link: None,
                unfollowed: false,
            },
            next,
            choice,
            seeds: Vec::new(),
            incarnations: Vec::new(),
            epochs: Vec::new(),
            nameless: Vec::new(),
            older: Vec::new(),
            lost: Vec::new(),
            certain,
            proof: Proof::new(expected)?,
            gapped: false,
            doubtful: Vec::new(),
            doubtful_blocks: 0,
            unmarked: Vec::new(),
            patches: Vec::new(),
            unnamed: 0,
            report,
        })
    }

    /// Finds the incarnation of each segment, and how far the log of each epoch was durable.
    fn find_segments(&mut self, identity: &Identity, headers: &[Option<SegmentHeader>]) -> Result {
        self.find_epochs(identity, headers)?;
        self.find_incarnations(headers)?;
        self.find_durable(identity)
    }

    /// Loads the newest table, and for what cannot be read of it the older one.
    fn load_tables(&mut self) -> Result {
        let base = self.base;
        self.load(root(&base), base.map_root, Source::Newest)?;
        let lost = core::mem::replace(&mut self.lost, Vec::new());
        if lost.is_empty() {
            return Ok(());
        }
        self.older = lost;
        match self.spare {
            Some(spare) => self.load(root(&spare), spare.map_root, Source::Older),
            None => {
                core::mem::swap(&mut self.older, &mut self.lost);
                Ok(())
            }
        }
    }
}

impl<P: Platform> Repair<'_, P> {
    fn lsn(&self, seq: u64, offset: u32) -> u64 {
        (seq << self.store.layout.segment_shift()) + u64::from(offset)
    }

    /// The position at which the replay from a superblock begins.
    fn log_start(&self, superblock: &Superblock) -> u64 {
        self.lsn(superblock.log_start.seq, superblock.log_start.offset)
    }

    /// Doubts everything if a newer checkpoint may be lost than the one that the repair started from.
    fn judge_newest(&mut self) {
        if !self.evidence.is_newest::<P>(&self.base) {
            self.unnamed += 1;
            (self.report)(&Report::Unproven(self.base.generation));
        }
    }

    /// Counts the live units of each segment and the mapped blocks.
    fn recount(&mut self) -> Result {
        let (layout, blocks) = (self.store.layout, self.store.blocks());
        {
            let mut map = self.store.map.lock();
            if let Some(last) = self.segments.checked_sub(1) {
                map.grow_segments(last)?;
            }
            for (index, seed) in (0..).zip(self.seeds.iter()) {
                map.identify_segment(index, seed.unwrap_or(0));
            }
            map.count_all(blocks)?;
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

    /// The first segment with more live bytes than it has room for.
    fn overfull(&self) -> Option<u64> {
        let size = u64::from(self.store.layout.segment_size);
        let map = self.store.map.lock();
        let found = map.segments().position(|s| s.live_bytes() > size);
        found.map(|index| index as u64)
    }

    /// Drops blocks whose records are gone. A segment whose records the log superseded is used again; if that part of
    /// the log is damaged, the old and the new records of the segment are both counted.
    fn drop_missing(&mut self) -> Result {
        let (layout, blocks) = (self.store.layout, self.store.blocks());
        let size = u64::from(layout.segment_size);
        let mut doubtful: Vec<(u64, Entry, IncarnationId)> = Vec::new();
        self.store
            .map
            .lock()
            .for_each_part(0, blocks, &mut |map, part| {
                let Part::Leaf(at, n) = part else {
                    return Ok(());
                };
                let first = at as usize % NODE_ENTRIES;
                let words = map.leaf(at).map_or(&[][..], |leaf| &leaf[first..first + n]);
                for (block, &word) in (at..).zip(words) {
                    let index = layout.segment_of(Entry(word).address());
                    let segment = index.and_then(|index| map.segment(index));
                    if let Some(segment) = segment.filter(|s| word != 0 && s.live_bytes() > size) {
                        doubtful.push((block, Entry(word), segment.incarnation()))?;
                    }
                }
                Ok(())
            })?;
        for &(block, entry, incarnation) in doubtful.iter() {
            let Some(error) = self.unreadable(block, entry, incarnation)? else {
                continue;
            };
            let mut map = self.store.map.lock();
            map.replace(block, 1, &mut |_| Entry::HOLE)?;
            drop(map);
            match self.unmarked.last_mut() {
                Some(last) if last.1 == block => last.1 += 1,
                _ => self.unmarked.push((block, block + 1))?,
            }
            (self.report)(&Report::Damage(Finding {
                error,
                blocks: Some((block, 1)),
                data: true,
            }));
        }
        Ok(())
    }

    /// Reports the blocks whose records cannot be read.
    fn report_unreadable(&mut self) -> Result {
        let (layout, blocks) = (self.store.layout, self.store.blocks());
        let mut at = 0;
        while at < blocks {
            let mut words: Vec<u64> = Vec::new();
            let map = self.store.map.lock();
            if let Found::Absent(id) = map.find(at) {
                at = id.end_block();
                continue;
            }
            for &word in map.leaf(at).unwrap_or(&[]) {
                words.push(word)?;
            }
            drop(map);
            let mut lost: Option<(Error, u64, u64)> = None;
            for (block, &word) in (at..blocks).zip(words.iter()) {
                let entry = Entry(word);
                let index = layout.segment_of(entry.address()).unwrap_or(u64::MAX);
                let seed = self.seeds.get(index as usize).copied().flatten();
                let error = match entry.is_hole() {
                    true => None,
                    false => self.unreadable(
                        block,
                        entry,
                        IncarnationId::before_opening(seed.unwrap_or(0)),
                    )?,
                };
                match (error, &mut lost) {
                    (Some(_), Some((_, _, count))) => *count += 1,
                    (Some(error), None) => lost = Some((error, block, 1)),
                    (None, _) => self.report_lost(lost.take()),
                }
            }
            self.report_lost(lost);
            at = NodeId::leaf(at).end_block();
        }
        Ok(())
    }

    /// Reports blocks that cannot be read for this reason: first and number.
    fn report_lost(&mut self, lost: Option<(Error, u64, u64)>) {
        if let Some((error, block, count)) = lost {
            (self.report)(&Report::Damage(Finding {
                error,
                blocks: Some((block, count)),
                data: true,
            }));
        }
    }

    /// Reads the record of a block. Returns the damage of it.
    fn unreadable(
        &mut self,
        block: u64,
        entry: Entry,
        incarnation: IncarnationId,
    ) -> Result<Option<Error>> {
        let read = self
            .store
            .records()
            .record(entry, incarnation, &mut self.ws.read.record);
        match read {
            Ok((header, payload)) => {
                let mask = header.mask(payload).unwrap_or(0);
                let found = place_of(block, header.number, mask);
                Ok((found != Some(entry.index())).then_some(Error::Corrupt {
                    what: "record: it holds another block",
                    offset: entry.address(),
                }))
            }
            Err(error) if error.is_damage() => Ok(Some(error)),
            Err(error) => Err(error),
        }
    }

    /// Writes the image that was put together.
    fn commit(self) -> Result {
        let Self {
            store,
            next,
            ws,
            mut page,
            seeds,
            incarnations,
            nameless,
            patches,
            segment,
            ..
        } = self;
        let last = incarnations
            .iter()
            .map(|incarnation| incarnation.header.seq)
            .max();
        let shift = store.layout.segment_shift();
        let known = (next.log_end >> shift).max(next.log_start.seq);
        let seq = known.max(last.unwrap_or(0)) + 1;
        start(&store, seq, &seeds)?;
        // The bytes around a patch stay the same, so a torn write damages nothing.
        let patch = |page: &mut Buf, offset: u64, bytes: &[u8]| {
            let skip = (offset % BLOCK_SIZE as u64) as usize;
            let sector = offset - skip as u64;
            read_around::<P>(&store.file, &mut page[..BLOCK_SIZE], sector)?;
            page[skip..skip + bytes.len()].copy_from_slice(bytes);
            store.file.write_at(&page[..BLOCK_SIZE], sector)
        };
        for p in patches.iter() {
            patch(&mut page, p.offset, &p.bytes[..p.len])?;
        }
        for incarnation in incarnations
            .iter()
            .filter(|incarnation| !incarnation.stored)
        {
            let offset = store.layout.segment_offset(incarnation.header.index);
            patch(&mut page, offset, &incarnation.header.encode::<P>())?;
        }
        store.file.sync()?;
        let checkpoint = CheckpointState::new(&next, [None; 2], Vec::new(), ws, page)?;
        let mut maintenance = Maintenance::new(checkpoint)?;
        let mut bytes = segment;
        for &(index, seed) in nameless.iter() {
            let base = store.layout.segment_offset(index);
            read_around::<P>(&store.file, &mut bytes, base)?;
            maintenance.relocate_records(&store, &bytes, base, seed, SpaceClass::Reclaim)?;
        }
        maintenance.checkpoint(&store, CheckpointKind::Running)?;
        maintenance.checkpoint(&store, CheckpointKind::Running)?;
        let before = maintenance.image_length();
        maintenance.checkpoint(&store, CheckpointKind::Closing)?;
        freeing::shrink_to_fit(&store, before.max(maintenance.image_length()))
    }
}

/// Begins the new log behind all segments, or, if there is no room, in segments without any trace of the image.
fn start<P: Platform>(store: &Store<P>, seq: u64, seeds: &[Option<u32>]) -> Result {
    match store.log.start(&store.file, seq) {
        Err(Error::NoSpace) => {
            store.log.lock().space.make_room()?;
            for (index, _) in (0..).zip(seeds).filter(|(_, seed)| seed.is_none()) {
                store.log.lock().space.release(index);
            }
            store.log.start(&store.file, seq)
        }
        started => started,
    }
}
