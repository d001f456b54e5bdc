// SPDX-License-Identifier: GPL-2.0
//! [`Usage`]: the live bytes of every segment, exact after any crash.
//!
//! A checkpoint stores the live counts *as its stored table sees them*. Changes that happen while it is being written
//! and that its table will not contain are kept apart ([`Visibility::After`]), and replay applies them again.

mod segment;
mod totals;

pub(crate) use self::segment::{Change, Segment, State};
pub(crate) use self::totals::Total;

use crate::engine::codec::Compression;
use crate::engine::format::{corrupt, Entry, Layout, SegmentUsage, NODE_ENTRIES};
use crate::engine::index_set::IndexSet;
use crate::engine::map::table::Visibility;
use crate::engine::{Error, Result};
use crate::platform::mem::Vec;
use core::ops::Range;

/// Whether the counts of a stored page are those of attached nodes alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Counted {
    /// Only records that attached nodes refer to are counted.
    AttachedOnly,
    /// Records below detached nodes may be counted as well, although their segment was used again since.
    WithDetached,
}

/// What is known of the compression of a data record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Nothing, or it holds a part of a natural unit only.
    Unknown,
    /// It was compressed like this.
    Compressed(Compression),
    /// It was at this byte of the image before.
    Moved { from: u64 },
}

/// The segments of an image, in pages of [`NODE_ENTRIES`].
pub(crate) struct Usage {
    layout: Layout,
    segments: Vec<Segment>,
    /// Sums over all segments. A large image has a million of them, too many to add up each time.
    total: Total,
    /// The segments that hold nothing live and are not free, for the same reason.
    dead: IndexSet,
    /// Those of which the checkpoint being written does not see everything.
    changed_after: IndexSet,
    /// Those that reclaim has set aside.
    stuck: IndexSet,
    /// Those with live data, some of which may be worth compressing again.
    unmarked: IndexSet,
    /// The superblock says that stored segments may be marked as recompressed.
    marks_announced: bool,
    /// Segments are marked whose data gains nothing from this compression.
    marked_for: Option<Compression>,
    /// The highest sequence number of a segment.
    newest: u64,
    /// One flag for each page: the next checkpoint must store it.
    dirty_pages: Vec<bool>,
    /// Number of dirty pages.
    dirty: u64,
    /// Checkpoints written.
    checkpoints: u64,
    /// Sequence numbers at which the logs of the older and the newer superblock start.
    starts: [u64; 2],
}

impl Usage {
    /// The usage of an image without segments.
    pub(super) fn new(layout: Layout) -> Self {
        Self {
            layout,
            segments: Vec::new(),
            total: Total::default(),
            dead: IndexSet::new(),
            changed_after: IndexSet::new(),
            stuck: IndexSet::new(),
            unmarked: IndexSet::new(),
            marks_announced: false,
            marked_for: None,
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

    /// Number of pages that the next checkpoint must store.
    pub(super) fn dirty_pages(&self) -> u64 {
        self.dirty
    }

    /// Number of segments known.
    pub(super) fn len(&self) -> u64 {
        self.segments.len() as u64
    }

    /// Makes room for segments up to and including `index`. New ones are free.
    pub(super) fn grow(&mut self, index: u64) -> Result {
        while self.len() <= index {
            if self.segments.len() == self.dirty_pages.len() * NODE_ENTRIES {
                self.dirty_pages.push(true)?;
                self.dirty += 1;
            }
            self.push(Segment::free())?;
        }
        Ok(())
    }

    fn push(&mut self, segment: Segment) -> Result {
        let index = self.len();
        let sets = [
            &mut self.dead,
            &mut self.changed_after,
            &mut self.stuck,
            &mut self.unmarked,
        ];
        for set in sets {
            set.grow(index + 1)?;
        }
        self.segments.push(segment)?;
        self.total.add(Total::of(&segment, &self.layout));
        self.note(index);
        Ok(())
    }

    /// Enters segment `index`, which was changed, into the sets that it belongs to. A segment that is found dead and then
    /// holds something live again was not dead at two checkpoints in a row.
    fn note(&mut self, index: u64) {
        let Some(segment) = self.segments.get_mut(index as usize) else {
            return;
        };
        let dead = !segment.is_free() && segment.is_dead();
        if !dead && segment.state() == State::FoundDead {
            segment.set_state(State::InUse);
        }
        self.dead.set(index, dead);
        self.changed_after.set(index, segment.changed_after());
        self.stuck.set(index, segment.state() == State::Stuck);
        let unmarked = segment.state() == State::InUse && !dead && !segment.is_recompressed();
        self.unmarked.set(index, unmarked);
    }

    /// The first segment in `range` that holds nothing live and is not free.
    pub(super) fn next_dead(&self, range: Range<u64>) -> Option<u64> {
        self.dead.next_in(range)
    }

    /// Takes over a stored page of an image that has `segments` segments in its stored usage. Pages come in order.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] when a segment counts more than it can hold, is free and counts anything, or has a mark that must not be there.
    pub(super) fn load_page(&mut self, words: &[u64], segments: u64, counted: Counted) -> Result {
        self.dirty_pages.push(false)?;
        for &word in words {
            if self.len() == segments {
                break;
            }
            let mut segment = Segment::from_stored(SegmentUsage::unpack(word));
            let most = segment.capacity(&self.layout)
                + match counted {
                    Counted::AttachedOnly => 0,
                    Counted::WithDetached => u64::from(self.layout.segment_size),
                };
            let live = segment.live_bytes();
            if segment.is_recompressed() && !self.marks_announced {
                return corrupt(
                    "segment usage: a mark that the superblock does not announce",
                    self.layout.segment_offset(self.len()),
                );
            }
            segment.set_recompressed(segment.is_recompressed() && self.marked_for.is_some());
            if (segment.is_free() && live > 0) || live > most {
                return corrupt("segment usage", self.layout.segment_offset(self.len()));
            }
            self.push(segment)?;
        }
        Ok(())
    }

    /// Completes loaded segments, once the records of the stored usage itself are counted.
    pub(super) fn settle_loaded(&mut self, segments: u64) {
        for index in 0..segments {
            self.change_unstored(index, Segment::settle_loaded);
        }
    }

    /// Segment `index`, if it is known.
    pub(super) fn get(&self, index: u64) -> Option<&Segment> {
        self.segments.get(index as usize)
    }

    /// The index of the segment that has the byte at `address` of the image.
    pub(super) fn segment_of(&self, address: u64) -> Option<u64> {
        self.layout.segment_of(address)
    }

    /// The segment that has the byte at `address` of the image.
    pub(super) fn at(&self, address: u64) -> Option<&Segment> {
        self.get(self.layout.segment_of(address)?)
    }

    /// All segments, by index.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Segment> {
        self.segments.iter()
    }

    /// Changes fields of a segment that a checkpoint stores, if the segment exists.
    fn change<R>(&mut self, index: u64, change: impl FnOnce(&mut Segment) -> R) -> Option<R> {
        if index < self.len() {
            self.set_dirty(index as usize / NODE_ENTRIES, true);
        }
        self.change_unstored(index, change)
    }

    /// Changes fields of a segment that no checkpoint stores, if the segment exists.
    fn change_unstored<R>(
        &mut self,
        index: u64,
        change: impl FnOnce(&mut Segment) -> R,
    ) -> Option<R> {
        let segment = self.segments.get_mut(index as usize)?;
        let result = self.total.change(segment, &self.layout, change);
        self.newest = self.newest.max(segment.seq());
        self.note(index);
        Some(result)
    }

    /// The log enters segment `index`.
    pub(super) fn enter(&mut self, index: u64, seq: u64, seed: u32) {
        let marked = self.marked_for.is_some();
        self.change(index, |segment| segment.enter(seq, seed, marked));
    }

    /// The log leaves segment `index` with this unused end.
    pub(super) fn leave(&mut self, index: u64, unused_end: u8) {
        self.change(index, |segment| segment.leave(unused_end));
    }

    /// A repair found the seed of segment `index`, which is in use.
    pub(super) fn identify(&mut self, index: u64, seed: u32) {
        self.change(index, |segment| segment.identify(seed));
    }

    /// Whether the superblock says that stored segments may be marked.
    pub(super) fn announce_marks(&mut self, announced: bool) {
        self.marks_announced = announced;
    }

    /// From now on segments are marked whose data gains nothing from `compression`, or none is.
    pub(super) fn mark_for(&mut self, compression: Option<Compression>) {
        self.marked_for = compression;
    }

    /// Whether a record of this origin gains nothing from the compression that segments are marked for.
    pub(super) fn is_marked_for(&self, origin: Origin) -> bool {
        let Some(compression) = self.marked_for else {
            return false;
        };
        match origin {
            Origin::Unknown => false,
            Origin::Compressed(made) => made.saves_as_much_as(compression),
            Origin::Moved { from } => self.at(from).is_some_and(Segment::is_recompressed),
        }
    }

    /// Marks segment `index` as recompressed, or not.
    pub(super) fn mark(&mut self, index: u64, recompressed: bool) {
        if self
            .get(index)
            .is_some_and(|s| s.is_recompressed() != recompressed)
        {
            self.change(index, |segment| segment.set_recompressed(recompressed));
        }
    }

    /// The first segment in `range` with live data that may be worth compressing again.
    pub(super) fn next_unmarked(&self, range: Range<u64>) -> Option<u64> {
        self.unmarked.next_in(range)
    }

    /// Marks a segment as free.
    pub(super) fn set_free(&mut self, index: u64) {
        self.change(index, |segment| segment.set_state(State::Free));
    }

    /// Sets the state of a segment that checkpoint or reclaim has looked at. For the stored usage it stays in use.
    pub(super) fn set_found(&mut self, index: u64, state: State) {
        debug_assert!(state != State::Free);
        self.change_unstored(index, |segment| segment.set_state(state));
    }

    /// Has reclaim look again at the segments that it has set aside.
    pub(super) fn retry_stuck(&mut self) {
        while let Some(index) = self.stuck.lowest() {
            self.set_found(index, State::InUse);
        }
    }

    /// Notes how many bytes of a segment were given back in place, in all.
    pub(super) fn set_punched(&mut self, index: u64, bytes: u64) {
        self.change_unstored(index, |segment| segment.set_punched(bytes));
    }

    /// The highest sequence number of a segment.
    pub(super) fn newest(&self) -> u64 {
        self.newest
    }

    /// Sums over all segments. Those in `held` (each named once) are held by the log.
    pub(super) fn total(&self, held: impl Iterator<Item = u64> + Clone) -> Total {
        let mut total = self.total;
        for index in held.clone() {
            if let Some(segment) = self.get(index) {
                total.subtract(Total::of(segment, &self.layout));
                total.add(Total::of_held(segment));
            }
        }
        debug_assert_eq!(total, self.add_up(held));
        debug_assert_eq!(self.total.dead, self.dead.len());
        debug_assert!(self.total.stuck_segments <= self.stuck.len());
        total
    }

    /// As [`total`](Self::total), added up segment by segment.
    fn add_up(&self, held: impl Iterator<Item = u64> + Clone) -> Total {
        let mut total = Total::default();
        for (index, segment) in (0..).zip(self.segments.iter()) {
            total.add(match held.clone().any(|own| own == index) {
                true => Total::of_held(segment),
                false => Total::of(segment, &self.layout),
            });
        }
        total
    }

    /// Adds or removes the charge of an entry for data or for a node of the sector table.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] when the entry points outside the segments or more dies than lived: the
    /// stored counts or the table were damaged.
    pub(super) fn account(
        &mut self,
        entry: Entry,
        visibility: Visibility,
        change: Change,
    ) -> Result {
        let checkpoints = self.checkpoints;
        self.charge(entry, |usage, index| {
            usage.change(index, |segment| {
                segment.account(entry, visibility, change, checkpoints)
            })
        })
    }

    /// As [`account`](Self::account), for a node of the segment usage. Stored pages do not count these.
    pub(super) fn account_own(&mut self, entry: Entry, change: Change) -> Result {
        let checkpoints = self.checkpoints;
        self.charge(entry, |usage, index| {
            usage.change_unstored(index, |segment| {
                segment.account_own(entry, change, checkpoints)
            })
        })
    }

    /// Calls `count` with the index of the segment that `entry` points into. Holes are not counted.
    fn charge(
        &mut self,
        entry: Entry,
        count: impl FnOnce(&mut Self, u64) -> Option<Option<()>>,
    ) -> Result {
        if entry.is_hole() {
            return Ok(());
        }
        let index = self.layout.segment_of(entry.address());
        let counted = index.and_then(|index| count(self, index)).flatten();
        counted.ok_or(Error::Corrupt {
            what: "segment usage",
            offset: entry.address(),
        })
    }

    /// If `page` is dirty, copies it into `words` as the checkpoint being written sees it, and marks it clean.
    pub(super) fn take_dirty(&mut self, page: usize, words: &mut [u64]) -> bool {
        if !self.dirty_pages[page] {
            return false;
        }
        words.fill(0);
        let mut after = false;
        let first = (page * NODE_ENTRIES).min(self.segments.len());
        for (word, segment) in words.iter_mut().zip(&self.segments[first..]) {
            *word = segment.stored().pack();
            after |= segment.changed_after();
        }
        self.set_dirty(page, after);
        true
    }

    /// Marks a page as dirty, if it exists.
    pub(super) fn mark_page_dirty(&mut self, page: u64) {
        if page < self.dirty_pages.len() as u64 {
            self.set_dirty(page as usize, true);
        }
    }

    /// Marks every page as dirty.
    pub(super) fn mark_all_dirty(&mut self) {
        self.dirty_pages.fill(true);
        self.dirty = self.dirty_pages.len() as u64;
    }

    /// A checkpoint was written, whose log starts at sequence number `start`.
    pub(super) fn checkpointed(&mut self, start: u64) {
        self.checkpoints += 1;
        self.starts = [self.starts[1], start];
    }

    /// True if neither superblock needs anything that was in the segment, once the log is durable: the logs behind
    /// them supersede every entry of their tables that points into it, and do not go through it.
    pub(super) fn superseded(&self, segment: &Segment) -> bool {
        !segment.is_free() && segment.is_dead() && self.supersedable(segment)
    }

    /// True if the segment can become [`superseded`](Self::superseded) by records of the log alone.
    pub(super) fn supersedable(&self, segment: &Segment) -> bool {
        segment.seq() < self.starts[0] && segment.unlogged() + 2 <= self.checkpoints
    }

    /// The checkpoint is over: the next one sees every change.
    pub(super) fn forget_after(&mut self) {
        while let Some(index) = self.changed_after.lowest() {
            self.change_unstored(index, Segment::forget_after);
        }
        debug_assert!(self.segments.iter().all(|segment| !segment.changed_after()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> Layout {
        Layout {
            record_size: 65536,
            segment_size: 1 << 20,
            uuid: [0; 16],
        }
    }

    /// A usage of one segment, which the log has entered.
    fn one_segment() -> Usage {
        let mut usage = Usage::new(layout());
        usage.grow(0).unwrap();
        usage.enter(0, 7, 0);
        usage
    }

    fn entry(segment: u64, units: u32) -> Entry {
        Entry::new(layout().segment_offset(segment) + 64, units, 0, 1)
    }

    #[test]
    fn a_checkpoint_does_not_see_what_comes_after_it() {
        let mut usage = one_segment();
        let (seen, unseen) = (entry(0, 10), entry(0, 7));
        usage
            .account(seen, Visibility::Included, Change::Add)
            .unwrap();
        usage
            .account(unseen, Visibility::After, Change::Add)
            .unwrap();
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
    fn a_count_below_zero_or_outside_the_segments_is_damage() {
        let mut usage = one_segment();
        let mut account = |entry, change| usage.account(entry, Visibility::Included, change);
        assert!(account(entry(0, 10), Change::RemoveLogged).is_err());
        assert!(account(entry(1, 10), Change::Add).is_err());
    }

    #[test]
    fn a_segment_is_superseded_only_when_both_logs_start_behind_it() {
        let mut usage = one_segment();
        let data = entry(0, 10);
        let mut account = |change| usage.account(data, Visibility::Included, change);
        account(Change::Add).unwrap();
        account(Change::RemoveLogged).unwrap();
        let superseded = |usage: &Usage| usage.get(0).is_some_and(|s| usage.superseded(s));
        usage.checkpointed(8);
        assert!(
            !superseded(&usage),
            "the older superblock's log starts before it"
        );
        usage.checkpointed(9);
        assert!(superseded(&usage));
        usage.set_free(0);
        assert!(!superseded(&usage));
    }

    #[test]
    fn an_unlogged_death_waits_for_two_checkpoints() {
        let mut usage = one_segment();
        for start in [8, 9] {
            usage.checkpointed(start);
        }
        let data = entry(0, 10);
        let mut account = |change| usage.account(data, Visibility::Included, change);
        account(Change::Add).unwrap();
        account(Change::RemoveUnlogged).unwrap();
        let superseded = |usage: &Usage| usage.get(0).is_some_and(|s| usage.superseded(s));
        usage.checkpointed(10);
        assert!(!superseded(&usage));
        usage.checkpointed(11);
        assert!(superseded(&usage));
    }

    #[test]
    fn the_state_of_a_loaded_segment_follows_from_its_counts() {
        let mut usage = Usage::new(layout());
        // Free; in use without anything live; free, but a page of the stored usage went there; in use.
        let words = [1 << 63, 0, 1 << 63, 5 << 32];
        usage.load_page(&words, 4, Counted::AttachedOnly).unwrap();
        usage.account_own(entry(2, 3), Change::Add).unwrap();
        usage.settle_loaded(4);
        let states: [State; 4] = core::array::from_fn(|i| usage.segments[i].state());
        let expected = [State::Free, State::FoundDead, State::InUse, State::InUse];
        assert_eq!(states, expected);
    }

    #[test]
    fn garbage_of_a_segment_that_the_log_holds_does_not_count() {
        let mut usage = one_segment();
        usage
            .account(entry(0, 10), Visibility::Included, Change::Add)
            .unwrap();
        let total = usage.total([].into_iter());
        assert_eq!((total.live, total.garbage), (160, (1 << 20) - 160));
        let total = usage.total([0].into_iter());
        assert_eq!((total.live, total.garbage), (160, 0));
    }
}
