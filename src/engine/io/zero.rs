// SPDX-License-Identifier: GPL-2.0
//! The path of a discard or write-zeroes.

use super::write::Writer;
use crate::engine::format::{Kind, RecordHeader, NODE_SHIFT};
use crate::engine::log::EncodedRecord;
use crate::engine::map::load::Missing;
use crate::engine::space::SpaceClass;
use crate::engine::workspace::Workspace;
use crate::engine::Result;
use crate::platform::{MonitorGuard, Platform, Sabotage};

/// The most blocks that one zero record covers: those below one table node above the leaves, which bounds the time in the
/// critical section.
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
    /// # Errors
    ///
    /// Those of [`Log::slot`](crate::engine::log::Log::slot) and of [`Loader::leaf`](crate::engine::map::load::Loader::leaf).
    pub(crate) fn zero(&self, ws: &mut Workspace<P>, block: u64, count: u64) -> Result {
        let (mut at, end) = (block, block + count);
        while at < end {
            let next = (at / ZERO_SPAN + 1) * ZERO_SPAN;
            let n = end.min(next) - at;
            self.zero_some(ws, at, n)?;
            at += n;
        }
        Ok(())
    }

    /// As [`zero`](Self::zero), within one unit of [`ZERO_SPAN`].
    // A stack frame of its own, as that of `write_record`.
    #[inline(never)]
    fn zero_some(&self, ws: &mut Workspace<P>, block: u64, count: u64) -> Result {
        let length = count.to_le_bytes();
        let header = RecordHeader::plain(Kind::Zero, block);
        let record = EncodedRecord::new::<P>(header, &length, &[]);
        loop {
            let (mapped, stored) = self.map.lock().survey(block, count)?;
            if let Some(at) = stored.filter(|_| !P::sabotaged(Sabotage::UnloadedHole)) {
                self.loader.leaf(&mut ws.read, at, Missing::Leave)?;
                continue;
            }
            if !mapped {
                // All blocks are zeros at this moment, which is the place of this operation in the order of writes.
                return self.log.lock().check();
            }
            if P::sabotaged(Sabotage::EarlyDiscard) {
                P::placed(block, count);
                self.map.lock().discard(block, count)?;
            }
            let slot = self.log.slot(self.file, &record, SpaceClass::Discard)?;
            let loaded = {
                let mut map = self.map.lock();
                map.enter(slot.placed())?;
                map.survey(block, count)?.1.is_none()
            };
            if !loaded {
                continue;
            }
            slot.commit(|_| {
                let mut map = self.map.lock();
                if !P::sabotaged(Sabotage::EarlyDiscard) {
                    P::placed(block, count);
                    map.discard(block, count)?;
                }
                Ok(())
            })?;
            if self.map.may_have_detached() {
                // The maintenance thread reaps the detached subtrees.
                self.log.lock().notify_all();
            }
            return Ok(());
        }
    }
}
