// SPDX-License-Identifier: GPL-2.0
//! Segments in which nothing is live any more become free: when two checkpoints have found them dead, or as soon
//! as the durable log supersedes what either superblock has in them.

use crate::engine::map::usage::State;
use crate::engine::store::{count, Store};
use crate::engine::Result;
use crate::platform::mem::Vec;
use crate::platform::{BackingFile, Platform, Sabotage};

/// Segments that this checkpoint (replay from sequence number `start`) and the one
/// before it found dead. They become free in the usage.
pub(crate) fn find_dead<P: Platform>(store: &Store<P>, start: u64) -> Result<Vec<u64>> {
    let mut dead = Vec::new();
    let tail = store.log.lock();
    let mut map = store.map.lock();
    for index in 0..map.segment_count() {
        let Some(segment) = map.segment(index) else {
            break;
        };
        let state = segment.state();
        let replayed = segment.seq() >= start && !P::sabotaged(Sabotage::EarlyReuse);
        if state == State::Free {
            continue;
        }
        if replayed || !segment.is_dead() || tail.holds(index) {
            if state == State::FoundDead {
                map.set_in_use(index);
            }
        } else if state == State::FoundDead || P::sabotaged(Sabotage::EarlyReuse) {
            dead.push(index)?;
            map.set_free(index);
        } else {
            map.set_found_dead(index);
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
        if map.total(tail.held()).dead == 0 {
            return Ok(0);
        }
        for (index, segment) in (0..).zip(map.segments()) {
            let hasty =
                P::sabotaged(Sabotage::UnloggedFree) && !segment.is_free() && segment.is_dead();
            if (map.superseded(segment) || hasty) && !tail.holds(index) {
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
            map.set_free(index);
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
            .segment(index)
            .is_some_and(|s| !s.is_free() && s.is_dead() && s.seq() == 0)
        {
            map.set_free(index);
            tail.space.allocator.release(index)?;
        }
    }
    Ok(())
}

/// Gives the space of what is dead back at once.
pub(crate) fn punch_dead<P: Platform>(store: &Store<P>) -> Result {
    let segments = store.map.lock().segment_count();
    for index in 0..segments {
        let dead = {
            let tail = store.log.lock();
            let map = store.map.lock();
            !tail.holds(index) && map.segment(index).is_some_and(|s| s.is_dead())
        };
        if dead {
            let size = u64::from(store.layout.segment_size);
            store.file.punch(store.layout.segment_offset(index), size)?;
        }
    }
    Ok(())
}
