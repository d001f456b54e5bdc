// SPDX-License-Identifier: GPL-2.0
//! [`Total`]: sums over segments.

use super::segment::{Segment, State};
use crate::engine::format::Layout;

/// Sums over segments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Total {
    /// Live bytes.
    pub(crate) live: u64,
    /// Bytes without use in segments that hold something live.
    pub(crate) garbage: u64,
    /// The part of `garbage` in segments that are [`Stuck`](State::Stuck): only checkpoints may free it.
    pub(crate) stuck: u64,
    /// Number of segments that are [`Stuck`](State::Stuck).
    pub(crate) stuck_segments: u64,
    /// The part of `live` in segments that are in use and not marked as recompressed.
    pub(crate) unmarked: u64,
    /// Number of segments that hold nothing live and are not free yet.
    pub(crate) dead: u64,
}

impl Total {
    /// The sums of one segment.
    pub(super) fn of(segment: &Segment, layout: &Layout) -> Self {
        let live = segment.live_bytes();
        if segment.is_free() || segment.is_dead() {
            return Self {
                live,
                dead: u64::from(!segment.is_free()),
                ..Self::default()
            };
        }
        let garbage = segment.garbage(layout);
        let stuck = segment.state() == State::Stuck;
        Self {
            live,
            garbage,
            stuck: if stuck { garbage } else { 0 },
            stuck_segments: u64::from(stuck),
            unmarked: Self::unmarked(segment),
            dead: 0,
        }
    }

    /// The sums of a segment that the log holds. The log uses its space, so nothing in it is garbage, and it does not
    /// become free.
    pub(super) fn of_held(segment: &Segment) -> Self {
        Self {
            live: segment.live_bytes(),
            unmarked: Self::unmarked(segment),
            ..Self::default()
        }
    }

    fn unmarked(segment: &Segment) -> u64 {
        match segment.state() == State::InUse && !segment.is_recompressed() {
            true => segment.live_bytes(),
            false => 0,
        }
    }

    /// Changes a segment that is in the sums.
    pub(super) fn change<R>(
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

    pub(super) fn add(&mut self, part: Self) {
        self.live += part.live;
        self.garbage += part.garbage;
        self.stuck += part.stuck;
        self.stuck_segments += part.stuck_segments;
        self.unmarked += part.unmarked;
        self.dead += part.dead;
    }

    pub(super) fn subtract(&mut self, part: Self) {
        self.live -= part.live;
        self.garbage -= part.garbage;
        self.stuck -= part.stuck;
        self.stuck_segments -= part.stuck_segments;
        self.unmarked -= part.unmarked;
        self.dead -= part.dead;
    }
}
