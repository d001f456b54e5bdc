// SPDX-License-Identifier: GPL-2.0
//! Dead segments, in which no record is live, become free: when two checkpoints in a row have found them dead, or as soon
//! as the durable log supersedes the records in them that either superblock leads to. So each of the two superblocks keeps
//! what it needs (I11).

use super::unneeded::{Superseded, Unneeded};
use crate::engine::log::LogState;
use crate::engine::map::usage::State;
use crate::engine::map::Map;
use crate::engine::space::{Backing, Demand, Surplus};
use crate::engine::store::{count, Store};
use crate::engine::Result;
use crate::platform::mem::Vec;
use crate::platform::{BackingFile, Platform, Sabotage};

/// Segments of which the dead ones are looked for before others may take the locks: 64 of them take a step.
const GLANCE: u64 = 1 << 18;
/// Dead segments looked at before others may take the locks.
const LOOKS: u64 = 1 << 10;

/// Finds the segments that this checkpoint, whose replay starts at sequence number `start`, and the one before it found
/// dead. They become free in the segment usage. One for which there is no memory stays dead, and the next checkpoint finds
/// it again.
pub(crate) fn find_dead<P: Platform>(store: &Store<P>, start: u64) -> Unneeded<u64> {
    let mut dead = Vec::new();
    for_each_dead(store, |log, map, index| {
        let Some(segment) = map.segment(index) else {
            return;
        };
        let state = segment.state();
        // A replay from the older superblock goes through the segments from its log start on (I12).
        let replayed = segment.seq() >= start && !P::sabotaged(Sabotage::EarlyReuse);
        if replayed || log.holds(index) {
            if state == State::FoundDead {
                map.set_in_use(index);
            }
        } else if state == State::FoundDead || P::sabotaged(Sabotage::EarlyReuse) {
            if dead.push(index).is_ok() {
                map.set_free(index);
            }
        } else {
            map.set_found_dead(index);
        }
    });
    Unneeded::dead_twice(dead)
}

/// Calls `look` with each segment that holds nothing live and is not free, under the locks of the log and the map. Other
/// threads get the locks in between, so what `look` finds out must stay true as long as the caller frees segments.
fn for_each_dead<P: Platform>(store: &Store<P>, mut look: impl FnMut(&LogState, &mut Map, u64)) {
    let mut next = 0;
    let mut more = true;
    while more {
        let log = store.log.lock();
        let mut map = store.map.lock();
        (next, more) = glance(&mut map, next, |map, index| look(&log, map, index));
    }
}

/// Calls `look` with dead segments from `first` on, but not for longer than the locks may be held. Returns the segment to go
/// on at, and whether there are more.
fn glance(map: &mut Map, first: u64, mut look: impl FnMut(&mut Map, u64)) -> (u64, bool) {
    let count = map.segment_count();
    let end = count.min(first + GLANCE);
    let mut next = first;
    for _ in 0..LOOKS {
        let Some(index) = map.next_dead(next..end) else {
            return (end, end < count);
        };
        look(map, index);
        next = index + 1;
    }
    (next, true)
}

/// Frees the segments that neither superblock needs because the log supersedes the records in them, without a checkpoint:
/// only the log must be durable. No checkpoint may be under way.
///
/// # Errors
///
/// Those of the log and of memory.
pub(crate) fn free_superseded<P: Platform>(store: &Store<P>) -> Result {
    let Some(found) = find_superseded(store)? else {
        return Ok(());
    };
    let log = store.log.sync_unless(Sabotage::EarlyFree, &store.file)?;
    let unneeded = found.durably(&log);
    {
        let mut map = store.map.lock();
        for &index in unneeded.iter() {
            map.set_free(index);
        }
    }
    free(store, &unneeded);
    Ok(())
}

/// Finds the segments that the log supersedes, if there are any.
fn find_superseded<P: Platform>(store: &Store<P>) -> Result<Option<Superseded<u64>>> {
    let mut found = Vec::new();
    let mut pushed = Ok(());
    for_each_dead(store, |log, map, index| {
        let Some(segment) = map.segment(index) else {
            return;
        };
        let superseded = map.superseded(segment) || P::sabotaged(Sabotage::UnloggedFree);
        if superseded && !log.holds(index) && pushed.is_ok() {
            pushed = found.push(index);
        }
    });
    pushed?;
    // What supersedes the first of them is in the log by now as well.
    Ok((!found.is_empty()).then(|| Superseded::new(&store.log.lock(), found)))
}

/// Lets the log use segments again that are free in the segment usage. Those that the reserve does not need hold their space
/// until no read is under way, unless others need it.
pub(crate) fn free<P: Platform>(store: &Store<P>, segments: &Unneeded<u64>) {
    let settled = store.log.lock().settled();
    for &index in segments.iter() {
        let map = store.map.lock();
        let segment = map.segment(index);
        let complete = segment.is_some_and(|segment| segment.is_complete(&store.layout, &settled));
        drop(map);
        let kept = store.log.keep_in_reserve(&store.file, index, complete);
        if kept != Ok(true) {
            let backing = match complete {
                true => Backing::Warm,
                false => Backing::Partial,
            };
            store.log.release(index, backing);
        }
    }
    deallocate_needed(store);
    count(&store.counters.freed, segments.len() as u64);
}

/// Gives back what free segments hold and others need.
pub(crate) fn deallocate_needed<P: Platform>(store: &Store<P>) {
    let needed = || store.log.lock().space.surplus(Demand::Writes) == Surplus::Needed;
    while needed() && store.log.deallocate_surplus(&store.file, Demand::Writes) {}
}

/// Punches ranges of segment `index`. A range is the offset of its first byte and of the byte behind it.
///
/// # Errors
///
/// Those of the backing file.
pub(crate) fn punch<P: Platform>(
    store: &Store<P>,
    index: u64,
    ranges: &Unneeded<(usize, usize)>,
) -> Result {
    let base = store.layout.segment_offset(index);
    for &(from, to) in ranges.iter() {
        store.file.punch(base + from as u64, (to - from) as u64)?;
    }
    Ok(())
}

/// Frees the segments that the newest checkpoint does not need, although the one before it may: on a full file system an
/// image that was not closed could not be opened otherwise. The reserve of the last open is among them. For opening only.
pub(crate) fn free_at_once<P: Platform>(store: &Store<P>) {
    let mut log = store.log.lock();
    let mut map = store.map.lock();
    for index in 0..log.space.segments() {
        if map
            .segment(index)
            .is_some_and(|s| !s.is_free() && s.is_dead() && s.seq() == 0)
        {
            map.set_free(index);
            log.space.release(index);
        }
    }
}

/// Punches all dead segments at once, whatever the superblocks need: for [`Sabotage::EarlyPunch`] only.
pub(crate) fn punch_dead<P: Platform>(store: &Store<P>) -> Result {
    let segments = store.map.lock().segment_count();
    for index in 0..segments {
        let dead = {
            let log = store.log.lock();
            let map = store.map.lock();
            !log.holds(index) && map.segment(index).is_some_and(|s| s.is_dead())
        };
        if dead {
            let size = u64::from(store.layout.segment_size);
            store.file.punch(store.layout.segment_offset(index), size)?;
        }
    }
    Ok(())
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use super::*;
    use crate::engine::format::{Entry, Fingerprints, Layout};
    use crate::engine::map::table::Table;
    use crate::engine::{
        Access, Algorithm, Compression, CreateOptions, Recompression, Volume, BLOCK_SIZE,
    };
    use crate::platform::std::mem::set_failing_allocation;
    use crate::platform::std::{Std, StdFile};

    /// Segments that the segment usage calls free, or does not know yet, and that nothing can use.
    fn lost(store: &Store<Std>) -> u64 {
        let log = store.log.lock();
        let map = store.map.lock();
        let free = (0..log.space.segments())
            .filter(|&index| map.segment(index).is_none_or(|s| s.is_free()) && !log.holds(index));
        free.count() as u64 - log.space.free()
    }

    /// However many segments an image has, and however many of them are dead, the locks are held for a bounded number of
    /// steps, and only the dead ones are looked at.
    #[test]
    fn dead_segments_are_found_without_a_look_at_the_others() {
        const COUNT: u64 = 1 << 21;
        const DEAD: u64 = 5000;
        let layout = Layout {
            record_size: 4096,
            segment_size: 1 << 20,
            uuid: [0; 16],
        };
        let fingerprints = Fingerprints::empty(1).unwrap();
        let table = Table::new(1, Entry::HOLE);
        let mut map = Map::new(table, layout, 0, fingerprints).unwrap();
        map.grow_segments(COUNT - 1).unwrap();
        let dead = |n: u64| COUNT - 1 - n * n / 13 % COUNT;
        for n in 0..DEAD {
            map.identify_segment(dead(n), 1);
        }
        let mut expected: std::vec::Vec<u64> = (0..DEAD).map(dead).collect();
        expected.sort_unstable();
        expected.dedup();
        let mut found = std::vec::Vec::new();
        let (mut next, mut more, mut glances) = (0, true, 0);
        while more {
            let before = (found.len() as u64, next);
            (next, more) = glance(&mut map, next, |_, index| found.push(index));
            glances += 1;
            assert!(found.len() as u64 - before.0 <= LOOKS);
            assert!(next - before.1 <= GLANCE);
        }
        assert_eq!(found, expected);
        assert!(glances <= COUNT / GLANCE + DEAD / LOOKS + 1, "{glances}");
    }

    /// A failed allocation while dead segments are freed loses none of them.
    #[test]
    fn no_segment_is_lost_for_lack_of_memory() {
        let file = StdFile::from_file(tempfile::tempfile().unwrap()).unwrap();
        let options = CreateOptions {
            size: 64 << 20,
            record_size: 4096,
            segment_size: 1 << 18,
            compression: Compression::of(Algorithm::Raw),
            recompression: Recompression::OFF,
            uuid: [7; 16],
        };
        Volume::<Std>::create(&file, &options).unwrap();
        let volume = Volume::<Std>::open(file, Access::Write).unwrap();
        let mut ws = volume.workspace().unwrap();
        let data = [1; 64 * BLOCK_SIZE];
        let mut freed = 0;
        for failing in 0..60 {
            // Two checkpoints free what dies in the first round, and the second allocates while memory is short.
            for round in 0..2 {
                for block in (0..1024).step_by(64) {
                    volume.write(&mut ws, block, &data).unwrap();
                }
                set_failing_allocation((round == 1).then_some(failing));
                let _ = volume.checkpoint();
                set_failing_allocation(None);
            }
            for _ in 0..2 {
                volume.checkpoint().unwrap();
            }
            // Compaction exchanges reserved segments, and ends with a smaller reserve.
            set_failing_allocation(Some(failing));
            let _ = volume.compact(&mut |_| true);
            set_failing_allocation(None);
            volume.checkpoint().unwrap();
            // Those that are being given back are nowhere for a moment.
            let found = (0..1000).any(|_| {
                std::thread::sleep(std::time::Duration::from_millis(1));
                lost(&volume.store) == 0
            });
            assert!(found, "allocation {failing} failed");
            let now = volume.stats().unwrap().freed_segments;
            assert!(now > freed);
            freed = now;
        }
    }
}
