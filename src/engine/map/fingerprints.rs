// SPDX-License-Identifier: GPL-2.0
//! [`TableFingerprints`]: the fingerprints of the table, which change with each entry of a block. As the counts of the
//! segments do, they include the blocks below detached nodes, until the reaper has come to them.

use super::table::Visibility;
use super::Map;
use crate::engine::format::{Entry, Fingerprints};
use crate::engine::Result;

/// Fingerprints of a table that changes while a checkpoint is written.
pub(super) struct TableFingerprints {
    /// Those of the table.
    all: Fingerprints,
    /// The part that the checkpoint being written does not see.
    after: Fingerprints,
}

impl TableFingerprints {
    /// Those of a table in which no checkpoint is being written.
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`](crate::engine::Error::NoMemory).
    pub(super) fn new(all: Fingerprints) -> Result<Self> {
        let after = all.emptied()?;
        Ok(Self { all, after })
    }

    /// Notes a change of the entry of a block.
    #[inline]
    pub(super) fn replace(&mut self, block: u64, old: Entry, new: Entry, visibility: Visibility) {
        self.all.replace(block, old, new);
        if visibility == Visibility::After {
            self.after.replace(block, old, new);
        }
    }

    /// The blocks from `from` up to `to` have unknown contents.
    pub(super) fn forget(&mut self, from: u64, to: u64) {
        self.all.forget(from..to);
    }

    /// The table became empty.
    pub(super) fn clear(&mut self) {
        self.all.clear();
    }

    /// The checkpoint that was written is over.
    pub(super) fn forget_after(&mut self) {
        self.after.clear();
    }
}

impl Map {
    /// The fingerprints of the table.
    pub(crate) fn fingerprints(&self) -> &Fingerprints {
        &self.fingerprints.all
    }

    /// Makes the ranges of the fingerprints large enough for a device of `blocks` blocks. Not while a checkpoint is
    /// written.
    pub(crate) fn fit_fingerprints(&mut self, blocks: u64) {
        self.fingerprints.all.fit(blocks);
        self.fingerprints.after.fit(blocks);
    }

    /// Puts the fingerprints of the table of the checkpoint being written into `stored`. All of this table is stored.
    pub(crate) fn fingerprints_in_checkpoint(&mut self, stored: &mut Fingerprints) {
        let TableFingerprints { all, after } = &mut self.fingerprints;
        if self.table.root_entry().is_hole() {
            // The stored table is empty: fingerprints that were unknown are known again.
            all.restart(after);
        }
        stored.set_difference(all, after);
    }
}
