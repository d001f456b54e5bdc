// SPDX-License-Identifier: GPL-2.0
//! [`Records`]: reads stored records, from the log's memory or from the backing file, and verifies them.

pub(crate) mod cache;
pub(crate) mod window;

use self::window::{Window, GAP, WINDOW};
use crate::engine::codec::Codecs;
use crate::engine::format::{
    corrupt, decode_node, Entry, IncarnationId, Kind, Layout, NodeId, RecordHeader, BLOCK_SIZE,
    NODE_BYTES, NODE_ENTRIES, RECORD_HEADER,
};
use crate::engine::log::Log;
use crate::engine::pool::Pool;
use crate::engine::Result;
use crate::platform::mem::{Buf, Need, Vec};
use crate::platform::{BackingFile, Platform};
use core::sync::atomic::{AtomicU64, Ordering};

/// Scratch memory to read blocks, for one request at a time. Front ends keep a few and reuse them, so that no read depends
/// on an allocation.
pub struct ReadBuffers {
    /// A record as it is stored, with the sectors around it.
    pub(crate) record: Buf,
    /// A record's blocks, or a node's bytes.
    pub(crate) blocks: Buf,
    /// Several records of a large request.
    pub(crate) window: Window,
    /// Entries of the blocks being read, and the incarnations of the segments that they point into.
    pub(crate) run: Vec<(Entry, IncarnationId)>,
}

impl ReadBuffers {
    /// For the records of images of this geometry.
    // A stack frame of its own: opening an image has many.
    #[inline(never)]
    pub(crate) fn new(need: Need, layout: &Layout) -> Result<Self> {
        let blocks = (layout.record_size as usize).max(NODE_BYTES);
        // A record's header and mask come first, and it may start at the end of a sector.
        let stored = blocks + RECORD_HEADER + 4 + 2 * BLOCK_SIZE;
        Ok(Self {
            record: Buf::zeroed_if(need, stored)?,
            blocks: Buf::zeroed_if(need, blocks)?,
            window: Window::default(),
            run: Vec::with_capacity_if(need, NODE_ENTRIES)?,
        })
    }

    /// Bytes of memory, near enough.
    pub fn memory(&self) -> u64 {
        let run = NODE_ENTRIES * size_of::<(Entry, IncarnationId)>();
        (self.record.len() + self.blocks.len() + run) as u64
    }
}

impl AsMut<Self> for ReadBuffers {
    fn as_mut(&mut self) -> &mut Self {
        self
    }
}

/// Reads of the backing file: what holds them up waits until there are none.
#[derive(Default)]
pub(crate) struct Reads {
    begun: AtomicU64,
    ended: AtomicU64,
}

impl Reads {
    /// Runs one read.
    fn count<R>(&self, read: impl FnOnce() -> R) -> R {
        self.begun.fetch_add(1, Ordering::Relaxed);
        let result = read();
        self.ended.fetch_add(1, Ordering::Relaxed);
        result
    }

    /// The number of reads so far. None if one is under way.
    pub(crate) fn at_rest(&self) -> Option<u64> {
        let ended = self.ended.load(Ordering::Relaxed);
        let begun = self.begun.load(Ordering::Relaxed);
        (begun == ended).then_some(begun)
    }
}

/// The stored records of an image.
pub(crate) struct Records<'a, P: Platform> {
    pub(crate) file: &'a P::File,
    pub(crate) layout: &'a Layout,
    pub(crate) codecs: &'a Codecs<P>,
    /// Holds the records that are not written yet.
    pub(crate) log: &'a Log<P>,
    pub(crate) windows: &'a Pool<P, Buf>,
    pub(crate) reads: &'a Reads,
}

impl<P: Platform> Records<'_, P> {
    /// Reads the sectors of a record into `out` and returns the record's bytes and what follows.
    fn fetch<'b>(
        &self,
        entry: Entry,
        incarnation: IncarnationId,
        out: &'b mut Buf,
    ) -> Result<&'b [u8]> {
        let address = entry.address();
        let len = entry.sectors() * BLOCK_SIZE;
        if len > out.len() {
            return corrupt("sector table entry", address);
        }
        let skip = (address % BLOCK_SIZE as u64) as usize;
        if let Some(n) = self
            .log
            .read_memory(incarnation, address, &mut out[..len - skip])
        {
            return Ok(&out[..n]);
        }
        self.reads
            .count(|| self.file.read_at(&mut out[..len], address - skip as u64))?;
        Ok(&out[skip..len])
    }

    /// Reads and verifies the record at `entry`, in this incarnation of its segment. Returns its header and payload.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`](crate::engine::Error::Corrupt) when there is no whole, undamaged record; those of the backing
    /// file.
    pub(crate) fn record<'b>(
        &self,
        entry: Entry,
        incarnation: IncarnationId,
        out: &'b mut Buf,
    ) -> Result<(RecordHeader, &'b [u8])> {
        let bytes = self.fetch(entry, incarnation, out)?;
        let offset = self.layout.offset_in_segment(entry.address());
        match RecordHeader::decode::<P>(bytes, incarnation.seed, offset) {
            Some(found) => Ok(found),
            None => corrupt("record", entry.address()),
        }
    }

    /// As [`record`](Self::record), for the first record of `run`, the entries of the blocks that a request wants next.
    /// Records that lie together are read from the backing file at once, and each is verified by itself. If that read
    /// fails, or the record in it is damaged, the record is read alone.
    ///
    /// # Errors
    ///
    /// Those of [`record`](Self::record).
    pub(crate) fn first_record<'b>(
        &self,
        run: &[(Entry, IncarnationId)],
        window: &'b mut Window,
        out: &'b mut Buf,
    ) -> Result<(RecordHeader, &'b [u8])> {
        let (entry, incarnation) = run.first().copied().unwrap_or_default();
        if window.record(entry).is_none() {
            self.fill(run, window);
        }
        let window: &'b Window = window;
        if let Some(bytes) = window.record(entry) {
            let offset = self.layout.offset_in_segment(entry.address());
            if let Some(found) = RecordHeader::decode::<P>(bytes, incarnation.seed, offset) {
                return Ok(found);
            }
        }
        self.record(entry, incarnation, out)
    }

    /// Reads the records that lie together at the beginning of `run` into the window, as many as it has room for. Nothing is
    /// read if that is only one, or there is no memory.
    fn fill(&self, run: &[(Entry, IncarnationId)], window: &mut Window) {
        let sector = BLOCK_SIZE as u64;
        let from = run.first().map_or(0, |first| first.0.address()) / sector * sector;
        let (mut end, mut last, mut records) = (from, None, 0);
        for &(entry, incarnation) in run {
            if entry.is_hole() || last == Some(entry.address()) {
                continue;
            }
            last = Some(entry.address());
            let start = entry.address() / sector * sector;
            let next = start + entry.sectors() as u64 * sector;
            let near = (from..=end + GAP).contains(&start) && next - from <= WINDOW as u64;
            if !near || self.log.may_hold(incarnation, entry.address()) {
                break;
            }
            end = end.max(next);
            records += 1;
        }
        if records < 2 {
            return;
        }
        window.get_memory(self.windows);
        // If it fails, each record is read alone, and only those that cannot be read are lost.
        window.read(from, (end - from) as usize, |memory, from| {
            self.reads.count(|| self.file.read_at(memory, from))
        });
    }

    /// Reads and verifies the node stored at `entry`, which must be the one of this kind, level and index.
    ///
    /// # Errors
    ///
    /// Those of [`record`](Self::record).
    pub(crate) fn node(
        &self,
        buffers: &mut ReadBuffers,
        kind: Kind,
        id: NodeId,
        entry: Entry,
        incarnation: IncarnationId,
    ) -> Result<Vec<u64>> {
        let (header, payload) = self.record(entry, incarnation, &mut buffers.record)?;
        let bytes = &mut buffers.blocks[..NODE_BYTES];
        let place = match kind {
            Kind::MapNode => entry.node(),
            _ => entry,
        };
        let right = header.kind == kind
            && place == Entry::new(entry.address(), header.units(), 0, 1)
            && header.count == id.level
            && header.number == id.index
            && Codecs::<P>::decompress_node(header.algorithm, payload, bytes);
        if !right {
            return corrupt("table node", entry.address());
        }
        let mut words = Vec::filled(0, NODE_ENTRIES)?;
        decode_node(bytes, &mut words);
        Ok(words)
    }
}
