// SPDX-License-Identifier: GPL-2.0
//! Live bytes of every segment, exact after any crash.
//!
//! What a checkpoint stores is the live count *as its stored table sees it*: changes that happen while
//! it is being written and that its table will not contain are kept apart in `after`
//! ([`Visibility`](crate::engine::map::table::Visibility)), and replay applies them again.

use crate::engine::format::{Entry, Layout, NODE_ENTRIES, SEGMENT_SHIFTS, UNIT};
use crate::engine::{Error, Result};
use crate::platform::mem::Vec;

/// What is known of one segment. Counts are in units of 16 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Live data and sector-table records.
    live: u32,
    /// The part of `live` that the checkpoint being written does not see.
    after: i32,
    /// Live records of the stored segment usage itself; never stored, recounted at open.
    own: u32,
    /// Checksum seed of the segment's present incarnation.
    pub(crate) seed: u32,
    /// Place in the log, 0 when it was written before the image was opened.
    pub(crate) seq: u64,
    /// Checkpoint that first found the segment without anything live; 0: none did.
    pub(crate) dead_since: u64,
    /// Not in use: free or reserved for the log.
    pub(crate) free: bool,
    /// What is unused at the end, see [`Layout::tail_of`]; 0 as long as that is not known.
    pub(crate) tail: u8,
    /// Something live in it cannot be moved, because it is damaged.
    pub(crate) stuck: bool,
    /// Bytes given back in place, as far as that is known.
    punched: u32,
    /// Checkpoints written when last something in it died that no record of the log supersedes.
    unlogged: u64,
}

/// Most live units a segment can have, as stored.
const LIVE_BITS: u32 = 23;

impl Segment {
    /// Whether nothing in the segment is referenced, now and by the checkpoint last stored.
    pub(crate) fn dead(&self) -> bool {
        self.live == 0 && self.own == 0 && self.after == 0
    }

    /// Live bytes.
    pub(crate) fn live_bytes(&self) -> u64 {
        (u64::from(self.live) + u64::from(self.own)) * UNIT as u64
    }

    /// Live units of data and sector table.
    pub(crate) fn stored_live(&self) -> u64 {
        u64::from(self.live)
    }

    /// Bytes that are neither live nor known to be given back.
    pub(crate) fn garbage(&self, layout: &Layout) -> u64 {
        let used = u64::from(layout.segment_size) - layout.tail_bytes(self.tail);
        used.saturating_sub(self.live_bytes() + self.punched())
    }

    /// Bytes inside that were given back in place.
    pub(crate) fn punched(&self) -> u64 {
        u64::from(self.punched)
    }

    /// Notes how many bytes inside were given back in place, all in all; a new incarnation begins with 0.
    pub(crate) fn set_punched(&mut self, bytes: u64) {
        self.punched = bytes as u32;
    }

    /// Adds or removes the charge of an entry when so many checkpoints were written; nothing when more dies than lived.
    fn account(
        &mut self,
        entry: Entry,
        class: Class,
        change: Change,
        checkpoints: u64,
    ) -> Option<()> {
        let charge = entry.charge();
        let count = match class {
            Class::Own => &mut self.own,
            _ => &mut self.live,
        };
        let (new, signed) = match change {
            Change::Add => (count.checked_add(charge), charge as i32),
            Change::Remove | Change::Drop => (count.checked_sub(charge), -(charge as i32)),
        };
        let new = new?;
        if class == Class::After {
            self.after = self.after.checked_add(signed)?;
        }
        *count = new;
        if change == Change::Drop {
            self.unlogged = checkpoints;
        }
        Some(())
    }

    /// What is stored of it: bits 0..32 seed, 32..55 live units, 55..63 tail, bit 63 free.
    fn word(&self) -> u64 {
        let live = (i64::from(self.live) - i64::from(self.after)) as u64;
        (u64::from(self.free) << 63)
            | (u64::from(self.tail) << (32 + LIVE_BITS))
            | ((live & ((1 << LIVE_BITS) - 1)) << 32)
            | u64::from(self.seed)
    }

    fn from_word(word: u64) -> Self {
        Self {
            live: (word >> 32) as u32 & ((1 << LIVE_BITS) - 1),
            tail: (word >> (32 + LIVE_BITS)) as u8,
            seed: word as u32,
            free: word >> 63 == 1,
            ..Self::default()
        }
    }
}

/// Which of a segment's counts a record belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Data or sector table, in the checkpoint being written (if any).
    Live,
    /// Data that the checkpoint being written does not see.
    After,
    /// Stored segment usage.
    Own,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Add,
    /// A record of the log supersedes it, and will when it is replayed.
    Remove,
    /// Only checkpoints will say that it is gone.
    Drop,
}

const _: () = assert!((2u64 << *SEGMENT_SHIFTS.end()) / (UNIT as u64) < 1 << LIVE_BITS);

/// What segments hold in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Total {
    /// Live bytes.
    pub(crate) live: u64,
    /// Bytes without use in segments that hold something live.
    pub(crate) garbage: u64,
    /// The part of that in segments from which what could be moved was moved: checkpoints may free them.
    pub(crate) stuck: u64,
    /// Segments that hold nothing live and are not free yet.
    pub(crate) dead: u64,
}

impl Total {
    /// What one segment adds to it.
    fn of(segment: &Segment, layout: &Layout) -> Self {
        let live = segment.live_bytes();
        if segment.free || segment.dead() {
            let dead = u64::from(!segment.free);
            return Self {
                live,
                dead,
                ..Self::default()
            };
        }
        let garbage = segment.garbage(layout);
        Self {
            live,
            garbage,
            stuck: if segment.stuck { garbage } else { 0 },
            dead: 0,
        }
    }

    /// Changes a segment that is in it.
    fn change<R>(
        &mut self,
        segment: &mut Segment,
        layout: &Layout,
        change: impl FnOnce(&mut Segment) -> R,
    ) -> R {
        self.subtract(Self::of(segment, layout));
        let result = change(segment);
        self.add(Self::of(segment, layout));
        result
    }

    fn add(&mut self, part: Self) {
        self.live += part.live;
        self.garbage += part.garbage;
        self.stuck += part.stuck;
        self.dead += part.dead;
    }

    fn subtract(&mut self, part: Self) {
        self.live -= part.live;
        self.garbage -= part.garbage;
        self.stuck -= part.stuck;
        self.dead -= part.dead;
    }
}

pub(crate) struct Usage {
    /// Of segments, which have one size as long as the image exists.
    layout: Layout,
    segments: Vec<Segment>,
    /// Of all of them: a large image has a million, too many to add up for each question.
    total: Total,
    /// The latest place in the log of a segment.
    newest: u64,
    dirty_pages: Vec<bool>,
    /// Number of dirty pages.
    pub(crate) dirty: u64,
    /// Checkpoints written.
    checkpoints: u64,
    /// Sequence numbers at which the logs of the older and the newer superblock start.
    starts: [u64; 2],
}

impl Usage {
    /// The usage of an image without segments.
    pub(crate) fn new(layout: Layout) -> Self {
        Self {
            layout,
            segments: Vec::new(),
            total: Total::default(),
            newest: 0,
            dirty_pages: Vec::new(),
            dirty: 0,
            checkpoints: 0,
            starts: [0; 2],
        }
    }

    fn set_dirty(&mut self, page: usize, dirty: bool) {
        let was = core::mem::replace(&mut self.dirty_pages[page], dirty);
        self.dirty = self.dirty + u64::from(dirty) - u64::from(was);
    }

    /// Number of segments known.
    pub(crate) fn len(&self) -> u64 {
        self.segments.len() as u64
    }

    /// Makes room for segments up to and including `index`.
    pub(crate) fn grow(&mut self, index: u64) -> Result {
        while self.len() <= index {
            if self.segments.len() == self.dirty_pages.len() * NODE_ENTRIES {
                self.dirty_pages.push(true)?;
                self.dirty += 1;
            }
            let fresh = Segment {
                free: true,
                ..Segment::default()
            };
            self.push(fresh)?;
        }
        Ok(())
    }

    fn push(&mut self, segment: Segment) -> Result {
        self.segments.push(segment)?;
        self.total.add(Total::of(&segment, &self.layout));
        Ok(())
    }

    /// Takes a stored page over. Only while opening, in page order. With `detached`, the records below detached nodes may be counted
    /// beside all that lives in a segment now: it was used again when the log had superseded that.
    pub(crate) fn load_page(&mut self, words: &[u64], segments: u64, detached: bool) -> Result {
        let layout = self.layout;
        self.dirty_pages.push(false)?;
        for &word in words {
            if self.len() == segments {
                break;
            }
            let segment = Segment::from_word(word);
            let free = segment.free && segment.live > 0;
            let mut most = u64::from(layout.segment_size) - layout.tail_bytes(segment.tail);
            if detached {
                most += u64::from(layout.segment_size);
            }
            if free || segment.live_bytes() > most {
                let offset = layout.segment_offset(self.len());
                return crate::engine::format::corrupt("segment usage", offset);
            }
            self.push(segment)?;
        }
        Ok(())
    }

    pub(crate) fn get(&self, index: u64) -> Option<&Segment> {
        self.segments.get(index as usize)
    }

    /// The segment that has the byte at `address`.
    pub(crate) fn at(&self, address: u64) -> Option<&Segment> {
        self.get(self.layout.segment_of(address)?)
    }

    /// Changes a segment, if it exists.
    pub(crate) fn change<R>(
        &mut self,
        index: u64,
        change: impl FnOnce(&mut Segment) -> R,
    ) -> Option<R> {
        if index < self.len() {
            self.set_dirty(index as usize / NODE_ENTRIES, true);
        }
        self.change_unstored(index, change)
    }

    /// Changes what is not stored of a segment, if it exists.
    pub(crate) fn change_unstored<R>(
        &mut self,
        index: u64,
        change: impl FnOnce(&mut Segment) -> R,
    ) -> Option<R> {
        let segment = self.segments.get_mut(index as usize)?;
        let result = self.total.change(segment, &self.layout, change);
        self.newest = self.newest.max(segment.seq);
        Some(result)
    }

    /// Marks a segment as free.
    pub(crate) fn set_free(&mut self, index: u64) {
        self.change(index, |segment| {
            segment.free = true;
            segment.dead_since = 0;
        });
    }

    /// The latest place in the log of a segment.
    pub(crate) fn newest(&self) -> u64 {
        self.newest
    }

    /// What all segments hold. Those in `held` (each named once) are the log's own: they count for what lives in them
    /// and nothing else.
    pub(crate) fn total(&self, held: impl Iterator<Item = u64> + Clone) -> Total {
        let mut total = self.total;
        for index in held.clone() {
            if let Some(segment) = self.get(index) {
                let mut own = Total::of(segment, &self.layout);
                own.live = 0;
                total.subtract(own);
            }
        }
        debug_assert_eq!(total, self.add_up(held));
        total
    }

    /// The same, added up.
    fn add_up(&self, held: impl Iterator<Item = u64> + Clone) -> Total {
        let mut total = Total::default();
        for (index, segment) in (0..).zip(self.segments.iter()) {
            let mut part = Total::of(segment, &self.layout);
            if held.clone().any(|own| own == index) {
                (part.garbage, part.stuck, part.dead) = (0, 0, 0);
            }
            total.add(part);
        }
        total
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Segment> {
        self.segments.iter()
    }

    /// Adds or removes the charge of one entry.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] when the entry points outside the segments or more dies than lived: the
    /// stored counts or the table were damaged.
    pub(crate) fn account(&mut self, entry: Entry, class: Class, change: Change) -> Result {
        if entry.is_hole() {
            return Ok(());
        }
        let damaged = Error::Corrupt {
            what: "segment usage",
            offset: entry.address(),
        };
        let index = self.layout.segment_of(entry.address()).ok_or(damaged)?;
        let checkpoints = self.checkpoints;
        let count = |segment: &mut Segment| segment.account(entry, class, change, checkpoints);
        let counted = match class {
            // The segment usage's own records do not show in its stored pages.
            Class::Own => self.change_unstored(index, count),
            _ => self.change(index, count),
        };
        counted.flatten().ok_or(damaged)
    }

    /// If `page` must be stored, fills `words` with what the checkpoint being written sees of it.
    pub(crate) fn take_dirty(&mut self, page: usize, words: &mut [u64]) -> bool {
        if !self.dirty_pages[page] {
            return false;
        }
        words.fill(0);
        let mut after = false;
        let first = (page * NODE_ENTRIES).min(self.segments.len());
        for (word, segment) in words.iter_mut().zip(&self.segments[first..]) {
            *word = segment.word();
            after |= segment.after != 0;
        }
        self.set_dirty(page, after);
        true
    }

    /// Marks a page as dirty, if it exists.
    pub(crate) fn mark_page_dirty(&mut self, page: u64) {
        if page < self.dirty_pages.len() as u64 {
            self.set_dirty(page as usize, true);
        }
    }

    /// Marks every page as dirty.
    pub(crate) fn mark_all_dirty(&mut self) {
        self.dirty_pages.fill(true);
        self.dirty = self.dirty_pages.len() as u64;
    }

    /// A checkpoint was written, whose log starts at sequence number `start`.
    pub(crate) fn checkpointed(&mut self, start: u64) {
        self.checkpoints += 1;
        self.starts = [self.starts[1], start];
    }

    /// Whether neither superblock needs anything that was in the segment once the log is durable: what their tables
    /// have in it is superseded by the logs behind them, which do not go through it.
    pub(crate) fn superseded(&self, segment: &Segment) -> bool {
        !segment.free && segment.dead() && self.supersedable(segment)
    }

    /// Whether the segment could become [`superseded`](Self::superseded) by records of the log alone.
    pub(crate) fn supersedable(&self, segment: &Segment) -> bool {
        segment.seq < self.starts[0] && segment.unlogged + 2 <= self.checkpoints
    }

    /// The checkpoint is over: from now on everything counts for the next one.
    pub(crate) fn forget_after(&mut self) {
        let pages = self
            .dirty_pages
            .iter()
            .zip(self.segments.chunks_mut(NODE_ENTRIES));
        // Only dirty pages have changed.
        for (_, segments) in pages.filter(|(&dirty, _)| dirty) {
            for segment in segments.iter_mut().filter(|segment| segment.after != 0) {
                self.total
                    .change(segment, &self.layout, |segment| segment.after = 0);
            }
        }
        debug_assert!(self.segments.iter().all(|segment| segment.after == 0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn an_image() -> Layout {
        Layout {
            record_size: 65536,
            segment_size: 1 << 20,
            uuid: [0; 16],
        }
    }

    #[test]
    fn a_checkpoint_does_not_see_what_comes_after_it() {
        let (layout, mut usage) = (an_image(), Usage::new(an_image()));
        usage.grow(0).unwrap();
        usage.change(0, |segment| segment.free = false);
        let seen = Entry::new(layout.segment_offset(0) + 64, 10, 0, 1);
        let unseen = Entry::new(layout.segment_offset(0) + 640, 7, 0, 1);
        usage.account(seen, Class::Live, Change::Add).unwrap();
        usage.account(unseen, Class::After, Change::Add).unwrap();
        let mut words = [0; NODE_ENTRIES];
        assert!(usage.take_dirty(0, &mut words));
        assert_eq!(words[0] >> 32, 10);
        // The page stays dirty, because the next checkpoint will see more.
        assert!(usage.take_dirty(0, &mut words));
        usage.forget_after();
        assert!(usage.take_dirty(0, &mut words));
        assert_eq!(words[0] >> 32, 17);
        assert!(!usage.take_dirty(0, &mut words));
    }

    #[test]
    fn more_dying_than_lived_is_damage() {
        let (layout, mut usage) = (an_image(), Usage::new(an_image()));
        usage.grow(0).unwrap();
        let entry = Entry::new(layout.segment_offset(0) + 64, 10, 0, 1);
        assert!(usage.account(entry, Class::Live, Change::Remove).is_err());
        let beyond = Entry::new(layout.segment_offset(1), 10, 0, 1);
        assert!(usage.account(beyond, Class::Live, Change::Add).is_err());
    }
}
