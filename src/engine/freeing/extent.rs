// SPDX-License-Identifier: GPL-2.0
//! The end of the image, and deallocating space behind it or not in use.

use crate::engine::format::{BLOCK_SIZE, SUPERBLOCK_OFFSETS};
use crate::engine::log::{DurableLog, LogState};
use crate::engine::map::Map;
use crate::engine::store::Store;
use crate::engine::Result;
use crate::platform::mem::Vec;
use crate::platform::{BackingFile, Platform};

/// Number of segments up to the last one in use. The reserve does not count: after a crash the file may be too short for
/// it, and the log leads to the part of it that was used.
pub(crate) fn extent(log: &LogState, map: &Map) -> u64 {
    let last = (0..log.space.segments())
        .rev()
        .find(|&index| log.is_current(index) || map.segment(index).is_some_and(|s| !s.is_free()));
    last.map_or(0, |index| index + 1)
}

/// Which length of an image is asked for.
#[derive(Clone, Copy)]
pub(crate) enum Length<'a> {
    /// The least length, when the log is durable that far.
    AtLeast(&'a DurableLog),
    /// The length once the image is closed.
    Exact,
}

/// The length of the image, in bytes.
pub(crate) fn image_length<P: Platform>(
    store: &Store<P>,
    log: &LogState,
    map: &Map,
    length: Length<'_>,
) -> u64 {
    let least = SUPERBLOCK_OFFSETS[1] + BLOCK_SIZE as u64;
    let shift = store.layout.segment_shift();
    let last = (0..map.segment_count()).rev().find_map(|index| {
        let segment = map.segment(index).filter(|segment| !segment.is_free())?;
        let used = match length {
            Length::Exact => {
                let whole = u64::from(store.layout.segment_size);
                store.log.used(log, index).unwrap_or(whole)
            }
            // The header of such a segment was certainly written.
            Length::AtLeast(durable) if segment.seq() <= durable.end() >> shift => {
                BLOCK_SIZE as u64
            }
            Length::AtLeast(_) => 0,
        };
        (used > 0).then(|| store.layout.segment_offset(index) + used)
    });
    last.unwrap_or(0).max(least)
}

/// Cuts off the free segments at the end of the file, but leaves `keep` bytes of it. Errors of the file are counted, and
/// do no harm.
pub(crate) fn truncate_free_end<P: Platform>(store: &Store<P>, keep: u64) {
    if store.file.fixed_size() {
        return;
    }
    let _hold = store.log.hold_file_end();
    let segments = store.log.lock().space.shrink();
    let keep = keep.max(store.layout.segment_offset(segments));
    let cut = store.file.len().and_then(|len| {
        if len > keep {
            store.file.truncate(keep)?;
        }
        Ok(())
    });
    store.log.lock().note(&cut);
}

/// Deallocates the segments that were reserved when the power failed: every one that is not in use. The file stays at
/// least `length` bytes long, because a superblock says so.
///
/// # Errors
///
/// Those of the backing file and of memory.
pub(crate) fn deallocate_unused<P: Platform>(store: &Store<P>, length: u64) -> Result {
    let (count, free) = {
        let log = store.log.lock();
        let map = store.map.lock();
        let mut free = Vec::new();
        for (index, segment) in (0..log.space.segments()).zip(map.segments()) {
            if segment.is_free() {
                free.push(store.layout.dispensable(index, 0))?;
            }
        }
        (log.space.segments(), free)
    };
    let end = store.layout.segment_offset(count).max(length);
    if !store.file.fixed_size() && store.file.len()? > end {
        store.file.truncate(end)?;
    }
    punch_ranges(store, &free, end)
}

/// Deallocates all that a closed image does not need: reserved segments, free ones, unused ends, and the file
/// behind `length` bytes.
///
/// # Errors
///
/// Those of the backing file and of memory.
pub(crate) fn shrink_to_fit<P: Platform>(store: &Store<P>, length: u64) -> Result {
    let size = u64::from(store.layout.segment_size);
    let free = {
        let log = store.log.lock();
        let map = store.map.lock();
        let mut free = Vec::new();
        for index in 0..log.space.segments() {
            let used = match store.log.used(&log, index) {
                Some(used) => used,
                None if map.segment(index).is_none_or(|s| s.is_free()) => 0,
                None => size,
            };
            if used < size {
                free.push(store.layout.dispensable(index, used))?;
            }
        }
        free
    };
    store.file.truncate(length)?;
    punch_ranges(store, &free, length)
}

/// Punches ranges (offset and length, in order) up to the `end` of the file. Neighbours share a call.
fn punch_ranges<P: Platform>(store: &Store<P>, ranges: &[(u64, u64)], end: u64) -> Result {
    let mut pending: Option<(u64, u64)> = None;
    for &(start, len) in ranges.iter().filter(|range| range.0 < end) {
        match &mut pending {
            Some((first, total)) if *first + *total == start => *total += len,
            _ => {
                if let Some((first, total)) = pending.replace((start, len)) {
                    store.file.punch(first, total)?;
                }
            }
        }
    }
    match pending {
        Some((first, total)) => store.file.punch(first, total.min(end - first)),
        None => Ok(()),
    }
}
