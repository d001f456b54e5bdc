// SPDX-License-Identifier: GPL-2.0
//! [`Allocator`]: which segments of the image are free, and what the backing file holds of them.

use crate::engine::index_set::IndexSet;
use crate::engine::Result;
use core::ops::Range;

/// Most segments that come into use behind those that the stored segment usage covers. An open makes
/// room in memory for all of them.
pub(crate) const MAX_UNCOVERED: u64 = 1 << 16;

/// What the backing file holds of a free segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backing {
    /// Nothing: its space was given back, or never allocated.
    Hole,
    /// All of its space, which was allocated ahead.
    Ahead,
    /// All of its space, which was written before: the segment is *warm*.
    Warm,
    /// A part of its space: the rest was given back, as far as that is known.
    Partial,
}

impl Backing {
    /// Those that hold space.
    pub(super) const HELD: [Self; 3] = [Self::Partial, Self::Warm, Self::Ahead];
    /// Those that hold all of it, in the order in which the log uses them.
    const WHOLE: [Self; 2] = [Self::Warm, Self::Ahead];
    const COUNT: usize = 1 + Self::HELD.len();
}

/// Free segments of the image.
///
/// It has room in memory to note that any segment of the image is free: [`take_run`](Self::take_run) makes it before it
/// gives out a new one. So a segment becomes free whatever the state of memory, and none is lost.
pub(crate) struct Allocator {
    /// Segments that are free, by their backing.
    free: [IndexSet; Backing::COUNT],
    /// Segments the image has; the next new one gets this index.
    count: u64,
    /// Segments that the stored segment usage covers.
    covered: u64,
}

impl Allocator {
    /// `count` segments, all in use. None of them can become free before [`make_room`](Self::make_room).
    pub(crate) fn new(count: u64, covered: u64) -> Self {
        Self {
            free: [const { IndexSet::new() }; Backing::COUNT],
            count,
            covered,
        }
    }

    fn set(&mut self, backing: Backing) -> &mut IndexSet {
        &mut self.free[backing as usize]
    }

    fn contains(&self, index: u64, backing: Backing) -> bool {
        self.free[backing as usize].contains(index)
    }

    /// Makes room to note that any segment is free.
    ///
    /// # Errors
    ///
    /// Those of memory.
    pub(super) fn make_room(&mut self) -> Result {
        self.grow(self.count)
    }

    fn grow(&mut self, count: u64) -> Result {
        self.free.iter_mut().try_for_each(|set| set.grow(count))
    }

    /// Makes segment `index` available, of which the backing file holds this.
    pub(super) fn release(&mut self, index: u64, backing: Backing) {
        self.set(backing).insert(index);
    }

    /// Takes the lowest free segment whose space is allocated as a whole.
    pub(super) fn take_held(&mut self) -> Option<(u64, Backing)> {
        Backing::WHOLE.into_iter().find_map(|backing| {
            let lowest = self.set(backing).lowest()?;
            self.set(backing).remove(lowest);
            Some((lowest, backing))
        })
    }

    /// Takes the lowest free segment whose space is to be allocated, or a new one while there are fewer than `max`, and those
    /// behind it that are like it, `most` in all. Those that hold a part of their space come first.
    ///
    /// # Errors
    ///
    /// Those of memory, if it takes none.
    pub(super) fn take_run(&mut self, max: u64, most: u64) -> Result<Option<Range<u64>>> {
        let end = self.covered + MAX_UNCOVERED;
        let lacking = [Backing::Partial, Backing::Hole];
        let lowest = lacking.into_iter().find_map(|b| self.set(b).lowest());
        let first = lowest.unwrap_or(self.count);
        let mut last = first;
        while last < first + most.max(1) {
            if last < end && lacking.into_iter().any(|b| self.contains(last, b)) {
                self.remove(last);
            } else if last == self.count && last < max.min(end) {
                match self.grow(last + 1) {
                    Err(error) if last == first => return Err(error),
                    Err(_) => break,
                    Ok(()) => self.count += 1,
                }
            } else {
                break;
            }
            last += 1;
        }
        Ok((last > first).then_some(first..last))
    }

    /// Takes the lowest free segment if it lies before segment `end`.
    pub(super) fn take_before(&mut self, end: u64) -> Option<u64> {
        let lowest = self.free.iter_mut().filter_map(IndexSet::lowest).min()?;
        if lowest >= end {
            return None;
        }
        self.remove(lowest);
        Some(lowest)
    }

    fn remove(&mut self, index: u64) {
        self.free.iter_mut().for_each(|set| set.remove(index));
    }

    /// Takes the farthest free segment with the first of these backings that there is, and those before it with any of them,
    /// `most` in all. Free segments between them whose space was given back are taken as well, so that one call covers them
    /// all.
    pub(super) fn take_farthest(&mut self, any: &[Backing], most: u64) -> Option<Range<u64>> {
        let last = any.iter().find_map(|&b| self.free[b as usize].highest())?;
        let (mut first, mut at) = (last, last);
        while at > 0 && last - at + 1 < most {
            at -= 1;
            if any.iter().any(|&b| self.contains(at, b)) {
                first = at;
            } else if !self.contains(at, Backing::Hole) {
                break;
            }
        }
        (first..=last).for_each(|index| self.remove(index));
        Some(first..last + 1)
    }

    /// Forgets the free segments at the end whose space was given back.
    pub(super) fn shrink(&mut self) {
        while self.count > 0 && self.contains(self.count - 1, Backing::Hole) {
            self.count -= 1;
            let last = self.count;
            self.set(Backing::Hole).remove(last);
        }
    }

    /// Number of segments, the free ones included.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// Makes room for `count` segments at least. New ones are in use.
    pub(super) fn extend(&mut self, count: u64) {
        self.count = self.count.max(count);
    }

    /// Notes that the stored segment usage covers `covered` segments.
    pub(super) fn cover(&mut self, covered: u64) {
        self.covered = covered;
    }

    /// Number of free segments.
    pub(super) fn free(&self) -> u64 {
        self.free.iter().map(IndexSet::len).sum()
    }

    /// Number of free segments with this backing.
    pub(super) fn free_with(&self, backing: Backing) -> u64 {
        self.free[backing as usize].len()
    }

    /// Number of segments that are not free.
    pub(super) fn in_use(&self) -> u64 {
        self.count - self.free()
    }
}

#[cfg(test)]
mod tests {
    use super::Backing::{Ahead, Hole, Partial, Warm};
    use super::*;

    /// A segment becomes free although there is no memory.
    #[cfg(feature = "sim")]
    #[test]
    fn a_segment_that_was_taken_can_be_given_back() {
        use crate::platform::std::mem::set_failing_allocation;
        let mut allocator = Allocator::new(0, 0);
        assert_eq!(allocator.take_run(200, 150), Ok(Some(0..150)));
        assert_eq!(allocator.take_run(200, 150), Ok(Some(150..200)));
        set_failing_allocation(Some(0));
        (0..100).for_each(|index| allocator.release(index, Hole));
        (100..200).for_each(|index| allocator.release(index, Ahead));
        set_failing_allocation(None);
        assert_eq!((allocator.free(), allocator.in_use()), (200, 0));
        assert_eq!(allocator.free_with(Ahead), 100);
    }

    #[test]
    fn free_segments_are_taken_from_the_beginning_and_forgotten_at_the_end() {
        let mut allocator = Allocator::new(6, 6);
        allocator.make_room().unwrap();
        for index in [4, 1, 5] {
            allocator.release(index, Hole);
        }
        assert_eq!((allocator.free(), allocator.in_use()), (3, 3));
        allocator.shrink();
        assert_eq!((allocator.count(), allocator.free()), (4, 1));
        assert_eq!(allocator.take_before(1), None);
        assert_eq!(allocator.take_run(9, 1), Ok(Some(1..2)));
        assert_eq!(allocator.take_run(9, 1), Ok(Some(4..5)));
        assert_eq!(allocator.take_run(5, 1), Ok(None));
        allocator.release(4, Ahead);
        assert_eq!(allocator.take_before(5), Some(4));
        assert_eq!(allocator.free(), 0);
    }

    #[test]
    fn a_run_is_free_and_contiguous() {
        let mut allocator = Allocator::new(8, 8);
        allocator.make_room().unwrap();
        for index in [2, 3, 7] {
            allocator.release(index, Hole);
        }
        allocator.release(4, Ahead);
        assert_eq!(allocator.take_run(100, 9), Ok(Some(2..4)));
        // It goes on behind the end.
        assert_eq!(allocator.take_run(100, 4), Ok(Some(7..11)));
        assert_eq!(allocator.take_held(), Some((4, Ahead)));
        assert_eq!(allocator.take_held(), None);
        assert_eq!(allocator.take_run(12, 4), Ok(Some(11..12)));
        for (index, backing) in [(1, Hole), (5, Partial), (6, Hole), (7, Ahead), (8, Warm)] {
            allocator.release(index, backing);
        }
        // What was written is used first, and what holds a part of its space before what holds none.
        assert_eq!(allocator.take_held(), Some((8, Warm)));
        assert_eq!(allocator.take_run(100, 9), Ok(Some(5..7)));
        assert_eq!(allocator.take_run(100, 9), Ok(Some(1..2)));
    }

    #[test]
    fn what_is_given_back_together_may_have_holes_and_nothing_in_use() {
        let mut allocator = Allocator::new(10, 10);
        allocator.make_room().unwrap();
        for index in [1, 4, 6, 7] {
            allocator.release(index, Ahead);
        }
        for index in [0, 5, 8, 9] {
            allocator.release(index, Hole);
        }
        // What is allocated is not forgotten.
        allocator.shrink();
        assert_eq!(allocator.count(), 8);
        // Neither segment 3, which is in use, nor a hole that nothing lies before.
        assert_eq!(allocator.take_farthest(&[Ahead], 3), Some(6..8));
        assert_eq!(allocator.take_farthest(&[Ahead], 3), Some(4..5));
        assert_eq!(allocator.take_farthest(&[Ahead], 3), Some(1..2));
        assert_eq!(allocator.take_farthest(&[Ahead], 3), None);
        assert_eq!((allocator.free(), allocator.in_use()), (2, 6));
    }
}
