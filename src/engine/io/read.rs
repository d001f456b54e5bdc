// SPDX-License-Identifier: GPL-2.0
//! [`Reader`]: the read path.

use crate::engine::format::{corrupt, Entry, IncarnationId, NodeId, BLOCK_SIZE, NODE_ENTRIES};
use crate::engine::io::sink::Sink;
use crate::engine::map::load::{Loader, Missing};
use crate::engine::map::shared::SharedMap;
use crate::engine::map::table::Found;
use crate::engine::records::cache::{holds, Cached, RecordCache, RecordKey};
use crate::engine::records::{ReadBuffers, Records};
use crate::engine::store::{count, Store};
use crate::engine::{Error, Result};
use crate::platform::{Platform, Sabotage};
use core::ops::Range;
use core::sync::atomic::AtomicU64;

/// Reads blocks of an open image.
pub(crate) struct Reader<'a, P: Platform> {
    map: &'a SharedMap<P>,
    loader: Loader<'a, P>,
    records: Records<'a, P>,
    cache: &'a RecordCache<P>,
    /// Counts the reads that found a damaged record.
    damaged: &'a AtomicU64,
}

impl<'a, P: Platform> Reader<'a, P> {
    /// A reader of the blocks of `store`.
    pub(crate) fn new(store: &'a Store<P>) -> Self {
        Self {
            map: &store.map,
            loader: store.loader(),
            records: store.records(),
            cache: &store.cache,
            damaged: &store.counters.damaged,
        }
    }

    /// Reads `count` blocks from `block` on, all on the device, into `sink`. Blocks that are not stored read as zeros.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] for a damaged record or node, and those of memory, of the backing file and of the sink.
    pub(crate) fn read(
        &self,
        buffers: &mut ReadBuffers,
        block: u64,
        count: u64,
        sink: &mut dyn Sink,
    ) -> Result {
        let mut done = 0;
        let mut result = Ok(());
        while done < count && result.is_ok() {
            result = self
                .read_some(buffers, block + done, count - done, sink)
                .map(|n| done += n);
        }
        if let Some(memory) = buffers.window.take_memory() {
            self.records.windows.put(memory);
        }
        result
    }

    /// Copies the entries of blocks from `block` on, at most `max` and within one leaf, to the run, with the incarnations of
    /// the segments they point into. Returns the number of blocks. If there is no leaf, all of them are holes and the run
    /// stays empty.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] for a damaged node, and those of memory and of the backing file.
    pub(crate) fn look_up(&self, buffers: &mut ReadBuffers, block: u64, max: u64) -> Result<u64> {
        buffers.run.clear();
        loop {
            // The leaf of a read is nearly always loaded. The loader would find that out under the lock as well, and the
            // copy would take the lock a second time.
            let map = self.map.lock();
            let Some(leaf) = map.leaf(block) else {
                drop(map);
                let found = self.loader.leaf(buffers, block, Missing::Leave)?;
                if let Found::Absent(id) = found {
                    return Ok(max.min(id.end_block() - block));
                }
                // The leaf may be evicted before the next turn of the loop.
                continue;
            };
            let n = max.min(NodeId::leaf(block).end_block() - block);
            let first = block as usize % NODE_ENTRIES;
            let mut last = (0, IncarnationId::before_opening(0));
            for &word in &leaf[first..first + n as usize] {
                let entry = Entry(word);
                // Neighbouring blocks mostly lie in the same record, so their segment is looked up once.
                if !entry.is_hole() && last.0 != entry.address() {
                    last = (entry.address(), map.incarnation(entry)?);
                }
                buffers.run.push((entry, last.1))?;
            }
            return Ok(n);
        }
    }

    /// Reads at most `max` blocks from `block` on, within one leaf, and returns how many.
    // A stack frame of its own, as that of `write_record`.
    #[inline(never)]
    fn read_some(
        &self,
        buffers: &mut ReadBuffers,
        block: u64,
        max: u64,
        sink: &mut dyn Sink,
    ) -> Result<u64> {
        let n = self.look_up(buffers, block, max)?;
        if buffers.run.is_empty() {
            sink.put_zeros(n as usize * BLOCK_SIZE)?;
            return Ok(n);
        }
        let n = n as usize;
        let mut i = 0;
        while i < n {
            let first = buffers.run[i];
            // Neighbouring holes are filled together, and so are neighbouring blocks of the same record.
            let together = |next: Entry, at: usize| match first.0.is_hole() {
                true => next.is_hole(),
                false => next.follows(first.0, at),
            };
            let mut end = i + 1;
            while end < n && together(buffers.run[end].0, end - i) {
                end += 1;
            }
            if first.0.is_hole() {
                sink.put_zeros((end - i) * BLOCK_SIZE)?;
                i = end;
                continue;
            }
            let at = block + i as u64;
            if let Err(error) = self.read_record(buffers, at, i..end, sink) {
                let stale = matches!(error, Error::Corrupt { .. });
                if !stale || P::sabotaged(Sabotage::StaleLookUp) {
                    return Err(error);
                }
                // Another record may lie there by now: no segment is pinned, so this one may have been overwritten and its
                // segment used again since the look-up. The record is damaged if the table still points to it.
                if i > 0 {
                    return Ok(i as u64);
                }
                self.look_up(buffers, at, 1)?;
                if buffers.run.first() == Some(&first) {
                    count(self.damaged, 1);
                    return Err(error);
                }
                return Ok(0);
            }
            i = end;
        }
        Ok(n as u64)
    }

    /// Reads neighbouring blocks of one record, those of `part` of the run. The first of them is `block`. Nothing of the
    /// record is used before its CRC and its fields were checked (I18).
    fn read_record(
        &self,
        buffers: &mut ReadBuffers,
        block: u64,
        part: Range<usize>,
        sink: &mut dyn Sink,
    ) -> Result {
        let run = &buffers.run[part.start..];
        let (entry, incarnation) = run[0];
        let key = RecordKey {
            address: entry.address(),
            seed: incarnation.seed,
        };
        let (n, index) = (part.len(), entry.index());
        let len = n * BLOCK_SIZE;
        let other = || corrupt("record: it holds another block", entry.address());
        let claim = match self.cache.find(key) {
            Cached::Here(record) => {
                return match record.blocks(block, index, len) {
                    Some(blocks) => sink.put(blocks),
                    None => other(),
                };
            }
            Cached::Missing(claim) => claim,
        };
        let codecs = self.records.codecs;
        let (header, payload) =
            self.records
                .first_record(run, &mut buffers.window, &mut buffers.record)?;
        let mask = header.mask(payload);
        let Some(mask) = mask.filter(|&m| holds(block, n, index, header.number, m)) else {
            return other();
        };
        let packed = &payload[header.mask_len()..];
        let decompress = |to: &mut [u8]| match codecs.decompress(header.algorithm, packed, to) {
            true => Ok(()),
            false => corrupt(codecs.objection(header.algorithm), entry.address()),
        };
        let stored = usize::from(header.count) * BLOCK_SIZE;
        let wanted = index * BLOCK_SIZE..index * BLOCK_SIZE + len;
        // Where all of the record is wanted by this request alone, it is not kept.
        let alone = stored == len && !claim.wanted();
        if alone {
            if let Some(out) = sink.space(len) {
                decompress(out)?;
                sink.advance(len);
                return Ok(());
            }
        } else if index > 0 && claim.first() {
            // The first read of this record for some time, and it begins in the middle: a random read. It decompresses only
            // up to the end of its blocks. The next read of the record decompresses and keeps all of it. So does a read at the
            // beginning, which is likely to be the first of a sequence.
            let Some(blocks) = buffers.blocks.get_mut(..stored) else {
                return corrupt("record", entry.address());
            };
            return match codecs.decompress_start(header.algorithm, packed, blocks, wanted.end) {
                true => sink.put(&blocks[wanted]),
                false => corrupt(codecs.objection(header.algorithm), entry.address()),
            };
        } else if let Some(mut record) = claim.memory() {
            let Some(blocks) = record.memory(stored) else {
                return corrupt("record", entry.address());
            };
            decompress(blocks)?;
            sink.put(&blocks[wanted])?;
            claim.publish(record, header.number, mask);
            return Ok(());
        }
        let Some(blocks) = buffers.blocks.get_mut(..stored) else {
            return corrupt("record", entry.address());
        };
        decompress(blocks)?;
        sink.put(&blocks[wanted])
    }

    /// The first run of mapped blocks within a range: its first block and its length.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] for a damaged node, and those of memory and of the backing file.
    pub(crate) fn next_mapped(
        &self,
        buffers: &mut ReadBuffers,
        range: Range<u64>,
    ) -> Result<Option<(u64, u64)>> {
        let (mut at, mut start) = (range.start, None);
        while at < range.end {
            let n = self.look_up(buffers, at, range.end - at)?;
            let here = buffers.run.len();
            for i in 0..here {
                let mapped = !buffers.run[i].0.is_hole();
                match start {
                    None if mapped => start = Some(at + i as u64),
                    Some(from) if !mapped => return Ok(Some((from, at + i as u64 - from))),
                    _ => {}
                }
            }
            if let (Some(from), 0) = (start, here) {
                return Ok(Some((from, at - from)));
            }
            at += n;
        }
        Ok(start.map(|from| (from, range.end - from)))
    }
}

#[cfg(test)]
mod tests {
    use crate::engine::{
        Access, Algorithm, Compression, CreateOptions, Recompression, Volume, BLOCK_SIZE,
    };
    use crate::platform::std::{Std, StdFile};
    use std::sync::mpsc::channel;
    use std::time::Duration;
    use std::vec;

    /// Records that are in the backing file are read although another thread has the lock of the log.
    #[test]
    fn a_read_needs_no_lock_of_the_log() {
        let image = StdFile::from_file(tempfile::tempfile().unwrap()).unwrap();
        let options = CreateOptions {
            size: 1 << 24,
            record_size: 16_384,
            segment_size: 1 << 18,
            compression: Compression::of(Algorithm::Lz4),
            recompression: Recompression::OFF,
            uuid: [7; 16],
        };
        Volume::<Std>::create(&image, &options).unwrap();
        let volume = Volume::<Std>::open(image, Access::Write).unwrap();
        let mut ws = volume.workspace().unwrap();
        let data: vec::Vec<u8> = (0..16 * BLOCK_SIZE).map(|i| (i / 100) as u8).collect();
        volume.write(&mut ws, 0, &data).unwrap();
        volume.flush().unwrap();
        // What comes after it is in memory only.
        volume.write(&mut ws, 100, &data).unwrap();
        let (tell, told) = channel();
        std::thread::scope(|scope| {
            let log = volume.store.log.lock();
            scope.spawn(|| {
                let mut out = vec![0; data.len()];
                for len in [1, 3, 4, 16].map(|blocks| blocks * BLOCK_SIZE) {
                    volume.read(&mut ws, 0, &mut out[..len]).unwrap();
                    assert_eq!(out[..len], data[..len]);
                }
                tell.send(()).unwrap();
            });
            let read = told.recv_timeout(Duration::from_secs(30));
            drop(log);
            read.unwrap();
        });
    }
}
