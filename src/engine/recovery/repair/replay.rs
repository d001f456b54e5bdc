// SPDX-License-Identifier: GPL-2.0
//! Putting the state of the device together in memory: the readable part of the stored table, and the log behind it.

use super::incarnations::Epoch;
use super::{next_record, space, Patch, Repair, Report};
use crate::engine::format::{
    le64, Entry, Kind, NodeId, RecordHeader, SegmentHeader, NODE_ENTRIES, NODE_SHIFT,
    SEGMENT_HEADER, UNIT,
};
use crate::engine::io::zero::zero_end;
use crate::engine::map::range::Part;
use crate::engine::{Error, Result};
use crate::platform::mem::Vec;
use crate::platform::{BackingFile, Platform};

impl<P: Platform> Repair<'_, P> {
    /// Copies the readable part of the stored table below node `id`.
    // The recursion is as deep as the tree: at most 5 levels.
    pub(super) fn load(&mut self, id: NodeId, entry: Entry) -> Result {
        // The blocks below a detached node read as zeros.
        if entry.is_hole() || entry.is_detached() {
            return Ok(());
        }
        let index = self.store.layout.segment_of(entry.address()).unwrap_or(0);
        let seed = self.seeds.get(index as usize).copied().flatten();
        let words = match seed {
            Some(seed) => {
                let (ws, segments) = (&mut self.ws, self.segments);
                self.store
                    .loader()
                    .read(&mut ws.read, id, entry, seed, segments)
            }
            None => Err(Error::NotAnImage),
        };
        let shift = NODE_SHIFT * u32::from(id.level);
        let first = (id.index << NODE_SHIFT) << shift;
        match words {
            Ok(words) => {
                for (at, &word) in words.iter().enumerate() {
                    let block = first + ((at as u64) << shift);
                    if word == 0 || block >= self.store.blocks() {
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
                let end = end.min(self.store.blocks());
                (self.report)(&Report::Rebuilt(first, end - first));
                self.lost.push((first, end))
            }
            Err(error) => Err(error),
        }
    }

    /// Points a block to `entry`.
    fn set(&mut self, block: u64, entry: Entry) -> Result {
        self.store.map.lock().set_uncounted(block, entry)
    }

    /// Applies the log to the table: all records from the log start on, and of the records before it those of lost
    /// blocks.
    pub(super) fn replay(&mut self) -> Result {
        // The epoch, the salt, and the sequence number that is expected next.
        let mut going: Option<(u64, u64, u64)> = None;
        let start = self.log_start();
        let shift = self.store.layout.segment_shift();
        for at in 0..self.incarnations.len() {
            let header = self.incarnations[at].header;
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
                // The log of this epoch has ended before this segment.
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
                // A whole segment of the log is missing.
                self.unnamed(self.store.layout.segment_offset(header.index), 0);
            }
            let ended = self.replay_incarnation(&header, &epoch, start, current)?;
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
            self.unnamed(self.store.layout.segment_offset(self.segments), 0);
        }
        Ok(())
    }

    /// Reports a lost part of the log that changed unknown blocks. After a clean close the log behind the checkpoint
    /// is empty, so nothing is lost.
    fn unnamed(&mut self, offset: u64, len: u64) {
        if !self.base.clean {
            self.unnamed += 1;
            (self.report)(&Report::Unnamed(offset, len));
        }
    }

    /// Applies the records of one segment; true if the log ends in it.
    fn replay_incarnation(
        &mut self,
        header: &SegmentHeader,
        epoch: &Epoch,
        start: u64,
        current: bool,
    ) -> Result<bool> {
        let layout = self.store.layout;
        let base = layout.segment_offset(header.index);
        self.store.file.read_at(&mut self.segment, base)?;
        let seed = header.seed::<P>();
        let size = layout.segment_size;
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
    fn gap(&mut self, base: u64, at: u32, to: u32, late: bool) -> Result {
        let mut named: Vec<(u32, RecordHeader, Option<u32>)> = Vec::new();
        let mut place = at;
        while place < to {
            let Some((header, seed)) =
                RecordHeader::measure::<P>(&self.segment[place as usize..], place)
            else {
                break;
            };
            // A whole record of another incarnation was written here by mistake, and is no evidence of the record
            // that belongs here.
            let stray = self.seeds.iter().any(|&known| known == Some(seed));
            if stray || header.kind == Kind::Zero || header.kind == Kind::Link {
                break;
            }
            let payload = &self.segment[place as usize + UNIT..][..header.payload];
            let mask = header.mask(payload);
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

    /// Whether the blocks of a data record exist and lie in one natural unit.
    fn inside(&self, header: &RecordHeader) -> bool {
        let (block, span) = (header.number, u64::from(header.span));
        block + span <= self.store.blocks() && self.store.layout.in_natural_unit(block, span)
    }

    /// Whether a record of this block is applied.
    fn wanted(&self, block: u64, late: bool) -> bool {
        late || self.lost.iter().any(|r| (r.0..r.1).contains(&block))
    }

    /// Applies one whole record.
    fn apply(&mut self, header: &RecordHeader, place: u32, base: u64, late: bool) -> Result {
        let payload = &self.segment[place as usize + UNIT..][..header.payload];
        let mask = header.mask(payload);
        match header.kind {
            Kind::Data => match mask {
                Some(mask) if self.inside(header) => {
                    self.map_record(header, mask, base + u64::from(place), late)
                }
                _ => Ok(()),
            },
            Kind::Zero => {
                let Some(end) = zero_end(header.number, le64(payload, 0)) else {
                    return Ok(());
                };
                let whole = [(0, self.store.blocks())];
                let ranges: &[(u64, u64)] = if late { &whole } else { &self.lost };
                let mut map = self.store.map.lock();
                for &(from, to) in ranges {
                    let (from, to) = (from.max(header.number), to.min(end));
                    if from < to {
                        map.for_each_part(from, to - from, &mut |map, part| {
                            let Part::Leaf(at, n) = part else {
                                return Ok(());
                            };
                            if map.maps(at, n) {
                                map.fill_uncounted(at, n, Entry::HOLE);
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

    /// Points the blocks of a data record to the record.
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
}
