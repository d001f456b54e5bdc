// SPDX-License-Identifier: GPL-2.0
//! Segments reserved ahead of the log, so that what is acknowledged has its space (promise P2), and the wait
//! for more of them.

use super::{Log, LogState};
use crate::engine::space::{for_metadata, SpaceClass};
use crate::engine::{Error, Result};
use crate::platform::{BackingFile, MonitorGuard, Platform, Sabotage};

impl<P: Platform> Log<P> {
    /// Chooses a free segment, or a new one, and reserves its space. Called without the lock.
    ///
    /// # Errors
    ///
    /// [`Error::NoSpace`] when the backing file has no room, and but for checkpoints also when the image has
    /// reached the size it is bounded to ([`Space::bound`](crate::engine::space::Space::bound)).
    pub(super) fn reserve(&self, file: &P::File, class: SpaceClass) -> Result<u64> {
        let bounded = class != SpaceClass::Checkpoint && !self.lock().space.hopeless;
        if bounded && self.at_bound(file)? {
            return Err(Error::NoSpace);
        }
        let max = self.layout.max_segments();
        let taken = self.lock().space.allocator.take(max);
        let index = taken.ok_or(Error::NoSpace)?;
        if P::sabotaged(Sabotage::Unreserved) {
            return Ok(index);
        }
        let allocated = self.allocate(file, index);
        let mut tail = self.lock();
        tail.space.crowded = allocated == Err(Error::NoSpace);
        if let Err(error) = allocated {
            tail.space.allocator.release(index)?;
            return Err(error);
        }
        Ok(index)
    }

    /// Has the file system reserve the space of a segment, as far as it has none.
    fn allocate(&self, file: &P::File, index: u64) -> Result {
        let size = u64::from(self.layout.segment_size);
        file.allocate(self.layout.segment_offset(index), size)
    }

    /// Whether one more segment would make the image larger than it may get.
    fn at_bound(&self, file: &P::File) -> Result<bool> {
        let size = u64::from(self.layout.segment_size);
        let (bound, in_use) = {
            let tail = self.lock();
            (tail.space.bound(), tail.space.allocator.in_use())
        };
        // What the file really takes is less where ends of segments were given back; asking costs a call.
        let most = self.layout.segment_offset(in_use + 1);
        Ok(most > bound && (file.fixed_size() || file.allocated()? + size > bound))
    }

    /// Reserves one more segment for `class` if there are too few. One thread at a time does.
    pub(crate) fn reserve_ahead(&self, file: &P::File, class: SpaceClass) -> Result<()> {
        {
            let mut tail = self.lock();
            if tail.space.reserving || tail.error.is_some() {
                return Ok(());
            }
            tail.space.reserving = true;
        }
        let reserved = self.reserve(file, class);
        let mut tail = self.lock();
        tail.space.reserving = false;
        let result = reserved.and_then(|index| tail.space.ready.push(index));
        tail.notify_all();
        result
    }

    /// Reserves one more segment if users' writes will need it.
    pub(crate) fn reserve_if_wanted(&self, file: &P::File) -> Result {
        if self.wants_segment(&self.lock()) {
            self.reserve_ahead(file, SpaceClass::User)?;
        }
        Ok(())
    }

    /// Whether a segment should be reserved ahead.
    pub(crate) fn wants_segment(&self, tail: &LogState) -> bool {
        let want = self.floor(tail, SpaceClass::User) + 1;
        tail.space.available() < want && !tail.space.reserving && tail.error.is_none()
    }

    /// Takes a segment that has become free into the reserve, if that lacks any: on a full file system
    /// what was given back might go to others. False when it is not needed, or not to be had.
    pub(crate) fn keep(&self, file: &P::File, index: u64) -> Result<bool> {
        let tail = self.lock();
        if tail.space.available() > self.floor(&tail, SpaceClass::User) {
            return Ok(false);
        }
        drop(tail);
        // Its end was given back when the log had left it.
        if self.allocate(file, index).is_err() {
            return Ok(false);
        }
        let mut tail = self.lock();
        tail.space.ready.push(index)?;
        tail.notify_all();
        Ok(true)
    }

    /// Whether the backing file system is full: asks it, if the reserve is short.
    pub(crate) fn crowded(&self, file: &P::File) -> Result<bool> {
        match self.reserve_if_wanted(file) {
            Ok(()) | Err(Error::NoSpace) => Ok(self.lock().space.crowded),
            Err(error) => Err(error),
        }
    }

    /// Reserves again what was given back of segment `index`. False when there is no space for it.
    pub(crate) fn complete(&self, file: &P::File, index: u64) -> Result<bool> {
        match self.allocate(file, index) {
            Ok(()) => Ok(true),
            Err(Error::NoSpace) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Gives back what is reserved beyond what writers need: a checkpoint that had much to store needed more.
    pub(crate) fn trim_reserve(&self, file: &P::File) -> Result {
        loop {
            let mut tail = self.lock();
            if tail.space.reserving
                || tail.space.available() <= self.floor(&tail, SpaceClass::User) + 1
            {
                return Ok(());
            }
            let Some(far) = tail.space.last() else {
                return Ok(());
            };
            drop(tail);
            self.give_back(file, far)?;
        }
    }

    /// Gives the space of a segment back, which is free from now on: it is good to be used again even if that fails.
    pub(crate) fn give_back(&self, file: &P::File, index: u64) -> Result {
        let size = u64::from(self.layout.segment_size);
        let punched = file.punch(self.layout.segment_offset(index), size);
        let mut tail = self.lock();
        tail.note(&punched);
        tail.space.allocator.release(index)?;
        tail.notify_all();
        Ok(())
    }

    /// Exchanges reserved segments for free ones that lie nearer to the beginning of the image.
    pub(crate) fn move_reserve(&self, file: &P::File) -> Result {
        loop {
            let mut tail = self.lock();
            let last = tail.space.ready.iter().copied().max();
            let near = tail
                .space
                .allocator
                .lowest()
                .filter(|&near| Some(near) < last);
            if near.is_none() || tail.space.reserving {
                return Ok(());
            }
            let near = tail.space.allocator.take(0).ok_or(Error::NoSpace)?;
            drop(tail);
            let allocated = self.allocate(file, near);
            let mut tail = self.lock();
            if allocated.is_err() {
                return tail.space.allocator.release(near);
            }
            tail.space.ready.push(near)?;
            let far = tail.space.last();
            drop(tail);
            if let Some(far) = far {
                self.give_back(file, far)?;
            }
        }
    }

    /// Reserved segments that must be left once `class` has appended.
    pub(super) fn floor(&self, tail: &LogState, class: SpaceClass) -> u64 {
        if P::sabotaged(Sabotage::SpentReserve) {
            return 0;
        }
        class.leaves(
            self.demand.segments(&self.layout),
            for_metadata(tail.space.size),
        )
    }

    /// Asks reclaim for space and waits until it has done what it can. Does not ask if it could do nothing before,
    /// unless for a discard the `first` time: reclaim uses its reserve in between, and leaves it in the end.
    pub(super) fn wait_for_space(&self, class: SpaceClass, first: bool) -> Result {
        let mut tail = self.lock();
        if !class.waits_for_reclaim() {
            return Err(Error::NoSpace);
        }
        if tail.space.hopeless && !(first && class == SpaceClass::Discard) {
            tail.space.full = true;
            return Err(Error::NoSpace);
        }
        let round = tail.space.rounds;
        // Once: several that wait would wake each other for ever.
        tail.space.wanted = true;
        tail.notify_all();
        while tail.space.rounds == round {
            if let Some(error) = tail.error {
                return Err(error);
            }
            if tail.closing() || tail.stopping() {
                return Err(Error::Closed);
            }
            tail.wait();
        }
        Ok(())
    }
}
