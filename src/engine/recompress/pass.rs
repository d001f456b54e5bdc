// SPDX-License-Identifier: GPL-2.0
//! [`RecompressionPass`]: all data is compressed again, at once.

use super::{Ended, Goal, Recompressor};
use crate::engine::store::Store;
use crate::engine::Result;
use crate::platform::Platform;
use core::sync::atomic::{AtomicU64, Ordering};

/// A pass over all data of an image, which several threads may share.
pub struct RecompressionPass {
    goal: Goal,
    /// What lies in marked segments was compressed like this before.
    skips_marked: bool,
    /// The segment that the next thread takes.
    next: AtomicU64,
    /// The segments that there were when it began.
    segments: u64,
    /// Bytes of content that were compressed again.
    content: AtomicU64,
}

impl RecompressionPass {
    /// A pass over the first `segments` segments, or those of them that are not marked.
    pub(crate) fn new(goal: Goal, segments: u64, skips_marked: bool) -> Self {
        Self {
            goal,
            skips_marked,
            next: AtomicU64::new(0),
            segments,
            content: AtomicU64::new(0),
        }
    }

    /// The part of the work that was begun, in thousandths.
    pub fn progress(&self) -> u32 {
        let begun = self.next.load(Ordering::Relaxed).min(self.segments);
        (begun * 1000).checked_div(self.segments).unwrap_or(1000) as u32
    }

    /// Bytes of content that were compressed again.
    pub fn content(&self) -> u64 {
        self.content.load(Ordering::Relaxed)
    }

    /// Takes segments until none is left or `go_on` says no.
    pub(crate) fn work<P: Platform>(
        &self,
        store: &Store<P>,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result {
        let mut recompressor = Recompressor::new(store)?;
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            if index >= self.segments {
                return Ok(());
            }
            // What was written since the pass began is not its business, nor what it has written itself.
            let wanted = store.map.lock().segment(index).is_some_and(|segment| {
                let done = self.skips_marked && segment.is_recompressed();
                segment.seq() < self.goal.cold_before && !done
            });
            if !wanted {
                continue;
            }
            let before = recompressor.content();
            let ended = recompressor.segment(store, &self.goal, index, go_on)?;
            let content = recompressor.content() - before;
            self.content.fetch_add(content, Ordering::Relaxed);
            if ended == Ended::Interrupted {
                return Ok(());
            }
        }
    }
}
