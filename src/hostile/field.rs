// SPDX-License-Identifier: GPL-2.0 OR MIT
//! [`Image`] and [`Field`]: every integer of an image, and its checksums made right again.

use crate::engine::format::{
    le32, le64, put, Kind, Layout, RecordHeader, SegmentHeader, Superblock, BLOCK_SIZE, DATA_START,
    NODE_BYTES, NODE_ENTRIES, RECORD_HEADER, SEGMENT_HEADER, SUPERBLOCK_OFFSETS, UNIT,
};
use crate::engine::{Error, Result};
use crate::platform::Platform;
use core::marker::PhantomData;
use std::vec::Vec;

/// The place of an integer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Little-endian bytes.
    Bytes { at: usize, width: usize },
    /// Bits of a little-endian u64.
    Bits { at: usize, shift: u32, bits: u32 },
    /// Bits of a word of a node, which begins at `at`.
    Word {
        at: usize,
        word: usize,
        shift: u32,
        bits: u32,
    },
}

/// One integer of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// Byte offset of the structure it is in.
    pub structure: u64,
    place: Place,
}

impl Field {
    /// The largest value it can hold.
    pub fn max(&self) -> u64 {
        let bits = match self.place {
            Place::Bytes { width, .. } => 8 * width as u32,
            Place::Bits { bits, .. } | Place::Word { bits, .. } => bits,
        };
        u64::MAX >> (u64::BITS - bits)
    }

    fn word(&self, bytes: &[u8]) -> u64 {
        match self.place {
            Place::Bytes { at, width } => {
                let mut word = [0; 8];
                word[..width].copy_from_slice(&bytes[at..at + width]);
                u64::from_le_bytes(word)
            }
            Place::Bits { at, .. } => le64(bytes, at),
            Place::Word { at, word, .. } => {
                let plane = |i| bytes[at + i * NODE_ENTRIES + word];
                u64::from_le_bytes(core::array::from_fn(plane))
            }
        }
    }

    fn shift(&self) -> u32 {
        match self.place {
            Place::Bytes { .. } => 0,
            Place::Bits { shift, .. } | Place::Word { shift, .. } => shift,
        }
    }

    /// Its value.
    pub fn get(&self, bytes: &[u8]) -> u64 {
        (self.word(bytes) >> self.shift()) & self.max()
    }

    /// Gives it another value. The checksum is wrong until the image is sealed.
    pub fn set(&self, bytes: &mut [u8], value: u64) {
        let mask = self.max() << self.shift();
        let new = (self.word(bytes) & !mask) | ((value & self.max()) << self.shift());
        match self.place {
            Place::Bytes { at, width } => put(bytes, at, &new.to_le_bytes()[..width]),
            Place::Bits { at, .. } => put(bytes, at, &new.to_le_bytes()),
            Place::Word { at, word, .. } => {
                for (i, byte) in new.to_le_bytes().into_iter().enumerate() {
                    bytes[at + i * NODE_ENTRIES + word] = byte;
                }
            }
        }
    }
}

/// The parts of an entry: name, lowest bit, bits.
const ENTRY: [(&str, u32, u32); 4] = [
    ("entry: address", 20, 44),
    ("entry: sectors", 14, 6),
    ("entry: index", 9, 5),
    ("entry: charge", 0, 9),
];

const ROOTS: [(usize, [&str; 4]); 2] = [
    (
        144,
        [
            "superblock: table root: address",
            "superblock: table root: sectors",
            "superblock: table root: index",
            "superblock: table root: charge",
        ],
    ),
    (
        152,
        [
            "superblock: usage root: address",
            "superblock: usage root: sectors",
            "superblock: usage root: index",
            "superblock: usage root: charge",
        ],
    ),
];

const USAGE: [(&str, u32, u32); 5] = [
    ("usage: free", 63, 1),
    ("usage: tail", 55, 8),
    ("usage: recompressed", 54, 1),
    ("usage: live", 32, 22),
    ("usage: seed", 0, 32),
];

const SUPERBLOCK: [(&str, usize, usize); 30] = [
    ("superblock: version", 8, 4),
    ("superblock: compatible features", 16, 8),
    ("superblock: read-only features", 24, 8),
    ("superblock: incompatible features", 32, 8),
    ("superblock: uuid", 40, 8),
    ("superblock: uuid", 48, 8),
    ("superblock: size", 56, 8),
    ("superblock: record size", 64, 1),
    ("superblock: segment size", 65, 1),
    ("superblock: algorithm", 66, 1),
    ("superblock: levels", 67, 1),
    ("superblock: flags", 68, 4),
    ("superblock: generation", 72, 8),
    ("superblock: epoch", 80, 8),
    ("superblock: salt", 88, 8),
    ("superblock: log start: segment", 96, 8),
    ("superblock: log start: offset", 104, 4),
    ("superblock: zero", 108, 4),
    ("superblock: log start: sequence", 112, 8),
    ("superblock: log end", 120, 8),
    ("superblock: segments", 128, 8),
    ("superblock: mapped", 136, 8),
    ("superblock: usage segments", 160, 8),
    ("superblock: length", 168, 8),
    ("superblock: further algorithm", 176, 1),
    ("superblock: level", 177, 1),
    ("superblock: algorithm for cold data", 178, 1),
    ("superblock: level for cold data", 179, 1),
    ("superblock: seconds until data is cold", 180, 4),
    ("superblock: rate of recompression", 184, 4),
];

const SEGMENT: [(&str, usize, usize); 11] = [
    ("segment: segment size", 12, 1),
    ("segment: zero", 13, 1),
    ("segment: index", 16, 8),
    ("segment: sequence", 24, 8),
    ("segment: epoch", 32, 8),
    ("segment: salt", 40, 8),
    ("segment: uuid", 48, 8),
    ("segment: uuid", 56, 8),
    ("segment: next", 64, 8),
    ("segment: durable", 72, 8),
    ("segment: first", 80, 8),
];

const RECORD: [(&str, usize, usize); 4] = [
    ("record: kind", 4, 1),
    ("record: algorithm", 5, 1),
    ("record: span", 6, 1),
    ("record: count", 7, 1),
];

/// A complete image, with the places of its structures as they were found.
pub struct Image<P> {
    /// The bytes of the file.
    pub bytes: Vec<u8>,
    /// Every integer. Those of the second superblock follow those of the first, in the same order.
    pub fields: Vec<Field>,
    /// Byte offset and stored bytes of every record.
    pub records: Vec<(usize, usize)>,
    layout: Layout,
    segments: Vec<usize>,
    platform: PhantomData<P>,
}

impl<P> Clone for Image<P> {
    fn clone(&self) -> Self {
        Self {
            bytes: self.bytes.clone(),
            fields: self.fields.clone(),
            records: self.records.clone(),
            layout: self.layout,
            segments: self.segments.clone(),
            platform: PhantomData,
        }
    }
}

impl<P: Platform> Image<P> {
    /// Finds the structures of an image, which must be in order.
    ///
    /// # Errors
    ///
    /// That of the first superblock.
    pub fn new(bytes: Vec<u8>) -> Result<Self> {
        if bytes.len() < DATA_START as usize {
            return Err(Error::NotAnImage);
        }
        let superblock = Superblock::decode::<P>(&mut bytes[..BLOCK_SIZE].to_vec(), 0)?;
        let mut image = Self {
            bytes,
            fields: Vec::new(),
            records: Vec::new(),
            layout: superblock.layout,
            segments: Vec::new(),
            platform: PhantomData,
        };
        for slot in SUPERBLOCK_OFFSETS {
            image.add_bytes(slot as usize, &SUPERBLOCK);
            for (at, names) in ROOTS {
                for (name, (_, shift, bits)) in names.into_iter().zip(ENTRY) {
                    let at = slot as usize + at;
                    let place = Place::Bits { at, shift, bits };
                    image.add(name, slot as usize, place);
                }
            }
        }
        let size = image.layout.segment_size as usize;
        for start in (DATA_START as usize..image.bytes.len()).step_by(size) {
            let header = SegmentHeader::decode::<P>(&image.bytes[start..]);
            if let Some(header) = header {
                let seed = header.seed::<P>();
                image.segments.push(start);
                image.add_bytes(start, &SEGMENT);
                image.add_records(start, seed);
            }
        }
        Ok(image)
    }

    fn add(&mut self, name: &'static str, structure: usize, place: Place) {
        self.fields.push(Field {
            name,
            structure: structure as u64,
            place,
        });
    }

    fn add_bytes(&mut self, start: usize, fields: &[(&'static str, usize, usize)]) {
        for &(name, at, width) in fields {
            let place = Place::Bytes {
                at: start + at,
                width,
            };
            self.add(name, start, place);
        }
    }

    fn add_records(&mut self, start: usize, seed: u32) {
        let end = (start + self.layout.segment_size as usize).min(self.bytes.len());
        let mut at = start + SEGMENT_HEADER;
        loop {
            let offset = (at - start) as u32;
            let found = RecordHeader::decode::<P>(&self.bytes[at..end], seed, offset);
            let Some((header, _)) = found else { break };
            self.records.push((at, RECORD_HEADER + header.payload));
            self.add_bytes(at, &RECORD);
            for (name, shift, bits) in [("record: number", 0, 44), ("record: payload", 44, 20)] {
                let place = Place::Bits {
                    at: at + 8,
                    shift,
                    bits,
                };
                self.add(name, at, place);
            }
            let payload = at + RECORD_HEADER;
            let integer = |width| Place::Bytes { at: payload, width };
            match header.kind {
                Kind::Data if header.count < header.span => {
                    self.add("record: mask", at, integer(4));
                }
                Kind::Zero => self.add("zero record: blocks", at, integer(8)),
                Kind::Link => self.add("link: segment", at, integer(8)),
                Kind::MapNode | Kind::UsageNode if header.payload == NODE_BYTES => {
                    let leaf = header.kind == Kind::UsageNode && header.count == 0;
                    self.add_words(at, payload, if leaf { &USAGE } else { &ENTRY });
                }
                _ => {}
            }
            at += header.units() as usize * UNIT;
        }
    }

    /// The words of a raw node that are in use, and the one after them.
    fn add_words(&mut self, structure: usize, at: usize, parts: &[(&'static str, u32, u32)]) {
        let mut before = 1;
        for word in 0..NODE_ENTRIES {
            let place = |shift, bits| Place::Word {
                at,
                word,
                shift,
                bits,
            };
            let whole = Field {
                name: "",
                structure: 0,
                place: place(0, 64),
            };
            let value = whole.get(&self.bytes);
            if value != 0 || before != 0 {
                for &(name, shift, bits) in parts {
                    self.add(name, structure, place(shift, bits));
                }
            }
            before = value;
        }
    }

    /// The field of this name in the structure at a byte offset.
    pub fn field(&self, name: &str, structure: u64) -> Option<&Field> {
        self.fields
            .iter()
            .find(|f| f.name == name && f.structure == structure)
    }

    /// Number of fields of one superblock: those of the other one follow after as many places.
    pub fn superblock_fields() -> usize {
        SUPERBLOCK.len() + ROOTS.len() * ENTRY.len()
    }

    /// Notes that the file became shorter: structures behind the end can no longer be changed or sealed.
    pub fn forget_beyond_end(&mut self) {
        let end = self.bytes.len();
        let size = self.layout.segment_size as usize;
        self.segments.retain(|&start| start + size <= end);
        let last = self.segments.last().map_or(0, |&start| start + size);
        self.records.retain(|&(at, _)| at < last);
        let slots = DATA_START;
        self.fields
            .retain(|f| f.structure < slots || f.structure < last as u64);
    }

    /// Makes every checksum right again, for the structures where they were found.
    pub fn seal(&mut self) {
        for &start in &self.segments {
            let header = &mut self.bytes[start..start + SEGMENT_HEADER];
            put(header, 8, &[0; 4]);
            let crc = P::crc32c(0, header);
            put(header, 8, &crc.to_le_bytes());
        }
        // From the end, so that a record which now reaches into the next one covers its final bytes.
        for &(at, _) in self.records.iter().rev() {
            let starts = self.segments.iter().rev();
            let Some(&start) = starts.clone().find(|&&start| start <= at) else {
                continue;
            };
            let header = SegmentHeader::decode::<P>(&self.bytes[start..]);
            let seed = header.map_or(0, |h| h.seed::<P>());
            let payload = (le64(&self.bytes, at + 8) >> 44) as usize;
            let pad = self.bytes[at + 4] == 3;
            let len = RECORD_HEADER + if pad { 0 } else { payload };
            let end = self.bytes.len().min(at + len);
            let crc = P::crc32c(0, &self.bytes[at + 4..end]);
            put(&mut self.bytes, at, &crc.to_le_bytes());
            RecordHeader::stamp(&mut self.bytes[at..], seed, (at - start) as u32);
        }
        for slot in SUPERBLOCK_OFFSETS {
            seal_superblock::<P>(&mut self.bytes[slot as usize..]);
        }
    }
}

/// Makes the checksum of the superblock at the start of `bytes` right.
fn seal_superblock<P: Platform>(bytes: &mut [u8]) {
    let page = &mut bytes[..BLOCK_SIZE];
    if le32(page, 0) != 0 {
        put(page, 12, &[0; 4]);
        let crc = P::crc32c(0, page);
        put(page, 12, &crc.to_le_bytes());
    }
}
