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
//!
//! [`CheckpointState::write`] is this order. Its steps are in table.rs (2), usage.rs and node.rs (3) and superblock.rs
//! (the copy of 3, and 5); step 6 is in [`freeing`].

mod node;
mod superblock;
mod table;
mod usage;

pub(crate) use self::node::node_record;
pub(crate) use self::superblock::SlotIdentity;

use crate::engine::format::{Fingerprints, LogPosition, Superblock};
use crate::engine::freeing::{self, Length};
use crate::engine::log::{DurableLog, LogState};
use crate::engine::store::{count, Store};
use crate::engine::workspace::Workspace;
use crate::engine::{Error, Result};
use crate::platform::mem::{boxed, Box, Buf, Vec};
use crate::platform::{BackingFile, MonitorGuard, Platform, Sabotage};

/// Log segments after which a checkpoint is due: a sixteenth of the segments in use, within these bounds.
/// Segments that died are free after two checkpoints, so a small image, which is rewritten
/// sooner, gets them more often. Recovery replays at most about twice the larger bound.
const INTERVAL: core::ops::RangeInclusive<u64> = 8..=128;

/// Bytes of dirty nodes after which a checkpoint is due: a 64th of the segments in use, within these bounds. Space
/// for them is reserved all the time.
const COST: core::ops::RangeInclusive<u64> = 4 << 20..=64 << 20;

/// True if the log, or what the checkpoint has to store, has grown enough since the last one began.
pub(crate) fn due<P: Platform>(store: &Store<P>, log: &LogState) -> bool {
    let in_use = log.space.in_use();
    let interval = (in_use / 16).clamp(*INTERVAL.start(), *INTERVAL.end());
    let cost = (in_use * u64::from(store.layout.segment_size) / 64)
        .clamp(*COST.start(), *COST.end())
        .min(store.map.limit() / 2);
    store.log.segments_since_checkpoint(log) >= interval
        || store.log.checkpoint_cost.bytes() >= cost
}

/// What follows a checkpoint in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CheckpointKind {
    /// The volume stays open, and the log goes on.
    Running,
    /// The volume is being closed: the checkpoint ends the log, and its superblock says that the image is clean.
    Closing,
}

/// What checkpoints keep from one to the next, under [`Rank::Checkpoint`](crate::platform::Rank::Checkpoint).
pub(crate) struct CheckpointState<P: Platform> {
    /// The superblock last written (or read).
    superblock: Superblock,
    /// The length in bytes that the superblock before that one says the image has; all that there is if it is not known.
    older_length: u64,
    /// The superblocks that are in the two slots, as far as they are known.
    slots: [Option<SlotIdentity>; 2],
    /// The fingerprints of the table that the superblock last written leads to.
    fingerprints: Fingerprints,
    /// Addresses of the stored nodes of the segment usage: level 0 first, one word a node.
    usage_nodes: Vec<Vec<u64>>,
    ws: Workspace<P>,
    page: Buf,
}

impl<P: Platform> CheckpointState<P> {
    /// The state behind `superblock`, whose stored segment usage has its nodes at `usage_nodes`. `slots` are the
    /// superblocks that are known to be in the two slots.
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`].
    // A stack frame of its own: opening an image has many.
    #[inline(never)]
    pub(crate) fn new(
        superblock: &Superblock,
        slots: [Option<SlotIdentity>; 2],
        usage_nodes: Vec<Vec<u64>>,
        ws: Workspace<P>,
        page: Buf,
    ) -> Result<Box<Self>> {
        boxed(Self {
            superblock: *superblock,
            older_length: u64::MAX,
            slots,
            fingerprints: Fingerprints::empty(superblock.size.blocks())?,
            usage_nodes,
            ws,
            page,
        })
    }

    /// The image is finished: the superblocks that are written from now on say so.
    pub(crate) fn set_complete(&mut self) {
        self.superblock.incomplete = false;
    }

    /// The superblock last written (or read).
    pub(crate) fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// The length in bytes that the image has to have. Each superblock alone must be enough, and the older one may say that
    /// the image is longer.
    pub(crate) fn least_length(&self) -> u64 {
        self.older_length.max(self.superblock.length)
    }

    /// Scratch memory, which no checkpoint uses between two calls.
    pub(crate) fn workspace(&mut self) -> &mut Workspace<P> {
        &mut self.ws
    }

    /// Bytes of scratch memory.
    pub(crate) fn memory(&self) -> u64 {
        self.ws.memory() + self.page.len() as u64
    }

    /// Writes a checkpoint. `detached` tells that the table may hold detached subtrees that its own flag does not tell of.
    /// Returns the proof that the log is durable as far as the checkpoint needs it.
    ///
    /// # Errors
    ///
    /// [`Error::NoSpace`] leaves everything as it was, to be tried again. Other errors are those of the
    /// log, which has stopped.
    pub(crate) fn write(
        &mut self,
        store: &Store<P>,
        kind: CheckpointKind,
        detached: bool,
    ) -> Result<DurableLog> {
        let start = begin(store)?;
        let written = self.write_tables(store, start, kind, detached);
        let dead = written
            .is_ok()
            .then(|| freeing::find_dead(store, start.seq));
        self.end(store, start, written.is_ok());
        let durable = written?;
        if let Some(dead) = dead {
            freeing::free(store, &dead);
        }
        count(&store.counters.checkpoints, 1);
        freeing::truncate_free_end(store, self.least_length());
        Ok(durable)
    }

    /// Steps 2 to 5: stores the tables, and commits a superblock that leads to them.
    fn write_tables(
        &mut self,
        store: &Store<P>,
        start: LogPosition,
        kind: CheckpointKind,
        detached: bool,
    ) -> Result<DurableLog> {
        let height = store.map.lock().height();
        for level in 0..height {
            self.write_level(store, level)?;
        }
        let mut next = self.next_superblock(store, start, height, detached);
        self.append_superblock(store, &next)?;
        if P::sabotaged(Sabotage::EarlyPunch) {
            freeing::punch_dead(store)?;
        }
        next.usage_segments = self.write_usage(store)?;
        next.usage_root = self.usage_root();
        let durable = store
            .log
            .sync_unless(Sabotage::EarlyCheckpoint, &store.file)?;
        next.clean = kind == CheckpointKind::Closing;
        set_extent(store, &mut next, &durable);
        if next.clean && store.file.len()? < next.length {
            // An earlier close had cut a segment short that is whole again. The file must be durably that long before
            // the superblock says so.
            store.file.truncate(next.length)?;
            store.log.sync_file(&store.file)?;
        }
        self.commit(store, &next, &durable)?;
        Ok(durable)
    }

    /// The superblock to come, as far as it is known before the segment usage is stored.
    fn next_superblock(
        &mut self,
        store: &Store<P>,
        start: LogPosition,
        height: u8,
        detached: bool,
    ) -> Superblock {
        let mut next = self.superblock;
        next.generation += 1;
        next.log_start = start;
        next.size = store.size();
        next.height = height;
        let log = store.log.lock();
        let mut map = store.map.lock();
        next.segments = freeing::extent(&log, &map);
        next.map_root = map.root_entry();
        next.detached = map.may_have_detached() || detached;
        next.mapped = map.mapped_in_checkpoint();
        if !P::sabotaged(Sabotage::StaleFingerprints) {
            map.fingerprints_in_checkpoint(&mut self.fingerprints);
        }
        next
    }

    /// Tells the map and the log whether the checkpoint that began at `start` was written, and wakes those who wait for it.
    fn end(&self, store: &Store<P>, start: LogPosition, written: bool) {
        let stored = written.then_some(start.seq);
        store.map.lock().end_checkpoint(stored);
        let mut log = store.log.lock();
        log.end_checkpoint(written.then(|| store.log.lsn_of(start)));
        if written {
            log.space.cover(self.superblock.usage_segments);
        }
        log.notify_all();
    }
}

/// Step 1: the position at which replay will start, and a new generation of the table.
fn begin<P: Platform>(store: &Store<P>) -> Result<LogPosition> {
    let mut log = store.log.lock();
    log.check()?;
    let start = store.log.position(&log).ok_or(Error::ReadOnly)?;
    log.begin_checkpoint();
    store.map.lock().begin_checkpoint::<P>();
    Ok(start)
}

/// Puts into the superblock to come how many segments the image has, and how long it is.
fn set_extent<P: Platform>(store: &Store<P>, next: &mut Superblock, durable: &DurableLog) {
    let length = match next.clean {
        true => Length::Exact,
        false => Length::AtLeast(durable),
    };
    let log = store.log.lock();
    let map = store.map.lock();
    next.segments = freeing::extent(&log, &map).max(next.usage_segments);
    next.length = freeing::image_length(store, &log, &map, length);
}
