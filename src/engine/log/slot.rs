// SPDX-License-Identifier: GPL-2.0
//! [`Slot`]: the next place in the log, held for one record until it is committed or dropped.

use super::record::EncodedRecord;
use super::seal::End;
use super::segment::{Current, LeftSegment, Placed};
use super::state::LogState;
use super::{Log, LogGuard, LINK_BYTES};
use crate::engine::space::{Answer, SpaceClass};
use crate::engine::{Error, Result};
use crate::platform::{MonitorGuard, Platform, Sabotage, WaitEvent};

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
            self.state.notify_all();
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
}

/// A place among those who wait for space. Dropping it gives it up; the lock of the log must be free then.
struct Turn<'a, P: Platform> {
    log: &'a Log<P>,
    /// The class the record asks under.
    class: SpaceClass,
    /// Bytes of the record.
    need: u32,
    /// The number of its ticket, if it has one.
    ticket: Option<u64>,
}

impl<P: Platform> Drop for Turn<'_, P> {
    fn drop(&mut self) {
        if self.ticket.is_some() {
            self.end(&mut self.log.lock());
        }
    }
}

impl<P: Platform> Turn<'_, P> {
    /// The record has its place, or gives up: the next ones may go on.
    fn end(&mut self, state: &mut LogGuard<'_, P>) {
        if let Some(ticket) = self.ticket.take() {
            if state.space.dequeue(ticket) {
                state.notify_all();
            }
            P::waited(WaitEvent::Left(ticket));
        }
    }

    /// The class under which the record may be placed. None if it was granted space that is gone by now.
    fn counts_as(&self, state: &LogState) -> Option<SpaceClass> {
        let Some(ticket) = self.ticket else {
            return Some(self.class.effective(self.log.early(state)));
        };
        match state.space.answer(ticket) {
            Answer::Granted(class) => Some(class),
            Answer::Waiting | Answer::Refused(_) => None,
        }
    }

    /// Whether the record may wait for space any longer.
    ///
    /// # Errors
    ///
    /// The error that stopped the log, and [`Error::Closed`]. They are the same for all that come later.
    fn admit(&self, state: &LogState) -> Result {
        state.admit(self.class)?;
        match state.stopping() {
            true => Err(Error::Closed),
            false => Ok(()),
        }
    }

    /// True if others of its class wait for space, and were there before.
    fn must_queue(&self, state: &LogState) -> bool {
        self.ticket.is_none() && self.class.is_of_user() && state.space.queued(self.class)
    }

    /// Waits for an answer: in line with all who wait, or again if what was granted is gone.
    ///
    /// # Errors
    ///
    /// [`Error::NoSpace`], [`Error::Closed`], the error that stopped the log, and that of the search for space.
    fn wait(&mut self, mut state: LogGuard<'_, P>) -> Result {
        let ticket = match self.ticket {
            Some(ticket) => {
                state.space.ungrant(ticket);
                ticket
            }
            None => {
                let place = state.space.line_up(self.class);
                P::waited(WaitEvent::Queued(self.class as u8, place.ticket));
                while !state.space.enter(self.class, self.need, place)? {
                    state.wait();
                    // What refuses this one refuses all that come later as well, so the line does not stop at it.
                    self.admit(&state)
                        .inspect_err(|_| P::waited(WaitEvent::Left(place.ticket)))?;
                }
                place.ticket
            }
        };
        self.ticket = Some(ticket);
        P::waited(WaitEvent::Queued(self.class as u8, ticket));
        // The maintenance thread has something to do.
        state.notify_all();
        loop {
            self.admit(&state)?;
            if state.space.is_first(ticket) && self.log.serve(&mut state, None) {
                state.notify_all();
            }
            match state.space.answer(ticket) {
                Answer::Waiting => state.wait(),
                Answer::Granted(_) => return Ok(()),
                Answer::Refused(error) => return Err(error),
            }
        }
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
        let mut turn = Turn {
            log: self,
            class,
            need,
            ticket: None,
        };
        loop {
            let mut state = self.lock();
            let current = state.admit(class)?;
            let Some(counts_as) = turn.counts_as(&state) else {
                turn.wait(state)?;
                continue;
            };
            let fits = current.offset + need + LINK_BYTES <= self.layout.segment_size;
            // A full segment is left only when the one after the next is reserved, so that the log
            // always knows where it goes on.
            let takes = u64::from(!fits);
            let short = state.space.reserved() < self.floor(&state, counts_as) + takes;
            if short || turn.must_queue(&state) {
                self.wait_for_segment(file, state, counts_as, &mut turn)?;
                continue;
            }
            if state.open.is_some() && fits {
                P::waited(WaitEvent::Admitted(class as u8, turn.ticket));
                turn.end(&mut state);
                return Ok(state);
            }
            if !fits && state.filling_next && !P::sabotaged(Sabotage::EarlyEntry) {
                state.wait();
                continue;
            }
            if !fits && self.wants_warm_up(file, &state) {
                // The write-behind thread is late.
                drop(state);
                self.warm_up(file);
                continue;
            }
            // The end of a segment that was flushed to its last sector is already linked.
            let linked = current.offset == self.layout.segment_size;
            if state.open.is_none() && !linked {
                let Some(buf) = state.buffers.take() else {
                    self.get_buffer(file, state)?;
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

    /// Reserves one more segment for `class`, or waits for another thread that does. If there is none to be had, or others
    /// wait, the record waits for its turn.
    fn wait_for_segment(
        &self,
        file: &P::File,
        mut state: LogGuard<'_, P>,
        class: SpaceClass,
        turn: &mut Turn<'_, P>,
    ) -> Result {
        if turn.ticket.is_some() || turn.must_queue(&state) {
            return turn.wait(state);
        }
        if state.space.file_end_held() {
            state.wait();
            return Ok(());
        }
        drop(state);
        match self.reserve_ahead(file, class) {
            Err(Error::NoSpace) if class.is_of_user() => turn.wait(self.lock()),
            other => other,
        }
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
            state.flushes.enter();
        }
        Ok(())
    }
}
