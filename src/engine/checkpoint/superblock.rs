// SPDX-License-Identifier: GPL-2.0
//! Step 5, and its preparation: a superblock that leads to the new tables.

use super::CheckpointState;
use crate::engine::format::{Entry, Kind, RecordHeader, Superblock, BLOCK_SIZE, SUPERBLOCK_RECORD};
use crate::engine::log::{DurableLog, EncodedRecord};
use crate::engine::space::SpaceClass;
use crate::engine::store::Store;
use crate::engine::Result;
use crate::platform::mem::Buf;
use crate::platform::{MonitorGuard, Platform, Sabotage};

impl<P: Platform> CheckpointState<P> {
    /// Appends a copy of the superblock to come, from which a repair goes on when both slots are lost: it leads to the
    /// table and to the log behind it. The segment usage follows it, and says that its segment is in use.
    pub(super) fn append_superblock(&mut self, store: &Store<P>, next: &Superblock) -> Result {
        let copy = Superblock {
            clean: false,
            log_end: 0,
            usage_root: Entry::HOLE,
            usage_segments: 0,
            length: 0,
            ..*next
        };
        copy.encode::<P>(&mut self.page[..BLOCK_SIZE]);
        let header = RecordHeader::plain(Kind::Checkpoint, 0);
        let record = EncodedRecord::new::<P>(header, &[], &self.page[..SUPERBLOCK_RECORD]);
        let slot = store
            .log
            .slot(&store.file, &record, SpaceClass::Checkpoint)?;
        store.map.lock().enter(slot.placed())?;
        slot.commit(|_| Ok(()))
    }

    /// Writes `next` durably as the superblock of the next generation. The log it leads to must be durable, which `log`
    /// proves (I9). If the write fails, the volume stops writing: the slot may hold anything now, and the log must not move
    /// on from the other one.
    pub(crate) fn commit(
        &mut self,
        store: &Store<P>,
        next: &Superblock,
        log: &DurableLog,
    ) -> Result {
        let next = Superblock {
            log_end: log.end(),
            ..*next
        };
        if let Err(error) = write(store, &next, &mut self.page) {
            let mut log = store.log.lock();
            log.fail(error);
            // Some may wait for space that will not come.
            log.notify_all();
            return Err(error);
        }
        self.superblock = next;
        Ok(())
    }
}

/// Writes a superblock into the slot of its generation, durably. The other slot stays valid meanwhile (I10).
fn write<P: Platform>(store: &Store<P>, superblock: &Superblock, page: &mut Buf) -> Result {
    if P::sabotaged(Sabotage::BothSuperblocks) {
        let mut other = *superblock;
        other.generation += 1;
        other.encode::<P>(&mut page[..BLOCK_SIZE]);
        let page = &page[..BLOCK_SIZE];
        store
            .log
            .write_superblock(&store.file, page, other.offset())?;
    }
    superblock.encode::<P>(&mut page[..BLOCK_SIZE]);
    let page = &page[..BLOCK_SIZE];
    store
        .log
        .write_superblock(&store.file, page, superblock.offset())?;
    store.log.sync_file(&store.file)
}
