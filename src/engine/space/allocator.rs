// SPDX-License-Identifier: GPL-2.0
//! [`Allocator`]: which segments of the image are free.

use crate::engine::index_set::IndexSet;
use crate::engine::Result;

/// Most segments that come into use behind those that the stored segment usage covers. An open makes
/// room in memory for all of them.
pub(crate) const MAX_UNCOVERED: u64 = 1 << 16;

/// Free segments of the image.
///
/// It has room in memory to note that any segment of the image is free: [`take`](Self::take) makes it before it gives out
/// a new one. So a segment becomes free whatever the state of memory, and none is lost.
pub(crate) struct Allocator {
    /// Segments that were in use and are free again.
    free: IndexSet,
    /// Segments the image has; the next new one gets this index.
    count: u64,
    /// Segments that the stored segment usage covers.
    covered: u64,
}

impl Allocator {
    /// `count` segments, all in use. None of them can become free before [`make_room`](Self::make_room).
    pub(crate) fn new(count: u64, covered: u64) -> Self {
        Self {
            free: IndexSet::new(),
            count,
            covered,
        }
    }

    /// Makes room to note that any segment is free.
    ///
    /// # Errors
    ///
    /// Those of memory.
    pub(super) fn make_room(&mut self) -> Result {
        self.free.grow(self.count)
    }

    /// Makes segment `index` available.
    pub(super) fn release(&mut self, index: u64) {
        self.free.insert(index);
    }

    /// The lowest free segment, or a new one while there are fewer than `max`.
    ///
    /// # Errors
    ///
    /// Those of memory.
    pub(super) fn take(&mut self, max: u64) -> Result<Option<u64>> {
        let end = self.covered + MAX_UNCOVERED;
        match self.free.lowest() {
            Some(lowest) if lowest < end => {
                self.free.remove(lowest);
                Ok(Some(lowest))
            }
            None if self.count < max.min(end) => {
                self.free.grow(self.count + 1)?;
                self.count += 1;
                Ok(Some(self.count - 1))
            }
            _ => Ok(None),
        }
    }

    /// Takes the lowest free segment if it lies before segment `end`.
    pub(super) fn take_before(&mut self, end: u64) -> Option<u64> {
        let lowest = self.free.lowest().filter(|&lowest| lowest < end)?;
        self.free.remove(lowest);
        Some(lowest)
    }

    /// Forgets the free segments at the end; what is left ends with one in use.
    pub(super) fn shrink(&mut self) {
        while self.count > 0 && self.free.contains(self.count - 1) {
            self.count -= 1;
            self.free.remove(self.count);
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
        self.free.len()
    }

    /// Number of segments that are not free.
    pub(super) fn in_use(&self) -> u64 {
        self.count - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A segment becomes free although there is no memory.
    #[cfg(feature = "sim")]
    #[test]
    fn a_segment_that_was_taken_can_be_given_back() {
        use crate::platform::std::mem::set_failing_allocation;
        let mut allocator = Allocator::new(0, 0);
        for index in 0..200 {
            assert_eq!(allocator.take(200), Ok(Some(index)));
        }
        set_failing_allocation(Some(0));
        (0..200).for_each(|index| allocator.release(index));
        set_failing_allocation(None);
        assert_eq!((allocator.free(), allocator.in_use()), (200, 0));
    }

    #[test]
    fn free_segments_are_taken_from_the_beginning_and_forgotten_at_the_end() {
        let mut allocator = Allocator::new(6, 6);
        allocator.make_room().unwrap();
        for index in [4, 1, 5] {
            allocator.release(index);
        }
        assert_eq!((allocator.free(), allocator.in_use()), (3, 3));
        allocator.shrink();
        assert_eq!((allocator.count(), allocator.free()), (4, 1));
        assert_eq!(allocator.take_before(1), None);
        assert_eq!(allocator.take(9), Ok(Some(1)));
        assert_eq!(allocator.take(9), Ok(Some(4)));
        assert_eq!(allocator.take(5), Ok(None));
        allocator.release(4);
        assert_eq!(allocator.take_before(5), Some(4));
    }
}
