// SPDX-License-Identifier: GPL-2.0
//! Loading the segment usage that a checkpoint stored.

use crate::engine::format::{
    corrupt, height_for, Entry, IncarnationId, Kind, NodeId, SegmentHeader, Superblock, BLOCK_SIZE,
    DATA_START, NODE_ENTRIES,
};
use crate::engine::map::usage::Counted;
use crate::engine::space::MAX_UNCOVERED;
use crate::engine::store::Store;
use crate::engine::workspace::Workspace;
use crate::engine::Result;
use crate::platform::mem::{Buf, Vec};
use crate::platform::{BackingFile, Platform, Sabotage};

/// Largest number of segments the file can have: those that fit into it, and a few that were reserved when the
/// power failed and did not make it longer. A file may be long and empty, so the segments that the stored usage
/// covers are a bound as well.
pub(crate) fn segment_limit<P: Platform>(store: &Store<P>, superblock: &Superblock) -> Result<u64> {
    const RESERVED: u64 = 8;
    let layout = &store.layout;
    let bytes = store.file.len()?.saturating_sub(DATA_START);
    let fit = bytes.div_ceil(u64::from(layout.segment_size));
    let covered = superblock.usage_segments + MAX_UNCOVERED;
    Ok(layout.max_segments().min(fit + RESERVED).min(covered))
}

/// Loads the segment usage into the map; returns where its nodes are stored, one vector for each level.
///
/// # Errors
///
/// [`Error::Corrupt`](crate::engine::Error::Corrupt) for a node that is damaged or contradicts the superblock.
pub(crate) fn load_usage<P: Platform>(
    store: &Store<P>,
    ws: &mut Workspace<P>,
    superblock: &Superblock,
    page: &mut Buf,
) -> Result<Vec<Vec<u64>>> {
    let root = superblock.usage_root;
    if root.is_hole() != (superblock.usage_segments == 0) {
        return corrupt("superblock", superblock.offset());
    }
    let mut levels: Vec<Vec<u64>> = Vec::new();
    if !root.is_hole() {
        let height = height_for(superblock.usage_segments);
        for _ in 0..height {
            levels.push(Vec::new())?;
        }
        levels[usize::from(height) - 1].push(root.0)?;
        for level in (0..height).rev() {
            for index in 0..levels[usize::from(level)].len() {
                let id = NodeId {
                    level,
                    index: index as u64,
                };
                load_node(store, ws, superblock, page, id, &mut levels)?;
            }
        }
    }
    complete(store, superblock, &levels)?;
    Ok(levels)
}

/// Loads one node: a page of the usage goes into the map, an index node appends to the level below it in `levels`.
fn load_node<P: Platform>(
    store: &Store<P>,
    ws: &mut Workspace<P>,
    superblock: &Superblock,
    page: &mut Buf,
    id: NodeId,
    levels: &mut [Vec<u64>],
) -> Result {
    let level = usize::from(id.level);
    let entry = Entry(levels[level][id.index as usize]);
    if entry.is_hole() || !entry.plausible(&store.layout, superblock.segments) {
        return corrupt("segment usage", entry.address());
    }
    let incarnation = IncarnationId::before_opening(seed_on_disk(store, entry, page)?);
    let words = store
        .records()
        .node(&mut ws.read, Kind::UsageNode, id, entry, incarnation)?;
    let segments = superblock.usage_segments;
    if level == 0 {
        let counted = match superblock.detached && !P::sabotaged(Sabotage::StrictCounts) {
            true => Counted::WithDetached,
            false => Counted::AttachedOnly,
        };
        return store.map.lock().load_page(&words, segments, counted);
    }
    // The nodes of the level below that exist. Without a division, because objtool takes the panic on a zero
    // divisor for a function that returns.
    let pages = segments.div_ceil(NODE_ENTRIES as u64);
    let step = NODE_ENTRIES.pow(u32::from(id.level)) / NODE_ENTRIES;
    let first = id.index as usize * NODE_ENTRIES;
    for (slot, &word) in words.iter().enumerate() {
        if ((first + slot) * step) as u64 >= pages {
            break;
        }
        levels[level - 1].push(word)?;
    }
    Ok(())
}

/// Completes the loaded usage with what its pages do not hold: segments that came into use later, the charge of
/// the usage's own nodes, and which segments the checkpoint found dead.
fn complete<P: Platform>(store: &Store<P>, superblock: &Superblock, levels: &[Vec<u64>]) -> Result {
    let mut map = store.map.lock();
    if let Some(last) = superblock.segments.checked_sub(1) {
        map.grow_segments(last)?;
    }
    for &word in levels.iter().flat_map(|level| level.iter()) {
        map.move_usage_node(Entry::HOLE, Entry(word))?;
    }
    map.settle_segments(superblock.segments);
    Ok(())
}

/// The seed of the segment an entry points into, from the header of the segment.
fn seed_on_disk<P: Platform>(store: &Store<P>, entry: Entry, page: &mut Buf) -> Result<u32> {
    let layout = &store.layout;
    let index = layout.segment_of(entry.address()).unwrap_or(0);
    let offset = layout.segment_offset(index);
    store.file.read_at(&mut page[..BLOCK_SIZE], offset)?;
    match SegmentHeader::of_segment::<P>(page, layout, index) {
        Some(header) => Ok(header.seed::<P>()),
        None => corrupt("segment header", offset),
    }
}
