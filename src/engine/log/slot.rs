// SPDX-License-Identifier: GPL-2.0
//! [`Slot`]: the next place in the log, held for one record until it is committed or dropped.

use super::record::EncodedRecord;
use super::seal::End;
use super::segment::{Current, LeftSegment, Placed};
use super::state::LogState;
use super::{Log, LogGuard, LINK_BYTES};
use crate::engine::space::SpaceClass;
use crate::engine::{Error, Result};
use crate::platform::{MonitorGuard, Platform};

/// Rounds of reclaim that one record waits for.
const RECLAIM_ROUNDS: u32 = 8;

/// The next place in the log, held for one record: the lock of the log is taken, and the segment, the buffer and
/// the reserve have space for the record.
///
/// The holder checks under the lock whether the record is still right, and then commits the slot or drops it.
/// Dropping it places nothing.
pub(crate) struct Slot<'a, P: Platform> {
    log: &'a Log<P>,
    state: LogGuard<'a, P>,
    record: &'a EncodedRecord<'a>,
    class: SpaceClass,
    placed: Placed,
}

impl<P: Platform> Slot<'_, P> {
    /// Where the record will lie.
    pub(crate) fn placed(&self) -> &Placed {
        &self.placed
    }

    /// Copies the record to its place and runs `apply`, which makes the change in the tables, all in one critical
    /// section. `apply` gets the state of the log as proof that the lock is held.
    ///
    /// # Errors
    ///
    /// That of `apply`. The log stops, because log and tables disagree from here on; what is stored stays right.
    pub(crate) fn commit(mut self, apply: impl FnOnce(&LogState) -> Result) -> Result {
        let state = &mut *self.state;
        self.log.copy(state, self.record)?;
        state.count_appended(u64::from(self.record.bytes()), self.class);
        let applied = apply(state);
        if let Err(error) = applied {
            state.fail(error);
        }
        applied
    }
}

impl LogState {
    /// The current segment, if `class` may append.
    fn admit(&self, class: SpaceClass) -> Result<Current> {
        self.check()?;
        if self.closing() && class != SpaceClass::Checkpoint {
            return Err(Error::Closed);
        }
        self.current.ok_or(Error::ReadOnly)
    }

    /// The class under which an append for `class` really counts, see [`Space::effective`].
    ///
    /// [`Space::effective`]: crate::engine::space::Space::effective
    fn effective(&self, class: SpaceClass, segment_shift: u32) -> SpaceClass {
        // By the bytes that users wrote: reclaim may have filled segments to make space for them.
        let written = self.user_bytes() >> segment_shift;
        self.space.effective(class, written, self.flushed)
    }
}

impl<P: Platform> Log<P> {
    /// Holds the next place in the log for `record`. Waits for space, and for a checkpoint if users have made too
    /// many nodes dirty.
    ///
    /// # Errors
    ///
    /// [`Error::NoSpace`] when no further segment can be reserved and reclaim finds nothing either; the error that
    /// stopped the log; [`Error::Closed`].
    pub(crate) fn slot<'a>(
        &'a self,
        file: &P::File,
        record: &'a EncodedRecord<'a>,
        class: SpaceClass,
    ) -> Result<Slot<'a, P>> {
        if class.is_write() && self.checkpoint_cost.too_much() {
            self.wait_for_checkpoint();
        }
        let state = self.make_room(file, record.bytes(), class)?;
        let current = state.current.ok_or(Error::ReadOnly)?;
        let placed = Placed {
            address: self.layout.segment_offset(current.index) + u64::from(current.offset),
            segment: current.index,
            seq: current.seq,
            seed: current.seed,
            before: current.before,
        };
        Ok(Slot {
            log: self,
            state,
            record,
            class,
            placed,
        })
    }

    /// Waits until one more checkpoint was written, or could not be.
    fn wait_for_checkpoint(&self) {
        let mut state = self.lock();
        let before = state.checkpoints();
        state.notify_all();
        while state.checkpoints() == before
            && state.error.is_none()
            && !state.closing()
            && !state.stopping()
        {
            state.wait();
        }
    }

    /// Takes the lock when a record of `need` bytes can be placed at once: there is room in the
    /// current segment and a buffer for it, and the reserve that `class` must leave is there. Waits for what is
    /// missing, and helps to get it.
    ///
    /// # Errors
    ///
    /// Those of [`slot`](Self::slot).
    pub(super) fn make_room(
        &self,
        file: &P::File,
        need: u32,
        class: SpaceClass,
    ) -> Result<LogGuard<'_, P>> {
        let mut waits = 0;
        loop {
            let mut state = self.lock();
            let current = state.admit(class)?;
            let class = state.effective(class, self.layout.segment_shift());
            let fits = current.offset + need + LINK_BYTES <= self.layout.segment_size;
            // A full segment is left only when the one after the next is reserved, so that the log
            // always knows where it goes on.
            let takes = u64::from(!fits);
            if state.space.reserved() < self.floor(&state, class) + takes {
                self.wait_for_segment(file, state, class, &mut waits)?;
                continue;
            }
            if state.open.is_some() && fits {
                return Ok(state);
            }
            // The end of a segment that was flushed to its last sector is already linked.
            let linked = current.offset == self.layout.segment_size;
            if state.open.is_none() && !linked {
                let Some(buf) = state.pool.pop() else {
                    drop(state);
                    self.write_or_wait(file)?;
                    continue;
                };
                self.open_chunk(&mut state, buf);
            }
            if !fits {
                self.enter_next(&mut state)?;
                // The write-behind thread has a chunk to write and a segment to reserve.
                state.notify_all();
            }
        }
    }

    /// Reserves one more segment for `class`, or waits for another thread that does, or for reclaim, which has
    /// been waited for `waits` times.
    fn wait_for_segment(
        &self,
        file: &P::File,
        mut state: LogGuard<'_, P>,
        class: SpaceClass,
        waits: &mut u32,
    ) -> Result {
        if state.space.file_end_held() {
            state.wait();
            return Ok(());
        }
        drop(state);
        match self.reserve_ahead(file, class) {
            Err(Error::NoSpace) => {}
            other => return other,
        }
        if *waits == RECLAIM_ROUNDS {
            // Reclaim finds something each time, and others take it, or reclaim takes it itself.
            self.lock().space.exhaust_reclaim();
        } else {
            self.wait_for_reclaim(class, *waits)?;
        }
        *waits += 1;
        Ok(())
    }

    /// Seals what is open and goes on in the next segment. The reserve has one to follow it.
    fn enter_next(&self, state: &mut LogState) -> Result {
        let Some(current) = state.current else {
            return Ok(());
        };
        if current.offset < self.layout.segment_size {
            self.seal(state, End::Segment)?;
        }
        let before = state.current.map(|c| LeftSegment {
            index: c.index,
            unused_end: c.unused_end,
        });
        if let Some(after) = state.space.take_nearest() {
            self.begin(state, current.next, current.seq + 1, after, before);
        }
        Ok(())
    }
}
