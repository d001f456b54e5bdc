// SPDX-License-Identifier: GPL-2.0
//! The policy of reclaim: how much garbage is worth any work, and which segments are emptied first.

use crate::engine::format::Layout;
use crate::engine::log::LogState;
use crate::engine::map::usage::{Segment, State, Total};
use crate::engine::map::Map;
use crate::engine::store::Store;
use crate::engine::Result;
use crate::platform::mem::Vec;
use crate::platform::Platform;

/// Segments chosen at once.
pub(super) const BATCH: usize = 16;
/// Segments looked at before others may take the locks: that takes a fraction of a millisecond.
const GLANCE: u64 = 1 << 13;
/// How much more it is worth to empty a segment that is free as soon as the log is durable than one that needs
/// checkpoints.
const SOON_FREE: u64 = 8;
/// Bound on the age of a segment in its score.
const OLDEST: u64 = 1 << 20;

/// How far reclaim goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effort {
    /// Beside users' writes: segments that cost little and give much.
    Busy,
    /// While users do not write: until little garbage is left.
    Idle,
    /// Before writers have to wait: as for those that wait, but only what is worth relocating.
    Ahead,
    /// For writers that wait: every segment that gives anything.
    Urgent,
    /// For compaction: the smallest image that is worth the work.
    Pack,
}

/// Garbage that is left alone when users do not write, in bytes. With it, the reserve and the metadata the image stays
/// within promise P3.
pub(crate) fn idle_garbage(total: &Total) -> u64 {
    total.live / 25 + (2 << 20)
}

/// Garbage above which reclaim works beside users' writes, in bytes.
pub(crate) fn busy_garbage(total: &Total) -> u64 {
    total.live / 4 + (64 << 20)
}

/// Bytes of garbage in a segment that make it worth relocating its live records, when there is time.
pub(super) fn worth_moving(layout: &Layout) -> u64 {
    u64::from(layout.segment_size) / 32
}

/// The score of a segment: the higher, the more it is worth emptying. Nothing if it is not.
///
/// Garbage is the benefit, and live bytes are the cost. When there is time to choose, age counts as
/// well: a record that was written long ago will stay, so its space stays gained (Rosenblum and Ousterhout,
/// "The design and implementation of a log-structured file system", 1992).
pub(super) fn score(
    layout: &Layout,
    log: &LogState,
    map: &Map,
    index: u64,
    effort: Effort,
) -> Option<u64> {
    let size = u64::from(layout.segment_size);
    let segment = map.segment(index)?;
    let garbage = gain(layout, segment, effort);
    // A segment far behind makes the image longer than it need be.
    let far = effort == Effort::Pack && index >= log.space.in_use();
    if segment.is_free()
        || segment.state() == State::Stuck
        || segment.is_dead()
        || (garbage < least_gain(layout, effort) && !far)
        || log.holds(index)
        || log.pending(layout.segment_offset(index), size)
    {
        return None;
    }
    let age = match effort {
        // A segment that needs checkpoints to be free is worth much less: they take space, and writers wait for them.
        Effort::Ahead | Effort::Urgent => match map.supersedable(segment) {
            true => SOON_FREE,
            false => 1,
        },
        _ => (map.newest_seq() - segment.seq()).min(OLDEST) + 1,
    };
    // Segments have at most 2^26 bytes, so the product does not overflow, and little is lost by the division.
    Some(((garbage.max(1) * age) << 16) / (size + segment.live_bytes()))
}

/// Bytes that emptying the segment gains.
fn gain(layout: &Layout, segment: &Segment, effort: Effort) -> u64 {
    match effort {
        // The image is to be short as well, so ranges that were punched count.
        Effort::Pack => segment.garbage(layout) + segment.punched(),
        _ => segment.garbage(layout),
    }
}

/// Bytes that emptying a segment must gain.
fn least_gain(layout: &Layout, effort: Effort) -> u64 {
    let size = u64::from(layout.segment_size);
    match effort {
        Effort::Busy => size / 2,
        Effort::Idle | Effort::Ahead | Effort::Pack => worth_moving(layout),
        Effort::Urgent => size / 256,
    }
}

/// The segments that are worth emptying most, the best one last. Other threads get the locks while it looks.
pub(super) fn victims<P: Platform>(store: &Store<P>, effort: Effort) -> Result<Vec<u64>> {
    let mut best: Vec<(u64, u64)> = Vec::with_capacity(BATCH + 1)?;
    let mut first = 0;
    loop {
        let log = store.log.lock();
        let map = store.map.lock();
        let end = map.segment_count().min(first + GLANCE);
        for index in first..end {
            if let Some(score) = score(&store.layout, &log, &map, index, effort) {
                keep_best(&mut best, score, index)?;
            }
        }
        if end == map.segment_count() {
            break;
        }
        first = end;
    }
    let mut victims = Vec::with_capacity(best.len())?;
    for &(_, index) in best.iter() {
        victims.push(index)?;
    }
    Ok(victims)
}

/// Enters a segment among the best ones, a batch at most, if it is one of them.
fn keep_best(best: &mut Vec<(u64, u64)>, score: u64, index: u64) -> Result {
    let at = best.partition_point(|&(other, _)| other < score);
    if at > 0 || best.len() < BATCH {
        best.insert(at, (score, index))?;
        if best.len() > BATCH {
            best.remove(0);
        }
    }
    Ok(())
}
