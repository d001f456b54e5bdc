// SPDX-License-Identifier: GPL-2.0
//! The part of the map that the checkpoint being written sees.

use super::Map;
use crate::engine::format::NodeId;
use crate::platform::{Platform, Sabotage};

impl Map {
    /// Begins a checkpoint: it does not see changes from now on in leaves that are clean or become dirty.
    pub(crate) fn begin_checkpoint<P: Platform>(&mut self) {
        self.table.begin_checkpoint();
        self.writing = !P::sabotaged(Sabotage::LooseCounts);
    }

    /// Ends a checkpoint: the next one sees everything. If it was `stored`, that is the sequence number at which its
    /// log starts.
    pub(crate) fn end_checkpoint(&mut self, stored: Option<u64>) {
        self.writing = false;
        self.mapped_after = 0;
        self.fingerprints.forget_after();
        self.usage.forget_after();
        self.table.end_checkpoint();
        if let Some(start) = stored {
            self.usage.checkpointed(start);
        }
    }

    /// Blocks that the table of the checkpoint being written maps.
    pub(crate) fn mapped_in_checkpoint(&self) -> u64 {
        self.mapped.wrapping_add_signed(-self.mapped_after)
    }

    /// Takes the first node of `level` from index `from` on that the checkpoint must store: copies its entries into
    /// `words` and marks it clean. [`set_stored`](Self::set_stored) or [`put_back`](Self::put_back) follows.
    pub(crate) fn take_dirty_node(
        &mut self,
        level: u8,
        from: u64,
        words: &mut [u64],
    ) -> Option<NodeId> {
        self.table.take_dirty(level, from, words)
    }

    /// Marks a node as dirty again that could not be stored.
    pub(crate) fn put_back(&mut self, id: NodeId) {
        self.table.put_back(id);
    }

    /// If a page of the segment usage is dirty, copies it into `words` as the checkpoint sees it, and marks it clean.
    pub(crate) fn take_dirty_page(&mut self, page: usize, words: &mut [u64]) -> bool {
        self.usage.take_dirty(page, words)
    }

    /// Makes the next checkpoint store a page of the segment usage, if that exists.
    pub(crate) fn mark_page_dirty(&mut self, page: u64) {
        self.usage.mark_page_dirty(page);
    }

    /// Makes the next checkpoint store every page of the segment usage.
    pub(crate) fn mark_all_pages_dirty(&mut self) {
        self.usage.mark_all_dirty();
    }
}
