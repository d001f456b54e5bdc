// SPDX-License-Identifier: GPL-2.0
//! The write path: splitting into records, zero elision, compression, and the change of log and table.

use crate::engine::codec::{Encoder, Params};
use crate::engine::format::{
    Entry, Kind, RecordHeader, BLOCK_SIZE, NODE_SHIFT, RECORD_HEADER, UNIT,
};
use crate::engine::io::data::{gather, DataRecord, Stored};
use crate::engine::log::EncodedRecord;
use crate::engine::map::load::Missing;
use crate::engine::map::table::Found;
use crate::engine::map::Map;
use crate::engine::space::SpaceClass;
use crate::engine::store::{count, Store};
use crate::engine::workspace::Workspace;
use crate::engine::{Error, Result};
use crate::platform::{MonitorGuard, Platform, Sabotage};

/// Most blocks one zero record covers: the reach of a table node above the leaves, so that the time in
/// the critical section stays short.
pub(crate) const ZERO_SPAN: u64 = 1 << (2 * NODE_SHIFT);

/// The end of the blocks that a zero record is about; none if they do not lie within one unit of [`ZERO_SPAN`].
pub(crate) fn zero_end(block: u64, count: u64) -> Option<u64> {
    let end = block.checked_add(count)?;
    (count > 0 && (end - 1) / ZERO_SPAN == block / ZERO_SPAN).then_some(end)
}

/// Whether a block is all zeros. Data that is not shows it in the first word almost always.
fn is_zero(block: &[u8]) -> bool {
    // An array of eight bytes, not eight bytes of a slice: the compiler loads it at once.
    let word = |bytes: &[u8]| bytes.try_into().map_or(u64::MAX, u64::from_ne_bytes);
    let zero = |bytes: &[u8]| bytes.chunks_exact(8).fold(0, |all, b| all | word(b)) == 0;
    zero(&block[..8]) && block.chunks_exact(64).all(zero)
}

/// The blocks that are not all zeros: bit `i` for the block `i`.
fn stored_blocks(data: &[u8]) -> u32 {
    let blocks = data.chunks_exact(BLOCK_SIZE).enumerate();
    blocks.fold(0, |mask, (i, block)| {
        mask | (u32::from(!is_zero(block)) << i)
    })
}

impl<P: Platform> Store<P> {
    /// Writes whole blocks from `block` on, one record after the other.
    pub(crate) fn write(
        &self,
        ws: &mut Workspace<P>,
        block: u64,
        data: &[u8],
        class: SpaceClass,
    ) -> Result {
        if data.len() % BLOCK_SIZE != 0 {
            return Err(Error::Invalid("length: not a multiple of the block size"));
        }
        self.check_range(block, (data.len() / BLOCK_SIZE) as u64)?;
        count(&self.counters.bytes_written, data.len() as u64);
        let (mut at, mut rest) = (block, data);
        while !rest.is_empty() {
            // Records lie at natural alignment: rewriting a region supersedes whole records.
            let span = self.layout.left_in_natural_unit(at) as usize * BLOCK_SIZE;
            let written = self.write_record(ws, at, &rest[..rest.len().min(span)], class)?;
            at += written as u64;
            rest = &rest[written * BLOCK_SIZE..];
        }
        Ok(())
    }

    /// Writes one record with at most these blocks, and returns how many it covers.
    // A frame of its own: a discard, which is served by the same caller, does not need the space.
    #[inline(never)]
    fn write_record(
        &self,
        ws: &mut Workspace<P>,
        block: u64,
        data: &[u8],
        class: SpaceClass,
    ) -> Result<usize> {
        let mask = stored_blocks(data);
        if mask == 0 {
            let span = data.len() / BLOCK_SIZE;
            self.zero(ws, block, span as u64)?;
            return Ok(span);
        }
        self.loader().leaf(&mut ws.read, block, Missing::Create)?;
        let (mut data, mut mask) = (data, mask);
        let record = loop {
            let record = self.encode_data(&mut ws.encoder, &mut ws.gather, block, data, mask);
            match self.cut(&record) {
                Some(span) => {
                    data = &data[..span * BLOCK_SIZE];
                    mask = stored_blocks(data);
                }
                None => break record,
            }
        };
        loop {
            let slot = self.log.slot(&self.file, &record.encoded, class)?;
            let stored = record.stored(slot.placed());
            let loaded = {
                let mut map = self.map.lock();
                map.enter(slot.placed())?;
                map.find(block) == Found::Loaded
            };
            if !loaded {
                // A discard emptied the leaf after it had been loaded, and it was dropped.
                drop(slot);
                self.loader().leaf(&mut ws.read, block, Missing::Create)?;
                continue;
            }
            slot.commit(|_| {
                let mut map = self.map.lock();
                P::placed(block, stored.span as u64);
                if P::sabotaged(Sabotage::LateTable) {
                    return Ok(());
                }
                self.map_record(&mut map, &stored)
            })?;
            if P::sabotaged(Sabotage::LateTable) {
                self.map_record(&mut self.map.lock(), &stored)?;
            }
            return Ok(stored.span);
        }
    }

    /// Encodes the blocks of `data`, of which those in `mask` are stored, as one record.
    fn encode_data<'a>(
        &self,
        encoder: &'a mut Encoder<P>,
        gathered: &'a mut [u8],
        block: u64,
        data: &'a [u8],
        mask: u32,
    ) -> DataRecord<'a> {
        let span = data.len() / BLOCK_SIZE;
        let content = if mask.count_ones() as usize == span {
            data
        } else {
            let blocks = data.chunks_exact(BLOCK_SIZE).enumerate();
            let kept = blocks.filter(|(i, _)| (mask >> i) & 1 == 1);
            gather(kept.map(|(_, block)| block), gathered)
        };
        let params = Params::of(self.algorithm);
        DataRecord::new::<P>(encoder, params, block, span, mask, content)
    }

    /// To how many blocks a record is to be cut that does not fit into the segment, so that the segment is used up.
    /// Only a record that does not compress can be cut anywhere. If others use the segment up before it is placed,
    /// it goes to the next one.
    fn cut(&self, record: &DataRecord<'_>) -> Option<usize> {
        if !record.is_plain() {
            return None;
        }
        let fit = (self.log.room() as usize).saturating_sub(RECORD_HEADER) / BLOCK_SIZE;
        (1..record.span()).contains(&fit).then_some(fit)
    }

    /// Points the blocks of a record to it.
    pub(crate) fn map_record(&self, map: &mut Map, stored: &Stored) -> Result {
        let mask = stored.mask;
        let mut index = 0;
        map.replace(stored.block, stored.span, &mut |i| {
            if (mask >> i) & 1 == 0 {
                return Entry::HOLE;
            }
            index += 1;
            Entry::new(stored.address, stored.units, index - 1, mask.count_ones())
        })
    }

    /// Makes `count` blocks read as zeros. What is not mapped costs nothing, not even log.
    pub(crate) fn zero(&self, ws: &mut Workspace<P>, block: u64, count: u64) -> Result {
        self.check_range(block, count)?;
        let (mut at, end) = (block, block + count);
        while at < end {
            let next = (at / ZERO_SPAN + 1) * ZERO_SPAN;
            let n = end.min(next) - at;
            self.zero_some(ws, at, n)?;
            at += n;
        }
        Ok(())
    }

    // A frame of its own, as that of `write_record`.
    #[inline(never)]
    fn zero_some(&self, ws: &mut Workspace<P>, block: u64, count: u64) -> Result {
        let length = count.to_le_bytes();
        let header = RecordHeader::plain(Kind::Zero, block);
        let record = EncodedRecord::new::<P>(header, &length, &[]);
        loop {
            let (mapped, stored) = self.map.lock().survey(block, count)?;
            if let Some(at) = stored.filter(|_| !P::sabotaged(Sabotage::UnloadedHole)) {
                self.loader().leaf(&mut ws.read, at, Missing::Leave)?;
                continue;
            }
            if !mapped {
                // The range was all zeros at this moment: that is this operation's place in the order.
                return self.log.lock().check();
            }
            if P::sabotaged(Sabotage::EarlyDiscard) {
                P::placed(block, count);
                self.map.lock().discard(block, count)?;
            }
            let slot = self.log.slot(&self.file, &record, SpaceClass::Discard)?;
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
                // There is something to do in the background.
                self.log.lock().notify_all();
            }
            return Ok(());
        }
    }
}

const _: () = assert!(RECORD_HEADER == UNIT);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_detection_looks_at_every_byte() {
        let mut block = [0; BLOCK_SIZE];
        assert!(is_zero(&block));
        for at in [0, 7, 8, 63, 64, 4095] {
            block[at] = 1;
            assert!(!is_zero(&block), "byte {at}");
            block[at] = 0;
        }
    }
}
