// SPDX-License-Identifier: GPL-2.0
//! The evidence in a damaged image: its identity, the epochs in which it was written, and the incarnation of each
//! segment.

use super::{next_record, space, Repair};
use crate::engine::format::{
    corrupt, le64, seed, Kind, RecordHeader, SegmentHeader, Superblock, BLOCK_SIZE, DATA_START,
    SEGMENT_HEADER, SEGMENT_SHIFTS, SUPERBLOCK_OFFSETS, UNIT,
};
use crate::engine::recovery::read_around;
use crate::engine::recovery::superblocks::read_slot;
use crate::engine::recovery::usage::load_usage;
use crate::engine::{Error, Result};
use crate::platform::mem::{Buf, Vec};
use crate::platform::{BackingFile, Platform};

/// One incarnation of a segment that belongs to the image.
#[derive(Clone, Copy)]
pub(super) struct Incarnation {
    pub(super) header: SegmentHeader,
    /// The header is whole on the medium; otherwise the repair writes it again.
    pub(super) stored: bool,
}

/// The log of one opening of the image.
#[derive(Clone, Copy)]
pub(super) struct Epoch {
    pub(super) epoch: u64,
    pub(super) salt: u64,
    /// First sequence number of the epoch.
    pub(super) first: u64,
    /// First sequence number of the next epoch.
    pub(super) end: u64,
    /// The log was durable at least up to this position. A record that is missing before it is damaged (or its space
    /// was given back); the first one that is missing after it is the end of the log.
    pub(super) durable: u64,
    /// The sequence number of the segment that the replay expects next; none if the log has ended.
    pub(super) expected: Option<u64>,
}

/// The identity of an image: its whole superblocks, newest first, its uuid, and log2 of its segment size.
pub(super) struct Identity {
    pub(super) slots: Vec<Superblock>,
    pub(super) uuid: [u8; 16],
    pub(super) shift: u32,
}

pub(super) fn identify<P: Platform>(file: &P::File, page: &mut Buf) -> Result<Identity> {
    let mut slots: Vec<Superblock> = Vec::new();
    for slot in [0, 1] {
        match read_slot::<P>(file, slot, page) {
            Ok(superblock) => {
                let at = slots.partition_point(|s| s.generation > superblock.generation);
                slots.insert(at, superblock)?;
            }
            Err(Error::Corrupt { .. } | Error::Io(_) | Error::NotAnImage) => {}
            Err(error) => return Err(error),
        }
    }
    let one = slots.iter().all(|s| s.layout.uuid == slots[0].layout.uuid);
    if let (Some(newest), true) = (slots.first(), one) {
        let (uuid, shift) = (newest.layout.uuid, newest.layout.segment_shift());
        return Ok(Identity { slots, uuid, shift });
    }
    // The superblocks name no image, or two: the image that most segments belong to is meant.
    let mut votes: Vec<([u8; 16], u32, u64)> = Vec::new();
    let length = file.len()?;
    let mut offset = DATA_START;
    while offset < length {
        read_around::<P>(file, &mut page[..BLOCK_SIZE], offset)?;
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
    let has_segments = |s: &Superblock| votes.iter().any(|vote| vote.0 == s.layout.uuid);
    if !slots.is_empty() && slots.iter().all(has_segments) {
        // There are two images here. Which one is meant is not for a repair to guess.
        return corrupt(
            "superblock: the two copies belong to different images",
            SUPERBLOCK_OFFSETS[1],
        );
    }
    let most = votes.iter().max_by_key(|vote| vote.2);
    let Some(&(uuid, shift, _)) = most else {
        return Err(Error::NotAnImage);
    };
    let mut own = Vec::new();
    for slot in slots.iter().filter(|s| s.layout.uuid == uuid) {
        own.push(*slot)?;
    }
    Ok(Identity {
        slots: own,
        uuid,
        shift,
    })
}

/// The newest copy of a superblock in the log of this image. A repair needs it if both slots are damaged.
pub(super) fn newest_copy<P: Platform>(
    file: &P::File,
    identity: &Identity,
    page: &mut Buf,
) -> Result<Option<Superblock>> {
    let size = 1u64 << identity.shift;
    let mut bytes = Buf::zeroed(size as usize)?;
    let (mut newest, mut offset): (Option<Superblock>, _) = (None, DATA_START);
    let length = file.len()?;
    while offset < length {
        read_around::<P>(file, &mut bytes, offset)?;
        let header = SegmentHeader::decode::<P>(&bytes).filter(|h| h.uuid == identity.uuid);
        if let Some(header) = header {
            let (seed, mut at) = (header.seed::<P>(), SEGMENT_HEADER as u32);
            while let Some((place, record)) = next_record::<P>(&bytes, seed, at) {
                if record.kind == Kind::Checkpoint {
                    let payload = &bytes[place as usize + UNIT..];
                    let copy = Superblock::from_record::<P>(payload, &mut page[..BLOCK_SIZE]);
                    if let Ok(copy) = copy {
                        let key = |s: &Superblock| (s.epoch, s.generation);
                        if copy.layout.uuid == identity.uuid
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

impl<P: Platform> Repair<'_, P> {
    /// Collects the epochs of the image, oldest first, from superblocks and segment headers.
    pub(super) fn find_epochs(
        &mut self,
        identity: &Identity,
        headers: &[Option<SegmentHeader>],
    ) -> Result {
        let known = headers.iter().flatten().map(|h| (h.epoch, h.salt, h.first));
        let slots = identity.slots.iter();
        let slots = slots.map(|s| (s.epoch, s.salt, s.log_start.seq));
        let base = (self.base.epoch, self.base.salt, self.base.log_start.seq);
        for (epoch, salt, first) in known.chain(slots).chain([base]) {
            // An epoch later than that of the newest superblock ended before any user could write.
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
                        expected: None,
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
            self.epochs[at].expected = Some(self.epochs[at].first);
        }
        Ok(())
    }

    /// Finds the incarnation of each segment, also of one with a damaged header.
    pub(super) fn find_incarnations(&mut self, headers: &[Option<SegmentHeader>]) -> Result {
        let (stored, since) = self.stored_seeds()?;
        for index in 0..self.segments {
            let header = headers.get(index as usize).copied().flatten();
            let word = stored.get(index as usize).copied().flatten();
            // A segment with a live record was not used again since the checkpoint, unless the log superseded all of
            // its records.
            let later = |h: &SegmentHeader| {
                (h.epoch, h.salt) == (since.epoch, since.salt) && h.seq > since.log_start.seq
                    || h.epoch > since.epoch
            };
            let trusted =
                header.filter(|h| later(h) || word.is_none_or(|seed| seed == h.seed::<P>()));
            let (seed, found) = match trusted {
                Some(header) => {
                    let stored = true;
                    (
                        Some(header.seed::<P>()),
                        Some(Incarnation { header, stored }),
                    )
                }
                None => {
                    let (seed, header) = self.recognise(index, word)?;
                    let stored = false;
                    (seed, header.map(|header| Incarnation { header, stored }))
                }
            };
            self.seeds.push(seed)?;
            if let (Some(seed), None) = (seed, found) {
                self.nameless.push((index, seed))?;
            }
            if let Some(incarnation) = found {
                let key = |l: &Incarnation| (l.header.epoch, l.header.seq);
                let at = self
                    .incarnations
                    .partition_point(|other| key(other) < key(&incarnation));
                self.incarnations.insert(at, incarnation)?;
            }
        }
        Ok(())
    }

    /// The seeds of segments with live records, from the segment usage of the newest checkpoint whose usage can be
    /// read, and the superblock of that checkpoint; no seeds if none can.
    fn stored_seeds(&mut self) -> Result<(Vec<Option<u32>>, Superblock)> {
        for superblock in [Some(self.base), self.spare].into_iter().flatten() {
            if superblock.segments > self.segments || superblock.usage_root.is_hole() {
                continue;
            }
            let loaded = load_usage(&self.store, &mut self.ws, &superblock, &mut self.page);
            let (mut map, mut seeds) = (self.store.map.lock(), Vec::new());
            for segment in map.segments() {
                seeds.push((segment.stored_live() > 0).then_some(segment.seed()))?;
            }
            map.forget_segments(self.store.layout);
            match loaded {
                Ok(_) => return Ok((seeds, superblock)),
                Err(Error::Corrupt { .. } | Error::Io(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok((Vec::new(), self.base))
    }

    /// Finds the seed and the incarnation of a segment without a header by its records. `known` is its seed, if the
    /// segment usage has it.
    fn recognise(
        &mut self,
        index: u64,
        known: Option<u32>,
    ) -> Result<(Option<u32>, Option<SegmentHeader>)> {
        let layout = self.store.layout;
        if index >= self.present {
            return Ok((known, None));
        }
        let offset = layout.segment_offset(index);
        read_around::<P>(&self.store.file, &mut self.segment, offset)?;
        let bytes = &*self.segment;
        // Two neighbouring records whose checksums hold with the same seed.
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
            // The log may have gone on since the checkpoint, but each segment follows at most once.
            let last = self.base.log_end >> layout.segment_shift();
            let last = last.max(self.base.log_start.seq) + self.segments;
            let last = last.min(epoch.end);
            let first = epoch.first.max(last.saturating_sub(self.tries));
            self.tries -= last.saturating_sub(first);
            // Newest first: live records are most likely there.
            for seq in (first..last).rev() {
                if seed::<P>(&layout.uuid, epoch.salt, seq, index) == wanted {
                    let header = SegmentHeader {
                        segment_shift: layout.segment_shift() as u8,
                        index,
                        seq,
                        epoch: epoch.epoch,
                        salt: epoch.salt,
                        uuid: layout.uuid,
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

    /// Finds the position up to which the log of each epoch was durable for certain.
    pub(super) fn find_durable(&mut self, identity: &Identity) -> Result {
        let layout = self.store.layout;
        for at in 0..self.epochs.len() {
            let epoch = self.epochs[at];
            let mut durable = 0;
            for slot in identity.slots.iter().chain([&self.base]) {
                if (slot.epoch, slot.salt) == (epoch.epoch, epoch.salt) {
                    durable = durable
                        .max(slot.log_end)
                        .max(self.lsn(slot.log_start.seq, 0));
                }
            }
            if epoch.end != u64::MAX {
                // All segments of the epoch but its last one were durable when the next epoch began.
                durable = durable.max(self.lsn(epoch.end.saturating_sub(1), 0));
            }
            self.epochs[at].durable = durable;
        }
        for incarnation in self.incarnations.iter() {
            let header = incarnation.header;
            let key = (header.epoch, header.salt);
            let Some(epoch) = self.epochs.iter_mut().find(|e| (e.epoch, e.salt) == key) else {
                continue;
            };
            if header.seq >= epoch.end {
                continue;
            }
            epoch.durable = epoch.durable.max(header.durable);
            let offset = layout.segment_offset(header.index);
            read_around::<P>(&self.store.file, &mut self.segment, offset)?;
            let seed = header.seed::<P>();
            for at in (SEGMENT_HEADER..self.segment.len()).step_by(UNIT) {
                let ending = RecordHeader::decode_ending::<P>(&self.segment[at..], seed, at as u32);
                if let Some((record, _)) = ending {
                    let lsn = (header.seq << layout.segment_shift()) + at as u64;
                    epoch.durable = epoch.durable.max(record.durable(lsn).unwrap_or(0));
                }
            }
        }
        Ok(())
    }
}
