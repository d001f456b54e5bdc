// SPDX-License-Identifier: GPL-2.0
//! [`Writer`]: the write path. Data is split into records, blocks of zeros are left out, the rest is compressed, and log
//! and table change together.

use crate::engine::codec::{Codecs, Encoder};
use crate::engine::format::{Kind, Layout, RecordHeader, BLOCK_SIZE, RECORD_HEADER, UNIT};
use crate::engine::io::batch::Batch;
use crate::engine::io::data::{gather, DataRecord, Extent};
use crate::engine::log::Log;
use crate::engine::map::load::{Loader, Missing};
use crate::engine::map::shared::SharedMap;
use crate::engine::map::table::Found;
use crate::engine::map::usage::Origin;
use crate::engine::records::ReadBuffers;
use crate::engine::space::SpaceClass;
use crate::engine::store::Store;
use crate::engine::workspace::Workspace;
use crate::engine::{Error, Result};
use crate::platform::{Platform, Sabotage};

/// True if a block is all zeros. A block of data nearly always differs in its first word.
fn is_zero(block: &[u8]) -> bool {
    // From an array of eight bytes the compiler makes one load; from a slice it does not.
    let word = |bytes: &[u8]| bytes.try_into().map_or(u64::MAX, u64::from_ne_bytes);
    let zero = |bytes: &[u8]| bytes.chunks_exact(8).fold(0, |all, b| all | word(b)) == 0;
    zero(&block[..8]) && block.chunks_exact(64).all(zero)
}

/// The blocks that are not all zeros: bit `i` for the block `i`.
pub(super) fn stored_blocks(data: &[u8]) -> u32 {
    let blocks = data.chunks_exact(BLOCK_SIZE).enumerate();
    blocks.fold(0, |mask, (i, block)| {
        mask | (u32::from(!is_zero(block)) << i)
    })
}

/// Encodes the blocks of `data`, of which those in `mask` are stored, as one record.
pub(super) fn encode_blocks<'a, P: Platform>(
    codecs: &Codecs<P>,
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
    DataRecord::new::<P>(encoder, codecs, Extent { block, span, mask }, content)
}

/// Whether a write may become a shorter record than it asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// At the end of a segment, so that no space is left over.
    AtSegmentEnd,
    /// Never: recovery finds all blocks of a record or none.
    Never,
}

/// Changes blocks of an open image.
pub(crate) struct Writer<'a, P: Platform> {
    pub(super) file: &'a P::File,
    layout: &'a Layout,
    codecs: &'a Codecs<P>,
    pub(super) log: &'a Log<P>,
    pub(super) map: &'a SharedMap<P>,
    pub(super) loader: Loader<'a, P>,
}

impl<'a, P: Platform> Writer<'a, P> {
    /// A writer of the blocks of `store`.
    pub(crate) fn new(store: &'a Store<P>) -> Self {
        Self {
            file: &store.file,
            layout: &store.layout,
            codecs: &store.codecs,
            log: &store.log,
            map: &store.map,
            loader: store.loader(),
        }
    }

    /// Writes whole blocks from `block` on, all on the device, one record after the other.
    ///
    /// # Errors
    ///
    /// Those of [`Log::slot`] and of [`Loader::leaf`].
    pub(crate) fn write(
        &self,
        ws: &mut Workspace<P>,
        block: u64,
        data: &[u8],
        class: SpaceClass,
    ) -> Result {
        let (mut at, mut rest) = (block, data);
        while !rest.is_empty() {
            // A record lies within one natural unit (I17), so that writing a region again supersedes whole records.
            let span = self.layout.left_in_natural_unit(at) as usize * BLOCK_SIZE;
            let written = self.write_record(
                ws,
                at,
                &rest[..rest.len().min(span)],
                class,
                Cut::AtSegmentEnd,
            )?;
            at += written as u64;
            rest = &rest[written * BLOCK_SIZE..];
        }
        Ok(())
    }

    /// Writes blocks of one natural unit, all on the device, as one record: recovery finds all of them or none (P9).
    /// If all are zeros, the record is one of zeros, or there is none because they have been zeros before.
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write).
    pub(crate) fn write_atomic(
        &self,
        ws: &mut Workspace<P>,
        block: u64,
        data: &[u8],
        class: SpaceClass,
    ) -> Result {
        if P::sabotaged(Sabotage::TornAtomic) {
            let half = data.len() / BLOCK_SIZE / 2;
            let (first, rest) = data.split_at(half * BLOCK_SIZE);
            self.write(ws, block, first, class)?;
            return self.write(ws, block + half as u64, rest, class);
        }
        self.write_record(ws, block, data, class, Cut::Never)
            .map(|_| ())
    }

    /// Writes one record with blocks from the beginning of `data`, and returns how many it covers.
    // A stack frame of its own: the same caller serves discards, which do not need the space.
    #[inline(never)]
    fn write_record(
        &self,
        ws: &mut Workspace<P>,
        block: u64,
        data: &[u8],
        class: SpaceClass,
        cut: Cut,
    ) -> Result<usize> {
        // A block of zeros is never stored (I16).
        let mask = stored_blocks(data);
        if mask == 0 {
            let span = data.len() / BLOCK_SIZE;
            self.zero(&mut ws.read, block, span as u64)?;
            return Ok(span);
        }
        self.loader.leaf(&mut ws.read, block, Missing::Create)?;
        let (mut data, mut mask) = (data, mask);
        let record = loop {
            let (encoder, gathered) = (&mut ws.encoder, &mut ws.gather);
            let record = encode_blocks(self.codecs, encoder, gathered, block, data, mask);
            match self.length_to_cut_to(&record, cut) {
                Some(span) => {
                    data = &data[..span * BLOCK_SIZE];
                    mask = stored_blocks(data);
                }
                None => break record,
            }
        };
        self.place(&mut ws.read, &record, class)?;
        Ok(record.span())
    }

    /// Gives a record its place in the log and in the table. The leaf of its first block was loaded.
    fn place(&self, read: &mut ReadBuffers, record: &DataRecord<'_>, class: SpaceClass) -> Result {
        let block = record.encoded.header().number;
        loop {
            let slot = self.log.slot(self.file, &record.encoded, class)?;
            let mut stored = record.stored(slot.placed());
            if (stored.span as u64) < self.layout.record_blocks() {
                // It may be worth joining it with others.
                stored.origin = Origin::Unknown;
            }
            let loaded = {
                let mut map = self.map.lock();
                map.enter(slot.placed())?;
                map.find(block) == Found::Loaded
            };
            if !loaded {
                // A discard emptied the leaf after it had been loaded, and a checkpoint dropped it.
                drop(slot);
                self.loader.leaf(read, block, Missing::Create)?;
                continue;
            }
            // The record gets its place in the log and in the table in one critical section (I2).
            slot.commit(|_| {
                let mut map = self.map.lock();
                P::placed(block, stored.span as u64);
                if P::sabotaged(Sabotage::LateTable) {
                    return Ok(());
                }
                stored.map(&mut map)
            })?;
            if P::sabotaged(Sabotage::LateTable) {
                stored.map(&mut self.map.lock())?;
            }
            return Ok(());
        }
    }

    /// Encodes whole blocks from `block` on, all on the device, and adds them to the batch.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] if the batch has no room for them.
    pub(crate) fn encode(
        &self,
        ws: &mut Workspace<P>,
        block: u64,
        data: &[u8],
        batch: &mut Batch,
    ) -> Result {
        if !batch.has_room(data.len()) {
            return Err(Error::Invalid("batch: it has no room for so much data"));
        }
        let (mut at, mut rest) = (block, data);
        while !rest.is_empty() {
            let span = self.layout.left_in_natural_unit(at) as usize * BLOCK_SIZE;
            let (data, behind) = rest.split_at(rest.len().min(span));
            let mask = stored_blocks(data);
            let blocks = data.len() / BLOCK_SIZE;
            if mask == 0 {
                batch.add_zeros(RecordHeader {
                    span: blocks as u8,
                    ..RecordHeader::plain(Kind::Data, at)
                })?;
            } else {
                let (encoder, gathered) = (&mut ws.encoder, &mut ws.gather);
                let record = encode_blocks(self.codecs, encoder, gathered, at, data, mask);
                batch.add(&record, mask)?;
            }
            at += blocks as u64;
            rest = behind;
        }
        Ok(())
    }

    /// Writes the records of a batch, one after the other.
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write).
    pub(crate) fn write_batch(
        &self,
        ws: &mut Workspace<P>,
        batch: &Batch,
        class: SpaceClass,
    ) -> Result {
        for mut left in batch.records() {
            let first = left.header.number;
            if left.mask == 0 {
                self.zero(&mut ws.read, first, left.header.span.into())?;
                continue;
            }
            self.loader.leaf(&mut ws.read, first, Missing::Create)?;
            loop {
                let record = batch.record::<P>(&left);
                let Some(span) = self.length_to_cut_to(&record, Cut::AtSegmentEnd) else {
                    self.place(&mut ws.read, &record, class)?;
                    break;
                };
                let (head, tail) = left.cut(span);
                self.place(&mut ws.read, &batch.record::<P>(&head), class)?;
                left = tail;
            }
        }
        Ok(())
    }

    /// The number of blocks to which a record is cut that does not fit into the rest of the current segment, so that no
    /// space is left over. `None` if it fits, or is not to be cut: only a record that does not compress can be cut at any
    /// block. Other writers may fill the segment before the record is placed; then it goes to the next one.
    fn length_to_cut_to(&self, record: &DataRecord<'_>, cut: Cut) -> Option<usize> {
        if cut == Cut::Never || !record.is_plain() {
            return None;
        }
        let fit = (self.log.room() as usize).saturating_sub(RECORD_HEADER) / BLOCK_SIZE;
        (1..record.span()).contains(&fit).then_some(fit)
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
