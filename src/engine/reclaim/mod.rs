// SPDX-License-Identifier: GPL-2.0
//! Reclaim: segments with little left in them are emptied by moving what is live to the head of the log.
//!
//! A moved record is an ordinary record of the log with the same contents, so replay needs to know nothing
//! about it. It is placed only if the sector table still points to the old one when the log's lock is
//! held (otherwise it would undo a newer write), and in pieces that cover nothing but what it held and
//! what is a hole. Once two checkpoints have found a segment dead it is free, as any other.

pub(crate) mod punch;

use crate::engine::checkpoint::Checkpoint;
use crate::engine::codec::Params;
use crate::engine::format::{
    Entry, Kind, RecordHeader, SegmentHeader, BLOCK_SIZE, NODE_ENTRIES, NODE_SHIFT, RECORD_HEADER,
    SEGMENT_HEADER, UNIT,
};
use crate::engine::freeing;
use crate::engine::io::data::{gather, DataRecord};
use crate::engine::log::{EncodedRecord, LogState};
use crate::engine::map::load::Missing;
use crate::engine::map::reaper::Progress;
use crate::engine::map::table::{Found, NodeId};
use crate::engine::map::usage::{State, Total};
use crate::engine::map::Map;
use crate::engine::space::Writer;
use crate::engine::store::{count, Store};
use crate::engine::workspace::Workspace;
use crate::engine::{Error, Result};
use crate::platform::mem::{Buf, Vec};
use crate::platform::{BackingFile, Platform, Sabotage};

/// Segments chosen at once.
const BATCH: usize = 16;
/// Segments looked at before others may go on: what takes a fraction of a millisecond.
const GLANCE: u64 = 1 << 13;
/// Nodes of detached subtrees that the reaper looks at in one go.
pub(crate) const REAP_BATCH: usize = 64;
/// Bytes of nodes that are never too many to wait for a checkpoint.
const DUE: u64 = 1 << 20;
/// Segments that are found for those who wait, if possible.
const GAIN: u64 = 2;
/// Rounds without gain after which there is no space to be found.
const FRUITLESS: u32 = 8;

/// How far reclaim goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effort {
    /// Beside users' writes: what costs little and gives much.
    Busy,
    /// While nobody writes, until little garbage is left.
    Idle,
    /// For writers that wait: whatever gives anything.
    Urgent,
    /// As asked for: the smallest image that is worth the work.
    Pack,
}

impl<P: Platform> Store<P> {
    /// What the segments hold at this moment, but for what is dead in those of the log.
    pub(crate) fn total(&self, tail: &LogState, map: &Map) -> Total {
        map.total(tail.held())
    }

    /// Garbage that is left alone when nobody writes: with it, what the log reserves, and the metadata
    /// the image stays within promise P3.
    pub(crate) fn idle_garbage(&self, total: &Total) -> u64 {
        total.live / 25 + (2 << 20)
    }

    /// Garbage above which reclaim works beside users' writes.
    pub(crate) fn busy_garbage(&self, total: &Total) -> u64 {
        total.live / 4 + (64 << 20)
    }

    /// Bytes of garbage in a segment that are worth moving what lives there, when there is time.
    pub(crate) fn worth_moving(&self) -> u64 {
        u64::from(self.layout.segment_size) / 32
    }

    /// How much a segment is worth emptying; nothing if it is not.
    ///
    /// Garbage is the benefit, and live bytes are the cost. When there is time to choose, age counts as
    /// well: what was written long ago stays, so its space stays gained (Rosenblum and Ousterhout,
    /// "The design and implementation of a log-structured file system", 1992).
    fn score(&self, tail: &LogState, map: &Map, index: u64, effort: Effort) -> Option<u64> {
        let layout = &self.layout;
        let size = u64::from(layout.segment_size);
        let segment = map.segment(index)?;
        let least = match effort {
            Effort::Busy => size / 2,
            Effort::Idle | Effort::Pack => self.worth_moving(),
            Effort::Urgent => size / 256,
        };
        let mut garbage = segment.garbage(layout);
        if effort == Effort::Pack {
            // The image is to be short as well.
            garbage += segment.punched();
        }
        let far = effort == Effort::Pack && index >= tail.space.allocator.in_use();
        if segment.is_free()
            || segment.state() == State::Stuck
            || segment.is_dead()
            || (garbage < least && !far)
            || tail.holds(index)
            || tail.pending(layout.segment_offset(index), size)
        {
            return None;
        }
        let age = match effort {
            // One that needs checkpoints to be free is worth less.
            Effort::Urgent => 1 + u64::from(map.supersedable(segment)),
            _ => (map.newest_seq() - segment.seq()).min(1 << 20) + 1,
        };
        // Segments have at most 2^26 bytes: nothing is lost above, and little below.
        Some(((garbage.max(1) * age) << 16) / (size + segment.live_bytes()))
    }

    /// The segments that are worth emptying most, the best one last. Others get at the map while it looks for them.
    fn victims(&self, effort: Effort) -> Result<Vec<u64>> {
        let mut best: Vec<(u64, u64)> = Vec::with_capacity(BATCH + 1)?;
        let mut first = 0;
        loop {
            let tail = self.log.lock();
            let map = self.map.lock();
            let end = map.segment_count().min(first + GLANCE);
            for index in first..end {
                let Some(score) = self.score(&tail, &map, index, effort) else {
                    continue;
                };
                let at = best.partition_point(|&(other, _)| other < score);
                if at > 0 || best.len() < BATCH {
                    best.insert(at, (score, index))?;
                    if best.len() > BATCH {
                        best.remove(0);
                    }
                }
            }
            if end == map.segment_count() {
                break;
            }
            first = end;
        }
        let mut victims = Vec::with_capacity(best.len())?;
        for &(_, index) in best.iter() {
            victims.push(index)?;
        }
        Ok(victims)
    }

    /// Empties up to a batch of segments as long as `go_on` says so; returns how many.
    ///
    /// # Errors
    ///
    /// Those of the log. Running out of what reclaim may use just ends the batch.
    pub(crate) fn empty_segments(
        &self,
        state: &mut Checkpoint<P>,
        effort: Effort,
        limit: usize,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<usize> {
        // Looking at all segments for each one that is emptied beside users' writes would take longer than that.
        let mut victims = match effort {
            Effort::Busy => core::mem::take(&mut state.victims),
            _ => Vec::new(),
        };
        let mut looked = false;
        let mut emptied = 0;
        while emptied < limit && go_on() {
            let Some(index) = victims.pop() else {
                if looked || emptied > 0 {
                    break;
                }
                victims = self.victims(effort)?;
                looked = true;
                continue;
            };
            // Much may have happened since it was chosen.
            let score = {
                let tail = self.log.lock();
                let map = self.map.lock();
                self.score(&tail, &map, index, effort)
            };
            if score.is_none() {
                continue;
            }
            match self.empty_segment(state, index, effort) {
                Ok(()) => emptied += 1,
                Err(Error::NoSpace) => break,
                Err(error) => return Err(error),
            }
        }
        if effort == Effort::Busy {
            state.victims = victims;
        }
        Ok(emptied)
    }

    /// Two checkpoints: what is dead now is free afterwards.
    pub(crate) fn free_dead(&self, state: &mut Checkpoint<P>) -> Result {
        self.checkpoint(state, false)?;
        self.checkpoint(state, false)
    }

    /// Finds space for those who wait; false when there is none to be found.
    pub(crate) fn make_space(&self, state: &mut Checkpoint<P>) -> Result<bool> {
        let size = u64::from(self.layout.segment_size);
        let look = || {
            let tail = self.log.lock();
            let available = tail.space.available() + tail.space.allocator.available();
            (available, self.total(&tail, &self.map.lock()))
        };
        while state.reaper.reap(self, &mut state.ws, REAP_BATCH)? == Progress::More
            && !self.log.lock().stopping()
        {}
        let (before, _) = look();
        freeing::free_superseded(self)?;
        let mut fruitless = 0;
        loop {
            let (available, total) = look();
            if available > before + GAIN {
                break;
            }
            let mut going = || !self.log.lock().stopping();
            let emptied = match total.garbage - total.stuck >= size {
                true => self.empty_segments(state, Effort::Urgent, BATCH, &mut going)?,
                false => 0,
            };
            freeing::free_superseded(self)?;
            let (now, left) = look();
            // Where nodes of the table were, and what is young, needs checkpoints to be free. They cost space
            // as well.
            let settle = now <= available && left.dead + left.stuck > 0;
            if settle {
                self.free_dead(state)?;
            }
            let (now, left) = look();
            if now > available {
                continue;
            }
            fruitless += u32::from(left.garbage + size / 64 >= total.garbage);
            if emptied == 0 || fruitless == FRUITLESS || (settle && now < available) {
                break;
            }
        }
        Ok(look().0 > before)
    }

    /// Moves everything live out of a segment, or gives what is dead in it back where that is as good. What is damaged
    /// stays, and the segment with it.
    fn empty_segment(&self, state: &mut Checkpoint<P>, index: u64, effort: Effort) -> Result {
        let layout = &self.layout;
        let seed = match self.map.lock().segment(index) {
            Some(segment) if !segment.is_free() => segment.seed(),
            _ => return Ok(()),
        };
        let base = layout.segment_offset(index);
        let mut bytes = match state.segment.take() {
            Some(bytes) => bytes,
            None => Buf::zeroed(layout.segment_size as usize)?,
        };
        let moved = self.file.read_at(&mut bytes, base).and_then(|()| {
            match SegmentHeader::of_segment::<P>(&bytes, layout, index) {
                Some(header) if header.seed::<P>() == seed => {
                    let in_place = matches!(effort, Effort::Busy | Effort::Idle)
                        && self.punch_segment(state, index, &bytes, seed)?;
                    if !in_place {
                        let mover = self.mover(index, effort)?;
                        self.move_records(state, &bytes, base, seed, mover)?;
                    }
                    Ok(!in_place)
                }
                _ => Ok(true),
            }
        });
        state.segment = Some(bytes);
        if !moved? {
            return Ok(());
        }
        self.map.lock().set_relocated(index, seed);
        Ok(())
    }

    /// As whom what lives in segment `index` is moved.
    fn mover(&self, index: u64, effort: Effort) -> Result<Writer> {
        if !self.log.crowded(&self.file)? {
            return Ok(Writer::Mover);
        }
        // Then the segment is not lost when it is free.
        if effort == Effort::Urgent && self.log.complete(&self.file, index)? {
            return Ok(Writer::Mover);
        }
        Ok(Writer::RiskyMover)
    }

    /// Writes again what the table has in a segment, given its bytes, as `mover`.
    pub(crate) fn move_records(
        &self,
        state: &mut Checkpoint<P>,
        bytes: &[u8],
        base: u64,
        seed: u32,
        mover: Writer,
    ) -> Result {
        let mut at = SEGMENT_HEADER;
        while at + RECORD_HEADER <= bytes.len() {
            let Some((header, payload)) = RecordHeader::decode::<P>(&bytes[at..], seed, at as u32)
            else {
                // Damage, or the end of a segment that was not filled. Further records are
                // found by their checksums, and are moved only if the table points to them.
                at += UNIT;
                continue;
            };
            let address = base + at as u64;
            // What is moved makes nodes of the table dirty, and those stay in memory.
            let most = self.map.limit() / 2;
            if self.log.demand.bytes() >= most.max(DUE) {
                self.checkpoint(state, false)?;
            }
            match header.kind {
                Kind::Data => self.move_data(&mut state.ws, &header, payload, address, mover)?,
                Kind::MapNode => self.move_node(&mut state.ws, &header, payload, address, mover)?,
                Kind::UsageNode => self.renew_usage(state, &header, address),
                Kind::Link => return Ok(()),
                Kind::Zero | Kind::Pad | Kind::Checkpoint => {}
            }
            at += header.units() as usize * UNIT;
        }
        Ok(())
    }

    /// Of the blocks of a record's span, which the table has in this record, and which are holes.
    pub(crate) fn still_here(
        map: &Map,
        header: &RecordHeader,
        mask: u32,
        address: u64,
    ) -> (u32, u32) {
        let first = header.number as usize % NODE_ENTRIES;
        let (mut here, mut holes) = (0, 0);
        if let Some(leaf) = map.leaf(header.number) {
            let words = leaf.iter().skip(first).take(usize::from(header.span));
            for (bit, &word) in words.enumerate() {
                let entry = Entry(word);
                let kept = (mask >> bit) & 1 == 1 && entry.address() == address;
                here |= u32::from(kept && !entry.is_hole()) << bit;
                holes |= u32::from(entry.is_hole()) << bit;
            }
        }
        (here, holes)
    }

    /// Moves what is still live of a data record.
    fn move_data(
        &self,
        ws: &mut Workspace<P>,
        header: &RecordHeader,
        payload: &[u8],
        address: u64,
        mover: Writer,
    ) -> Result {
        let span = u64::from(header.span);
        let end = header.number.checked_add(span);
        let natural = self.layout.in_natural_unit(header.number, span);
        let (Some(mask), Some(end)) = (header.mask(payload), end) else {
            return Ok(());
        };
        if !natural || end > self.blocks() {
            return Ok(());
        }
        loop {
            if self
                .loader()
                .node(&mut ws.read, NodeId::leaf(header.number), Missing::Leave)?
                != Found::Loaded
            {
                return Ok(());
            }
            let (here, holes) = Self::still_here(&self.map.lock(), header, mask, address);
            if here == 0 {
                return Ok(());
            }
            // From the first live block as far as there is nothing that lies elsewhere.
            let from = here.trailing_zeros();
            let reach = (!((here | holes) >> from)).trailing_zeros();
            let piece = (here >> from) & (u32::MAX >> (u32::BITS - reach.min(u32::BITS)));
            let new_span = u32::BITS - piece.leading_zeros();
            let whole = piece == mask && from == 0 && new_span == u32::from(header.span);
            let record = if whole {
                DataRecord::again::<P>(header, mask, payload)
            } else {
                let packed = &payload[header.mask_len()..];
                let stored = usize::from(header.count) * BLOCK_SIZE;
                let buffers = &mut ws.read;
                if stored > buffers.blocks.len()
                    || !buffers.decompressor.decompress(
                        header.algorithm,
                        packed,
                        &mut buffers.blocks[..stored],
                    )
                {
                    return Ok(());
                }
                let kept = (0..u32::BITS)
                    .filter(|bit| (mask >> bit) & 1 == 1)
                    .zip(buffers.blocks.chunks_exact(BLOCK_SIZE))
                    .filter(|&(bit, _)| bit >= from && (piece >> (bit - from)) & 1 == 1)
                    .map(|(_, block)| block);
                let content = gather(kept, &mut ws.gather);
                DataRecord::new::<P>(
                    &mut ws.encoder,
                    Params::of(self.algorithm),
                    header.number + u64::from(from),
                    new_span as usize,
                    piece,
                    content,
                )
            };
            let slot = self.log.slot(&self.file, &record.encoded, mover)?;
            let stored = record.stored(slot.placed());
            let unchanged = {
                let mut map = self.map.lock();
                map.enter(slot.placed())?;
                let loaded = map.find(header.number) == Found::Loaded;
                let now = Self::still_here(&map, header, mask, address);
                loaded && (now == (here, holes) || P::sabotaged(Sabotage::BlindMove))
            };
            if unchanged {
                slot.commit(|_| self.map_record(&mut self.map.lock(), &stored))?;
                count(&self.counters.moved, u64::from(stored.units) * UNIT as u64);
            }
        }
    }

    /// Moves the stored copy of a node of the sector table.
    fn move_node(
        &self,
        ws: &mut Workspace<P>,
        header: &RecordHeader,
        payload: &[u8],
        address: u64,
        mover: Writer,
    ) -> Result {
        let id = NodeId {
            level: header.count,
            index: header.number,
        };
        let record = EncodedRecord::new::<P>(*header, &[], payload);
        let units = record.header().units();
        // One that the next checkpoint stores moves by itself.
        let here = |map: &Map| !map.will_be_stored(id) && map.stores(id, address);
        if !self.stored_here(ws, id, address)? || !here(&self.map.lock()) {
            return Ok(());
        }
        let slot = self.log.slot(&self.file, &record, mover)?;
        let entry = Entry::new(slot.placed().address, units, 0, 1);
        let unchanged = {
            let mut map = self.map.lock();
            map.enter(slot.placed())?;
            here(&map)
        };
        if !unchanged {
            return Ok(());
        }
        slot.commit(|_| self.map.lock().move_stored(id, entry))?;
        count(&self.counters.moved, u64::from(units) * UNIT as u64);
        Ok(())
    }

    /// Whether the stored copy of a node of the sector table, if there is such a node, is at this address.
    pub(crate) fn stored_here(
        &self,
        ws: &mut Workspace<P>,
        id: NodeId,
        address: u64,
    ) -> Result<bool> {
        let height = self.map.lock().height();
        let reach = NODE_SHIFT * u32::from(height);
        let shift = NODE_SHIFT * u32::from(id.level);
        if id.level >= height || id.index >= 1 << (reach - shift - NODE_SHIFT) {
            return Ok(false);
        }
        if id.level + 1 < height {
            if self
                .loader()
                .node(&mut ws.read, id.parent(), Missing::Leave)?
                != Found::Loaded
            {
                return Ok(false);
            }
        }
        Ok(self.map.lock().stores(id, address))
    }

    /// Makes the next checkpoint store the page of the segment usage again whose node this is, or one
    /// below it.
    fn renew_usage(&self, state: &Checkpoint<P>, header: &RecordHeader, address: u64) {
        let level = usize::from(header.count);
        let known = state.usage_nodes.get(level);
        let node = known.and_then(|nodes| nodes.get(header.number as usize));
        if node.is_some_and(|&word| Entry(word).address() == address) {
            let page = header.number << (NODE_SHIFT * u32::from(header.count));
            self.map.lock().mark_page_dirty(page);
        }
    }
}
