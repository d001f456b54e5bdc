// SPDX-License-Identifier: GPL-2.0
//! The path of a discard or write-zeroes.

use super::write::Writer;
use crate::engine::format::{Kind, RecordHeader, NODE_SHIFT};
use crate::engine::log::EncodedRecord;
use crate::engine::map::load::Missing;
use crate::engine::map::range::Survey;
use crate::engine::records::ReadBuffers;
use crate::engine::space::SpaceClass;
use crate::engine::Result;
use crate::platform::{MonitorGuard, Platform, Sabotage};
use core::ops::Range;

/// The most blocks that one zero record covers: those below one table node above the leaves. So the time that replaying a
/// record takes is bounded.
const ZERO_SPAN: u64 = 1 << (2 * NODE_SHIFT);

/// The end of the blocks of a zero record: the block behind the last one. `None` if they do not lie within one unit of
/// [`ZERO_SPAN`].
pub(crate) fn zero_end(block: u64, count: u64) -> Option<u64> {
    let end = block.checked_add(count)?;
    (count > 0 && (end - 1) / ZERO_SPAN == block / ZERO_SPAN).then_some(end)
}

impl<P: Platform> Writer<'_, P> {
    /// Makes `count` blocks from `block` on, all on the device, read as zeros. Blocks that are not mapped cost no space in
    /// the log.
    ///
    /// The range is discarded in pieces, so that no lock is held for long.
    ///
    /// # Errors
    ///
    /// Those of [`Log::slot`](crate::engine::log::Log::slot) and of [`Loader::node`](crate::engine::map::load::Loader::node).
    pub(crate) fn zero(&self, buffers: &mut ReadBuffers, block: u64, count: u64) -> Result {
        let (mut at, end) = (block, block + count);
        while at < end {
            let survey = self.map.lock().survey(at..end, ZERO_SPAN);
            match survey {
                // All blocks are zeros at this moment, which is the place of this operation in the order of writes.
                Survey::Nothing(next) => at = next,
                Survey::Piece(piece) => {
                    if self.zero_piece(&piece)? {
                        at = piece.end;
                    }
                }
                Survey::Unloaded(id) if P::sabotaged(Sabotage::UnloadedHole) => {
                    at = id.end_block().min(end);
                }
                Survey::Unloaded(id) => {
                    self.loader.node(buffers, id, Missing::Leave)?;
                }
            }
        }
        let log = self.log.lock();
        if self.map.may_have_detached() {
            // The maintenance thread reaps the detached subtrees.
            log.notify_all();
        }
        log.check()
    }

    /// Discards a piece of a range in one critical section, with one zero record. False if the table has changed so much
    /// that it must be surveyed again.
    // A stack frame of its own, as that of `write_record`.
    #[inline(never)]
    fn zero_piece(&self, piece: &Range<u64>) -> Result<bool> {
        let (block, count) = (piece.start, piece.end - piece.start);
        let length = count.to_le_bytes();
        let header = RecordHeader::plain(Kind::Zero, block);
        let record = EncodedRecord::new::<P>(header, &length, &[]);
        if P::sabotaged(Sabotage::EarlyDiscard) {
            P::placed(block, count);
            self.map.lock().discard(block, count)?;
        }
        let slot = self.log.slot(self.file, &record, SpaceClass::Discard)?;
        {
            let mut map = self.map.lock();
            map.enter(slot.placed())?;
            if !map.can_discard(piece) {
                return Ok(false);
            }
        }
        slot.commit(|_| {
            let mut map = self.map.lock();
            if !P::sabotaged(Sabotage::EarlyDiscard) {
                P::placed(block, count);
                map.discard(block, count)?;
            }
            Ok(())
        })?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use crate::engine::{
        Access, Algorithm, Compression, CreateOptions, Recompression, Volume, BLOCK_SIZE,
    };
    use crate::platform::std::{Std, StdFile};

    /// Blocks below a leaf of the sector table.
    const LEAF: u64 = 512;

    /// A device of so many blocks, of which those at `mapped` hold data.
    fn device(blocks: u64, mapped: impl Iterator<Item = u64>) -> Volume<Std> {
        let file = StdFile::from_file(tempfile::tempfile().unwrap()).unwrap();
        let options = CreateOptions {
            size: blocks * BLOCK_SIZE as u64,
            record_size: 4096,
            segment_size: crate::engine::DEFAULT_SEGMENT_SIZE,
            compression: Compression::of(Algorithm::Lz4),
            recompression: Recompression::OFF,
            uuid: [7; 16],
        };
        Volume::<Std>::create(&file, &options).unwrap();
        let volume = Volume::<Std>::open(file, Access::Write).unwrap();
        let mut ws = volume.workspace().unwrap();
        for block in mapped {
            volume.write(&mut ws, block, &[1; BLOCK_SIZE]).unwrap();
        }
        volume
    }

    /// P7: the locks of log and map are held for four leaves at a time, whatever a discard covers.
    #[test]
    fn a_discard_of_loaded_leaves_holds_no_lock_for_long() {
        let blocks = 1200 * LEAF;
        let volume = device(blocks, (0..1200).map(|leaf| leaf * LEAF + leaf % LEAF));
        let mut ws = volume.workspace().unwrap();
        volume.store.map.take_work();
        volume.zero(&mut ws, 5, blocks - 10).unwrap();
        let [longest, _] = volume.store.map.take_work();
        assert!(longest <= 5 * LEAF, "{longest} nodes and entries at a time");
        assert_eq!(volume.stats().unwrap().mapped_blocks, 1);
    }

    /// P4: what was never written costs nothing, on the largest device too.
    #[test]
    fn a_discard_costs_by_nodes_and_not_by_size() {
        let blocks = 1 << 38;
        let volume = device(blocks, [0, blocks / 3, blocks - 1].into_iter());
        let mut ws = volume.workspace().unwrap();
        volume.store.map.take_work();
        volume.zero(&mut ws, 0, blocks).unwrap();
        let [_, sum] = volume.store.map.take_work();
        assert_eq!(volume.stats().unwrap().mapped_blocks, 0);
        // Up to 511 absent children on each side of each loaded node, and the leaves.
        assert!(sum < 20_000, "{sum} nodes and entries");
    }
}
