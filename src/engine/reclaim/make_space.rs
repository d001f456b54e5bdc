// SPDX-License-Identifier: GPL-2.0
//! Finding space for writers that wait for it.

use super::policy::{Effort, BATCH};
use super::Maintenance;
use crate::engine::freeing;
use crate::engine::map::reaper::Progress;
use crate::engine::map::usage::Total;
use crate::engine::space::CheckpointCost;
use crate::engine::store::Store;
use crate::engine::Result;
use crate::platform::Platform;

/// Segments to be found, beside those that the writers that wait need.
const GAIN: u64 = 2;
/// Dead segments that wait for the next checkpoints to be free, beside users' writes.
const UNFREED: u64 = 4;
/// Rounds without gain after which there is no space to be found.
const FRUITLESS: u32 = 8;

/// What there is for writers, and what there was.
struct View {
    /// Bytes that writers may use or have used since the open: it grows only by what reclaim and checkpoints find, whatever
    /// writers take meanwhile.
    found: i64,
    /// Bytes that the waiting writers need.
    wanted: i64,
    /// The sums over all segments.
    total: Total,
    /// Segments that two checkpoints need.
    checkpoints: u64,
}

impl View {
    fn of<P: Platform>(store: &Store<P>) -> Self {
        let size = i64::from(store.layout.segment_size);
        let checkpoints = store.log.checkpoint_cost.segments(&store.layout);
        let state = store.log.lock();
        let segments = (state.space.reserved() + state.space.free()) as i64 - checkpoints as i64;
        Self {
            found: segments * size + i64::from(store.log.left(&state)) + state.user_bytes() as i64,
            wanted: state.space.wanted(store.log.usable()) as i64 * size,
            total: store.map.lock().total(state.held()),
            checkpoints,
        }
    }
}

impl<P: Platform> Maintenance<P> {
    /// Finds space for writers that wait, while others take what it finds. False when there is none to be found.
    ///
    /// # Errors
    ///
    /// Those of the log and of memory.
    pub(crate) fn make_space(&mut self, store: &Store<P>) -> Result<bool> {
        while self.reap(store)? == Progress::More && !store.log.lock().stopping() {}
        freeing::deallocate_needed(store);
        let before = View::of(store);
        let size = i64::from(store.layout.segment_size);
        freeing::free_superseded(store)?;
        let mut fruitless = 0;
        // Writers are given what each round gains. So the rounds are small ones, unless they gain nothing.
        let mut limit = 1;
        loop {
            let view = View::of(store);
            if view.found > before.found + GAIN as i64 * size + view.wanted {
                break;
            }
            let round = self.empty_and_free(store, &view, limit)?;
            let now = View::of(store);
            if now.found > view.found {
                limit = 1;
                continue;
            }
            if round.emptied == limit && limit < BATCH {
                limit *= 2;
                continue;
            }
            fruitless += u32::from(now.total.garbage + size as u64 / 64 >= view.total.garbage);
            let lost = round.settled && now.found + size <= view.found;
            if round.emptied == 0 || fruitless == FRUITLESS || lost {
                break;
            }
        }
        let found = View::of(store).found - before.found;
        store.log.lock().space.pay(found.max(0) as u64);
        Ok(found > 0)
    }

    /// Gains what is owed to users, before they have to wait for it. False if there is nothing to gain.
    ///
    /// # Errors
    ///
    /// Those of the log and of memory.
    pub(crate) fn gain_ahead(&mut self, store: &Store<P>) -> Result<bool> {
        let owed = store.log.lock().space.owed();
        let mut gained = 0;
        let mut emptied = 0;
        while gained < owed && emptied < BATCH {
            let before = self.gained;
            let mut going = || {
                let state = store.log.lock();
                !state.stopping() && !state.space.waits(u64::MAX)
            };
            if self.empty_segments(store, Effort::Ahead, 1, &mut going)? == 0 {
                break;
            }
            gained += self.gained - before;
            emptied += 1;
        }
        store.log.lock().space.pay(gained);
        freeing::free_superseded(store)?;
        // Others need checkpoints to be free.
        if store.total().dead > UNFREED {
            self.free_dead(store)?;
        }
        store.watch_space();
        Ok(emptied > 0)
    }

    /// One round: empties up to `limit` segments, and frees the dead ones. `before` is what there was before it.
    fn empty_and_free(&mut self, store: &Store<P>, before: &View, limit: usize) -> Result<Round> {
        let mut going = || !store.log.lock().stopping();
        let movable = before.total.garbage - before.total.stuck;
        let emptied = match movable >= u64::from(store.layout.segment_size) {
            true => self.empty_segments(store, Effort::Urgent, limit, &mut going)?,
            false => 0,
        };
        freeing::free_superseded(store)?;
        let now = View::of(store);
        // Segments that held nodes of the table, and young ones, need checkpoints to be free. Those cost space as well, but
        // leave less to be stored by the next ones. A larger round comes before them.
        let gains = now.total.dead + now.total.stuck > 0
            || now.checkpoints > CheckpointCost::LEAST_SEGMENTS;
        let last = limit == BATCH || emptied < limit;
        let settled = now.found <= before.found && gains && last;
        if settled {
            self.free_dead(store)?;
        }
        Ok(Round { emptied, settled })
    }
}

/// The result of a round.
struct Round {
    /// Segments emptied.
    emptied: usize,
    /// Checkpoints were written.
    settled: bool,
}
