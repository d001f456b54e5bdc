// SPDX-License-Identifier: GPL-2.0
//! Compaction: relocates live records to shrink the image, until the remaining gain is not worth the I/O.

use super::{Effort, Maintenance, SharedMaintenance};
use crate::engine::map::reaper::Progress;
use crate::engine::store::Store;
use crate::engine::{Error, Result};
use crate::platform::{Monitor, MonitorGuard, Platform};

/// Rounds without gain after which compaction is over: the log's own end moves as well, so some rounds gain nothing.
const FRUITLESS: u32 = 6;
/// Milliseconds after which compaction looks again if background work may go on.
const QUIET_MS: u32 = 50;

/// Relocates live records to shrink the image, until the remaining gain is not worth the I/O. The lock of `maintenance` is
/// free between rounds; `go_on` is asked there with the garbage that is left, in bytes.
///
/// # Errors
///
/// Those of the log, and [`Error::Closed`].
pub(crate) fn compact<P: Platform>(
    store: &Store<P>,
    maintenance: &SharedMaintenance<P>,
    go_on: &mut dyn FnMut(u64) -> bool,
) -> Result {
    store.map.lock().retry_stuck();
    let mut best = u64::MAX;
    let mut patience = FRUITLESS;
    loop {
        let more = maintenance.lock().compact_round(store)?;
        let (size, garbage) = {
            let log = store.log.lock();
            let size = log.space.in_use() + log.space.segments();
            (size, store.map.lock().total(log.held()).garbage)
        };
        patience = if size < best { FRUITLESS } else { patience - 1 };
        best = best.min(size);
        let quiet = store.quiet();
        if quiet {
            patience = FRUITLESS;
            wait_while_quiet(store, &mut || go_on(garbage));
        }
        if !(more || quiet) || patience == 0 || !go_on(garbage) {
            break;
        }
    }
    maintenance.lock().settle(store)
}

impl<P: Platform> Maintenance<P> {
    /// Empties segments once, and frees them; false when there was nothing to move.
    fn compact_round(&mut self, store: &Store<P>) -> Result<bool> {
        store.check_open()?;
        let awaited = || store.codecs.announcement_awaited();
        let mut going = || !store.quiet() && !awaited() && !store.log.lock().closing();
        while self.reap(store)? == Progress::More && going() {}
        // Records are relocated to where the reserve is.
        store.log.move_reserve(&store.file);
        let emptied = self.empty_segments(store, Effort::Pack, usize::MAX, &mut going);
        self.give_back_memory();
        // The log itself may lie behind all other segments, and its records can be relocated once it has gone on.
        let moved = emptied? > 0 || far(store) && leave_segment(store)?;
        self.free_dead(store)?;
        self.deallocate_all(store);
        Ok(moved || awaited())
    }

    /// Frees the segments that the log has left last, which needs two more checkpoints. Once nothing dead is left, two more
    /// are needed before no superblock says that the image is longer.
    fn settle(&mut self, store: &Store<P>) -> Result {
        for _ in 0..FRUITLESS {
            self.free_dead(store)?;
            if store.total().dead == 0 {
                break;
            }
        }
        self.deallocate_all(store);
        self.free_dead(store)?;
        self.deallocate_all(store);
        Ok(())
    }
}

/// Waits as long as background work must not begin and `go_on` says so.
fn wait_while_quiet<P: Platform>(store: &Store<P>, go_on: &mut dyn FnMut() -> bool) {
    while store.quiet() && go_on() {
        store.log.lock().wait_idle(QUIET_MS);
    }
}

/// True if the log writes behind where the image could end.
fn far<P: Platform>(store: &Store<P>) -> bool {
    let log = store.log.lock();
    (log.space.in_use()..log.space.segments()).any(|index| log.is_current_or_next(index))
}

/// Has the log go on in another segment. False when there is no space for that: then the image stays as long as it is.
fn leave_segment<P: Platform>(store: &Store<P>) -> Result<bool> {
    match store.log.leave_segment(&store.file) {
        Ok(()) => Ok(true),
        Err(Error::NoSpace) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use crate::engine::io::write::Writer;
    use crate::engine::recovery::create::{create, CreateOptions};
    use crate::engine::recovery::open::{begin_writing, open, Expected};
    use crate::engine::space::SpaceClass;
    use crate::engine::{Access, Algorithm, Compression, Recompression, BLOCK_SIZE};
    use crate::platform::sim::Rng;
    use crate::platform::std::{Std, StdFile};
    use core::sync::atomic::Ordering;
    use std::vec;

    /// A write that must have a superblock before its record does not wait until the compaction has ended.
    #[test]
    fn a_compaction_makes_way_for_an_announcement() {
        let file = StdFile::from_file(tempfile::tempfile().unwrap()).unwrap();
        let options = CreateOptions {
            size: 1 << 24,
            record_size: 65_536,
            segment_size: 1 << 18,
            compression: Compression::of(Algorithm::Zstd),
            recompression: Recompression::OFF,
            uuid: [7; 16],
        };
        create::<Std>(&file, &options, false).unwrap();
        let mut opened = open::<Std>(file, Access::Write, Expected::Complete).unwrap();
        begin_writing(&mut opened).unwrap();
        let store = &*opened.store;
        let mut ws = store.workspace().unwrap();
        let (mut data, mut rng) = (vec![0; 16 * BLOCK_SIZE], Rng(5));
        for block in (0..2048).step_by(16) {
            for word in data.chunks_exact_mut(8) {
                word.copy_from_slice(&rng.next_u64().to_le_bytes());
            }
            let writer = Writer::new(store);
            writer
                .write(&mut ws, block, &data, SpaceClass::User)
                .unwrap();
            writer.zero(&mut ws.read, block + 4, 8).unwrap();
        }
        let moved = || store.counters.moved.load(Ordering::Relaxed);
        store.codecs.await_announcement(true);
        // There is more to do.
        assert_eq!(opened.maintenance.compact_round(store), Ok(true));
        assert_eq!(moved(), 0);
        store.codecs.await_announcement(false);
        assert_eq!(opened.maintenance.compact_round(store), Ok(true));
        assert!(moved() > 0);
    }
}
