// SPDX-License-Identifier: GPL-2.0
//! The segments of the map, as other rooms see and change them.

use super::usage::{Counted, Origin, Segment, State, Total};
use super::Map;
use crate::engine::codec::Compression;
use crate::engine::format::{Entry, IncarnationId};
use crate::engine::log::Placed;
use crate::engine::{Error, Result};
use core::ops::Range;

impl Map {
    /// Number of segments known.
    pub(crate) fn segment_count(&self) -> u64 {
        self.usage.len()
    }

    /// All segments known, by index.
    pub(crate) fn segments(&self) -> impl Iterator<Item = &Segment> {
        self.usage.iter()
    }

    /// Segment `index`, if it is known.
    pub(crate) fn segment(&self, index: u64) -> Option<&Segment> {
        self.usage.get(index)
    }

    /// The first segment in `range` that holds nothing live and is not free. It takes a step for 64 segments.
    pub(crate) fn next_dead(&self, range: Range<u64>) -> Option<u64> {
        self.usage.next_dead(range)
    }

    /// The present incarnation of the segment that an entry points into.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] when there is no such segment.
    pub(crate) fn incarnation(&self, entry: Entry) -> Result<IncarnationId> {
        match self.usage.at(entry.address()) {
            Some(segment) => Ok(segment.incarnation()),
            None => Err(Error::Corrupt {
                what: "sector table entry",
                offset: entry.address(),
            }),
        }
    }

    /// Sums over all segments. Those in `held` (each named once) are held by the log: only their live bytes
    /// count.
    pub(crate) fn total(&self, held: impl Iterator<Item = u64> + Clone) -> Total {
        self.usage.total(held)
    }

    /// The highest sequence number of a segment.
    pub(crate) fn newest_seq(&self) -> u64 {
        self.usage.newest()
    }

    /// True if neither superblock needs anything that was in the segment, once the log is durable.
    pub(crate) fn superseded(&self, segment: &Segment) -> bool {
        self.usage.superseded(segment)
    }

    /// True if the segment can become [`superseded`](Self::superseded) by records of the log alone.
    pub(crate) fn supersedable(&self, segment: &Segment) -> bool {
        self.usage.supersedable(segment)
    }

    /// Notes the segment a record goes to. If the log has just entered it, a new incarnation begins.
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`].
    pub(crate) fn enter(&mut self, placed: &Placed) -> Result {
        self.usage.grow(placed.segment)?;
        let known = self.usage.get(placed.segment);
        if known.is_some_and(|known| known.seq() != placed.seq || known.is_free()) {
            self.usage.enter(placed.segment, placed.seq, placed.seed);
            if let Some(left) = placed.before {
                self.usage.leave(left.index, left.unused_end);
            }
        }
        Ok(())
    }

    /// Whether the superblock says that stored segments may be marked as recompressed.
    pub(crate) fn announce_marks(&mut self, announced: bool) {
        self.usage.announce_marks(announced);
    }

    /// From now on segments are marked whose data gains nothing from `compression`, or none is. Before it is another one, the
    /// marks must be [taken off](Self::clear_marks).
    pub(crate) fn mark_for(&mut self, compression: Option<Compression>) {
        self.usage.mark_for(compression);
    }

    /// The data records of the incarnation of a segment that has `seed` gain nothing from `compression`: marks it, if it is
    /// that what marks are for.
    pub(crate) fn set_recompressed(&mut self, index: u64, seed: u32, compression: Compression) {
        if self.usage.get(index).is_some_and(|s| s.seed() == seed) {
            let origin = Origin::Compressed(compression);
            let marked = self.usage.is_marked_for(origin);
            self.usage.mark(index, marked);
        }
    }

    /// Takes the marks off the segments in `range`.
    pub(crate) fn clear_marks(&mut self, range: Range<u64>) {
        for index in range {
            self.usage.mark(index, false);
        }
    }

    /// A data record of this origin was placed at `address`. If it may be worth compressing again, so may its segment.
    pub(crate) fn note_origin(&mut self, address: u64, origin: Origin) {
        if let Some(index) = self.usage.segment_of(address) {
            if !self.usage.is_marked_for(origin) {
                self.usage.mark(index, false);
            }
        }
    }

    /// The first segment in `range` with live data that may be worth compressing again. It takes a step for 64 segments.
    pub(crate) fn next_unmarked(&self, range: Range<u64>) -> Option<u64> {
        self.usage.next_unmarked(range)
    }

    /// Marks a segment as free.
    pub(crate) fn set_free(&mut self, index: u64) {
        self.usage.set_free(index);
    }

    /// Notes that the newest checkpoint found a segment dead.
    pub(crate) fn set_found_dead(&mut self, index: u64) {
        self.usage.set_found(index, State::FoundDead);
    }

    /// Notes that a segment, which a checkpoint had found dead, is needed.
    pub(crate) fn set_in_use(&mut self, index: u64) {
        self.usage.set_found(index, State::InUse);
    }

    /// Notes that reclaim has relocated every record that it could out of the incarnation of a segment that has `seed`.
    pub(crate) fn set_relocated(&mut self, index: u64, seed: u32) {
        // Records below a detached node are live but not relocated: the reaper drops them.
        let detached = self.may_have_detached();
        let stuck = self.usage.get(index).is_some_and(|segment| {
            segment.seed() == seed && segment.state() == State::InUse && !segment.is_dead()
        });
        if stuck && !detached {
            self.usage.set_found(index, State::Stuck);
        }
    }

    /// Notes that reclaim cannot empty the incarnation of a segment that has `seed`: something that it needs is damaged.
    pub(crate) fn set_aside(&mut self, index: u64, seed: u32) {
        let segment = self.usage.get(index);
        if segment.is_some_and(|s| s.seed() == seed && s.state() == State::InUse) {
            self.usage.set_found(index, State::Stuck);
        }
    }

    /// Has reclaim look again at the segments that it has set aside.
    pub(crate) fn retry_stuck(&mut self) {
        self.usage.retry_stuck();
    }

    /// Notes how many bytes of a segment were given back in place, in all.
    pub(crate) fn set_punched(&mut self, index: u64, bytes: u64) {
        self.usage.set_punched(index, bytes);
    }

    /// Makes room for segments up to and including `index`. New ones are free.
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`].
    pub(crate) fn grow_segments(&mut self, index: u64) -> Result {
        self.usage.grow(index)
    }

    /// Takes over a stored page of an image whose stored usage covers `segments` segments. Only while opening, in
    /// page order.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] when a segment counts more than it can hold, or is free and counts anything.
    pub(crate) fn load_page(&mut self, words: &[u64], segments: u64, counted: Counted) -> Result {
        self.usage.load_page(words, segments, counted)
    }

    /// Completes `segments` loaded segments, once [`move_usage_node`](Self::move_usage_node) has counted the records of
    /// the stored usage itself.
    pub(crate) fn settle_segments(&mut self, segments: u64) {
        self.usage.settle_loaded(segments);
    }

    /// A repair found the seed of segment `index`, which is in use.
    pub(crate) fn identify_segment(&mut self, index: u64, seed: u32) {
        self.usage.identify(index, seed);
    }
}
