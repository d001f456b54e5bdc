// SPDX-License-Identifier: GPL-2.0
//! Putting the state of the device together in memory: the readable parts of the stored tables, and the log behind them.

use super::incarnations::Epoch;
use super::{next_record, space, Patch, Repair, Report};
use crate::engine::format::{
    corrupt, le64, Algorithm, Entry, IncarnationId, Kind, NodeId, RecordHeader, SegmentHeader,
    SEGMENT_HEADER, UNIT,
};
use crate::engine::io::zero::zero_end;
use crate::engine::recovery::{ends_unread, read_around};
use crate::engine::Result;
use crate::platform::mem::Vec;
use crate::platform::{Platform, Sabotage};

/// A part of the log, by the checkpoint that holds its changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Era {
    /// Both superblocks' checkpoints hold its changes. Most of its segments may have been used again since.
    Old,
    /// The newest superblock's checkpoint holds its changes, the older one's does not. All of it is still there.
    Between,
    /// No checkpoint holds its changes. All of it is still there.
    Late,
}

/// The stored table that is being loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// That of the newest superblock: all of it.
    Newest,
    /// That of the older one: only what the newest has lost.
    Older,
}

/// Whether a block lies in one of the ranges, which are in order. Each has its first block, and the block after its last.
pub(super) fn within(ranges: &[(u64, u64)], block: u64) -> bool {
    let at = ranges.partition_point(|range| range.1 <= block);
    ranges.get(at).is_some_and(|range| range.0 <= block)
}

/// Calls `f` with the parts of the ranges, which are in order, that lie between two blocks.
fn each_within(
    ranges: &[(u64, u64)],
    from: u64,
    to: u64,
    f: &mut dyn FnMut(u64, u64) -> Result,
) -> Result {
    let at = ranges.partition_point(|range| range.1 <= from);
    for range in ranges[at..].iter().take_while(|range| range.0 < to) {
        f(range.0.max(from), range.1.min(to))?;
    }
    Ok(())
}

impl<P: Platform> Repair<'_, P> {
    /// Copies the readable part of a stored table below node `id`, and notes the ranges of the rest.
    // The recursion is as deep as the tree: at most 5 levels.
    pub(super) fn load(&mut self, id: NodeId, entry: Entry, source: Source) -> Result {
        // The blocks below a detached node read as zeros.
        if entry.is_detached() && source == Source::Newest {
            self.discount(id, entry)?;
        }
        if entry.is_hole() || entry.is_detached() {
            return Ok(());
        }
        let (first, end) = (
            id.first_block(),
            id.end_block()
                .min(self.store.blocks().max(id.first_block())),
        );
        if source == Source::Older {
            let at = self.older.partition_point(|range| range.1 <= first);
            if self.older.get(at).is_none_or(|range| range.0 >= end) {
                return Ok(());
            }
        }
        match self.read_node(id, entry) {
            Ok(words) if id.level == 0 => {
                for (block, &word) in (first..end)
                    .zip(words.iter())
                    .filter(|(_, &word)| word != 0)
                {
                    if source == Source::Newest || within(&self.older, block) {
                        self.set(block, Entry(word))?;
                    }
                }
                Ok(())
            }
            Ok(words) => {
                for (at, &word) in words.iter().enumerate() {
                    if word != 0 && id.child(at).first_block() < end {
                        self.load(id.child(at), Entry(word), source)?;
                    }
                }
                Ok(())
            }
            Err(error) if error.is_damage() => {
                let lost = &mut self.lost;
                match source {
                    Source::Newest => {
                        (self.report)(&Report::Rebuilt(first, end - first));
                        if id.level > 0 && self.base.detached {
                            // This node told which subtrees are detached: they read as zeros, and the fingerprints
                            // include them.
                            self.proof.forget(id);
                        }
                        lost.push((first, end))
                    }
                    Source::Older => each_within(&self.older, first, end, &mut |from, to| {
                        lost.push((from, to))
                    }),
                }
            }
            Err(error) => Err(error),
        }
    }

    /// Reads a stored node of the table.
    pub(super) fn read_node(&mut self, id: NodeId, entry: Entry) -> Result<Vec<u64>> {
        let index = self.store.layout.segment_of(entry.address()).unwrap_or(0);
        let Some(seed) = self.seeds.get(index as usize).copied().flatten() else {
            return corrupt("segment header", self.store.layout.segment_offset(index));
        };
        let (ws, segments) = (&mut self.ws, self.segments);
        let incarnation = IncarnationId::before_opening(seed);
        self.store
            .loader()
            .read(&mut ws.read, id, entry, incarnation, segments)
    }

    /// Points a block to `entry`.
    fn set(&mut self, block: u64, entry: Entry) -> Result {
        self.store.map.lock().set_uncounted(block, entry)
    }

    /// The part of the log that a position belongs to.
    fn era(&self, epoch: &Epoch, lsn: u64) -> Era {
        let key = (epoch.epoch, epoch.salt);
        if key == (self.base.epoch, self.base.salt) && lsn >= self.log_start(&self.base) {
            return Era::Late;
        }
        match &self.spare {
            Some(spare) if (epoch.epoch, lsn) >= (spare.epoch, self.log_start(spare)) => {
                Era::Between
            }
            _ => Era::Old,
        }
    }

    /// Applies the log to the table: of each part of it the records of those blocks that no table knows better.
    pub(super) fn replay(&mut self) -> Result {
        self.replay_log()?;
        self.begin_proof();
        Ok(())
    }

    fn replay_log(&mut self) -> Result {
        for at in 0..self.incarnations.len() {
            let header = self.incarnations[at].header;
            let key = (header.epoch, header.salt);
            let found = self.epochs.iter().position(|e| (e.epoch, e.salt) == key);
            let Some(place) = found.filter(|&place| header.seq < self.epochs[place].end) else {
                continue;
            };
            let epoch = self.epochs[place];
            let Some(expected) = epoch.expected else {
                // The log of this epoch has ended before this segment.
                continue;
            };
            let base = self.store.layout.segment_offset(header.index);
            let (reached, begins) = (self.lsn(expected, 0), self.lsn(header.seq, 0));
            if begins > reached && reached >= epoch.durable {
                self.epochs[place].expected = None;
                self.ends_with_link(&epoch);
                continue;
            }
            if begins > reached {
                // Whole segments of the log are missing.
                self.missing(&epoch, reached, begins, base, 0)?;
            }
            self.epochs[place].expected = Some(header.seq + 1);
            let era = self.era(&epoch, self.lsn(header.seq + 1, 0) - 1);
            let needed = Some(era) > self.first_era();
            if needed && self.replay_incarnation(&header, &epoch)? {
                self.epochs[place].expected = None;
            }
        }
        for place in 0..self.epochs.len() {
            let epoch = self.epochs[place];
            let Some(expected) = epoch.expected else {
                continue;
            };
            let reached = self.lsn(expected, 0);
            self.ends_with_link(&epoch);
            if reached < epoch.durable {
                let end = self.store.layout.segment_offset(self.segments);
                self.missing(&epoch, reached, epoch.durable, end, 0)?;
            }
        }
        Ok(())
    }

    /// The last part of the log that no block needs.
    fn first_era(&self) -> Option<Era> {
        match (self.lost.is_empty(), self.older.is_empty()) {
            (false, _) => None,
            (true, false) => Some(Era::Old),
            (true, true) => Some(Era::Between),
        }
    }

    /// Notes that the log is lost from position `from` to `to`, which is `len` bytes at `offset` of the image.
    fn missing(&mut self, epoch: &Epoch, from: u64, to: u64, offset: u64, len: u64) -> Result {
        let key = (epoch.epoch, epoch.salt);
        let is = |s: &crate::engine::format::Superblock| (s.epoch, s.salt) == key;
        let start = self.log_start(&self.base);
        // After a clean close the log holds nothing but the checkpoint itself.
        let sabotaged = P::sabotaged(Sabotage::IgnoreLostLog);
        if is(&self.base) && to > start && !self.base.clean && !sabotaged {
            self.unnamed += 1;
            (self.report)(&Report::Unnamed(offset, len));
        }
        let Some(spare) = &self.spare else {
            return Ok(());
        };
        // Between the checkpoints of two epochs lies the end of the former log. The latter had no user yet.
        if is(spare)
            && !spare.clean
            && to > self.log_start(spare)
            && !(is(&self.base) && from >= start)
        {
            self.gapped = true;
            self.certain.forget_table();
        }
        Ok(())
    }

    /// Notes that the log of an epoch ends behind a whole segment. If a segment with a header is to follow, the log has not
    /// come there.
    fn ends_with_link(&mut self, epoch: &Epoch) {
        if !self.is_base(epoch) {
            return;
        }
        let next = self.evidence.link;
        let mut whole = self.incarnations.iter().filter(|i| i.stored);
        self.evidence.unfollowed = !whole.any(|i| Some(i.header.index) == next);
    }

    /// Whether the checkpoint that the repair started from belongs to this epoch.
    fn is_base(&self, epoch: &Epoch) -> bool {
        (epoch.epoch, epoch.salt) == (self.base.epoch, self.base.salt)
    }

    /// Applies the records of one segment; true if the log ends in it.
    fn replay_incarnation(&mut self, header: &SegmentHeader, epoch: &Epoch) -> Result<bool> {
        let layout = self.store.layout;
        let base = layout.segment_offset(header.index);
        let unreadable = read_around::<P>(&self.store.file, &mut self.segment, base)?;
        if self.is_base(epoch) {
            self.evidence.link = None;
        }
        let seed = header.seed::<P>();
        let size = layout.segment_size;
        let mut at = SEGMENT_HEADER as u32;
        loop {
            let found = next_record::<P>(&self.segment, seed, at);
            let to = found.map_or(size, |(place, _)| place);
            if to > at {
                let lsn = self.lsn(header.seq, at);
                if lsn >= epoch.durable {
                    // The rest was never durable, as far as anything tells, unless a sector that cannot be read has
                    // more of the log.
                    if ends_unread::<P>(&self.segment, at, &unreadable) {
                        let end = self.lsn(header.seq, to);
                        let len = u64::from(to - at);
                        self.missing(epoch, lsn, end, base + u64::from(at), len)?;
                    }
                    return Ok(true);
                }
                if Some(self.era(epoch, self.lsn(header.seq, to) - 1)) > self.first_era() {
                    if self.heal(base, seed, at, to)? {
                        continue;
                    }
                    self.gap(epoch, header.seq, base, at, to)?;
                }
            }
            let Some((place, record)) = found else {
                return Ok(false);
            };
            let era = self.era(epoch, self.lsn(header.seq, place));
            self.apply(&record, place, base, era)?;
            if record.kind == Kind::Link && self.is_base(epoch) {
                self.evidence.link = Some(le64(&self.segment[place as usize + UNIT..], 0));
            }
            at = place + space(&record);
            if record.kind == Kind::Link || at >= size {
                return Ok(false);
            }
        }
    }

    /// Corrects a single flipped bit in the header of the record at `at`, in memory and among the patches. False if
    /// no single bit makes the record whole.
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

    /// Handles the bytes from `at` to `to` of a segment, among which no record is whole. If their headers lead from
    /// one end to the other, the headers are trusted: their blocks point to the damaged records, so reading them is
    /// an error.
    fn gap(&mut self, epoch: &Epoch, seq: u64, base: u64, at: u32, to: u32) -> Result {
        let mut named: Vec<(u32, RecordHeader, Option<u32>)> = Vec::new();
        let mut place = at;
        let mut before = None;
        while place < to {
            let Some((header, seed)) =
                RecordHeader::measure::<P>(&self.segment[place as usize..], place)
            else {
                break;
            };
            // A whole record of another incarnation was written here by mistake, and is no evidence of the record
            // that belongs here.
            let stray = self.seeds.iter().any(|&known| known == Some(seed)) || before == Some(seed);
            if stray || header.kind == Kind::Zero || header.kind == Kind::Link {
                break;
            }
            before = Some(seed);
            let payload = &self.segment[place as usize + UNIT..][..header.payload];
            let mask = header.mask(payload);
            if header.kind == Kind::Data && (mask.is_none() || !self.inside(&header)) {
                break;
            }
            named.push((place, header, mask))?;
            place += space(&header);
        }
        if place != to {
            let (from, end) = (self.lsn(seq, at), self.lsn(seq, to));
            return self.missing(epoch, from, end, base + u64::from(at), u64::from(to - at));
        }
        for &(place, header, mask) in named.iter() {
            if let Some(mask) = mask {
                let era = self.era(epoch, self.lsn(seq, place));
                self.map_record(&header, mask, base + u64::from(place), era)?;
            }
        }
        Ok(())
    }

    /// Whether the blocks of a data record exist and lie in one natural unit.
    fn inside(&self, header: &RecordHeader) -> bool {
        let (block, span) = (header.number, u64::from(header.span));
        block + span <= self.store.blocks() && self.store.layout.in_natural_unit(block, span)
    }

    /// Whether a record of this block is applied.
    fn wanted(&self, block: u64, era: Era) -> bool {
        match era {
            Era::Old => within(&self.lost, block),
            Era::Between => within(&self.lost, block) || within(&self.older, block),
            Era::Late => true,
        }
    }

    /// Applies one whole record.
    fn apply(&mut self, header: &RecordHeader, place: u32, base: u64, era: Era) -> Result {
        let payload = &self.segment[place as usize + UNIT..][..header.payload];
        let mask = header.mask(payload);
        match header.kind {
            Kind::Data => match mask {
                Some(mask) if self.inside(header) => {
                    self.map_record(header, mask, base + u64::from(place), era)
                }
                _ => Ok(()),
            },
            Kind::Zero => match zero_end(header.number, le64(payload, 0)) {
                Some(end) => self.zero(header.number, end.min(self.store.blocks()), era),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// Applies a zero record of the blocks up to `end`.
    fn zero(&mut self, block: u64, end: u64, era: Era) -> Result {
        if era == Era::Late {
            self.begin_proof();
        }
        let whole = [(0, self.store.blocks())];
        let ranges: [&[(u64, u64)]; 2] = match era {
            Era::Old => [&self.lost, &[]],
            Era::Between => [&self.lost, &self.older],
            Era::Late => [&whole, &[]],
        };
        for ranges in ranges {
            each_within(ranges, block, end, &mut |from, to| {
                self.store.map.lock().clear_uncounted(from, to)
            })?;
        }
        match era {
            Era::Old => return Ok(()),
            Era::Between => {}
            Era::Late => self.prove_changed(block, end),
        }
        let certain = &mut self.certain;
        for ranges in [&self.lost, &self.older] {
            each_within(ranges, block, end, &mut |from, to| {
                (from..to).try_for_each(|block| certain.set_uncounted(block, CERTAIN))
            })?;
        }
        Ok(())
    }

    /// Points the blocks of a data record to the record.
    fn map_record(&mut self, header: &RecordHeader, mask: u32, address: u64, era: Era) -> Result {
        if era == Era::Late {
            self.begin_proof();
        }
        // All superblocks that say so may be lost.
        self.next.zstd |= header.algorithm == Algorithm::Zstd.tag();
        let mut index = 0;
        for i in 0..u64::from(header.span) {
            let stored = (mask >> i) & 1 == 1;
            let block = header.number + i;
            if self.wanted(block, era) {
                let entry = if stored {
                    Entry::new(address, header.units(), index, u32::from(header.count))
                } else {
                    Entry::HOLE
                };
                self.set(block, entry)?;
                if era > Era::Old && (within(&self.lost, block) || within(&self.older, block)) {
                    self.certain.set_uncounted(block, CERTAIN)?;
                }
            }
            index += u32::from(stored);
        }
        if era == Era::Late {
            self.prove_changed(header.number, header.number + u64::from(header.span));
        }
        Ok(())
    }
}

/// The mark of a block in the table of certain blocks.
const CERTAIN: Entry = Entry(1);
