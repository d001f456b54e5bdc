// SPDX-License-Identifier: GPL-2.0
//! [`Reader`]: the read path.

use crate::engine::format::{corrupt, Entry, IncarnationId, NodeId, BLOCK_SIZE, NODE_ENTRIES};
use crate::engine::map::load::{Loader, Missing};
use crate::engine::map::shared::SharedMap;
use crate::engine::map::table::Found;
use crate::engine::records::cache::{holds, RecordCache, RecordKey};
use crate::engine::records::Records;
use crate::engine::store::{count, Store};
use crate::engine::workspace::Workspace;
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

    /// Reads whole blocks from `block` on, all on the device. Blocks that are not stored read as zeros.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] for a damaged record or node, and those of memory and of the backing file.
    pub(crate) fn read(&self, ws: &mut Workspace<P>, block: u64, out: &mut [u8]) -> Result {
        let blocks = (out.len() / BLOCK_SIZE) as u64;
        let mut done = 0;
        while done < blocks {
            let rest = &mut out[done as usize * BLOCK_SIZE..];
            done += self.read_some(ws, block + done, rest)?;
        }
        Ok(())
    }

    /// Copies the entries of blocks from `block` on, at most `max` and within one leaf, to `ws.run`, with the
    /// incarnations of the segments they point into. Returns the number of blocks. If there is no leaf, all of them are holes and `ws.run`
    /// stays empty.
    fn look_up(&self, ws: &mut Workspace<P>, block: u64, max: u64) -> Result<u64> {
        ws.run.clear();
        loop {
            // The leaf of a read is nearly always loaded. The loader would find that out under the lock as well, and the
            // copy would take the lock a second time.
            let map = self.map.lock();
            let Some(leaf) = map.leaf(block) else {
                drop(map);
                let found = self.loader.leaf(&mut ws.read, block, Missing::Leave)?;
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
                ws.run.push((entry, last.1))?;
            }
            return Ok(n);
        }
    }

    /// Reads blocks from `block` on, within one leaf, and returns how many.
    // A stack frame of its own, as that of `write_record`.
    #[inline(never)]
    fn read_some(&self, ws: &mut Workspace<P>, block: u64, out: &mut [u8]) -> Result<u64> {
        let n = self.look_up(ws, block, (out.len() / BLOCK_SIZE) as u64)?;
        if ws.run.is_empty() {
            out[..n as usize * BLOCK_SIZE].fill(0);
            return Ok(n);
        }
        let n = n as usize;
        let mut i = 0;
        while i < n {
            let (entry, incarnation) = ws.run[i];
            if entry.is_hole() {
                out[i * BLOCK_SIZE..(i + 1) * BLOCK_SIZE].fill(0);
                i += 1;
                continue;
            }
            // Neighbouring blocks of the same record are read together.
            let mut end = i + 1;
            while end < n && ws.run[end].0.follows(entry, end - i) {
                end += 1;
            }
            let part = &mut out[i * BLOCK_SIZE..end * BLOCK_SIZE];
            let at = block + i as u64;
            if let Err(error) = self.read_record(ws, at, entry, incarnation, part) {
                let stale = matches!(error, Error::Corrupt { .. });
                if !stale || P::sabotaged(Sabotage::StaleLookUp) {
                    return Err(error);
                }
                // Another record may lie there by now: no segment is pinned, so this one may have been overwritten and its
                // segment used again since the look-up. The record is damaged if the table still points to it.
                if i > 0 {
                    return Ok(i as u64);
                }
                self.look_up(ws, at, 1)?;
                let now = ws.run.first().copied();
                if now == Some((entry, incarnation)) {
                    count(self.damaged, 1);
                    return Err(error);
                }
                return Ok(0);
            }
            i = end;
        }
        Ok(n as u64)
    }

    /// Reads neighbouring blocks of one record, which was found at `entry` in this incarnation of its segment. The first of
    /// them is `block`. Nothing of the record is used before its CRC and its fields were checked (I18).
    fn read_record(
        &self,
        ws: &mut Workspace<P>,
        block: u64,
        entry: Entry,
        incarnation: IncarnationId,
        out: &mut [u8],
    ) -> Result {
        let key = RecordKey {
            address: entry.address(),
            seed: incarnation.seed,
        };
        let index = entry.index();
        if self.cache.get(key, block, index, out) {
            return Ok(());
        }
        let buffers = &mut ws.read;
        let decompressor = &mut buffers.decompressor;
        let (header, payload) = self
            .records
            .record(entry, incarnation, &mut buffers.record)?;
        let mask = header.mask(payload);
        let n = out.len() / BLOCK_SIZE;
        let Some(mask) = mask.filter(|&m| holds(block, n, index, header.number, m)) else {
            return corrupt("record: it holds another block", entry.address());
        };
        let packed = &payload[header.mask_len()..];
        let stored = usize::from(header.count) * BLOCK_SIZE;
        if stored == out.len() {
            // All stored blocks are wanted: they are decompressed to their destination.
            if decompressor.decompress(header.algorithm, packed, out) {
                return Ok(());
            }
            return corrupt("record payload", entry.address());
        }
        let start = index * BLOCK_SIZE;
        if stored > buffers.blocks.len() {
            return corrupt("record", entry.address());
        }
        let blocks = &mut buffers.blocks[..stored];
        if !decompressor.decompress(header.algorithm, packed, blocks) {
            return corrupt("record payload", entry.address());
        }
        out.copy_from_slice(&blocks[start..start + out.len()]);
        self.cache.put(key, header.number, mask, blocks);
        Ok(())
    }

    /// The first run of mapped blocks within a range: its first block and its length.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] for a damaged node, and those of memory and of the backing file.
    pub(crate) fn next_mapped(
        &self,
        ws: &mut Workspace<P>,
        range: Range<u64>,
    ) -> Result<Option<(u64, u64)>> {
        let (mut at, mut start) = (range.start, None);
        while at < range.end {
            let n = self.look_up(ws, at, range.end - at)?;
            let here = ws.run.len();
            for i in 0..here {
                let mapped = !ws.run[i].0.is_hole();
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
