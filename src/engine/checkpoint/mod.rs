// SPDX-License-Identifier: GPL-2.0
//! Checkpoints: the sector table and the segment usage go into the log, then a superblock says so.
//!
//! Writers are not stopped. The order is:
//!
//! 1. Note the log position *start*, and begin a new table generation.
//! 2. Append every leaf that was dirty at *start*, then the inner nodes that changed by it, level by
//!    level up to the root. A leaf may contain changes made after *start*; they will be replayed
//!    onto it, which changes nothing.
//! 3. Append a copy of the superblock to come, then the pages of the segment usage as this table sees it,
//!    and their index.
//! 4. Make the log durable. Now every change a stored leaf may contain is durable as well.
//! 5. Write the superblock of the next generation into its slot, and make it durable.
//! 6. Segments that this and the previous checkpoint found dead are free: each of the two superblocks
//!    always has everything it needs, so the loss of either loses nothing.

use crate::engine::codec::Params;
use crate::engine::format::{
    encode_node, height_for, Algorithm, Entry, Kind, LogPosition, RecordHeader, Superblock,
    BLOCK_SIZE, NODE_BYTES, NODE_ENTRIES, SUPERBLOCK_RECORD,
};
use crate::engine::freeing;
use crate::engine::log::{EncodedRecord, LogState};
use crate::engine::map::reaper::Reaper;
use crate::engine::map::table::NodeId;
use crate::engine::space::Writer;
use crate::engine::store::{count, Store};
use crate::engine::workspace::Workspace;
use crate::engine::{Error, Result};
use crate::platform::mem::{Buf, Vec};
use crate::platform::{BackingFile, MonitorGuard, Platform, Sabotage};

/// Log segments after which a checkpoint is due: a sixteenth of the segments in use, within these bounds.
/// Segments that died are free after two checkpoints, so a small image, which is rewritten
/// sooner, gets them more often. Recovery replays at most about twice the larger bound.
const INTERVAL: core::ops::RangeInclusive<u64> = 8..=128;

/// Bytes of dirty nodes after which a checkpoint is due: a part of the image like that, within these bounds. Space
/// for them is reserved all the time.
const DEMAND: core::ops::RangeInclusive<u64> = 4 << 20..=64 << 20;

/// Whether the log or what the checkpoint has to store has grown enough since the last one began.
pub(crate) fn due<P: Platform>(store: &Store<P>, tail: &LogState) -> bool {
    let in_use = tail.space.allocator.in_use();
    let interval = (in_use / 16).clamp(*INTERVAL.start(), *INTERVAL.end());
    let demand = (in_use * u64::from(store.layout.segment_size) / 64)
        .clamp(*DEMAND.start(), *DEMAND.end())
        .min(store.map.limit() / 2);
    store.log.segments_since_checkpoint(tail) >= interval || store.log.demand.bytes() >= demand
}

/// What only checkpoints use, under [`Rank::Checkpoint`](crate::platform::Rank::Checkpoint).
pub(crate) struct Checkpoint<P: Platform> {
    /// The superblock last written (or read).
    pub(crate) superblock: Superblock,
    /// Where the nodes of the segment usage are stored: level 0 first, one word a node.
    pub(crate) usage_nodes: Vec<Vec<u64>>,
    pub(crate) ws: Workspace<P>,
    pub(crate) page: Buf,
    /// A segment being emptied.
    pub(crate) segment: Option<Buf>,
    pub(crate) reaper: Reaper,
    /// Segments chosen to be emptied beside users' writes, the best one last.
    pub(crate) victims: Vec<u64>,
}

impl<P: Platform> Checkpoint<P> {
    /// The state after `superblock`, whose segment usage is stored in `usage_nodes`, was written or read.
    pub(crate) fn new(
        superblock: Superblock,
        usage_nodes: Vec<Vec<u64>>,
        ws: Workspace<P>,
        page: Buf,
    ) -> Self {
        Self {
            superblock,
            usage_nodes,
            ws,
            page,
            segment: None,
            reaper: Reaper::new(superblock.detached),
            victims: Vec::new(),
        }
    }
}

impl<P: Platform> Store<P> {
    /// Writes a checkpoint. With `clean` it is the one of a clean close: nothing follows it.
    ///
    /// # Errors
    ///
    /// [`Error::NoSpace`] leaves everything as it was, to be tried again. Other errors are those of the
    /// log, which has stopped.
    pub(crate) fn checkpoint(&self, state: &mut Checkpoint<P>, clean: bool) -> Result {
        let start = {
            let mut tail = self.log.lock();
            tail.check()?;
            let start = self.log.position(&tail).ok_or(Error::ReadOnly)?;
            tail.begin_checkpoint();
            let mut map = self.map.lock();
            map.begin_checkpoint::<P>();
            start
        };
        let before = state.superblock.length;
        let written = self.write_checkpoint(state, start, clean);
        let dead = match written {
            Ok(()) => freeing::find_dead(self, start.seq),
            Err(_) => Ok(Vec::new()),
        };
        let stored = written.is_ok().then_some(start.seq);
        self.map.lock().end_checkpoint(stored);
        {
            let mut tail = self.log.lock();
            let stored = written.is_ok().then(|| self.log.lsn_of(start));
            tail.end_checkpoint(stored);
            if stored.is_some() {
                tail.space.allocator.covered = state.superblock.usage_segments;
            }
            tail.notify_all();
        }
        written?;
        let dead = dead?;
        freeing::release(self, &dead)?;
        count(&self.counters.checkpoints, 1);
        count(&self.counters.freed, dead.len() as u64);
        // Either superblock alone must do, the older one included.
        freeing::cut(self, before.max(state.superblock.length))
    }

    fn write_checkpoint(
        &self,
        state: &mut Checkpoint<P>,
        log_start: LogPosition,
        clean: bool,
    ) -> Result {
        let height = self.map.lock().height();
        for level in 0..height {
            self.write_level(state, level)?;
        }
        let mut next = state.superblock;
        next.generation += 1;
        next.log_start = log_start;
        next.size = self.size();
        next.height = height;
        {
            let tail = self.log.lock();
            let map = self.map.lock();
            next.segments = freeing::extent(&tail, &map);
            next.map_root = map.root_entry();
            next.detached = map.may_have_detached() || state.reaper.may_have_missed();
            next.mapped = map.mapped_in_checkpoint();
        }
        self.append_superblock(state, &next)?;
        if P::sabotaged(Sabotage::EarlyPunch) {
            freeing::punch_dead(self)?;
        }
        let usage_segments = self.write_usage(state).inspect_err(|_| {
            // Some pages moved and their index did not: store all of them the next time.
            self.map.lock().mark_all_pages_dirty();
        })?;
        let log_end = if P::sabotaged(Sabotage::EarlyCheckpoint) {
            0
        } else {
            self.log.sync(&self.file)?
        };
        next.clean = clean;
        next.log_end = log_end;
        next.usage_root = Entry(
            state
                .usage_nodes
                .last()
                .and_then(|top| top.first())
                .map_or(0, |&word| word),
        );
        next.usage_segments = usage_segments;
        {
            let tail = self.log.lock();
            let map = self.map.lock();
            next.segments = freeing::extent(&tail, &map).max(usage_segments);
            next.length = freeing::image_length(self, &tail, &map, clean, log_end);
        }
        if clean && self.file.len()? < next.length {
            // A segment that an earlier close had cut short is whole again; durably so before the
            // superblock says it.
            self.file.truncate(next.length)?;
            self.log.sync_file(&self.file)?;
        }
        self.commit_superblock(state, next)
    }

    /// Writes the superblock of the next generation durably. If that fails, the volume stops writing: the slot may
    /// hold anything now, and the log must not move on from the other one.
    pub(crate) fn commit_superblock(&self, state: &mut Checkpoint<P>, next: Superblock) -> Result {
        if let Err(error) = self.write_superblock(&next, &mut state.page) {
            self.log.lock().fail(error);
            return Err(error);
        }
        state.superblock = next;
        Ok(())
    }

    /// Appends a copy of the superblock to come, for the day when both slots are lost. It is all that leads
    /// to the table and to the log behind it. The segment usage follows it, and says that its segment is in use.
    fn append_superblock(&self, state: &mut Checkpoint<P>, next: &Superblock) -> Result {
        let copy = Superblock {
            clean: false,
            log_end: 0,
            usage_root: Entry::HOLE,
            usage_segments: 0,
            length: 0,
            ..*next
        };
        copy.encode::<P>(&mut state.page[..BLOCK_SIZE]);
        let header = RecordHeader::plain(Kind::Checkpoint, 0);
        let record = EncodedRecord::new::<P>(header, &[], &state.page[..SUPERBLOCK_RECORD]);
        let slot = self.log.slot(&self.file, &record, Writer::Checkpoint)?;
        self.map.lock().enter(slot.placed())?;
        slot.commit(|_| Ok(()))
    }

    /// Writes a superblock durably.
    pub(crate) fn write_superblock(&self, superblock: &Superblock, page: &mut Buf) -> Result {
        if P::sabotaged(Sabotage::BothSuperblocks) {
            let mut other = *superblock;
            other.generation += 1;
            other.encode::<P>(&mut page[..BLOCK_SIZE]);
            self.file.write_at(&page[..BLOCK_SIZE], other.offset())?;
        }
        superblock.encode::<P>(&mut page[..BLOCK_SIZE]);
        self.file
            .write_at(&page[..BLOCK_SIZE], superblock.offset())?;
        self.log.sync_file(&self.file)
    }

    /// Appends all nodes of a level of the sector table that are dirty.
    fn write_level(&self, state: &mut Checkpoint<P>, level: u8) -> Result {
        let mut from = 0;
        loop {
            let ws = &mut state.ws;
            let taken = self.map.lock().take_dirty_node(level, from, &mut ws.words);
            let Some(id) = taken else { return Ok(()) };
            from = id.index + 1;
            if P::sabotaged(Sabotage::LostDetach) && level > 0 {
                ws.words
                    .iter_mut()
                    .for_each(|word| *word = Entry(*word).node().0);
            }
            let leaf = P::sabotaged(Sabotage::ForgottenLeaf) && level == 0 && id.index == 1;
            if leaf || P::sabotaged(Sabotage::ForgottenNode) && level == 1 {
                continue;
            }
            let empty = ws.words.iter().all(|&word| word == 0);
            if empty {
                // Nodes are dropped only under the log's lock.
                let _log = self.log.lock();
                self.store_node(id, Entry::HOLE)?;
                continue;
            }
            let stored = self.append_node(ws, Kind::MapNode, id, &mut |entry| {
                self.store_node(id, entry)
            });
            if let Err(error) = stored {
                // Not stored: it stays dirty.
                self.map.lock().put_back(id);
                return Err(error);
            }
        }
    }

    /// The stored copy of a node moves to `entry`.
    pub(crate) fn store_node(&self, id: NodeId, entry: Entry) -> Result {
        self.map.lock().set_stored(id, entry)
    }

    /// Appends the node in `ws.words`; `apply` learns its place in the same critical section.
    fn append_node(
        &self,
        ws: &mut Workspace<P>,
        kind: Kind,
        id: NodeId,
        apply: &mut dyn FnMut(Entry) -> Result,
    ) -> Result {
        let bytes = &mut ws.read.blocks[..NODE_BYTES];
        encode_node(&ws.words, bytes);
        let (algorithm, payload) = ws.encoder.encode(Params::of(Algorithm::Lz4), bytes);
        let header = RecordHeader {
            algorithm: algorithm.tag(),
            count: id.level,
            ..RecordHeader::plain(kind, id.index)
        };
        let record = EncodedRecord::new::<P>(header, &[], payload);
        let units = record.header().units();
        let slot = self.log.slot(&self.file, &record, Writer::Checkpoint)?;
        let placed = slot.placed();
        self.map.lock().enter(placed)?;
        let entry = Entry::new(placed.address, units, 0, 1);
        slot.commit(|_| apply(entry))
    }

    /// Appends the pages of the segment usage that changed, and the index nodes above them. Returns how
    /// many segments the stored usage covers.
    fn write_usage(&self, state: &mut Checkpoint<P>) -> Result<u64> {
        // Free segments at the end are not worth a word.
        let segments = {
            let tail = self.log.lock();
            let map = self.map.lock();
            freeing::extent(&tail, &map).min(map.segment_count())
        };
        let pages = segments.div_ceil(NODE_ENTRIES as u64) as usize;
        let height = height_for(segments);
        self.drop_usage(state, height, pages)?;
        let mut nodes = pages;
        for level in 0..height {
            if state.usage_nodes.len() <= usize::from(level) {
                state.usage_nodes.push(Vec::new())?;
            }
            let known = &mut state.usage_nodes[usize::from(level)];
            while known.len() < nodes {
                known.push(0)?;
            }
            nodes = nodes.div_ceil(NODE_ENTRIES);
        }
        let mut changed: Vec<bool> = Vec::filled(false, pages)?;
        for page in 0..pages {
            let dirty = self.map.lock().take_dirty_page(page, &mut state.ws.words);
            if dirty {
                changed[page] = true;
                self.append_usage(state, 0, page)?;
            }
        }
        for level in 1..height {
            let below = usize::from(level) - 1;
            let count = state.usage_nodes[usize::from(level)].len();
            let mut above: Vec<bool> = Vec::filled(false, count)?;
            for index in 0..count {
                let first = index * NODE_ENTRIES;
                let last = changed.len().min(first + NODE_ENTRIES);
                let new = state.usage_nodes[usize::from(level)][index] == 0;
                if new || changed[first..last].iter().any(|&c| c) {
                    state.ws.words.fill(0);
                    let words = &state.usage_nodes[below][first..last];
                    state.ws.words[..words.len()].copy_from_slice(words);
                    above[index] = true;
                    self.append_usage(state, level, index)?;
                }
            }
            changed = above;
        }
        Ok(segments)
    }

    /// Forgets stored nodes of the segment usage that fewer segments do not need.
    fn drop_usage(&self, state: &mut Checkpoint<P>, height: u8, pages: usize) -> Result {
        let mut nodes = pages;
        for level in 0..state.usage_nodes.len() {
            let keep = if level < usize::from(height) {
                nodes
            } else {
                0
            };
            while state.usage_nodes[level].len() > keep {
                if let Some(word) = state.usage_nodes[level].pop() {
                    let mut map = self.map.lock();
                    map.move_usage_node(Entry(word), Entry::HOLE)?;
                }
            }
            nodes = nodes.div_ceil(NODE_ENTRIES);
        }
        while state.usage_nodes.len() > usize::from(height) {
            state.usage_nodes.pop();
        }
        Ok(())
    }

    /// Appends the node of the segment usage in `ws.words`.
    fn append_usage(&self, state: &mut Checkpoint<P>, level: u8, index: usize) -> Result {
        let id = NodeId {
            level,
            index: index as u64,
        };
        let place = &mut state.usage_nodes[usize::from(level)][index];
        self.append_node(&mut state.ws, Kind::UsageNode, id, &mut |entry| {
            let old = Entry(core::mem::replace(place, entry.0));
            self.map.lock().move_usage_node(old, entry)
        })
    }
}
