// SPDX-License-Identifier: GPL-2.0
//! Giving back parts of segments that stay in use.
//!
//! Where what is dead lies together, its space is given back in place: that costs a call for each piece, and
//! moving would write again all that lives. The same holds as for whole segments
//! ([`Usage::superseded`](crate::engine::map::usage::Usage::superseded)): neither superblock needs what is dead once the log is
//! durable. Whoever walks the records of a segment must look for the next one behind a hole.

use crate::engine::checkpoint::Checkpoint;
use crate::engine::format::{
    Entry, Kind, RecordHeader, BLOCK_SIZE, RECORD_HEADER, SEGMENT_HEADER, UNIT,
};
use crate::engine::map::load::Missing;
use crate::engine::map::table::{Found, NodeId};
use crate::engine::store::Store;
use crate::engine::Result;
use crate::platform::mem::Vec;
use crate::platform::{BackingFile, Platform, Sabotage};

/// Least bytes given back at once: less is a burden to the file system and gains nothing.
const LEAST: usize = 16 << 10;

impl<P: Platform> Store<P> {
    /// Gives back what is dead in segment `index`, whose bytes are given, if what is left then is not worth moving, and
    /// it costs less. False otherwise.
    pub(crate) fn punch_segment(
        &self,
        state: &mut Checkpoint<P>,
        index: u64,
        bytes: &[u8],
        seed: u32,
    ) -> Result<bool> {
        let base = self.layout.segment_offset(index);
        let holes = self.holes(state, bytes, base, seed)?;
        let gain: u64 = holes.iter().map(|hole| (hole.1 - hole.0) as u64).sum();
        let map = self.map.lock();
        let Some(segment) = map.segment(index) else {
            return Ok(false);
        };
        let garbage = segment.garbage(&self.layout) + segment.punched();
        let left = garbage.saturating_sub(gain);
        let cheap = (holes.len() * LEAST) as u64 <= segment.live_bytes();
        let worth = gain > segment.punched() && left < self.worth_moving() && cheap;
        // Detached nodes must be read once more.
        if !worth || map.may_have_detached() || !map.supersedable(segment) {
            return Ok(false);
        }
        drop(map);
        if !P::sabotaged(Sabotage::EarlyPunch) {
            self.log.sync(&self.file)?;
        }
        for &(from, to) in holes.iter() {
            self.file.punch(base + from as u64, (to - from) as u64)?;
        }
        self.map.lock().set_punched(index, gain);
        Ok(true)
    }

    /// The whole sectors of a segment without anything that lives, as far as they are worth giving back: offsets of
    /// their first byte and of the one behind them. What cannot be read stays: a repair may.
    fn holes(
        &self,
        state: &mut Checkpoint<P>,
        bytes: &[u8],
        base: u64,
        seed: u32,
    ) -> Result<Vec<(usize, usize)>> {
        let mut holes = Vec::new();
        // Where what is dead began.
        let mut from = SEGMENT_HEADER;
        let mut at = from;
        let mut close = |from: usize, to: usize| {
            let (first, last) = (from.next_multiple_of(BLOCK_SIZE), to - to % BLOCK_SIZE);
            match last.checked_sub(first) {
                Some(len) if len >= LEAST => holes.push((first, last)),
                _ => Ok(()),
            }
        };
        while at + RECORD_HEADER <= bytes.len() {
            let Some((header, payload)) = RecordHeader::decode::<P>(&bytes[at..], seed, at as u32)
            else {
                // A hole, or the rest of a dead record that reaches into one.
                let next = at + UNIT;
                if bytes[at..next].iter().any(|&byte| byte != 0) {
                    close(from, at)?;
                    from = next;
                }
                at = next;
                continue;
            };
            let next = at + header.units() as usize * UNIT;
            if header.kind == Kind::Link || self.lives(state, &header, payload, base + at as u64)? {
                close(from, at)?;
                from = next;
            }
            at = next;
            if header.kind == Kind::Link {
                break;
            }
        }
        Ok(holes)
    }

    /// Whether the table or the segment usage has anything in this record.
    fn lives(
        &self,
        state: &mut Checkpoint<P>,
        header: &RecordHeader,
        payload: &[u8],
        address: u64,
    ) -> Result<bool> {
        match header.kind {
            Kind::Data => {
                let (Some(mask), true) = (header.mask(payload), header.number < self.blocks())
                else {
                    return Ok(true);
                };
                let leaf = NodeId::leaf(header.number);
                if self
                    .loader()
                    .node(&mut state.ws.read, leaf, Missing::Leave)?
                    != Found::Loaded
                {
                    return Ok(false);
                }
                Ok(Self::still_here(&self.map.lock(), header, mask, address).0 != 0)
            }
            Kind::MapNode => {
                let id = NodeId {
                    level: header.count,
                    index: header.number,
                };
                self.stored_here(&mut state.ws, id, address)
            }
            Kind::UsageNode => {
                let nodes = state.usage_nodes.get(usize::from(header.count));
                let node = nodes.and_then(|nodes| nodes.get(header.number as usize));
                Ok(node.is_some_and(|&word| Entry(word).address() == address))
            }
            Kind::Zero | Kind::Pad | Kind::Link | Kind::Checkpoint => Ok(false),
        }
    }
}

const _: () = assert!(LEAST % BLOCK_SIZE == 0);
