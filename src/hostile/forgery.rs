// SPDX-License-Identifier: GPL-2.0 OR MIT
//! [`Forgery`]: changes of a good image, written in a few bytes; and the compact form of a complete image,
//! for a fuzzer that does not know its structures.

use super::{exercise, Image, Maker};
use crate::engine::format::{Superblock, DATA_START, SUPERBLOCK_OFFSETS};
use crate::engine::Algorithm;
use crate::platform::fuzz::{Fuzz, MemFile};
use crate::platform::Platform;
use std::collections::BTreeSet;
use std::vec::Vec;

/// Values at which off-by-one errors are likely.
const EDGES: [u64; 20] = [
    0,
    1,
    2,
    u64::MAX,
    u64::MAX - 1,
    u64::MAX / 2,
    u64::MAX / 2 - 1,
    u64::MAX / 2 + 1,
    1 << 60,
    (1 << 60) - 1,
    1 << 50,
    1 << 48,
    1 << 44,
    1 << 42,
    (1 << 42) - 1,
    1 << 32,
    (1 << 32) - 1,
    1 << 30,
    1 << 18,
    4096,
];

/// Bytes of one change in a forgery.
const EDIT: usize = 12;
/// Most changes of one forgery.
const EDITS: u8 = 15;

/// A good image.
pub struct Base {
    /// The file.
    pub bytes: Vec<u8>,
    /// Every block that was ever written, and its tag.
    pub written: BTreeSet<(u64, u32)>,
    /// It was closed cleanly.
    pub clean: bool,
}

impl Base {
    fn new<P: Platform>(maker: Maker<P>, superblock: &Superblock) -> Self {
        Self {
            bytes: maker.image(superblock),
            written: maker.written,
            clean: superblock.clean,
        }
    }
}

/// Small good images of different kinds to begin with. They depend only on this code.
pub fn bases<P: Platform>(pack_nodes: bool) -> Vec<Base> {
    std::vec![
        clean::<P>(pack_nodes),
        crashed::<P>(pack_nodes),
        deep::<P>(pack_nodes),
    ]
}

/// The images that forgeries change: some made here, and some that the engine of format 1 wrote.
///
/// # Panics
/// If one of them is not an image.
pub fn forgery_bases() -> Vec<Image<Fuzz<true>>> {
    let written: [&[u8]; 3] = [
        include_bytes!("../../tests/fixtures/v1-clean.cloop"),
        include_bytes!("../../tests/fixtures/v1-crashed.cloop"),
        include_bytes!("../../tests/fixtures/v1-zstd.cloop"),
    ];
    bases::<Fuzz<true>>(false)
        .into_iter()
        .map(|base| base.bytes)
        .chain(written.map(<[u8]>::to_vec))
        .map(|bytes| Image::new(bytes).expect("a good image"))
        .collect()
}

/// Runs one input of the fuzz target `forgery`.
pub fn exercise_forgery(bases: &[Image<Fuzz<true>>], input: &[u8]) {
    Fuzz::<true>::begin(0);
    let forgery = Forgery::new(input);
    let file = MemFile::new(&forgery.apply(bases).bytes);
    exercise::<Fuzz<true>>(&file, forgery.script);
}

/// An input for [`exercise_forgery`] that follows from a seed.
pub fn random_forgery(seed: u64) -> Vec<u8> {
    Fuzz::<true>::begin(seed);
    let below = |n| Fuzz::<true>::random_u64() % n;
    let edits = 1 + below(3);
    let mut input = std::vec![below(6) as u8, edits as u8];
    for _ in 0..edits {
        input.extend_from_slice(&(below(1 << 16) as u16).to_le_bytes());
        input.extend_from_slice(&[below(256) as u8, below(256) as u8]);
        input.extend_from_slice(&(below(u64::MAX) >> below(64)).to_le_bytes());
    }
    for _ in 0..below(7) {
        input.extend_from_slice(&(below(1 << 32) as u32).to_le_bytes());
    }
    input
}

/// Runs one input of the fuzz target `image`.
pub fn exercise_compact(input: &[u8]) {
    Fuzz::<false>::begin(0);
    let (bytes, script) = expand(input);
    exercise::<Fuzz<false>>(&MemFile::new(&bytes), script);
}

/// Closed cleanly; a free segment, a dead one, and one with everything in it.
fn clean<P: Platform>(pack_nodes: bool) -> Base {
    let mut m = Maker::<P>::new(1100);
    m.pack_nodes = pack_nodes;
    let (free, dead, used) = (m.segment(1), m.segment(2), m.segment(3));
    m.zero(dead, 0, 1);
    m.link(dead, used as u64);
    m.data(used, 0, &[1, 3, 5, 7], Algorithm::Lz4);
    m.data(used, 4, &[9, 0, 11, 0], Algorithm::Lz4);
    m.data(used, 510, &[13, 15], Algorithm::Lz4);
    m.data(used, 512, &[2, 0], Algorithm::Raw);
    m.data(used, 1096, &[17, 19, 21, 23], Algorithm::Lz4);
    m.zero(used, 1, 1);
    m.pad(used);
    m.free.insert(free);
    let superblock = m.checkpoint(used);
    Base::new(m, &superblock)
}

/// In use when the power failed: a log of three segments to replay.
fn crashed<P: Platform>(pack_nodes: bool) -> Base {
    let mut m = Maker::<P>::new(1100);
    m.pack_nodes = pack_nodes;
    let first = m.segment(5);
    m.data(first, 0, &[1, 3, 5, 7], Algorithm::Lz4);
    m.data(first, 1024, &[9, 11], Algorithm::Lz4);
    let mut superblock = m.checkpoint(first);
    superblock.clean = false;
    m.data(first, 4, &[13, 0, 15], Algorithm::Lz4);
    m.zero(first, 0, 2);
    m.link(first, 1);
    let second = m.segment(6);
    m.data(second, 2, &[17], Algorithm::Lz4);
    m.data(second, 600, &[2], Algorithm::Raw);
    m.zero(second, 512, 512);
    m.pad(second);
    m.data(second, 600, &[19, 21, 0, 23], Algorithm::Lz4);
    m.link(second, 2);
    let third = m.segment(7);
    m.data(third, 1099, &[25], Algorithm::Lz4);
    m.pad(third);
    superblock.log_end = (6 << 18) + 4096;
    Base::new(m, &superblock)
}

/// A device of 1 PiB with a few blocks far apart: tables of five levels.
fn deep<P: Platform>(pack_nodes: bool) -> Base {
    let mut m = Maker::<P>::new(1 << 38);
    m.pack_nodes = pack_nodes;
    let first = m.segment(1);
    m.data(first, 0, &[1, 3, 5, 7], Algorithm::Lz4);
    m.data(first, 1 << 30, &[9], Algorithm::Lz4);
    m.data(first, (1 << 38) - 4, &[11, 13, 15, 17], Algorithm::Lz4);
    let mut superblock = m.checkpoint(first);
    superblock.clean = false;
    m.data(first, 1 << 36, &[19], Algorithm::Lz4);
    m.zero(first, 1 << 30, 1 << 18);
    m.pad(first);
    Base::new(m, &superblock)
}

/// Changes of one of several images, written in a few bytes.
#[derive(Clone, Copy, Debug)]
pub struct Forgery<'a> {
    base: u8,
    edits: &'a [u8],
    /// The operations on the image afterwards, for [`exercise`](super::exercise()).
    pub script: &'a [u8],
}

impl<'a> Forgery<'a> {
    /// Any bytes stand for some forgery.
    pub fn new(bytes: &'a [u8]) -> Self {
        let (head, rest) = bytes.split_at(bytes.len().min(2));
        let count = usize::from(head.get(1).map_or(0, |n| n % (EDITS + 1)));
        let (edits, script) = rest.split_at(rest.len().min(count * EDIT));
        Self {
            base: head.first().copied().unwrap_or(0),
            edits,
            script,
        }
    }

    /// Makes the changes in one of these images.
    pub fn apply<P: Platform>(&self, bases: &[Image<P>]) -> Image<P> {
        let mut image = bases[usize::from(self.base) % bases.len()].clone();
        for edit in self.edits.chunks_exact(EDIT) {
            let mut value = [0; 8];
            value.copy_from_slice(&edit[4..]);
            let at = u16::from_le_bytes([edit[0], edit[1]]);
            change(
                &mut image,
                at.into(),
                edit[2],
                edit[3],
                u64::from_le_bytes(value),
            );
        }
        image.seal();
        image
    }
}

fn change<P: Platform>(image: &mut Image<P>, at: usize, what: u8, arg: u8, value: u64) {
    let field = image.fields[at % image.fields.len()];
    let other = image.fields[value as usize % image.fields.len()];
    let old = field.get(&image.bytes);
    let signed = i64::from(arg as i8);
    let new = match what % 8 {
        0 => value,
        1 => old.wrapping_add_signed(signed),
        2 => EDGES[usize::from(arg) % EDGES.len()],
        3 => other.get(&image.bytes).wrapping_add_signed(signed),
        4 => old ^ (1 << (arg % 64)),
        5 => field.max().wrapping_sub(u64::from(arg)),
        6 => {
            // A byte of a record's payload: a compressed stream, a mask, a word of a node.
            if let Some(&(start, len)) = image.records.get(at % image.records.len().max(1)) {
                image.bytes[start + value as usize % len] = arg;
            }
            return;
        }
        _ => {
            // Another length of the file, mostly shorter.
            let len = image.bytes.len() as u64;
            let sectors = (value % (len / 4096 + 8)) as usize;
            if arg < 16 && sectors * 4096 > DATA_START as usize {
                image.bytes.truncate(sectors * 4096);
                // Structures behind the end no longer exist.
                image.forget_beyond_end();
            }
            return;
        }
    };
    field.set(&mut image.bytes, new);
    let superblock = Image::<P>::superblock_fields();
    if what & 0x80 != 0 && at % image.fields.len() < superblock {
        let twin = image.fields[at % image.fields.len() + superblock];
        if twin.name != "superblock: generation" {
            twin.set(&mut image.bytes, new);
        }
    }
}

/// Bytes of a superblock (a little more than are in use) and of a segment that a compact image holds.
const SLOT: usize = 192;
const SEGMENT: usize = 8192;
const SCRIPT: usize = 16;

/// The compact form: a script, the superblocks, and the beginning of each segment (of 256 KiB).
pub fn compact(bytes: &[u8]) -> Vec<u8> {
    let mut out = std::vec![1; SCRIPT];
    for slot in SUPERBLOCK_OFFSETS {
        out.extend_from_slice(&bytes[slot as usize..slot as usize + SLOT]);
    }
    for segment in bytes[DATA_START as usize..].chunks(256 * 1024) {
        out.extend_from_slice(&segment[..SEGMENT.min(segment.len())]);
    }
    while out.last() == Some(&0) {
        out.pop();
    }
    out
}

/// The image and the script that a compact form stands for. Any bytes stand for some image.
pub fn expand(input: &[u8]) -> (Vec<u8>, &[u8]) {
    let (script, rest) = input.split_at(input.len().min(SCRIPT));
    let (slots, segments) = rest.split_at(rest.len().min(2 * SLOT));
    let count = segments.len().div_ceil(SEGMENT).clamp(1, 8);
    let mut bytes = std::vec![0; DATA_START as usize + count * 256 * 1024];
    for (slot, part) in SUPERBLOCK_OFFSETS.into_iter().zip(slots.chunks(SLOT)) {
        bytes[slot as usize..slot as usize + part.len()].copy_from_slice(part);
    }
    for (index, part) in segments.chunks(SEGMENT).take(count).enumerate() {
        let at = DATA_START as usize + index * 256 * 1024;
        bytes[at..at + part.len()].copy_from_slice(part);
    }
    (bytes, script)
}
