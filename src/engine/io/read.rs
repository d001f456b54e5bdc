// SPDX-License-Identifier: GPL-2.0
//! The read path.

use crate::engine::format::{corrupt, Entry, NodeId, BLOCK_SIZE, NODE_ENTRIES};
use crate::engine::io::cache::{holds, RecordKey};
use crate::engine::map::load::Missing;
use crate::engine::map::table::Found;
use crate::engine::store::{count, Store};
use crate::engine::workspace::Workspace;
use crate::engine::{Error, Result};
use crate::platform::{Platform, Sabotage};

impl<P: Platform> Store<P> {
    /// Reads whole blocks from `block` on.
    pub(crate) fn read(&self, ws: &mut Workspace<P>, block: u64, out: &mut [u8]) -> Result {
        if out.len() % BLOCK_SIZE != 0 {
            return Err(Error::Invalid("length: not a multiple of the block size"));
        }
        let blocks = (out.len() / BLOCK_SIZE) as u64;
        self.check_range(block, blocks)?;
        count(&self.counters.bytes_read, out.len() as u64);
        let mut done = 0;
        while done < blocks {
            let rest = &mut out[done as usize * BLOCK_SIZE..];
            done += self.read_some(ws, block + done, rest)?;
        }
        Ok(())
    }

    /// Copies entries and seeds of blocks from `block` on, at most `max` and within one leaf, to
    /// `ws.run`. Returns how many blocks were looked at; none in `run` means that all are holes.
    fn look_up(&self, ws: &mut Workspace<P>, block: u64, max: u64) -> Result<u64> {
        ws.run.clear();
        loop {
            // Nearly every leaf that is read is loaded already: the loader would take the lock once more.
            let map = self.map.lock();
            let Some(leaf) = map.leaf(block) else {
                drop(map);
                let found = self.loader().leaf(&mut ws.read, block, Missing::Leave)?;
                if let Found::Absent(id) = found {
                    return Ok(max.min(id.end_block() - block));
                }
                // The leaf may be evicted again before the next look.
                continue;
            };
            let n = max.min(NodeId::leaf(block).end_block() - block);
            let first = block as usize % NODE_ENTRIES;
            let mut last = (0, 0);
            for &word in &leaf[first..first + n as usize] {
                let entry = Entry(word);
                // Neighbours mostly lie in the same record.
                if !entry.is_hole() && last.0 != entry.address() {
                    last = (entry.address(), map.seed(entry)?);
                }
                ws.run.push((entry, last.1))?;
            }
            return Ok(n);
        }
    }

    /// Reads blocks within one leaf and returns how many.
    // A frame of its own, as that of `write_record`.
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
            let (entry, seed) = ws.run[i];
            if entry.is_hole() {
                out[i * BLOCK_SIZE..(i + 1) * BLOCK_SIZE].fill(0);
                i += 1;
                continue;
            }
            // Blocks that follow each other in the same record are read together.
            let mut end = i + 1;
            while end < n && ws.run[end].0.follows(entry, end - i) {
                end += 1;
            }
            let part = &mut out[i * BLOCK_SIZE..end * BLOCK_SIZE];
            let at = block + i as u64;
            if let Err(error) = self.read_record(ws, at, entry, seed, part) {
                let stale = matches!(error, Error::Corrupt { .. });
                if !stale || P::sabotaged(Sabotage::StaleLookUp) {
                    return Err(error);
                }
                // The record may have been superseded and its segment reused after the look-up.
                if i > 0 {
                    return Ok(i as u64);
                }
                self.look_up(ws, at, 1)?;
                let now = ws.run.first().copied();
                if now == Some((entry, seed)) {
                    count(&self.counters.damaged, 1);
                    return Err(error);
                }
                return Ok(0);
            }
            i = end;
        }
        Ok(n as u64)
    }

    /// Reads neighbouring blocks of one record, the first of which is `block` at `entry`.
    fn read_record(
        &self,
        ws: &mut Workspace<P>,
        block: u64,
        entry: Entry,
        seed: u32,
        out: &mut [u8],
    ) -> Result {
        let key = RecordKey {
            address: entry.address(),
            seed,
        };
        let index = entry.index();
        if self.cache.get(key, block, index, out) {
            return Ok(());
        }
        let buffers = &mut ws.read;
        let decompressor = &mut buffers.decompressor;
        let (header, payload) = self.records().record(entry, seed, &mut buffers.record)?;
        let mask = header.mask(payload);
        let n = out.len() / BLOCK_SIZE;
        let Some(mask) = mask.filter(|&m| holds(block, n, index, header.number, m)) else {
            return corrupt("record: it holds another block", entry.address());
        };
        let packed = &payload[header.mask_len()..];
        let stored = usize::from(header.count) * BLOCK_SIZE;
        if stored == out.len() {
            // The whole record is wanted: straight to its destination.
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

    /// The first run of mapped blocks at or after `block`.
    pub(crate) fn next_mapped(
        &self,
        ws: &mut Workspace<P>,
        block: u64,
    ) -> Result<Option<(u64, u64)>> {
        let (mut at, mut start) = (block, None);
        while at < self.blocks() {
            self.check_range(at, 1)?;
            let n = self.look_up(ws, at, self.blocks() - at)?;
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
        Ok(start.map(|from| (from, self.blocks() - from)))
    }
}
