// SPDX-License-Identifier: GPL-2.0
//! Proofs that neither superblock needs something. What gives space back takes one, so the wrong order of durable
//! steps does not compile.

use crate::engine::log::{DurableLog, LogState};
use crate::platform::mem::Vec;

/// Segments, or ranges of one, that the log supersedes: neither superblock needs them as soon as the log is durable up
/// to where they were found. Until then they are out of reach.
pub(crate) struct Superseded<T> {
    what: Vec<T>,
    /// End of the log when they were found.
    found_at: u64,
}

impl<T> Superseded<T> {
    /// `what` was found superseded by what is in the log now.
    pub(crate) fn new(log: &LogState, what: Vec<T>) -> Self {
        Self {
            what,
            found_at: log.appended(),
        }
    }

    /// The log is durable by now, as `log` proves.
    pub(crate) fn durably(self, log: &DurableLog) -> Unneeded<T> {
        debug_assert!(log.end() >= self.found_at);
        Unneeded { what: self.what }
    }
}

/// Segments, or ranges of one, that neither superblock needs. It is made from what is durably [`Superseded`], and by
/// [`find_dead`](super::find_dead) from segments that two checkpoints found dead.
pub(crate) struct Unneeded<T> {
    what: Vec<T>,
}

impl<T> Unneeded<T> {
    /// The caller has found `what` dead at two checkpoints.
    pub(super) fn dead_twice(what: Vec<T>) -> Self {
        Self { what }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.what.iter()
    }

    pub(super) fn len(&self) -> usize {
        self.what.len()
    }
}
