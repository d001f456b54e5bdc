// SPDX-License-Identifier: GPL-2.0 OR MIT
//! [`Maker`]: an image made by hand, one record after the other.

use crate::engine::format::{
    encode_node, height_for, put, DeviceSize, Entry, Kind, Layout, LogPosition, RecordHeader,
    SegmentHeader, SegmentUsage, Superblock, BLOCK_SIZE, DATA_START, NODE_BYTES, NODE_ENTRIES,
    NODE_SHIFT, RECORD_HEADER, SEGMENT_HEADER, UNIT,
};
use crate::engine::{Algorithm, Compression, Recompression};
use crate::platform::mem::Need;
use crate::platform::std::StdZstdCompressor;
use crate::platform::{Platform, ZstdCompressor};
use core::marker::PhantomData;
use std::collections::{BTreeMap, BTreeSet};
use std::vec::Vec;

/// The contents of a block with this tag; tag 0 is zeros. Contents of odd tags compress.
pub fn contents(tag: u32) -> [u8; BLOCK_SIZE] {
    // Runs of one byte: a fuzzer counts every byte of any other pattern when it is decompressed.
    let mut block = [tag as u8; BLOCK_SIZE];
    if tag % 2 == 1 {
        for part in block.chunks_exact_mut(BLOCK_SIZE / 8) {
            part[..4].copy_from_slice(&tag.to_le_bytes());
        }
        return block;
    }
    let mut state = u64::from(tag);
    for word in block.chunks_exact_mut(8) {
        word.copy_from_slice(&state.to_le_bytes());
        if tag != 0 {
            state = state
                .wrapping_mul(0x5851_f42d_4c95_7f2d)
                .wrapping_add(u64::from(tag));
        }
    }
    block
}

/// `content`, compressed.
pub(super) fn lz4(content: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    // There is always room in a vector.
    let _ = lzzzz::lz4::compress_to_vec(content, &mut packed, lzzzz::lz4::ACC_LEVEL_DEFAULT);
    packed
}

/// `content`, compressed.
pub(super) fn zstd(content: &[u8]) -> Vec<u8> {
    let mut packed = std::vec![0; content.len() + 64];
    let context = StdZstdCompressor::new(Need::Required, 3, content.len());
    // There is always room.
    let len = context
        .ok()
        .and_then(|mut c| c.compress(content, &mut packed));
    packed.truncate(len.unwrap_or(0));
    packed
}

/// The tag of a block that [`contents`] filled.
pub fn tag_of(block: &[u8]) -> Option<u32> {
    let mut tag = [0; 4];
    tag.copy_from_slice(&block[..4]);
    let tag = u32::from_le_bytes(tag);
    (contents(tag) == block).then_some(tag)
}

struct Draft {
    seq: u64,
    bytes: Vec<u8>,
}

/// An image that is being made. Its inputs are not checked.
pub struct Maker<P> {
    /// The fixed part.
    pub layout: Layout,
    /// Size of the device.
    pub size: DeviceSize,
    /// Epoch of the segments.
    pub epoch: u64,
    /// Salt of the epoch.
    pub salt: u64,
    /// Nodes are compressed. Words of others can be edited in place.
    pub pack_nodes: bool,
    /// What compresses nodes: LZ4, if the image is to be right.
    pub node_algorithm: Algorithm,
    /// The superblock says that there may be records of Zstandard.
    pub zstd: bool,
    /// The superblock says that segments may be marked as recompressed.
    pub marks: bool,
    /// Entries of the blocks, as the data and zero records so far make them.
    pub table: BTreeMap<u64, Entry>,
    /// Segments to be marked free.
    pub free: BTreeSet<usize>,
    /// Every block that was ever written, and its tag.
    pub written: BTreeSet<(u64, u32)>,
    segments: Vec<Draft>,
    platform: PhantomData<P>,
}

impl<P: Platform> Maker<P> {
    /// An image for a device of this many blocks, without segments.
    pub fn new(blocks: u64) -> Self {
        Self {
            layout: Layout {
                record_size: 16384,
                segment_size: 256 * 1024,
                uuid: *b"a hostile image!",
            },
            size: DeviceSize::from_blocks(blocks),
            epoch: 3,
            salt: 0x0123_4567_89ab_cdef,
            pack_nodes: false,
            node_algorithm: Algorithm::Lz4,
            zstd: false,
            marks: false,
            table: BTreeMap::new(),
            free: BTreeSet::new(),
            written: BTreeSet::new(),
            segments: Vec::new(),
            platform: PhantomData,
        }
    }

    /// Adds a segment with this sequence number.
    pub fn segment(&mut self, seq: u64) -> usize {
        let bytes = std::vec![0; SEGMENT_HEADER];
        self.segments.push(Draft { seq, bytes });
        self.segments.len() - 1
    }

    fn seed(&self, segment: usize) -> u32 {
        self.header(segment).seed::<P>()
    }

    fn header(&self, segment: usize) -> SegmentHeader {
        SegmentHeader {
            index: segment as u64,
            seq: self.segments[segment].seq,
            epoch: self.epoch,
            salt: self.salt,
            segment_shift: self.layout.segment_shift() as u8,
            uuid: self.layout.uuid,
            next: segment as u64 + 1,
            durable: 0,
            first: self.segments[0].seq,
        }
    }

    /// The present end of a segment, as a log position.
    pub fn end(&self, segment: usize) -> LogPosition {
        let draft = &self.segments[segment];
        LogPosition {
            segment: segment as u64,
            offset: draft.bytes.len() as u32,
            seq: draft.seq,
        }
    }

    /// The contents of a segment so far.
    pub fn bytes(&self, segment: usize) -> &[u8] {
        &self.segments[segment].bytes
    }

    /// Appends any record. Returns its byte address.
    pub fn record(&mut self, segment: usize, mut header: RecordHeader, payload: &[u8]) -> u64 {
        header.payload = payload.len();
        let seed = self.seed(segment);
        let mut encoded = header.encode::<P>(&[payload]);
        let draft = &mut self.segments[segment].bytes;
        RecordHeader::stamp(&mut encoded, seed, draft.len() as u32);
        let address = self.layout.segment_offset(segment as u64) + draft.len() as u64;
        let end = draft.len() + header.units() as usize * UNIT;
        draft.extend_from_slice(&encoded);
        draft.extend_from_slice(payload);
        draft.resize(end, 0);
        address
    }

    /// Appends a data record with these tags (0: not stored).
    pub fn data(&mut self, segment: usize, block: u64, tags: &[u32], algorithm: Algorithm) -> u64 {
        let mut mask = 0u32;
        let mut blocks = Vec::new();
        for (i, &tag) in tags.iter().enumerate() {
            if tag != 0 {
                mask |= 1 << i;
                blocks.extend_from_slice(&contents(tag));
            }
        }
        let (span, count) = (tags.len() as u32, mask.count_ones());
        let mut payload = Vec::new();
        if count < span {
            payload.extend_from_slice(&mask.to_le_bytes());
        }
        match algorithm {
            Algorithm::Raw => payload.extend_from_slice(&blocks),
            Algorithm::Lz4 => payload.extend_from_slice(&lz4(&blocks)),
            Algorithm::Zstd => payload.extend_from_slice(&zstd(&blocks)),
        }
        let header = RecordHeader {
            algorithm: algorithm.tag(),
            span: span as u8,
            count: count as u8,
            payload: payload.len(),
            ..RecordHeader::plain(Kind::Data, block)
        };
        let address = self.record(segment, header, &payload);
        let mut index = 0;
        for (at, &tag) in (block..).zip(tags) {
            self.table.remove(&at);
            if tag != 0 {
                self.written.insert((at, tag));
                let entry = Entry::new(address, header.units(), index, count);
                self.table.insert(at, entry);
                index += 1;
            }
        }
        address
    }

    /// Appends a zero record.
    pub fn zero(&mut self, segment: usize, block: u64, count: u64) -> u64 {
        let header = RecordHeader::plain(Kind::Zero, block);
        self.table
            .retain(|&at, _| at < block || at >= block.saturating_add(count));
        self.record(segment, header, &count.to_le_bytes())
    }

    /// Appends a link.
    pub fn link(&mut self, segment: usize, next: u64) -> u64 {
        let header = RecordHeader::plain(Kind::Link, 0);
        self.record(segment, header, &next.to_le_bytes())
    }

    /// Fills up the last sector, as a flush does.
    pub fn pad(&mut self, segment: usize) {
        let used = self.segments[segment].bytes.len();
        let len = used.next_multiple_of(BLOCK_SIZE) - used;
        if len > 0 {
            let payload = std::vec![0; len - RECORD_HEADER];
            self.record(segment, RecordHeader::plain(Kind::Pad, 0), &payload);
        }
    }

    /// Appends a node of a table. Returns its entry.
    pub fn node(
        &mut self,
        segment: usize,
        kind: Kind,
        level: u8,
        index: u64,
        words: &[u64],
    ) -> Entry {
        let mut bytes = [0; NODE_BYTES];
        encode_node(words, &mut bytes);
        let packed = match self.node_algorithm {
            Algorithm::Zstd => zstd(&bytes),
            _ => lz4(&bytes),
        };
        let (algorithm, payload) = if self.pack_nodes && packed.len() < NODE_BYTES - UNIT {
            (self.node_algorithm, &packed[..])
        } else {
            (Algorithm::Raw, &bytes[..])
        };
        let header = RecordHeader {
            algorithm: algorithm.tag(),
            count: level,
            payload: payload.len(),
            ..RecordHeader::plain(kind, index)
        };
        let address = self.record(segment, header, payload);
        Entry::new(address, header.units(), 0, 1)
    }

    /// Appends a tree of nodes over `items`, and calls `note` for each. Returns the entry of the root.
    pub fn tree(
        &mut self,
        segment: usize,
        kind: Kind,
        items: &BTreeMap<u64, u64>,
        height: u8,
        note: &mut dyn FnMut(Entry),
    ) -> Entry {
        let mut below = items.clone();
        for level in 0..height {
            let mut nodes: BTreeMap<u64, [u64; NODE_ENTRIES]> = BTreeMap::new();
            for (at, word) in below {
                let words = nodes.entry(at >> NODE_SHIFT).or_insert([0; NODE_ENTRIES]);
                words[at as usize % NODE_ENTRIES] = word;
            }
            below = BTreeMap::new();
            for (index, words) in nodes {
                let entry = self.node(segment, kind, level, index, &words);
                note(entry);
                below.insert(index, entry.0);
            }
        }
        below.get(&0).map_or(Entry::HOLE, |&word| Entry(word))
    }

    /// Appends a checkpoint of the present state. Returns its superblock, of generation 2, as of a clean
    /// close.
    pub fn checkpoint(&mut self, segment: usize) -> Superblock {
        let log_start = self.end(segment);
        let layout = self.layout;
        let mut live: BTreeMap<u64, u32> = BTreeMap::new();
        let mut count = |entry: Entry| {
            if let Some(segment) = layout.segment_of(entry.address()) {
                *live.entry(segment).or_default() += entry.charge();
            }
        };
        let words = self
            .table
            .iter()
            .map(|(&at, entry)| (at, entry.0))
            .collect();
        self.table.values().for_each(|&entry| count(entry));
        let height = self.size.table_height();
        let map_root = self.tree(segment, Kind::MapNode, &words, height, &mut count);
        let usage: BTreeMap<u64, u64> = (0..self.segments.len())
            .map(|index| {
                let usage = SegmentUsage {
                    free: self.free.contains(&index),
                    unused_end: 0,
                    recompressed: false,
                    live: live.get(&(index as u64)).copied().unwrap_or(0),
                    seed: self.seed(index),
                };
                (index as u64, usage.pack())
            })
            .collect();
        let segments = usage.len() as u64;
        let usage_root = self.tree(
            segment,
            Kind::UsageNode,
            &usage,
            height_for(segments),
            &mut |_| {},
        );
        self.pad(segment);
        let end = self.end(segment);
        Superblock {
            compatible: 0,
            read_only_compatible: 0,
            layout,
            zstd: self.zstd,
            marks: self.marks,
            compression: Compression::of(Algorithm::Lz4),
            recompression: Recompression::OFF,
            size: self.size,
            incomplete: false,
            detached: false,
            clean: true,
            generation: 2,
            epoch: self.epoch,
            salt: self.salt,
            log_start,
            log_end: (end.seq << layout.segment_shift()) + u64::from(end.offset),
            segments,
            mapped: words.len() as u64,
            height,
            map_root,
            usage_root,
            usage_segments: segments,
            length: DATA_START + BLOCK_SIZE as u64,
        }
    }

    /// The image: the superblock in both slots, in the other one with the generation before.
    pub fn image(&self, superblock: &Superblock) -> Vec<u8> {
        let mut older = *superblock;
        older.generation = superblock.generation.wrapping_sub(1);
        self.image_of(&[*superblock, older])
    }

    /// The image with these superblocks, each in the slot of its generation.
    pub fn image_of(&self, superblocks: &[Superblock]) -> Vec<u8> {
        let end = self.layout.segment_offset(self.segments.len() as u64);
        let mut bytes = std::vec![0; end as usize];
        for superblock in superblocks {
            let at = superblock.offset() as usize;
            superblock.encode::<P>(&mut bytes[at..at + BLOCK_SIZE]);
        }
        for (index, draft) in self.segments.iter().enumerate() {
            let at = self.layout.segment_offset(index as u64) as usize;
            // What is beyond the end of the segment is lost.
            let len = draft.bytes.len().min(self.layout.segment_size as usize);
            put(&mut bytes, at, &draft.bytes[..len]);
            let header = self.header(index).encode::<P>();
            put(&mut bytes, at, &header);
        }
        bytes
    }
}
