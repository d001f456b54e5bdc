// SPDX-License-Identifier: GPL-2.0
//! Finding space for writers that wait for it.

use super::policy::{Effort, BATCH};
use super::Maintenance;
use crate::engine::freeing;
use crate::engine::map::reaper::Progress;
use crate::engine::map::usage::Total;
use crate::engine::store::Store;
use crate::engine::Result;
use crate::platform::Platform;

/// Segments to be found for writers that wait.
const GAIN: u64 = 2;
/// Rounds without gain after which there is no space to be found.
const FRUITLESS: u32 = 8;

/// Number of segments that are reserved or free, and the sums over all segments.
fn look<P: Platform>(store: &Store<P>) -> (u64, Total) {
    let tail = store.log.lock();
    let available = tail.space.reserved() + tail.space.free();
    let total = store.map.lock().total(tail.held());
    (available, total)
}

impl<P: Platform> Maintenance<P> {
    /// Finds space for writers that wait. False when there is none to be found.
    ///
    /// # Errors
    ///
    /// Those of the log and of memory.
    pub(crate) fn make_space(&mut self, store: &Store<P>) -> Result<bool> {
        while self.reap(store)? == Progress::More && !store.log.lock().stopping() {}
        let (before, _) = look(store);
        freeing::free_superseded(store)?;
        let mut fruitless = 0;
        loop {
            let (available, total) = look(store);
            if available > before + GAIN {
                break;
            }
            let round = self.empty_and_free(store, available, &total)?;
            let (now, left) = look(store);
            if now > available {
                continue;
            }
            let size = u64::from(store.layout.segment_size);
            fruitless += u32::from(left.garbage + size / 64 >= total.garbage);
            let lost = round.settled && now < available;
            if round.emptied == 0 || fruitless == FRUITLESS || lost {
                break;
            }
        }
        Ok(look(store).0 > before)
    }

    /// One round: empties segments, and frees the dead ones. There were `available` segments and `total` before it.
    fn empty_and_free(&mut self, store: &Store<P>, available: u64, total: &Total) -> Result<Round> {
        let mut going = || !store.log.lock().stopping();
        let emptied = match total.garbage - total.stuck >= u64::from(store.layout.segment_size) {
            true => self.empty_segments(store, Effort::Urgent, BATCH, &mut going)?,
            false => 0,
        };
        freeing::free_superseded(store)?;
        let (now, left) = look(store);
        // Segments that held nodes of the table, and young ones, need checkpoints to be free. Those cost space as well.
        let settled = now <= available && left.dead + left.stuck > 0;
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
