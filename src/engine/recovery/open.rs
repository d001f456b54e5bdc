// SPDX-License-Identifier: GPL-2.0
//! Opening an image: a superblock is chosen, the segment usage loaded, the log replayed. Nothing is written until
//! [`begin_writing`].

use super::replay::{replay, Replayed};
use super::superblocks::{read_fingerprints, read_superblocks, Superblocks};
use super::usage::{load_usage, segment_limit};
use crate::engine::access::Access;
use crate::engine::checkpoint::{CheckpointKind, CheckpointState};
use crate::engine::format::{corrupt, Superblock, BLOCK_SIZE};
use crate::engine::freeing;
use crate::engine::map::table::Table;
use crate::engine::reclaim::Maintenance;
use crate::engine::space::Allocator;
use crate::engine::store::Store;
use crate::engine::workspace::Workspace;
use crate::engine::{Error, Result};
use crate::platform::mem::{arc, boxed, Arc, Box, Buf, Vec};
use crate::platform::{BackingFile, Platform};

/// Bytes of memory for the sector table of a volume whose user set no limit.
pub const DEFAULT_TABLE_LIMIT: u64 = 32 << 20;

/// An image as it was found, replayed in memory.
pub(crate) struct Opened<P: Platform> {
    pub(crate) store: Arc<Store<P>>,
    pub(crate) maintenance: Box<Maintenance<P>>,
    pub(crate) replayed: Replayed,
    /// The superblock said that the image was closed cleanly.
    pub(crate) clean: bool,
    /// The newest checkpoint is damaged in this way, and the one before it was used: its log leads to
    /// the same state.
    pub(crate) spare: Option<Error>,
    /// The length in bytes that the file has at least, as either superblock says.
    pub(crate) length: u64,
}

/// What an image must be to be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    /// Finished, as all images but those that are being made.
    Complete,
    /// Just created, for the program that fills it.
    Incomplete,
}

/// Opens an image. Writes nothing to it.
///
/// # Errors
///
/// [`Error::Incomplete`] for an unfinished image that is not `expected`. [`Error::Feature`] for an image that this software may only read. [`Error::Corrupt`] or [`Error::Io`] when neither superblock
/// leads to a whole checkpoint and a whole log; the error is the one of the newest. Those of [`read_superblocks`].
#[inline(never)]
pub(crate) fn open<P: Platform>(
    file: P::File,
    access: Access,
    expected: Expected,
) -> Result<Opened<P>> {
    let file = arc(file)?;
    let mut page = Buf::zeroed(BLOCK_SIZE)?;
    if access == Access::Write {
        // The records about to be replayed must not be lost afterwards.
        file.sync()?;
    }
    let superblocks = read_superblocks::<P>(&file, &mut page)?;
    let newest = &superblocks.newest;
    if newest.incomplete && expected == Expected::Complete {
        return Err(Error::Incomplete);
    }
    if access == Access::Write && newest.read_only_compatible != 0 {
        return Err(Error::Feature(newest.read_only_compatible));
    }
    if access == Access::Write && newest.exhausted() {
        return corrupt("superblock: counters near their end", newest.offset());
    }
    let length = file.len()?;
    if length < newest.length {
        return corrupt("image: the file was cut short, it ends", length);
    }
    let error = match attempt(&file, &superblocks, newest, access) {
        Err(error) if error.is_damage() => error,
        opened => return opened,
    };
    let Some(older) = &superblocks.older else {
        return Err(error);
    };
    match attempt(&file, &superblocks, older, access) {
        Ok(mut opened) => {
            opened.spare = Some(error);
            Ok(opened)
        }
        // The damage of the newest is the better explanation.
        Err(_) => Err(error),
    }
}

/// Opens the image as of the checkpoint `found`, one of the two in `superblocks`.
fn attempt<P: Platform>(
    file: &Arc<P::File>,
    superblocks: &Superblocks,
    found: &Superblock,
    access: Access,
) -> Result<Opened<P>> {
    let newest = &superblocks.newest;
    let superblock = begin_epoch::<P>(found, superblocks, access)?;
    let mut page = Buf::zeroed(BLOCK_SIZE)?;
    let store = store_of(file, &superblock, found, newest, &mut page, access)?;
    let mut ws = store.workspace()?;
    let (usage_nodes, replayed) = recover(&store, &mut ws, &mut page, found, superblocks)?;
    let slots = superblocks.slots();
    let checkpoint = CheckpointState::new(&superblock, slots, usage_nodes, ws, page)?;
    Ok(Opened {
        store,
        maintenance: Maintenance::new(checkpoint)?,
        replayed,
        clean: found.clean,
        spare: None,
        length: superblocks.length(),
    })
}

/// The image as the checkpoint `found` has it, for the epoch of `superblock`. Nothing is loaded yet.
// A stack frame of its own, as that of `recover`.
#[inline(never)]
fn store_of<P: Platform>(
    file: &Arc<P::File>,
    superblock: &Superblock,
    found: &Superblock,
    newest: &Superblock,
    page: &mut Buf,
    access: Access,
) -> Result<Arc<Store<P>>> {
    let mut table = Table::new(found.height, found.map_root).with_detached(found.detached);
    table.grow(newest.height)?;
    let mut fingerprints = read_fingerprints::<P>(file, found, page)?;
    // What is replayed may have happened on a larger device.
    fingerprints.fit(found.size.max(newest.size).blocks());
    let allocator = Allocator::new(found.segments, found.usage_segments);
    let store = Store::new(
        file.clone(),
        superblock,
        table,
        fingerprints,
        allocator,
        access,
    )?;
    store.map.set_limit(DEFAULT_TABLE_LIMIT);
    Ok(store)
}

/// Loads the segment usage that the checkpoint `found` stored, and replays the log over the checkpoint. Returns the
/// places of the nodes of the usage.
///
/// Like the other steps of an opening it is not inlined: the frame of one step is gone when the next begins, and the
/// kernel has 16 KiB of stack.
#[inline(never)]
fn recover<P: Platform>(
    store: &Store<P>,
    ws: &mut Workspace<P>,
    page: &mut Buf,
    found: &Superblock,
    superblocks: &Superblocks,
) -> Result<(Vec<Vec<u64>>, Replayed)> {
    let newest = &superblocks.newest;
    // What is replayed may have happened on a larger device.
    store.set_size(newest.size.max(found.size));
    let limit = segment_limit(store, found)?;
    if found.segments > limit || found.log_start.segment >= limit {
        return corrupt(
            "superblock: more segments than the file has",
            found.offset(),
        );
    }
    let usage_nodes = load_usage(store, ws, found, page)?;
    let replayed = if found.clean && found == newest {
        // Only the checkpoint itself lies in the log. Damage there is found when it is read, and costs no more
        // than its blocks.
        Replayed {
            records: 0,
            seq: found.log_end >> store.layout.segment_shift(),
        }
    } else {
        let same = (found.epoch, found.salt) == (newest.epoch, newest.salt);
        let closed = (newest.clean && same).then_some(newest.log_start);
        let standing = superblocks.standing;
        replay(store, ws, found, standing, newest.log_end, closed)?
    };
    list_free(store)?;
    store.set_size(newest.size);
    Ok((usage_nodes, replayed))
}

/// The superblock to go on from. Size and compression are the newest ones, whichever checkpoint leads to them; a volume
/// that will be written begins a new epoch.
fn begin_epoch<P: Platform>(
    found: &Superblock,
    superblocks: &Superblocks,
    access: Access,
) -> Result<Box<Superblock>> {
    let newest = &superblocks.newest;
    let mut superblock = boxed(*found)?;
    superblock.generation = newest.generation;
    superblock.size = newest.size;
    superblock.compression = newest.compression;
    superblock.recompression = newest.recompression;
    // Records of it may follow either of the two.
    superblock.zstd = superblocks.zstd();
    superblock.marks = superblocks.marks();
    if access == Access::Write {
        superblock.epoch = newest.epoch + 1;
        superblock.salt = P::random_u64();
    }
    Ok(superblock)
}

/// Hands the free segments to the log: those that were dead in the checkpoint and are not in the chain that was
/// replayed over it (a segment that is entered loses the mark).
fn list_free<P: Platform>(store: &Store<P>) -> Result {
    let mut tail = store.log.lock();
    let mut map = store.map.lock();
    let count = tail.space.segments();
    tail.space.make_room()?;
    if let Some(last) = count.checked_sub(1) {
        map.grow_segments(last)?;
    }
    for index in (0..count).rev() {
        if map.segment(index).is_some_and(|s| s.is_free()) {
            tail.space.release(index);
        }
    }
    Ok(())
}

/// Begins a new epoch of the log in an opened image, and makes that durable.
///
/// # Errors
///
/// [`Error::NoSpace`] without room for two segments, and the errors of the backing file.
#[inline(never)]
pub(crate) fn begin_writing<P: Platform>(opened: &mut Opened<P>) -> Result {
    let store = &*opened.store;
    if !opened.clean {
        freeing::deallocate_unused(store, opened.length)?;
    }
    opened
        .maintenance
        .checkpoint_state_mut()
        .check_slots(store)?;
    let seq = opened.replayed.next_seq();
    match store.log.start(&store.file, seq) {
        Err(Error::NoSpace) => {
            freeing::free_at_once(store);
            store.log.start(&store.file, seq)?;
        }
        started => started?,
    }
    // Twice: from here on neither slot holds the state before this opening, whose log does not lead to anything
    // written from now on.
    for _ in 0..2 {
        opened
            .maintenance
            .checkpoint(store, CheckpointKind::Running)?;
    }
    Ok(())
}
