// SPDX-License-Identifier: GPL-2.0
//! Segments reserved ahead of the log, so that what is acknowledged has its space (promise P2), and the answers to those
//! who wait for more of them.
//!
//! The state is [`Space`](crate::engine::space::Space), under the lock of the log. Here are the calls to the backing
//! file, which are made without that lock.

use super::segment::Current;
use super::{Log, LogState, LINK_BYTES};
use crate::engine::format::SEGMENT_HEADER;
use crate::engine::space::{Backing, Demand, Space, SpaceClass, Supply, Verdict};
use crate::engine::{Error, Result};
use crate::platform::mem::{Buf, Need};
use crate::platform::{BackingFile, MonitorGuard, Platform, Sabotage, WaitEvent};
use core::ops::Range;

/// What may keep a segment from being reserved.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Limit {
    /// The image may not become larger than its bound ([`Space::bound`]), nor than the backing file system lets it.
    Bound,
    /// Only the backing file system.
    Backing,
}

impl Limit {
    /// The limit to what is reserved for `class`.
    fn of(class: SpaceClass) -> Self {
        match class {
            SpaceClass::Checkpoint => Self::Backing,
            _ => Self::Bound,
        }
    }
}

/// The right to reserve a segment or to cut the file: one thread has it at a time. Dropping it gives it back, and wakes
/// those who wait for it. The lock of the log must be free then.
pub(crate) struct FileEndHold<'a, P: Platform> {
    log: &'a Log<P>,
}

impl<P: Platform> Drop for FileEndHold<'_, P> {
    fn drop(&mut self) {
        let mut state = self.log.lock();
        state.space.release_file_end();
        state.notify_all();
    }
}

impl<P: Platform> Log<P> {
    /// Waits for the right to change the end of the file.
    pub(crate) fn hold_file_end(&self) -> FileEndHold<'_, P> {
        let mut state = self.lock();
        while state.space.file_end_held() {
            state.wait();
        }
        state.space.hold_file_end();
        FileEndHold { log: self }
    }

    /// The right to change the end of the file; nothing if another thread has it, or the log has stopped.
    fn try_hold_file_end(&self) -> Option<FileEndHold<'_, P>> {
        let mut state = self.lock();
        if state.space.file_end_held() || state.error.is_some() {
            return None;
        }
        state.space.hold_file_end();
        Some(FileEndHold { log: self })
    }

    /// Chooses a free segment, or a new one, and has its space allocated. What more one call allocates stays free, for the
    /// next ones. Also returns what the segment held then.
    ///
    /// # Errors
    ///
    /// [`Error::NoSpace`] when the backing file has no room, or the image has reached the `limit`.
    pub(super) fn reserve(&self, file: &P::File, limit: Limit) -> Result<(u64, Backing)> {
        loop {
            if let Some(held) = self.lock().space.take_held() {
                return Ok(held);
            }
            match self.reserve_run(file, limit) {
                // What free segments hold in part may do.
                Err(Error::NoSpace) if self.deallocate_surplus(file, Demand::Writes) => {}
                reserved => return Ok((reserved?, Backing::Ahead)),
            }
        }
    }

    /// As [`reserve`](Self::reserve), for a segment that does not hold its space.
    fn reserve_run(&self, file: &P::File, limit: Limit) -> Result<u64> {
        if limit == Limit::Bound && self.at_bound(file)? {
            return Err(Error::NoSpace);
        }
        let most = self.run(file, limit);
        let (run, held) = {
            let mut state = self.lock();
            let before = state.space.held();
            let run = state.space.take_run(most)?;
            (run, state.space.held() < before)
        };
        if P::sabotaged(Sabotage::Unreserved) {
            return Ok(run.start);
        }
        self.allocate_run(file, run, held)
    }

    /// Segments to allocate in one call.
    fn run(&self, file: &P::File, limit: Limit) -> u64 {
        // On a block device there is nothing to allocate, and a checkpoint takes no more than it needs.
        if file.fixed_size() || limit == Limit::Backing || P::sabotaged(Sabotage::Unreserved) {
            return 1;
        }
        let left = match file.free_space() {
            Ok(left) => left.unwrap_or(u64::MAX),
            Err(_) => return 1,
        };
        let state = self.lock();
        let wanted = self.floor(&state, SpaceClass::User) + 1;
        let lacking = wanted.saturating_sub(state.space.reserved());
        state.space.run(lacking, left)
    }

    /// Allocates the space of segments that were taken, or at least of the first one, which it returns. The others are free
    /// then. If it fails none of them holds any space, also if some `held` a part of it.
    fn allocate_run(&self, file: &P::File, run: Range<u64>, held: bool) -> Result<u64> {
        let mut allocated = self.allocate(file, run.clone());
        let mut others = Backing::Ahead;
        let several = run.end - run.start > 1;
        if allocated == Err(Error::NoSpace) && (several || held) {
            // The file system may have allocated a part of it.
            let punched = self.punch(file, run.clone());
            self.lock().note(&punched);
            others = Backing::Hole;
            allocated = self.allocate(file, run.start..run.start + 1);
        }
        let mut state = self.lock();
        state
            .space
            .set_backing_full(allocated == Err(Error::NoSpace));
        if allocated.is_err() {
            others = Backing::Hole;
            state.space.release(run.start);
        }
        for index in run.start + 1..run.end {
            state.space.release_with(index, others);
        }
        allocated.map(|()| run.start)
    }

    /// Has the file system allocate the space of segments, as far as they have none.
    fn allocate(&self, file: &P::File, segments: Range<u64>) -> Result {
        let start = self.layout.segment_offset(segments.start);
        file.allocate(start, self.layout.segment_offset(segments.end) - start)
    }

    /// Has the file system take back the space of segments, but for what [stays](crate::engine::format::Layout::dispensable)
    /// of segment 0.
    fn punch(&self, file: &P::File, segments: Range<u64>) -> Result {
        let (start, _) = self.layout.dispensable(segments.start, 0);
        file.punch(start, self.layout.segment_offset(segments.end) - start)
    }

    /// True if one more segment would make the image larger than it may get.
    fn at_bound(&self, file: &P::File) -> Result<bool> {
        let size = u64::from(self.layout.segment_size);
        let (bound, taken) = {
            let state = self.lock();
            (state.space.bound(), state.space.most_taken())
        };
        // The file takes less than this where ends of segments were punched; asking for its size costs a call.
        Ok(taken + size > bound && (file.fixed_size() || file.allocated()? + size > bound))
    }

    /// Reserves one more segment for `class`. Nothing happens if another thread does.
    ///
    /// # Errors
    ///
    /// [`Error::NoSpace`], and those of the backing file.
    pub(crate) fn reserve_ahead(&self, file: &P::File, class: SpaceClass) -> Result {
        let Some(_hold) = self.try_hold_file_end() else {
            return Ok(());
        };
        let (index, backing) = self.reserve(file, Limit::of(class))?;
        // Dropped before the hold, which takes the lock.
        let mut state = self.lock();
        state.space.add_to_reserve(index, backing)
    }

    /// True if the next segment should be written before the log enters it: it was only allocated, and users flush often. Each
    /// flush in it would make file systems such as ext4 and XFS note durably that some more of it is written: a commit of
    /// their journal.
    pub(crate) fn wants_warm_up(&self, file: &P::File, state: &LogState) -> bool {
        let cold = |c: Current| {
            c.next_backing == Backing::Ahead && state.flushes.are_frequent(&self.layout, c.offset)
        };
        state.current.is_some_and(cold)
            && !file.fixed_size()
            && !state.space.file_end_held()
            && state.error.is_none()
    }

    /// Fills the next segment with zeros, if that is [wanted](Self::wants_warm_up). One that becomes free later is written
    /// already, and needs no filling.
    pub(crate) fn warm_up(&self, file: &P::File) {
        let index = {
            let mut state = self.lock();
            let Some(current) = state.current.filter(|_| self.wants_warm_up(file, &state)) else {
                return;
            };
            state.space.hold_file_end();
            state.filling_next = true;
            current.next
        };
        // Given back when the log may enter the segment.
        let _hold = FileEndHold { log: self };
        let (offset, len) = self.layout.dispensable(index, 0);
        let zeros = Buf::zeroed_if(Need::Optional, len as usize);
        let filled = zeros.and_then(|zeros| file.write_at(&zeros, offset));
        let mut state = self.lock();
        state.note(&filled);
        state.filling_next = false;
        // An error does no harm. The segment counts as filled, so that this is not tried again.
        if let Some(current) = state.current.as_mut() {
            current.next_backing = Backing::Warm;
        }
    }

    /// Reserves one more segment, once no other thread does.
    fn reserve_now(&self, file: &P::File, limit: Limit) -> Result {
        let _hold = self.hold_file_end();
        let (index, backing) = self.reserve(file, limit)?;
        // Dropped before the hold, which takes the lock.
        let mut state = self.lock();
        state.space.add_to_reserve(index, backing)
    }

    /// Reserves one more segment if users' writes will need it.
    ///
    /// # Errors
    ///
    /// Those of [`reserve_ahead`](Self::reserve_ahead).
    pub(crate) fn reserve_if_wanted(&self, file: &P::File) -> Result {
        if self.wants_segment(&self.lock()) {
            self.reserve_ahead(file, SpaceClass::User)?;
        }
        Ok(())
    }

    /// True if a segment should be reserved ahead.
    pub(crate) fn wants_segment(&self, state: &LogState) -> bool {
        let want = self.floor(state, SpaceClass::User) + 1;
        state.space.reserved() < want && !state.space.file_end_held() && state.error.is_none()
    }

    /// Takes a segment that has become free into the reserve, if that lacks any or writers wait for it: on a full file
    /// system other files might take its space. False when the reserve does not need it, when its space cannot be allocated,
    /// or when the image has reached its bound. `complete` says that no part of it was punched since it was allocated.
    ///
    /// # Errors
    ///
    /// Those of the backing file. The segment is not in the reserve then.
    pub(crate) fn keep_in_reserve(
        &self,
        file: &P::File,
        index: u64,
        complete: bool,
    ) -> Result<bool> {
        let state = self.lock();
        let wanted = state.space.wanted(self.usable());
        let needed = self.floor(&state, SpaceClass::User) + wanted;
        if state.space.reserved() > needed {
            return Ok(false);
        }
        // Segments whose ends were punched may be more than the bound has space for, once their ends are allocated again.
        let bound = state.space.bound();
        let most = state.space.most_taken();
        drop(state);
        if most > bound && !file.fixed_size() && file.allocated()? > bound {
            return Ok(false);
        }
        if !complete && self.allocate(file, index..index + 1).is_err() {
            return Ok(false);
        }
        let backing = match complete {
            true => Backing::Warm,
            false => Backing::Ahead,
        };
        let mut state = self.lock();
        // Without memory for it the segment is only free.
        if state.space.add_to_reserve(index, backing).is_err() {
            state.notify_all();
            return Ok(true);
        }
        self.serve(&mut state, None);
        state.notify_all();
        Ok(true)
    }

    /// True if the backing file system is full. Asks it what it has left, and for space if the reserve is short.
    ///
    /// # Errors
    ///
    /// Those of the backing file.
    pub(crate) fn backing_full(&self, file: &P::File) -> Result<bool> {
        if let Ok(Some(left)) = file.free_space() {
            self.lock().space.set_backing_left(left);
        }
        match self.reserve_if_wanted(file) {
            Ok(()) | Err(Error::NoSpace) => Ok(self.lock().space.backing_full()),
            Err(error) => Err(error),
        }
    }

    /// Allocates again the ranges of segment `index` that were punched. False when there is no space for them.
    ///
    /// # Errors
    ///
    /// Those of the backing file.
    pub(crate) fn allocate_punched(&self, file: &P::File, index: u64) -> Result<bool> {
        match self.allocate(file, index..index + 1) {
            Ok(()) => Ok(true),
            Err(Error::NoSpace) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Punches whole segments, and makes them free. They are good to be used again even if the punch fails.
    pub(crate) fn deallocate(&self, file: &P::File, segments: Range<u64>) {
        let punched = self.punch(file, segments.clone());
        let mut state = self.lock();
        state.note(&punched);
        segments.for_each(|index| state.space.release(index));
        state.notify_all();
    }

    /// Punches free segments that must not hold space any more, see [`Space::take_surplus`], in one call. False if there
    /// are none.
    pub(crate) fn deallocate_surplus(&self, file: &P::File, demand: Demand) -> bool {
        let surplus = {
            let mut state = self.lock();
            // What the reserve lacks stays.
            self.fill_reserve(&mut state);
            state.space.take_surplus(demand)
        };
        let Some(surplus) = surplus else {
            return false;
        };
        if P::sabotaged(Sabotage::GreedyPunch) {
            let _ = self.punch(file, surplus.start.saturating_sub(1)..surplus.end + 1);
        }
        self.deallocate(file, surplus);
        true
    }

    /// Takes what the reserve lacks out of the free segments that hold all of their space.
    fn fill_reserve(&self, state: &mut LogState) {
        let wanted = self.floor(state, SpaceClass::User) + state.space.wanted(self.usable());
        while state.space.reserved() <= wanted {
            let Some((index, backing)) = state.space.take_held() else {
                return;
            };
            // Without memory for it the segment stays free.
            if state.space.add_to_reserve(index, backing).is_err() {
                return;
            }
        }
    }

    /// Makes segment `index` free. It holds its space until that can be given back without holding up anybody.
    pub(crate) fn release(&self, index: u64, backing: Backing) {
        let mut state = self.lock();
        state.space.release_with(index, backing);
        state.notify_all();
    }

    /// Takes out of the reserve what no class needs: a checkpoint that had much to store needed more. It is free then, and
    /// holds its space.
    pub(crate) fn shrink_reserve(&self) {
        let mut state = self.lock();
        let enough = self.floor(&state, SpaceClass::User) + 1;
        while !state.space.file_end_held() && state.space.reserved() > enough {
            let Some((far, backing)) = state.space.take_farthest() else {
                break;
            };
            state.space.release_with(far, backing);
        }
        state.space.settle();
    }

    /// Exchanges reserved segments for free ones that lie nearer to the beginning of the image.
    pub(crate) fn move_reserve(&self, file: &P::File) {
        loop {
            let mut state = self.lock();
            if state.space.file_end_held() {
                return;
            }
            let Some(near) = state.space.take_nearer() else {
                return;
            };
            drop(state);
            let allocated = self.allocate(file, near..near + 1);
            let mut state = self.lock();
            if allocated.is_err() {
                state.space.release(near);
                return;
            }
            if state.space.add_to_reserve(near, Backing::Ahead).is_err() {
                return;
            }
            let far = state.space.take_farthest();
            drop(state);
            if let Some((far, _)) = far {
                self.deallocate(file, far..far + 1);
            }
        }
    }

    /// Reserved segments that must be left once `class` has appended.
    pub(super) fn floor(&self, state: &LogState, class: SpaceClass) -> u64 {
        if P::sabotaged(Sabotage::SpentReserve) {
            return 0;
        }
        let checkpoints = self.checkpoint_cost.segments(&self.layout);
        state.space.must_leave(class, checkpoints)
    }

    /// Segments of the reserve that users' writes may use.
    pub(crate) fn spare(&self, state: &LogState) -> u64 {
        let floor = self.floor(state, SpaceClass::User);
        state.space.reserved().saturating_sub(floor)
    }

    /// Bytes that records can take of a segment.
    pub(crate) fn usable(&self) -> u64 {
        u64::from(self.layout.segment_size - LINK_BYTES) - SEGMENT_HEADER as u64
    }

    /// Bytes that records can take of the rest of the current segment.
    pub(crate) fn left(&self, state: &LogState) -> u32 {
        let left = |c: Current| {
            self.layout
                .segment_size
                .saturating_sub(c.offset + LINK_BYTES)
        };
        state.current.map_or(0, left)
    }

    /// Grants the space that there is to those who wait for it, in order, and gives the `verdict` on the rest. True if
    /// one of them got an answer: then they must be woken.
    pub(super) fn serve(&self, state: &mut LogState, verdict: Option<Verdict>) -> bool {
        let supply = Supply {
            room: self.left(state).into(),
            usable: self.usable(),
            checkpoints: self.checkpoint_cost.segments(&self.layout),
            early: self.early(state),
            spent: P::sabotaged(Sabotage::SpentReserve),
            unfair: P::sabotaged(Sabotage::UnfairGrant),
        };
        let heard = |ticket| P::waited(WaitEvent::Answered(ticket));
        state.space.serve(&supply, verdict, heard)
    }

    /// True if what users append counts as metadata, because the image was opened just now.
    pub(super) fn early(&self, state: &LogState) -> bool {
        // By the bytes that users wrote: reclaim may have filled segments to make space for them.
        let written = state.user_bytes() >> self.layout.segment_shift();
        Space::early(written, state.flushed)
    }

    /// Answers those who wait for space, after a round of reclaim: reserves what can be reserved, grants it in order, and
    /// gives the `verdict` on those for whom there is nothing. Only the thread that has made the round may call it.
    ///
    /// If reclaim has found nothing, but the backing file system has space, the image grows beyond its bound rather than
    /// failing a write.
    pub(crate) fn answer(&self, file: &P::File, mut verdict: Option<Verdict>) {
        let limit = match verdict.map(|verdict| verdict.error) {
            Some(Error::NoSpace) => Limit::Backing,
            _ => Limit::Bound,
        };
        let asked = verdict.map_or(u64::MAX, |verdict| verdict.asked);
        loop {
            let mut state = self.lock();
            if self.serve(&mut state, None) {
                state.notify_all();
            }
            if !state.space.waits(asked) || state.check().is_err() {
                return;
            }
            drop(state);
            if let Err(error) = self.reserve_now(file, limit) {
                // A disk that fails is not a full one, and reclaim may have found nothing because of that.
                match &mut verdict {
                    Some(verdict) if error != Error::NoSpace => verdict.error = error,
                    _ => {}
                }
                break;
            }
        }
        let mut state = self.lock();
        if self.serve(&mut state, verdict) {
            state.notify_all();
        }
    }
}
