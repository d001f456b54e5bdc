// SPDX-License-Identifier: GPL-2.0
//! Punching: dead ranges of segments that stay in use go back to the backing file.
//!
//! Where dead records lie together, punching them costs a call for each range, and relocation would write all live records
//! of the segment again. The same rule holds as for whole segments
//! ([`Usage::superseded`](crate::engine::map::usage::Usage::superseded)): neither superblock needs the dead records once
//! the log is durable. A reader that walks the records of a segment must look for the next one behind a hole.
//!
//! Many file systems give back less than was punched, because they allocate in larger units than 4 KiB (ext4 with bigalloc,
//! XFS on a realtime device, blocks of 64 KiB), or nothing at all. So what was gained is measured, and only that counts.

use super::live::{live_blocks, node_is_live, node_of};
use super::policy::worth_moving;
use super::Maintenance;
use crate::engine::format::{
    Kind, NodeId, RecordHeader, BLOCK_SIZE, RECORD_HEADER, SEGMENT_HEADER, UNIT,
};
use crate::engine::freeing::{self, Superseded, Unneeded};
use crate::engine::map::load::Missing;
use crate::engine::map::table::Found;
use crate::engine::store::Store;
use crate::engine::Result;
use crate::platform::mem::Vec;
use crate::platform::{BackingFile, Platform, Sabotage};

/// Least bytes of a range that is punched: a shorter one is a burden to the file system and gains nothing.
const LEAST: usize = 16 << 10;

const _: () = assert!(LEAST % BLOCK_SIZE == 0);

/// A dead range of a segment: offsets of its first byte and of the one behind them.
type Range = (usize, usize);

impl<P: Platform> Maintenance<P> {
    /// Punches the dead ranges of segment `index`, whose bytes are given, if that costs less than relocation and leaves
    /// too little garbage for it. False otherwise.
    pub(super) fn punch_segment(
        &mut self,
        store: &Store<P>,
        index: u64,
        bytes: &[u8],
        seed: u32,
    ) -> Result<bool> {
        let ranges = self.dead_ranges(store, index, bytes, seed)?;
        let gain = ranges.iter().map(|range| (range.1 - range.0) as u64).sum();
        let Some(superseded) = worth_punching(store, index, ranges, gain) else {
            return Ok(false);
        };
        let log = store.log.sync_unless(Sabotage::EarlyPunch, &store.file)?;
        let gained = self.punch_measured(store, index, &superseded.durably(&log), gain)?;
        // Also if nothing was gained, so that the segment is not taken for complete.
        store.map.lock().set_punched(index, gained.max(1));
        // With less than that, it is not known to have gained anything.
        Ok(gained * 2 >= gain)
    }

    /// Punches ranges of segment `index`, `gain` bytes in all, and returns how much the file has become smaller by that. If
    /// it is much less, later ranges are aligned to larger units.
    fn punch_measured(
        &mut self,
        store: &Store<P>,
        index: u64,
        ranges: &Unneeded<Range>,
        gain: u64,
    ) -> Result<u64> {
        if store.file.fixed_size() {
            freeing::punch(store, index, ranges)?;
            return Ok(gain);
        }
        // No other thread may allocate meanwhile, or the difference would not be what the punch gave back.
        let _hold = store.log.hold_file_end();
        let before = store.file.allocated()?;
        freeing::punch(store, index, ranges)?;
        let gained = before.saturating_sub(store.file.allocated()?).min(gain);
        let segment = store.layout.segment_size as usize;
        if gained * 2 < gain && self.punch_unit < segment {
            self.punch_unit *= 2;
        }
        Ok(gained)
    }

    /// The whole sectors of a segment without live records, as far as they are worth punching. A record that cannot be
    /// read stays: a repair may read it.
    fn dead_ranges(
        &mut self,
        store: &Store<P>,
        index: u64,
        bytes: &[u8],
        seed: u32,
    ) -> Result<Vec<Range>> {
        let base = store.layout.segment_offset(index);
        let unit = self.punch_unit;
        let mut ranges = Vec::new();
        // The end of the last live record.
        let mut from = SEGMENT_HEADER;
        let mut at = from;
        while at + RECORD_HEADER <= bytes.len() {
            let Some((header, payload)) = RecordHeader::decode::<P>(&bytes[at..], seed, at as u32)
            else {
                // A hole, or the rest of a dead record that reaches into one.
                let next = at + UNIT;
                if bytes[at..next].iter().any(|&byte| byte != 0) {
                    push_range(&mut ranges, from, at, unit)?;
                    from = next;
                }
                at = next;
                continue;
            };
            let next = at + header.units() as usize * UNIT;
            let link = header.kind == Kind::Link;
            if link || self.lives(store, &header, payload, base + at as u64)? {
                push_range(&mut ranges, from, at, unit)?;
                from = next;
            }
            at = next;
            if link {
                break;
            }
        }
        Ok(ranges)
    }

    /// True if the table or the segment usage points to this record, or is damaged where it might.
    fn lives(
        &mut self,
        store: &Store<P>,
        header: &RecordHeader,
        payload: &[u8],
        address: u64,
    ) -> Result<bool> {
        let buffers = &mut self.checkpoint.workspace().read;
        match header.kind {
            Kind::Data => {
                let (Some(mask), true) = (header.mask(payload), header.number < store.blocks())
                else {
                    return Ok(true);
                };
                let leaf = NodeId::leaf(header.number);
                match store.loader().node(buffers, leaf, Missing::Leave) {
                    Ok(Found::Loaded) => {}
                    Ok(_) => return Ok(false),
                    Err(error) if error.is_damage() => return Ok(true),
                    Err(error) => return Err(error),
                }
                Ok(live_blocks(&store.map.lock(), header, mask, address).here != 0)
            }
            Kind::MapNode => match node_is_live(store, buffers, node_of(header), address) {
                Err(error) if error.is_damage() => Ok(true),
                live => live,
            },
            Kind::UsageNode => Ok(self.checkpoint.stores_usage(header, address)),
            Kind::Zero | Kind::Pad | Kind::Link | Kind::Checkpoint => Ok(false),
        }
    }
}

/// Enters the whole units of `unit` bytes between two offsets, if they are worth punching.
fn push_range(ranges: &mut Vec<Range>, from: usize, to: usize, unit: usize) -> Result {
    let (first, last) = (from.next_multiple_of(unit), to - to % unit);
    match last.checked_sub(first) {
        Some(len) if len >= LEAST => ranges.push((first, last)),
        _ => Ok(()),
    }
}

/// The dead ranges of a segment, `gain` bytes in all, if punching them is better than relocating its live records.
fn worth_punching<P: Platform>(
    store: &Store<P>,
    index: u64,
    ranges: Vec<Range>,
    gain: u64,
) -> Option<Superseded<Range>> {
    let log = store.log.lock();
    let map = store.map.lock();
    let segment = map.segment(index)?;
    let garbage = segment.garbage(&store.layout) + segment.punched();
    let left = garbage.saturating_sub(gain);
    let cheap = (ranges.len() * LEAST) as u64 <= segment.live_bytes();
    let worth = gain > segment.punched() && left < worth_moving(&store.layout) && cheap;
    // Detached nodes must be read once more.
    let allowed = !map.may_have_detached() && map.supersedable(segment);
    (worth && allowed).then(|| Superseded::new(&log, ranges))
}
