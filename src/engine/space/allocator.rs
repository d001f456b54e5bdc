// SPDX-License-Identifier: GPL-2.0
//! [`Allocator`]: which segments of the image are free.

use crate::engine::Result;
use crate::platform::mem::Vec;

/// Most segments that come into use behind those that the stored segment usage covers. An open makes
/// room in memory for all of them.
pub(crate) const MAX_UNCOVERED: u64 = 1 << 16;

/// Free segments of the image.
pub(crate) struct Allocator {
    /// Segments that were in use and are free again: a bit each.
    free: Vec<u64>,
    /// Bits that are set.
    available: u64,
    /// No word before this one has any.
    first: usize,
    /// Segments the image has; the next new one gets this index.
    count: u64,
    /// Segments that the stored segment usage covers.
    covered: u64,
}

impl Allocator {
    /// `count` segments, all in use.
    pub(crate) fn new(count: u64, covered: u64) -> Self {
        Self {
            free: Vec::new(),
            available: 0,
            first: 0,
            count,
            covered,
        }
    }

    /// Makes segment `index` available.
    pub(super) fn release(&mut self, index: u64) -> Result {
        let word = (index / 64) as usize;
        while self.free.len() <= word {
            self.free.push(0)?;
        }
        self.available += u64::from(!self.is_free(index));
        self.free[word] |= 1 << (index % 64);
        self.first = self.first.min(word);
        Ok(())
    }

    fn remove(&mut self, index: u64) {
        self.free[(index / 64) as usize] &= !(1 << (index % 64));
        self.available -= 1;
    }

    fn is_free(&self, index: u64) -> bool {
        let word = self.free.get((index / 64) as usize);
        word.is_some_and(|word| (word >> (index % 64)) & 1 == 1)
    }

    /// The lowest free segment, or a new one while there are fewer than `max`.
    pub(super) fn take(&mut self, max: u64) -> Option<u64> {
        let end = self.covered + MAX_UNCOVERED;
        match self.lowest() {
            Some(lowest) if lowest < end => {
                self.remove(lowest);
                Some(lowest)
            }
            None if self.count < max.min(end) => {
                self.count += 1;
                Some(self.count - 1)
            }
            _ => None,
        }
    }

    /// The free segment nearest to the beginning of the image.
    pub(super) fn lowest(&mut self) -> Option<u64> {
        while *self.free.get(self.first)? == 0 {
            self.first += 1;
        }
        let bit = self.free[self.first].trailing_zeros();
        Some(self.first as u64 * 64 + u64::from(bit))
    }

    /// Forgets the free segments at the end; what is left ends with one in use.
    pub(super) fn shrink(&mut self) {
        while self.count > 0 && self.is_free(self.count - 1) {
            self.count -= 1;
            self.remove(self.count);
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
        self.available
    }

    /// Number of segments that are not free.
    pub(super) fn in_use(&self) -> u64 {
        self.count - self.available
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_segments_are_taken_from_the_beginning_and_forgotten_at_the_end() {
        let mut allocator = Allocator::new(6, 6);
        for index in [4, 1, 5] {
            allocator.release(index).unwrap();
        }
        assert_eq!((allocator.free(), allocator.in_use()), (3, 3));
        allocator.shrink();
        assert_eq!((allocator.count(), allocator.free()), (4, 1));
        assert_eq!(allocator.take(9), Some(1));
        assert_eq!(allocator.take(9), Some(4));
        assert_eq!(allocator.take(5), None);
    }
}
