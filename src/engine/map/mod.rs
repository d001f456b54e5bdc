// SPDX-License-Identifier: GPL-2.0
//! [`Map`]: where every block is stored, and how much of every segment is live.
//!
//! - [`table`]: the sector table, a tree in memory;
//! - [`usage`]: the segments, with their states, counts and sums;
//! - [`shared`]: the lock around both, and the figures that are read without it;
//! - [`range`]: searching and discarding ranges of blocks;
//! - [`load`]: loading nodes on demand, and making room for them;
//! - [`reaper`]: takes detached subtrees off the counts, in the background.
//!
//! Table and usage change together under [`Rank::Map`]: an entry that comes into being or goes is added to or removed
//! from the live count of the segment that it points into.
//!
//! [`Rank::Map`]: crate::platform::Rank::Map

pub(crate) mod load;
pub(crate) mod range;
pub(crate) mod reaper;
pub(crate) mod shared;
pub(crate) mod table;
pub(crate) mod usage;

use crate::engine::format::{Entry, Layout, NODE_ENTRIES};
use crate::engine::log::Placed;
use crate::engine::map::table::{Found, NodeId, Scope, Search, Table, Visibility};
use crate::engine::map::usage::{Change, Counted, Segment, State, Total, Usage};
use crate::engine::{Error, Result};
use crate::platform::mem::Vec;
use crate::platform::{Platform, Sabotage};

/// Sector table and segment usage of an image.
pub(crate) struct Map {
    table: Table,
    usage: Usage,
    /// A checkpoint is being written, and its counts do not include what its table does not contain.
    writing: bool,
    /// Blocks mapped.
    mapped: u64,
    /// The part of `mapped` that the checkpoint being written does not see.
    mapped_after: i64,
}

/// A node that a caller has loaded is not in memory.
const BROKEN_TABLE: Error = Error::Corrupt {
    what: "sector table in memory",
    offset: 0,
};

impl Map {
    /// A map with a sector table of `mapped` mapped blocks, and without segments.
    pub(crate) fn new(table: Table, layout: Layout, mapped: u64) -> Self {
        Self {
            table,
            usage: Usage::new(layout),
            writing: false,
            mapped,
            mapped_after: 0,
        }
    }

    /// Nodes and pages that the next checkpoint will store: at least as many as there are.
    pub(crate) fn dirty_nodes(&self) -> u64 {
        self.table.dirty_nodes() + self.usage.dirty_pages()
    }

    /// Blocks mapped, those below detached nodes included.
    pub(crate) fn mapped(&self) -> u64 {
        self.mapped
    }
}

/// Changes of entries: each is counted.
impl Map {
    /// Replaces the entries of `count` blocks, all in one loaded leaf, by what `new` gives for each.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] when the leaf is not loaded or the counts contradict the table.
    pub(crate) fn replace(
        &mut self,
        block: u64,
        count: usize,
        new: &mut dyn FnMut(usize) -> Entry,
    ) -> Result {
        let (leaf, visibility) = self.table.leaf_mut(block).ok_or(BROKEN_TABLE)?;
        let visibility = match self.writing {
            true => visibility,
            false => Visibility::Included,
        };
        let first = block as usize % NODE_ENTRIES;
        let mut delta = 0;
        for (i, word) in leaf[first..first + count].iter_mut().enumerate() {
            let new = new(i);
            let old = Entry(core::mem::replace(word, new.0));
            self.usage.account(new, visibility, Change::Add)?;
            self.usage.account(old, visibility, Change::RemoveLogged)?;
            delta += i64::from(!new.is_hole()) - i64::from(!old.is_hole());
        }
        self.count_mapped(delta, visibility)
    }

    /// The stored copy of a node of the sector table is now at `entry`; a hole if the node is empty.
    ///
    /// # Errors
    ///
    /// As [`replace`](Self::replace).
    pub(crate) fn set_stored(&mut self, id: NodeId, entry: Entry) -> Result {
        let old = self.table.set_stored(id, entry);
        self.usage
            .account(entry, Visibility::Included, Change::Add)?;
        self.usage
            .account(old, Visibility::Included, Change::RemoveUnlogged)
    }

    /// The stored copy of a node of the sector table was relocated to `entry`. A detached node stays detached.
    ///
    /// # Errors
    ///
    /// As [`replace`](Self::replace).
    pub(crate) fn move_stored(&mut self, id: NodeId, entry: Entry) -> Result {
        let detached = self.table.stored_at(id).is_some_and(Entry::is_detached);
        self.set_stored(id, if detached { entry.detached() } else { entry })
    }

    /// The record of a node of the segment usage moved from `old` to `new`; holes for a new node and for one that is
    /// not needed any more.
    ///
    /// # Errors
    ///
    /// As [`replace`](Self::replace).
    pub(crate) fn move_usage_node(&mut self, old: Entry, new: Entry) -> Result {
        self.usage.account_own(new, Change::Add)?;
        self.usage.account_own(old, Change::RemoveUnlogged)
    }

    /// Reattaches the detached node `id` at `entry`, whose stored copy holds `words`: as a leaf without any block, or
    /// as an inner node whose children are detached. Nothing happens if it is gone.
    ///
    /// # Errors
    ///
    /// As [`replace`](Self::replace), and [`Error::NoMemory`].
    fn reattach(&mut self, id: NodeId, entry: Entry, words: &[u64]) -> Result {
        if !self.table.reattach(id, entry, words)? || id.level > 0 {
            return Ok(());
        }
        // As if the leaf had been loaded and all of it discarded now.
        let visibility = match self.writing {
            true => Visibility::After,
            false => Visibility::Included,
        };
        self.drop_blocks(words, visibility)
    }

    /// Takes a detached leaf with these `words` off the counts and out of the table. Not while a checkpoint is written,
    /// whose counts must be those of its table.
    fn reap_leaf(&mut self, id: NodeId, words: &[u64]) -> Result {
        self.drop_blocks(words, Visibility::Included)?;
        self.set_stored(id, Entry::HOLE)
    }

    /// Takes the blocks of a leaf off the counts.
    fn drop_blocks(&mut self, words: &[u64], visibility: Visibility) -> Result {
        for &word in words.iter().filter(|&&word| word != 0) {
            self.usage
                .account(Entry(word), visibility, Change::RemoveUnlogged)?;
            self.count_mapped(-1, visibility)?;
        }
        Ok(())
    }

    fn count_mapped(&mut self, delta: i64, visibility: Visibility) -> Result {
        // A stored count that was too low is damage like any other.
        self.mapped = self
            .mapped
            .checked_add_signed(delta)
            .ok_or(Error::Corrupt {
                what: "count of mapped blocks",
                offset: 0,
            })?;
        if visibility == Visibility::After {
            self.mapped_after += delta;
        }
        Ok(())
    }
}

/// Checkpoints.
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

    /// If a page of the segment usage is dirty, copies what the checkpoint sees of it into `words` and marks it clean.
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

/// The sector table.
impl Map {
    /// Levels of the table.
    pub(crate) fn height(&self) -> u8 {
        self.table.height()
    }

    /// Number of leaves that the table reaches.
    pub(crate) fn leaves(&self) -> u64 {
        self.table.leaves()
    }

    /// Adds levels above the root until there are `height`.
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`].
    pub(crate) fn grow_table(&mut self, height: u8) -> Result {
        self.table.grow(height)
    }

    /// Where the stored copy of the root is.
    pub(crate) fn root_entry(&self) -> Entry {
        self.table.root_entry()
    }

    /// Bytes of memory of the loaded nodes.
    pub(crate) fn memory(&self) -> u64 {
        self.table.memory()
    }

    /// True if the table may have detached subtrees.
    pub(crate) fn may_have_detached(&self) -> bool {
        self.table.may_have_detached()
    }

    /// What stands between a caller and the leaf of `block`.
    pub(crate) fn find(&self, block: u64) -> Found {
        self.table.find(block)
    }

    /// The entries of the loaded leaf that holds `block`.
    pub(crate) fn leaf(&self, block: u64) -> Option<&[u64]> {
        self.table.leaf(block)
    }

    /// True if the stored copy of `id` is at this address, as far as the node above is loaded.
    pub(crate) fn stores(&self, id: NodeId, address: u64) -> bool {
        let stored = self.table.stored_at(id).filter(|entry| !entry.is_hole());
        stored.is_some_and(|entry| entry.address() == address)
    }

    /// True if the next checkpoint will store `id` in any case.
    pub(crate) fn will_be_stored(&self, id: NodeId) -> bool {
        self.table.will_be_stored(id)
    }

    /// The first detached node at or behind leaf `from` below loaded nodes.
    pub(crate) fn next_detached(&self, from: u64) -> Option<(NodeId, Entry)> {
        match self.table.next_detached(from, Scope::Loaded)? {
            Search::Detached(id, entry) => Some((id, entry)),
            Search::Unknown(_) => None,
        }
    }

    /// Calls `f` with the entry of the root, and with those of the children of all loaded inner nodes.
    pub(crate) fn for_each_stored(&self, f: &mut dyn FnMut(Entry)) {
        self.table.for_each_stored(f);
    }
}

/// A table that a repair puts together without counting anything, see [`count_all`](Self::count_all).
impl Map {
    /// Points a block to `entry`, and creates the leaf if there is none.
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`].
    pub(crate) fn set_uncounted(&mut self, block: u64, entry: Entry) -> Result {
        loop {
            match self.table.find(block) {
                Found::Absent(_) if entry.is_hole() => return Ok(()),
                Found::Absent(id) => {
                    let words = Vec::filled(0, NODE_ENTRIES)?;
                    self.table.install(id, Entry::HOLE, words)?;
                }
                _ => break,
            }
        }
        self.fill_uncounted(block, 1, entry);
        Ok(())
    }

    /// Points blocks of one leaf, if that is loaded, to `entry`.
    pub(crate) fn fill_uncounted(&mut self, block: u64, count: usize, entry: Entry) {
        if let Some((leaf, _)) = self.table.leaf_mut(block) {
            let first = block as usize % NODE_ENTRIES;
            leaf[first..first + count].fill(entry.0);
        }
    }

    /// Counts all entries of loaded leaves, of `blocks` blocks in all.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] when an entry points outside the segments.
    pub(crate) fn count_all(&mut self, blocks: u64) -> Result {
        self.for_each_part(0, blocks, &mut |map, part| {
            let range::Part::Leaf(at, count) = part else {
                return Ok(());
            };
            let first = at as usize % NODE_ENTRIES;
            let leaf = map.table.leaf(at).ok_or(BROKEN_TABLE)?;
            for &word in &leaf[first..first + count] {
                map.usage
                    .account(Entry(word), Visibility::Included, Change::Add)?;
                map.mapped += u64::from(word != 0);
            }
            Ok(())
        })?;
        Ok(())
    }

    /// Forgets all segments.
    pub(crate) fn forget_segments(&mut self, layout: Layout) {
        self.usage = Usage::new(layout);
    }
}

/// Segments.
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

    /// The checksum seed of the segment that an entry points into.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] when there is no such segment.
    pub(crate) fn seed(&self, entry: Entry) -> Result<u32> {
        match self.usage.at(entry.address()) {
            Some(segment) => Ok(segment.seed()),
            None => Err(Error::Corrupt {
                what: "sector table entry",
                offset: entry.address(),
            }),
        }
    }

    /// Sums over all segments. Those in `held` (each named once) are held by the log: they count for what is live in
    /// them only.
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

    /// Notes that reclaim has relocated what it could out of the incarnation of a segment that has `seed`.
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
