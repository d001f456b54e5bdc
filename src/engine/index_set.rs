// SPDX-License-Identifier: GPL-2.0
//! [`IndexSet`]: a set of segments.

use crate::engine::Result;
use crate::platform::mem::Vec;
use core::ops::Range;

/// A set of segments, by index, a bit each. Its memory is allocated when the image gets more segments, so entering one
/// that the set has room for cannot fail.
pub(crate) struct IndexSet {
    words: Vec<u64>,
    /// Members.
    len: u64,
    /// No word before this one has any.
    first: usize,
}

impl IndexSet {
    /// An empty set without room.
    pub(crate) const fn new() -> Self {
        Self {
            words: Vec::new(),
            len: 0,
            first: 0,
        }
    }

    /// Makes room for the indices below `count`.
    ///
    /// # Errors
    ///
    /// Those of memory.
    pub(crate) fn grow(&mut self, count: u64) -> Result {
        while (self.words.len() as u64) < count.div_ceil(64) {
            self.words.push(0)?;
        }
        Ok(())
    }

    /// Enters `index`, for which there is room.
    pub(crate) fn insert(&mut self, index: u64) {
        let at = (index / 64) as usize;
        debug_assert!(at < self.words.len());
        if let Some(word) = self.words.get_mut(at) {
            let bit = 1 << (index % 64);
            self.len += u64::from(*word & bit == 0);
            *word |= bit;
            self.first = self.first.min(at);
        }
    }

    /// Makes `index`, for which there is room, a member or none.
    pub(crate) fn set(&mut self, index: u64, member: bool) {
        match member {
            true => self.insert(index),
            false => self.remove(index),
        }
    }

    /// Removes `index`, if it is a member.
    pub(crate) fn remove(&mut self, index: u64) {
        if let Some(word) = self.words.get_mut((index / 64) as usize) {
            let bit = 1 << (index % 64);
            self.len -= u64::from(*word & bit != 0);
            *word &= !bit;
        }
    }

    /// True if `index` is a member.
    pub(crate) fn contains(&self, index: u64) -> bool {
        let word = self.words.get((index / 64) as usize);
        word.is_some_and(|word| (word >> (index % 64)) & 1 == 1)
    }

    /// Number of members.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// The lowest member.
    pub(crate) fn lowest(&mut self) -> Option<u64> {
        while *self.words.get(self.first)? == 0 {
            self.first += 1;
        }
        let bit = self.words[self.first].trailing_zeros();
        Some(self.first as u64 * 64 + u64::from(bit))
    }

    /// The highest member.
    pub(crate) fn highest(&self) -> Option<u64> {
        if self.len == 0 {
            return None;
        }
        let at = self.words.iter().rposition(|&word| word != 0)?;
        let bit = 63 - self.words[at].leading_zeros();
        Some(at as u64 * 64 + u64::from(bit))
    }

    /// The lowest member in `range`, 64 indices of which take one step to look at.
    pub(crate) fn next_in(&self, range: Range<u64>) -> Option<u64> {
        if self.len == 0 {
            return None;
        }
        let first = (range.start / 64) as usize;
        let end = (range.end.div_ceil(64) as usize).min(self.words.len());
        let mut mask = u64::MAX << (range.start % 64);
        for (at, word) in self.words.iter().enumerate().take(end).skip(first) {
            let found = word & mask;
            if found != 0 {
                let index = at as u64 * 64 + u64::from(found.trailing_zeros());
                return (index < range.end).then_some(index);
            }
            mask = u64::MAX;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_found_in_order() {
        let mut set = IndexSet::new();
        set.grow(1000).unwrap();
        let members = [3, 63, 64, 500, 999];
        members
            .into_iter()
            .rev()
            .for_each(|index| set.insert(index));
        set.insert(500);
        assert_eq!((set.len(), set.lowest()), (5, Some(3)));
        assert_eq!(set.highest(), Some(999));
        let mut from = 0;
        for index in members {
            assert!(set.contains(index));
            assert_eq!(set.next_in(from..index), None);
            assert_eq!(set.next_in(from..1000), Some(index));
            from = index + 1;
        }
        assert_eq!(set.next_in(from..1000), None);
        set.remove(3);
        set.remove(4);
        assert_eq!((set.len(), set.lowest()), (4, Some(63)));
        assert!(!set.contains(3) && !set.contains(5000));
    }
}
