// SPDX-License-Identifier: GPL-2.0
//! [`Segment`]: the counts of one segment, and the states it goes through.

use crate::engine::format::{Entry, IncarnationId, Layout, SegmentUsage, UNIT};
use crate::engine::map::table::Visibility;
use core::ops::Range;

/// The state of a segment.
///
/// ```text
///            the log enters it                 a checkpoint finds
///           ------------------>               nothing live in it
///      Free                     InUse, Stuck -------------------> FoundDead
///       ^   <------------------                                       |
///       |    the durable log supersedes                               |
///       |    everything that died in it                               |
///       +-------------------------------------------------------------+
///                  the next checkpoint finds it dead as well
/// ```
///
/// `InUse` becomes `Stuck` when reclaim could not relocate everything live, and is `InUse` again when it is to try again. Each of the two superblocks has the
/// segments that it needs, so one that is dead for the newer of them only is not free yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum State {
    /// Neither superblock needs it: the allocator may give it to the log, or has reserved it already.
    Free,
    /// The log has entered it, and no checkpoint has found it dead.
    #[default]
    InUse,
    /// As `InUse`, but reclaim has relocated every record that it could, and the rest is damaged, or cannot be read. Reclaim
    /// leaves it alone for some time.
    Stuck,
    /// The newest checkpoint found nothing live in it. The superblock before that may still need it.
    FoundDead,
}

/// One segment of the image. Counts are in units of 16 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Live units of data and sector-table records.
    live: u32,
    /// The part of `live` that the checkpoint being written does not see.
    after: i32,
    /// Live units of the stored segment usage itself. They are never stored, but counted again at open.
    own: u32,
    /// Checksum seed of the present incarnation.
    seed: u32,
    /// Bytes given back in place, as far as that is known.
    punched: u32,
    state: State,
    /// The end that the log left unused, see [`Layout::unused_end`]; 0 as long as that is not known.
    unused_end: u8,
    /// Compressing its data records again gains nothing, or it has none.
    recompressed: bool,
    /// Sequence number of the present incarnation; 0 when it began before the image was opened.
    seq: u64,
    /// Number of checkpoints written when something in it died last that no record of the log supersedes.
    unlogged: u64,
}

// Every segment that the image ever had takes this much memory.
const _: () = assert!(core::mem::size_of::<Segment>() == 40);

/// How the live count of a segment changes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// An entry that refers to the segment comes into being.
    Add,
    /// The entry goes, and the record of the log that supersedes it says so again when it is replayed.
    RemoveLogged,
    /// The entry goes, and only checkpoints will say so.
    RemoveUnlogged,
}

impl Segment {
    /// A segment that the log has not entered yet.
    pub(super) fn free() -> Self {
        Self {
            state: State::Free,
            ..Self::default()
        }
    }

    /// Its state.
    pub(crate) fn state(&self) -> State {
        self.state
    }

    /// True if neither superblock needs it.
    pub(crate) fn is_free(&self) -> bool {
        self.state == State::Free
    }

    /// True if nothing in it is live, neither now nor for the checkpoint that was stored last.
    pub(crate) fn is_dead(&self) -> bool {
        self.live == 0 && self.own == 0 && self.after == 0
    }

    /// Live bytes.
    pub(crate) fn live_bytes(&self) -> u64 {
        (u64::from(self.live) + u64::from(self.own)) * UNIT as u64
    }

    /// Live units of data and sector table, which a checkpoint stores.
    pub(crate) fn stored_live(&self) -> u64 {
        u64::from(self.live)
    }

    /// Bytes that are neither live nor known to be given back.
    pub(crate) fn garbage(&self, layout: &Layout) -> u64 {
        self.capacity(layout)
            .saturating_sub(self.live_bytes() + self.punched())
    }

    /// Bytes up to the end that the log left unused.
    pub(super) fn capacity(&self, layout: &Layout) -> u64 {
        u64::from(layout.segment_size) - layout.unused_bytes(self.unused_end)
    }

    /// Bytes inside that were given back in place.
    pub(crate) fn punched(&self) -> u64 {
        u64::from(self.punched)
    }

    /// True if its present incarnation is one of the `settled` sequence numbers, see
    /// [`LogState::settled`](crate::engine::log::LogState::settled), and nothing of it was given back since it began:
    /// neither its unused end nor a range inside.
    pub(crate) fn is_complete(&self, layout: &Layout, settled: &Range<u64>) -> bool {
        settled.contains(&self.seq)
            && self.punched == 0
            && self.capacity(layout) == u64::from(layout.segment_size)
    }

    /// Checksum seed of the present incarnation.
    pub(crate) fn seed(&self) -> u32 {
        self.seed
    }

    /// True if compressing its data records again gains nothing.
    pub(crate) fn is_recompressed(&self) -> bool {
        self.recompressed
    }

    pub(super) fn set_recompressed(&mut self, recompressed: bool) {
        self.recompressed = recompressed;
    }

    /// The present incarnation.
    pub(crate) fn incarnation(&self) -> IncarnationId {
        IncarnationId {
            seq: self.seq,
            seed: self.seed,
        }
    }

    /// Sequence number of the present incarnation; 0 when it began before the image was opened.
    pub(crate) fn seq(&self) -> u64 {
        self.seq
    }

    /// Number of checkpoints written when something in it died last that no record of the log supersedes.
    pub(super) fn unlogged(&self) -> u64 {
        self.unlogged
    }

    /// True if the checkpoint being written does not see all of its live count.
    pub(super) fn changed_after(&self) -> bool {
        self.after != 0
    }

    /// The checkpoint is over: the next one sees everything.
    pub(super) fn forget_after(&mut self) {
        self.after = 0;
    }

    /// The log enters the segment: a new incarnation begins, without data. Its live count goes on, because detached subtrees
    /// may refer to the one before.
    pub(super) fn enter(&mut self, seq: u64, seed: u32, recompressed: bool) {
        self.recompressed = recompressed;
        self.state = State::InUse;
        (self.seq, self.seed) = (seq, seed);
        (self.unused_end, self.punched) = (0, 0);
    }

    /// The log leaves the segment with this unused end.
    pub(super) fn leave(&mut self, unused_end: u8) {
        self.unused_end = unused_end;
    }

    pub(super) fn set_state(&mut self, state: State) {
        self.state = state;
    }

    /// The segment is in use, and `seed` is that of its present incarnation: a repair found out.
    pub(super) fn identify(&mut self, seed: u32) {
        self.state = State::InUse;
        self.seed = seed;
    }

    /// Notes how many bytes inside were given back in place, in all.
    pub(super) fn set_punched(&mut self, bytes: u64) {
        self.punched = bytes as u32;
    }

    /// Finds the state of a loaded segment, once the records of the stored segment usage itself are counted.
    pub(super) fn settle_loaded(&mut self) {
        self.state = match (self.is_free(), self.is_dead()) {
            // The stored usage itself may have gone to a segment that was free when its page was written.
            (_, false) => State::InUse,
            (true, true) => State::Free,
            // The checkpoint before the one that was loaded may need it.
            (false, true) => State::FoundDead,
        };
    }

    /// Adds or removes the charge of `entry`, seen or not by the checkpoint being written, after `checkpoints`
    /// checkpoints. `None` when more dies than lived.
    pub(super) fn account(
        &mut self,
        entry: Entry,
        visibility: Visibility,
        change: Change,
        checkpoints: u64,
    ) -> Option<()> {
        let live = changed(self.live, entry, change)?;
        if visibility == Visibility::After {
            let delta = i64::from(live) - i64::from(self.live);
            self.after = i32::try_from(i64::from(self.after) + delta).ok()?;
        }
        self.live = live;
        self.note_unlogged(change, checkpoints);
        Some(())
    }

    /// As [`account`](Self::account), for the record of a node of the segment usage.
    pub(super) fn account_own(
        &mut self,
        entry: Entry,
        change: Change,
        checkpoints: u64,
    ) -> Option<()> {
        self.own = changed(self.own, entry, change)?;
        self.note_unlogged(change, checkpoints);
        Some(())
    }

    fn note_unlogged(&mut self, change: Change, checkpoints: u64) {
        if change == Change::RemoveUnlogged {
            self.unlogged = checkpoints;
        }
    }

    /// The segment as the checkpoint being written stores it (I8).
    pub(super) fn stored(&self) -> SegmentUsage {
        SegmentUsage {
            free: self.is_free(),
            unused_end: self.unused_end,
            recompressed: self.recompressed && !self.is_free(),
            live: (i64::from(self.live) - i64::from(self.after)) as u32,
            seed: self.seed,
        }
    }

    /// The segment that a checkpoint has stored.
    pub(super) fn from_stored(stored: SegmentUsage) -> Self {
        Self {
            live: stored.live,
            unused_end: stored.unused_end,
            recompressed: stored.recompressed,
            seed: stored.seed,
            state: match stored.free {
                true => State::Free,
                false => State::InUse,
            },
            ..Self::default()
        }
    }
}

/// A count of units after the charge of `entry` was added or removed.
fn changed(count: u32, entry: Entry, change: Change) -> Option<u32> {
    match change {
        Change::Add => count.checked_add(entry.charge()),
        Change::RemoveLogged | Change::RemoveUnlogged => count.checked_sub(entry.charge()),
    }
}
