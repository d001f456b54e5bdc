// SPDX-License-Identifier: GPL-2.0
//! Replaying the log over a checkpoint.

use super::superblocks::Standing;
use super::usage::segment_limit;
use super::{ends_unread, read_around};
use crate::engine::format::{
    corrupt, le64, seed, Kind, LogPosition, RecordHeader, SegmentHeader, Superblock, BLOCK_SIZE,
    SEGMENT_HEADER, UNIT,
};
use crate::engine::io::data::Stored;
use crate::engine::io::zero::zero_end;
use crate::engine::log::{LeftSegment, Placed};
use crate::engine::map::load::Missing;
use crate::engine::map::usage::Origin;
use crate::engine::store::Store;
use crate::engine::workspace::Workspace;
use crate::engine::{Error, Result};
use crate::platform::mem::Buf;
use crate::platform::{Platform, Sabotage};
use core::ops::Range;

/// Bytes of memory for the sector table while the log is replayed. What two checkpoints leave in the log
/// needs less.
const REPLAY_MEMORY: u64 = 2 << 30;

/// The result of a replay.
pub(crate) struct Replayed {
    /// Data and zero records applied.
    pub(crate) records: u64,
    /// Highest sequence number seen.
    pub(crate) seq: u64,
}

impl Replayed {
    /// The first sequence number of the new epoch.
    pub(crate) fn next_seq(&self) -> u64 {
        self.seq + 1
    }
}

/// A replay under way.
struct Replay<'a, P: Platform> {
    store: &'a Store<P>,
    ws: &'a mut Workspace<P>,
    superblock: &'a Superblock,
    standing: Standing,
    /// Segments the file can have.
    limit: u64,
    /// The bytes of one segment.
    bytes: Buf,
    /// The part of `bytes` that could not be read.
    bad: Range<usize>,
    replayed: Replayed,
}

/// How the log leaves a segment.
struct SegmentEnd {
    /// Offset of the first byte behind the last record.
    offset: u32,
    /// The segment that a link leads to.
    next: Option<u64>,
    /// There is a header of this image in the segment, of whichever incarnation.
    has_header: bool,
}

/// Applies the log from the checkpoint of `superblock` on, up to the first record that does not follow. If the newest
/// superblock says that the image was closed cleanly and `superblock` is the older one, `closed` is the newest one's log
/// start: what follows there is its checkpoint, which changes nothing, and may be damaged.
///
/// # Errors
///
/// [`Error::Corrupt`] when the log ends before `log_end`, the position up to which it was durable when the newest
/// superblock was written: that is damage, not a crash. The same if a newer superblock may be lost, as `standing` tells,
/// and a link leads to where no header is: the lost log may have gone on there. [`Error::NoMemory`] when the sector
/// table grows beyond [`REPLAY_MEMORY`].
pub(crate) fn replay<P: Platform>(
    store: &Store<P>,
    ws: &mut Workspace<P>,
    superblock: &Superblock,
    standing: Standing,
    log_end: u64,
    closed: Option<LogPosition>,
) -> Result<Replayed> {
    let shift = store.layout.segment_shift();
    let replay = Replay {
        limit: segment_limit(store, superblock)?,
        bytes: Buf::zeroed(store.layout.segment_size as usize)?,
        bad: 0..0,
        replayed: Replayed {
            records: 0,
            seq: superblock.log_start.seq.max(log_end >> shift),
        },
        store,
        ws,
        superblock,
        standing,
    };
    replay.run(log_end, closed)
}

impl<P: Platform> Replay<'_, P> {
    fn run(mut self, log_end: u64, closed: Option<LogPosition>) -> Result<Replayed> {
        let layout = self.store.layout;
        let LogPosition {
            segment,
            offset,
            seq,
        } = self.superblock.log_start;
        let mut at = LogPosition {
            segment,
            offset,
            seq,
        };
        let mut before = None;
        loop {
            let base = layout.segment_offset(at.segment);
            self.bad = read_around::<P>(&self.store.file, &mut self.bytes, base)?;
            let end = self.segment(at, before)?;
            match end.next {
                Some(index) if index < self.limit => {
                    let used = end.offset.next_multiple_of(BLOCK_SIZE as u32);
                    before = Some(LeftSegment {
                        index: at.segment,
                        unused_end: layout.unused_end(used),
                    });
                    at = LogPosition {
                        segment: index,
                        offset: SEGMENT_HEADER as u32,
                        seq: at.seq + 1,
                    };
                    let mut tail = self.store.log.lock();
                    tail.space.extend_to(index);
                }
                _ => {
                    let after = LogPosition {
                        offset: end.offset,
                        ..at
                    };
                    let log = &self.store.log;
                    if closed.is_some_and(|closed| log.lsn_of(after) >= log.lsn_of(closed)) {
                        return Ok(self.replayed);
                    }
                    // A link leads behind the file, or has led here.
                    let unfollowed = end.next.is_some() || before.is_some() && !end.has_header;
                    if self.standing == Standing::Doubtful && unfollowed {
                        return corrupt(
                            "log: it may go on in a damaged part of the image, and be lost with a superblock",
                            base + u64::from(end.offset),
                        );
                    }
                    if ends_unread::<P>(&self.bytes, end.offset, &self.bad) {
                        return corrupt("log: it cannot be read on", base + u64::from(end.offset));
                    }
                    let durable = self.durable_after(after)?;
                    if self.store.log.lsn_of(after) < durable.max(log_end) {
                        return corrupt("log", base + u64::from(end.offset));
                    }
                    return Ok(self.replayed);
                }
            }
        }
    }

    /// Applies the records of the segment in `bytes` from position `at` on. A segment of another incarnation has
    /// none: the log ends there.
    fn segment(&mut self, at: LogPosition, before: Option<LeftSegment>) -> Result<SegmentEnd> {
        let layout = self.store.layout;
        let mut end = SegmentEnd {
            offset: at.offset,
            next: None,
            has_header: false,
        };
        let header = SegmentHeader::of_segment::<P>(&self.bytes, &layout, at.segment);
        end.has_header = header.is_some();
        let Some(header) = header.filter(|header| {
            let (epoch, salt) = (self.superblock.epoch, self.superblock.salt);
            (header.seq, header.epoch, header.salt) == (at.seq, epoch, salt)
                || P::sabotaged(Sabotage::StaleSegment)
        }) else {
            return Ok(end);
        };
        let (seed, base) = (header.seed::<P>(), layout.segment_offset(at.segment));
        let mut map = self.store.map.lock();
        // The checkpoint may not have known the segment yet.
        map.grow_segments(at.segment)?;
        map.enter(&Placed {
            address: base,
            segment: at.segment,
            seq: at.seq,
            seed,
            before,
        })?;
        drop(map);
        self.replayed.seq = self.replayed.seq.max(at.seq);
        while end.offset < layout.segment_size {
            let bytes = &self.bytes[end.offset as usize..];
            let Some((header, payload)) = RecordHeader::decode::<P>(bytes, seed, end.offset) else {
                break;
            };
            let address = base + u64::from(end.offset);
            end.offset += header.units() * UNIT as u32;
            if end.offset > layout.segment_size {
                return corrupt("log record", address);
            }
            match header.kind {
                Kind::Link => {
                    end.next = Some(le64(payload, 0));
                    break;
                }
                Kind::Data | Kind::Zero => {
                    apply(self.store, self.ws, &header, payload, address)?;
                    self.replayed.records += 1;
                    if self.store.map.lock().memory() > REPLAY_MEMORY {
                        return Err(Error::NoMemory);
                    }
                }
                Kind::Pad | Kind::MapNode | Kind::UsageNode | Kind::Checkpoint => {}
            }
        }
        Ok(end)
    }

    /// The log position up to which the log was durable, as far as the bytes behind its apparent end `after` tell; 0
    /// if they tell nothing. `bytes` holds the segment of `after`.
    ///
    /// Bytes that were not durable yet may be lost in any order, so a valid record behind a gap is no sign of
    /// damage. But headers, pads and links say what was durable when they were written.
    fn durable_after(&mut self, after: LogPosition) -> Result<u64> {
        let (layout, superblock) = (&self.store.layout, self.superblock);
        let (mut at, mut durable) = (after, 0);
        // A segment has one incarnation at a time, so an honest chain ends before that.
        for _ in 0..self.limit {
            let (salt, epoch) = (superblock.salt, superblock.epoch);
            let seed = seed::<P>(&layout.uuid, salt, at.seq, at.segment);
            let header = SegmentHeader::of_segment::<P>(&self.bytes, layout, at.segment)
                .filter(|header| (header.seq, header.epoch, header.salt) == (at.seq, epoch, salt));
            let mut next = header.map(|header| header.next);
            durable = durable.max(header.map_or(0, |header| header.durable));
            for offset in (at.offset..layout.segment_size).step_by(UNIT) {
                let bytes = &self.bytes[offset as usize..];
                if let Some((header, payload)) =
                    RecordHeader::decode_ending::<P>(bytes, seed, offset)
                {
                    let lsn = self.store.log.lsn_of(LogPosition { offset, ..at });
                    durable = durable.max(header.durable(lsn).unwrap_or(0));
                    if header.kind == Kind::Link {
                        next = Some(le64(payload, 0));
                    }
                }
            }
            let Some(segment) = next.filter(|&next| next < self.limit) else {
                break;
            };
            at = LogPosition {
                segment,
                offset: SEGMENT_HEADER as u32,
                seq: at.seq + 1,
            };
            let offset = layout.segment_offset(segment);
            read_around::<P>(&self.store.file, &mut self.bytes, offset)?;
        }
        Ok(durable)
    }
}

/// Makes the change of one data or zero record again.
fn apply<P: Platform>(
    store: &Store<P>,
    ws: &mut Workspace<P>,
    header: &RecordHeader,
    payload: &[u8],
    address: u64,
) -> Result {
    let (block, damaged) = (header.number, corrupt("log record", address));
    if header.kind == Kind::Zero {
        let count = le64(payload, 0);
        if zero_end(block, count).is_none_or(|end| end > store.blocks()) {
            return damaged;
        }
        let count = count >> u32::from(P::sabotaged(Sabotage::ShortZero));
        loop {
            let stored = store.map.lock().discard(block, count)?;
            match stored {
                Some(at) => store.loader().leaf(&mut ws.read, at, Missing::Leave)?,
                None => return Ok(()),
            };
        }
    }
    let span = u64::from(header.span);
    let inside = store.layout.in_natural_unit(block, span) && block + span <= store.blocks();
    let (Some(mask), true) = (header.mask(payload), inside) else {
        return damaged;
    };
    store.loader().leaf(&mut ws.read, block, Missing::Create)?;
    let stored = Stored {
        block,
        span: span as usize,
        mask,
        units: header.units(),
        address,
        origin: Origin::Unknown,
    };
    stored.map(&mut store.map.lock())
}
