// SPDX-License-Identifier: GPL-2.0
//! Step 5, and its preparation: a superblock that leads to the new tables.

use super::CheckpointState;
use crate::engine::format::{
    Algorithm, Entry, Kind, RecordHeader, Superblock, BLOCK_SIZE, SUPERBLOCK_OFFSETS,
    SUPERBLOCK_RECORD,
};
use crate::engine::log::{DurableLog, EncodedRecord};
use crate::engine::space::SpaceClass;
use crate::engine::store::Store;
use crate::engine::{Error, Result};
use crate::platform::{BackingFile, MonitorGuard, Platform, Sabotage};

impl<P: Platform> CheckpointState<P> {
    /// Appends a copy of the superblock to come, from which a repair goes on when both slots are lost: it leads to the
    /// table and to the log behind it. The segment usage follows it, and says that its segment is in use.
    pub(crate) fn append_superblock(&mut self, store: &Store<P>, next: &Superblock) -> Result {
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

    /// Writes superblocks that differ from the last one in what `change` does, to both slots: from then on neither leads to
    /// an image without it. Both lead to the same checkpoint.
    ///
    /// # Errors
    ///
    /// [`Error::NoSpace`], which leaves everything as it was, and those of [`commit`](Self::commit).
    pub(crate) fn rewrite(
        &mut self,
        store: &Store<P>,
        change: impl FnOnce(&mut Superblock),
    ) -> Result {
        let mut next = self.superblock;
        change(&mut next);
        // A repair that finds neither superblock learns of it from the log.
        let generation = next.generation + 2;
        self.append_superblock(store, &Superblock { generation, ..next })?;
        let durable = store.log.sync(&store.file)?;
        while next.generation < generation {
            next.generation += 1;
            self.commit(store, &next, &durable)?;
        }
        Ok(())
    }

    /// Makes both superblocks say that there may be records of Zstandard, unless they say so already.
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`], and those of [`rewrite`](Self::rewrite).
    pub(crate) fn announce_zstd(&mut self, store: &Store<P>) -> Result {
        if store.codecs.may_make(Algorithm::Zstd) {
            return Ok(());
        }
        store.codecs.prepare_announcement()?;
        match P::sabotaged(Sabotage::LateFeature) {
            // The superblocks that are written from now on say it: too late.
            true => self.superblock.zstd = true,
            false => self.rewrite(store, |superblock| superblock.zstd = true)?,
        }
        store.codecs.announced();
        Ok(())
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
        let written = self.check_slots(store);
        if let Err(error) = written.and_then(|()| self.write_slot(store, &next)) {
            let mut log = store.log.lock();
            log.fail(error);
            // Some may wait for space that will not come.
            log.notify_all();
            return Err(error);
        }
        self.slots[next.slot()] = Some(SlotIdentity::of(&next));
        self.older_length = self.superblock.length;
        self.superblock = next;
        Ok(())
    }

    /// Writes a superblock into the slot of its generation, durably. The other slot stays valid meanwhile (I10).
    fn write_slot(&mut self, store: &Store<P>, superblock: &Superblock) -> Result {
        if P::sabotaged(Sabotage::BothSuperblocks) {
            let mut other = *superblock;
            other.generation += 1;
            self.write_page(store, &other)?;
        }
        self.write_page(store, superblock)?;
        store.log.sync_file(&store.file)
    }

    fn write_page(&mut self, store: &Store<P>, superblock: &Superblock) -> Result {
        let page = &mut self.page[..BLOCK_SIZE];
        superblock.encode::<P>(page);
        self.fingerprints.encode::<P>(superblock, page);
        store
            .log
            .write_superblock(&store.file, page, superblock.offset())
    }

    /// Looks if the superblocks are those that this volume knows. If another program or device that leads to the same
    /// file writes to the image as well, its log and this one destroy each other, so this one must stop, and must not
    /// overwrite the other one's superblock.
    ///
    /// A slot that cannot be read or holds no superblock tells of no other writer, and is written anew.
    ///
    /// # Errors
    ///
    /// [`Error::Foreign`].
    pub(crate) fn check_slots(&mut self, store: &Store<P>) -> Result {
        if P::sabotaged(Sabotage::BlindCheckpoint) || P::sabotaged(Sabotage::BothSuperblocks) {
            return Ok(());
        }
        for (known, offset) in self.slots.into_iter().zip(SUPERBLOCK_OFFSETS) {
            let Some(known) = known else { continue };
            let page = &mut self.page[..BLOCK_SIZE];
            let read = store.file.read_at(page, offset);
            let found = match read.and_then(|()| Superblock::decode::<P>(page, offset)) {
                Ok(found) => (found.layout.uuid, SlotIdentity::of(&found)),
                Err(Error::Version(_) | Error::Feature(_)) => return Err(Error::Foreign),
                Err(_) => continue,
            };
            if found != (store.layout.uuid, known) {
                return Err(Error::Foreign);
            }
        }
        Ok(())
    }
}

/// The part of a superblock that no other one of the image has in common with it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct SlotIdentity {
    generation: u64,
    epoch: u64,
    salt: u64,
}

impl SlotIdentity {
    /// The identity of a superblock.
    pub(crate) fn of(superblock: &Superblock) -> Self {
        Self {
            generation: superblock.generation,
            epoch: superblock.epoch,
            salt: superblock.salt,
        }
    }
}
