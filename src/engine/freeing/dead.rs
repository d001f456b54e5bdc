// SPDX-License-Identifier: GPL-2.0
//! Segments in which nothing is live any more become free: when two checkpoints have found them dead, or as soon
//! as the durable log supersedes what either superblock has in them.

use crate::engine::store::{count, Store};
use crate::engine::Result;
use crate::platform::mem::Vec;
use crate::platform::{BackingFile, Monitor, Platform, Sabotage};

/// Segments that this checkpoint (`generation`, replay from sequence number `start`) and the one
/// before it found dead. They become free in the usage.
pub(crate) fn find_dead<P: Platform>(
    store: &Store<P>,
    start: u64,
    generation: u64,
) -> Result<Vec<u64>> {
    let mut dead = Vec::new();
    let tail = store.log.lock();
    let mut map = store.map.lock();
    for index in 0..map.usage.len() {
        let Some(segment) = map.usage.get(index) else {
            break;
        };
        let before = segment.dead_since;
        let replayed = segment.seq >= start && !P::sabotaged(Sabotage::EarlyReuse);
        let since = if segment.free || replayed || !segment.dead() || tail.holds(index) {
            0
        } else if before == 0 && !P::sabotaged(Sabotage::EarlyReuse) {
            generation
        } else {
            dead.push(index)?;
            map.usage.set_free(index);
            continue;
        };
        if since != before {
            map.usage
                .change_unstored(index, |segment| segment.dead_since = since);
        }
    }
    Ok(dead)
}

/// Frees the segments that neither superblock needs because the log supersedes what their tables have in them,
/// without a checkpoint: only the log must be durable. Not while a checkpoint is written. Returns how many.
pub(crate) fn free_superseded<P: Platform>(store: &Store<P>) -> Result<usize> {
    let mut found = Vec::new();
    {
        let tail = store.log.lock();
        let map = store.map.lock();
        if map.usage.total(tail.held()).dead == 0 {
            return Ok(0);
        }
        for (index, segment) in (0..).zip(map.usage.iter()) {
            let hasty = P::sabotaged(Sabotage::UnloggedFree) && !segment.free && segment.dead();
            if (map.usage.superseded(segment) || hasty) && !tail.holds(index) {
                found.push(index)?;
            }
        }
    }
    if found.is_empty() {
        return Ok(0);
    }
    if !P::sabotaged(Sabotage::EarlyFree) {
        store.log.sync(&store.file)?;
    }
    {
        let mut map = store.map.lock();
        for &index in found.iter() {
            map.usage.set_free(index);
        }
    }
    release(store, &found)?;
    count(&store.counters.freed, found.len() as u64);
    Ok(found.len())
}

/// Lets the log use free segments again, and gives the space of those back that it need not keep.
pub(crate) fn release<P: Platform>(store: &Store<P>, segments: &[u64]) -> Result {
    for &index in segments {
        if !store.log.keep(&store.file, index)? {
            store.log.give_back(&store.file, index)?;
        }
    }
    Ok(())
}

/// Frees what the newest checkpoint does not need, although the one before it may: on a full file system an
/// image that was not closed could not be opened otherwise. The reserve it had is among it. Only while
/// opening.
pub(crate) fn free_at_once<P: Platform>(store: &Store<P>) -> Result {
    let mut tail = store.log.lock();
    let mut map = store.map.lock();
    for index in 0..tail.space.allocator.count {
        if map
            .usage
            .get(index)
            .is_some_and(|s| !s.free && s.dead() && s.seq == 0)
        {
            map.usage.set_free(index);
            tail.space.allocator.release(index)?;
        }
    }
    Ok(())
}

/// Gives the space of what is dead back at once.
pub(crate) fn punch_dead<P: Platform>(store: &Store<P>) -> Result {
    let segments = store.map.lock().usage.len();
    for index in 0..segments {
        let dead = {
            let tail = store.log.lock();
            let map = store.map.lock();
            !tail.holds(index) && map.usage.get(index).is_some_and(|s| s.dead())
        };
        if dead {
            let size = u64::from(store.layout.segment_size);
            store.file.punch(store.layout.segment_offset(index), size)?;
        }
    }
    Ok(())
}
