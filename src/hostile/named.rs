// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Attacks by name: each is an image and its expected outcome.

use super::maker::{lz4, zstd};
use super::{contents, Maker};
use crate::engine::format::{
    DeviceSize, Entry, Fingerprints, Kind, RecordHeader, Superblock, BLOCK_SIZE, NODE_ENTRIES,
    SUPERBLOCK_OFFSETS, UNIT,
};
use crate::engine::Algorithm::{self, Lz4, Raw};
use crate::platform::Platform;
use std::vec::Vec;

/// The expected outcome of a hostile image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// It cannot be opened.
    Refused,
    /// This many blocks from the first one on cannot be read, all others can, and `check` says why.
    Damaged(u64, u64),
    /// All blocks can be read, but `check` finds something.
    Found,
    /// Nothing is wrong with it.
    Harmless,
}

/// A hostile image.
pub struct Named {
    /// What is wrong.
    pub name: &'static str,
    /// The file.
    pub bytes: Vec<u8>,
    /// The expected outcome.
    pub expect: Expect,
}

/// Blocks of the devices.
pub const BLOCKS: u64 = 1100;
/// The block that holds a record of another one in one of the attacks.
pub const RECORD_IN_RECORD: u64 = 24;

/// A segment with three records of blocks 0 to 7, 512 and 513.
fn begun<P: Platform>() -> Maker<P> {
    let mut m = Maker::new(BLOCKS);
    m.segment(1);
    m.data(0, 0, &[1, 3, 5, 7], Lz4);
    m.data(0, 4, &[2, 4, 6, 8], Raw);
    m.data(0, 512, &[9, 11], Lz4);
    m
}

/// The image of a maker's present state, closed cleanly, with a changed superblock.
fn closed<P: Platform>(mut m: Maker<P>, change: impl FnOnce(&mut Superblock)) -> Vec<u8> {
    let mut superblock = m.checkpoint(0);
    change(&mut superblock);
    m.image(&superblock)
}

/// An image with a changed table.
fn table<P: Platform>(change: impl FnOnce(&mut Maker<P>)) -> Vec<u8> {
    let mut m = begun::<P>();
    change(&mut m);
    closed(m, |_| {})
}

/// An image in use, with a log after its checkpoint.
fn logged<P: Platform>(append: impl FnOnce(&mut Maker<P>, &mut Superblock)) -> Vec<u8> {
    let mut m = begun::<P>();
    let mut superblock = m.checkpoint(0);
    superblock.clean = false;
    append(&mut m, &mut superblock);
    m.image(&superblock)
}

/// A data record of one block with this payload.
fn one_block<P: Platform>(m: &mut Maker<P>, block: u64, algorithm: u8, payload: &[u8]) {
    let header = RecordHeader {
        algorithm,
        span: 1,
        count: 1,
        payload: payload.len(),
        ..RecordHeader::plain(Kind::Data, block)
    };
    let address = m.record(0, header, payload);
    let entry = Entry::new(address, header.units(), 0, 1);
    m.table.insert(block, entry);
}

/// The image with other words in the only page of its usage: `change` gets segment and word.
fn usage<P: Platform>(m: Maker<P>, change: impl Fn(u64, u64) -> u64) -> Vec<u8> {
    let bytes = closed(m, |_| {});
    let mut image = super::Image::<P>::new(bytes).expect("a good image");
    let parts: Vec<_> = image
        .fields
        .iter()
        .filter(|f| f.name.starts_with("usage: "))
        .copied()
        .collect();
    // Where the parts of a word begin: free, tail, recompressed, live, seed.
    const SHIFTS: [u32; 5] = [63, 55, 54, 32, 0];
    for (index, part) in (0..).zip(parts.chunks_exact(SHIFTS.len())) {
        let placed = part.iter().zip(SHIFTS);
        let word = placed.fold(0, |word, (field, shift)| {
            word | (field.get(&image.bytes) << shift)
        });
        if word as u32 == 0 {
            break;
        }
        let word = change(index, word);
        for (field, shift) in part.iter().zip(SHIFTS) {
            field.set(&mut image.bytes, word >> shift);
        }
    }
    image.seal();
    image.bytes
}

/// All of them.
pub fn named<P: Platform>() -> Vec<Named> {
    let mut all = Vec::new();
    let mut add = |name, expect, bytes| {
        all.push(Named {
            name,
            bytes,
            expect,
        });
    };
    add("good", Expect::Harmless, table::<P>(|_| {}));
    records::<P>(&mut add);
    frames::<P>(&mut add);
    entries::<P>(&mut add);
    nodes::<P>(&mut add);
    counts::<P>(&mut add);
    chains::<P>(&mut add);
    discards::<P>(&mut add);
    superblocks::<P>(&mut add);
    all
}

type Add<'a> = dyn FnMut(&'static str, Expect, Vec<u8>) + 'a;

/// As [`one_block`] for block 20, compressed with Zstandard, in an image that may have such records.
fn one_frame<P: Platform>(payload: &[u8]) -> Vec<u8> {
    table::<P>(|m| {
        m.zstd = true;
        one_block(m, 20, Algorithm::Zstd.tag(), payload);
    })
}

/// A frame with this byte of flags and other bytes of the header, with one block that is a repeated byte.
fn frame(flags: u8, header: &[u8], len: u32) -> Vec<u8> {
    let mut frame = std::vec![0x28, 0xb5, 0x2f, 0xfd, flags];
    frame.extend_from_slice(header);
    // The last block, of kind 1.
    frame.extend_from_slice(&((len << 3) | (1 << 1) | 1).to_le_bytes()[..3]);
    frame.push(7);
    frame
}

/// A window of 4 KiB.
const WINDOW: u8 = 2 << 3;

fn frames<P: Platform>(add: &mut Add<'_>) {
    let lies = Expect::Damaged(20, 1);
    let block = BLOCK_SIZE as u32;
    let good = zstd(&contents(3));
    let plain = frame(0, &[WINDOW], block);
    add(
        "zstd: a good frame",
        Expect::Harmless,
        one_frame::<P>(&good),
    );
    add(
        "zstd: a repeated byte",
        Expect::Harmless,
        one_frame::<P>(&plain),
    );
    add(
        "zstd: a record without the feature",
        lies,
        table::<P>(|m| one_block(m, 20, Algorithm::Zstd.tag(), &good)),
    );
    // Each block of four bytes stands for 128 KiB.
    let mut bomb = plain[..6].to_vec();
    (0..900).for_each(|_| bomb.extend_from_slice(&[2, 0, 0x10, 7]));
    bomb.extend_from_slice(&[3, 0, 0x10, 7]);
    let skippable = [0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4];
    let joined = |parts: [&[u8]; 2]| parts.concat();
    let wrong: [(&str, Vec<u8>); 18] = [
        ("zstd: bomb", bomb),
        (
            "zstd: bomb in one block",
            frame(0, &[WINDOW], (1 << 21) - 1),
        ),
        ("zstd: too short", frame(0, &[WINDOW], block - 1)),
        ("zstd: too long", frame(0, &[WINDOW], block + 1)),
        ("zstd: window of 3.75 TiB", frame(0, &[0xff], block)),
        ("zstd: window of 144 KiB", frame(0, &[(7 << 3) | 1], block)),
        ("zstd: dictionary", frame(1, &[WINDOW, 9], block)),
        (
            "zstd: large dictionary id",
            frame(3, &[WINDOW, 9, 9, 9, 9], block),
        ),
        ("zstd: checksum", frame(4, &[WINDOW], block)),
        ("zstd: reserved bit", frame(8, &[WINDOW], block)),
        ("zstd: unused bit", frame(16, &[WINDOW], block)),
        ("zstd: content size", frame(0x60, &[0, 15], block)),
        ("zstd: lying content size", frame(0xe0, &[0xff; 8], block)),
        ("zstd: skippable frame first", joined([&skippable, &plain])),
        ("zstd: skippable frame last", joined([&plain, &skippable])),
        (
            "zstd: two frames",
            joined([
                &frame(0, &[WINDOW], block / 2),
                &frame(0, &[WINDOW], block / 2),
            ]),
        ),
        ("zstd: a byte behind the frame", joined([&good, &[0]])),
        ("zstd: nothing but a header", plain[..6].to_vec()),
    ];
    for (name, payload) in wrong {
        add(name, lies, one_frame::<P>(&payload));
    }
    // One byte of the block less, and a block of the reserved kind.
    add(
        "zstd: truncated frame",
        lies,
        one_frame::<P>(&good[..good.len() - 1]),
    );
    let mut reserved = plain.clone();
    reserved[6] |= 2 << 1;
    add(
        "zstd: reserved kind of block",
        lies,
        one_frame::<P>(&reserved),
    );
    // A block that does not hold what it must.
    let mut garbage = good.clone();
    garbage[9..].fill(0xff);
    add("zstd: garbage in a block", lies, one_frame::<P>(&garbage));
    add(
        "node compressed with zstd",
        Expect::Refused,
        closed(
            {
                let mut m = begun::<P>();
                m.zstd = true;
                m.node_algorithm = Algorithm::Zstd;
                m.pack_nodes = true;
                m
            },
            |_| {},
        ),
    );
}

fn records<P: Platform>(add: &mut Add<'_>) {
    let bomb = lz4(&std::vec![1; 1 << 20]);
    let small = lz4(&contents(1)[..100]);
    let lies = Expect::Damaged(20, 1);
    add(
        "decompression bomb",
        lies,
        table::<P>(|m| one_block(m, 20, 1, &bomb)),
    );
    add(
        "record too small when decompressed",
        lies,
        table::<P>(|m| one_block(m, 20, 1, &small)),
    );
    add(
        "raw record of half a block",
        lies,
        table::<P>(|m| one_block(m, 20, 0, &[7; BLOCK_SIZE / 2])),
    );
    add(
        "unknown algorithm",
        lies,
        table::<P>(|m| one_block(m, 20, 9, &contents(1))),
    );
    add(
        "payload that is no compressed stream",
        lies,
        table::<P>(|m| one_block(m, 20, 1, &[0xff; 64])),
    );
    add(
        "empty payload",
        lies,
        table::<P>(|m| one_block(m, 20, 1, &[])),
    );
    add(
        "record longer than the record size",
        Expect::Damaged(32, 8),
        table::<P>(|m| {
            m.data(0, 32, &[1, 3, 5, 7, 9, 11, 13, 15], Lz4);
        }),
    );
    add(
        "record with a mask of other blocks",
        Expect::Damaged(21, 1),
        table::<P>(|m| {
            m.data(0, 20, &[1, 0, 5, 0], Lz4);
            // The contents of block 22 in the record would be returned as block 21.
            if let Some(entry) = m.table.remove(&22) {
                m.table.insert(21, entry);
            }
        }),
    );
    add(
        "record in a record",
        Expect::Found,
        table::<P>(|m| {
            // A block's contents, written by a guest that knows the seed, is a record as well.
            let inner = m.data(0, 21, &[3], Lz4);
            let start = m.end(0).offset as usize;
            let at = (inner - m.layout.segment_offset(0)) as usize;
            let mut record = m.bytes(0)[at..start].to_vec();
            // Away from its old place, and to the new one, behind a header and 16 bytes.
            RecordHeader::stamp(&mut record, 0, at as u32);
            RecordHeader::stamp(&mut record, 0, start as u32 + 32);
            let mut block = contents(5);
            block[16..16 + record.len()].copy_from_slice(&record);
            one_block(m, RECORD_IN_RECORD, 0, &block);
            let address = m.table[&RECORD_IN_RECORD].address() + 2 * UNIT as u64;
            m.table
                .insert(21, Entry::new(address, (record.len() / UNIT) as u32, 0, 1));
        }),
    );
}

fn entries<P: Platform>(add: &mut Add<'_>) {
    let redirect = |to: fn(&Maker<P>, Entry) -> u64| {
        table::<P>(move |m| {
            let entry = m.table[&0];
            let address = to(m, entry);
            m.table.insert(
                0,
                Entry((entry.0 & 0xf_ffff) | ((address / UNIT as u64) << 20)),
            );
        })
    };
    let own = Expect::Damaged(0, 1);
    add(
        "entry into the middle of a record",
        own,
        redirect(|_, e| e.address() + 32),
    );
    add(
        "entry to the record of other blocks",
        own,
        redirect(|m, _| m.table[&512].address()),
    );
    add(
        "entry into a segment header",
        own,
        redirect(|m, _| m.layout.segment_offset(0)),
    );
    add(
        "entry into a superblock",
        Expect::Damaged(0, 512),
        redirect(|_, _| SUPERBLOCK_OFFSETS[1]),
    );
    add(
        "entry behind the segments",
        Expect::Damaged(0, 512),
        redirect(|m, _| m.layout.segment_offset(1)),
    );
    add(
        "entry at the largest address",
        Expect::Damaged(0, 512),
        redirect(|_, _| (1 << 48) - UNIT as u64),
    );
    let other = |block: u64, change: fn(u64) -> u64| {
        table::<P>(move |m| {
            let word = change(m.table[&block].0);
            m.table.insert(block, Entry(word));
        })
    };
    add(
        "entry with another index",
        own,
        other(0, |word| word | (3 << 9)),
    );
    add(
        "entry with the largest index",
        own,
        other(0, |word| word | (31 << 9)),
    );
    add(
        "entry of too few sectors",
        Expect::Damaged(4, 1),
        other(4, |word| word & !(63 << 14)),
    );
    add(
        "entry of too many sectors",
        Expect::Found,
        other(0, |word| word | (3 << 14)),
    );
    add(
        "entry with a charge too large",
        Expect::Found,
        other(0, |word| word + 1),
    );
    add(
        "entry with no charge",
        Expect::Damaged(0, 512),
        other(0, |word| word & !0x1ff),
    );
    add(
        "entry to the last unit of a segment",
        own,
        redirect(|m, _| m.layout.segment_offset(1) - UNIT as u64),
    );
    add(
        "entry that leaves its segment",
        Expect::Damaged(0, 512),
        table::<P>(|m| {
            let last = m.layout.segment_offset(1) / UNIT as u64 - 1;
            m.table.insert(0, Entry((last << 20) | (1 << 14) | 9));
        }),
    );
    add(
        "entry beyond the end of the device",
        Expect::Found,
        table::<P>(|m| {
            m.data(0, BLOCKS, &[13], Lz4);
        }),
    );
    add(
        "entry into a node",
        own,
        table::<P>(|m| {
            let at = m.node(0, Kind::MapNode, 0, 0, &[0; NODE_ENTRIES]);
            m.table.insert(0, at);
        }),
    );
}

fn nodes<P: Platform>(add: &mut Add<'_>) {
    // Replaces the root of the table.
    let root = |make: &dyn Fn(&mut Maker<P>) -> Entry| {
        let mut m = begun::<P>();
        let entry = make(&mut m);
        closed(m, |s| s.map_root = entry)
    };
    let leaf = |m: &mut Maker<P>, level: u8, index: u64| {
        let mut words = [0; NODE_ENTRIES];
        for (&block, entry) in m.table.iter().filter(|(&block, _)| block < 512) {
            words[block as usize] = entry.0;
        }
        m.node(0, Kind::MapNode, level, index, &words)
    };
    let inner = |m: &mut Maker<P>, first: u64| {
        let mut words = [0; NODE_ENTRIES];
        words[0] = first;
        m.node(0, Kind::MapNode, 1, 0, &words)
    };
    add(
        "a leaf as the root",
        Expect::Damaged(0, BLOCKS),
        root(&|m| leaf(m, 0, 0)),
    );
    add(
        "a root of level 255",
        Expect::Damaged(0, BLOCKS),
        root(&|m| leaf(m, 255, 0)),
    );
    add(
        "a root with another index",
        Expect::Damaged(0, BLOCKS),
        root(&|m| leaf(m, 1, 1)),
    );
    add(
        "a root of the usage as the root of the table",
        Expect::Damaged(0, BLOCKS),
        root(&|m| m.node(0, Kind::UsageNode, 1, 0, &[0; NODE_ENTRIES])),
    );
    add(
        "a data record as the root",
        Expect::Damaged(0, BLOCKS),
        root(&|m| m.table[&0]),
    );
    add(
        "a node that is its own child",
        Expect::Damaged(0, 512),
        root(&|m| {
            // The place of the next node: all nodes have the same size.
            let end = m.end(0);
            let address = m.layout.segment_offset(0) + u64::from(end.offset);
            inner(m, Entry::new(address, 257, 0, 1).0)
        }),
    );
    add(
        "two nodes that are each other's child",
        Expect::Damaged(0, 512),
        root(&|m| {
            let address = m.layout.segment_offset(0) + u64::from(m.end(0).offset);
            let second = Entry::new(address + 257 * 16, 257, 0, 1);
            let first = inner(m, second.0);
            inner(m, first.0)
        }),
    );
    add(
        "a root that points everywhere",
        Expect::Damaged(0, BLOCKS),
        root(&|m| m.node(0, Kind::MapNode, 1, 0, &[u64::MAX; NODE_ENTRIES])),
    );
}

fn counts<P: Platform>(add: &mut Add<'_>) {
    let live = |change: fn(u64) -> u64| usage(begun::<P>(), move |_, word| change(word));
    add(
        "live units: one more",
        Expect::Found,
        live(|w| w + (1 << 32)),
    );
    add(
        "live units: one less",
        Expect::Found,
        live(|w| w - (1 << 32)),
    );
    add("live units: none", Expect::Found, live(|w| w & 0xffff_ffff));
    add(
        "live units: more than the segment holds",
        Expect::Refused,
        live(|w| w | (0x3f_ffff << 32)),
    );
    add(
        "a mark of recompression without the feature",
        Expect::Refused,
        live(|w| w | (1 << 54)),
    );
    let mut marked = begun::<P>();
    marked.marks = true;
    add(
        "a mark of recompression",
        Expect::Harmless,
        usage(marked, |_, word| word | (1 << 54)),
    );
    add(
        "a free segment in use",
        Expect::Refused,
        live(|w| w | (1 << 63)),
    );
    add(
        "a free segment in use without live units",
        Expect::Found,
        live(|w| (w & 0xffff_ffff) | (1 << 63)),
    );
    add(
        "the seed of another incarnation",
        Expect::Damaged(0, BLOCKS),
        live(|w| w ^ 1),
    );
    add(
        "too many mapped blocks",
        Expect::Found,
        closed(begun::<P>(), |s| s.mapped += 1),
    );
    add(
        "too few mapped blocks",
        Expect::Found,
        closed(begun::<P>(), |s| s.mapped = 0),
    );
    add(
        "more mapped blocks than the device has",
        Expect::Refused,
        closed(begun::<P>(), |s| s.mapped = BLOCKS + 1),
    );
    add(
        "no usage",
        Expect::Damaged(0, BLOCKS),
        closed(begun::<P>(), |s| {
            (s.usage_root, s.usage_segments) = (Entry::HOLE, 0);
        }),
    );
    add(
        "a usage without segments",
        Expect::Refused,
        closed(begun::<P>(), |s| s.usage_segments = 0),
    );
}

fn chains<P: Platform>(add: &mut Add<'_>) {
    // The log was durable up to the link's own segment, so nothing is missing.
    let link = |to: u64| {
        logged::<P>(|m, _| {
            m.data(0, 30, &[13], Lz4);
            m.link(0, to);
        })
    };
    add("a link to its own segment", Expect::Harmless, link(0));
    add(
        "a link behind the end of the file",
        Expect::Harmless,
        link(7),
    );
    add(
        "a link to the last segment there is",
        Expect::Harmless,
        link(u64::MAX),
    );
    let two = |seq: u64, back: u64| {
        logged::<P>(|m, s| {
            m.link(0, 1);
            let second = m.segment(seq);
            m.data(second, 30, &[13], Lz4);
            m.link(second, back);
            s.log_end = (seq << 18) + 96;
        })
    };
    add("a chain that comes back", Expect::Harmless, two(2, 0));
    add("a chain that stands still", Expect::Harmless, two(2, 1));
    add("a chain with a gap", Expect::Refused, two(3, 0));
    add("a chain that runs backwards", Expect::Harmless, two(0, 0));
    let log = |append: &dyn Fn(&mut Maker<P>)| logged::<P>(|m, _| append(m));
    add(
        "a zero record beyond the end",
        Expect::Refused,
        log(&|m| {
            m.zero(0, BLOCKS - 1, 2);
        }),
    );
    add(
        "a zero record that overflows",
        Expect::Refused,
        log(&|m| {
            m.zero(0, 1, u64::MAX);
        }),
    );
    add(
        "a zero record of nothing",
        Expect::Refused,
        log(&|m| {
            m.zero(0, 0, 0);
        }),
    );
    add(
        "a data record beyond the end",
        Expect::Refused,
        log(&|m| {
            m.data(0, BLOCKS - 1, &[1, 3], Lz4);
        }),
    );
    add(
        "a data record at the largest block",
        Expect::Refused,
        log(&|m| {
            m.data(0, (1 << 44) - 1, &[1], Lz4);
        }),
    );
    add(
        "a data record across records",
        Expect::Refused,
        log(&|m| {
            m.data(0, 30, &[1, 3, 5, 7], Lz4);
        }),
    );
    add(
        "a mask of more blocks than are stored",
        Expect::Refused,
        log(&|m| {
            let mut payload = 7u32.to_le_bytes().to_vec();
            payload.extend_from_slice(&contents(1));
            let header = RecordHeader {
                span: 3,
                count: 1,
                ..RecordHeader::plain(Kind::Data, 32)
            };
            m.record(0, header, &payload);
        }),
    );
    add(
        "a record that leaves its segment",
        Expect::Refused,
        log(&|m| {
            while m.end(0).offset < 256 * 1024 - 2 * 4096 {
                m.record(0, RecordHeader::plain(Kind::Pad, 0), &[0; 4080]);
            }
            let rest = 256 * 1024 - m.end(0).offset as usize;
            m.record(0, RecordHeader::plain(Kind::Pad, 0), &std::vec![0; 4080]);
            m.record(
                0,
                RecordHeader::plain(Kind::Pad, 0),
                &std::vec![0; rest - 4096 - 48],
            );
            // The record takes at least as many units as it has blocks, whatever its payload is.
            let header = RecordHeader {
                algorithm: 1,
                span: 4,
                count: 4,
                ..RecordHeader::plain(Kind::Data, 32)
            };
            m.record(0, header, &[0; 8]);
        }),
    );
}

/// Logs of a large device that would take much time if a single record could.
fn discards<P: Platform>(add: &mut Add<'_>) {
    let log = |leaves: u64, apart: u64, zeros: u64, count: u64| {
        let mut m = Maker::<P>::new(1 << 38);
        m.segment(1);
        let mut superblock = m.checkpoint(0);
        superblock.clean = false;
        for leaf in 0..leaves {
            m.data(0, leaf * apart, &[1], Lz4);
        }
        m.table.clear();
        for _ in 0..zeros {
            m.zero(0, 0, count);
        }
        m.image(&superblock)
    };
    add(
        "a whole device discarded, many times",
        Expect::Refused,
        log(1000, 1 << 27, 3000, 1 << 38),
    );
    add(
        "a GiB of blocks discarded, many times",
        Expect::Harmless,
        log(512, 512, 50, 1 << 18),
    );
}

fn superblocks<P: Platform>(add: &mut Add<'_>) {
    let mut both = |name, expect, change: fn(&mut Superblock)| {
        add(name, expect, closed(begun::<P>(), change));
    };
    both("a device of 1 EiB", Expect::Refused, |s| {
        s.size = DeviceSize::from_blocks(1 << 48)
    });
    both("a device of no bytes", Expect::Refused, |s| {
        s.size = DeviceSize::from_blocks(0)
    });
    both(
        "a device of 1 PiB with a small table",
        Expect::Refused,
        |s| {
            s.size = DeviceSize::from_blocks(1 << 38);
        },
    );
    both("more segments than the file has", Expect::Refused, |s| {
        s.segments = 1 << 29;
    });
    both(
        "a usage of more segments than there are",
        Expect::Refused,
        |s| {
            s.usage_segments = 2;
        },
    );
    both("a usage of very many segments", Expect::Refused, |s| {
        (s.segments, s.usage_segments) = (1 << 29, 1 << 29);
    });
    both("a log that ends behind its end", Expect::Found, |s| {
        s.log_end += 4096;
    });
    both("a log that starts behind the file", Expect::Refused, |s| {
        s.log_start.segment = 1 << 29;
    });
    both("the last sequence number", Expect::Refused, |s| {
        s.log_start.seq = u64::MAX;
    });
    both("the last epoch", Expect::Refused, |s| s.epoch = u64::MAX);
    both("the last generation", Expect::Refused, |s| {
        s.generation = u64::MAX - 1;
    });
    both("a generation near its end", Expect::Found, |s| {
        s.generation = u64::MAX / 2 - 1;
    });
    both("an epoch near its end", Expect::Found, |s| {
        s.epoch = u64::MAX / 2 - 1
    });
    both("a sequence number near its end", Expect::Found, |s| {
        s.log_end = 1 << 59;
    });
    both("a file longer than the file", Expect::Refused, |s| {
        s.length = u64::MAX
    });
    both(
        "the usage's root in the table's place",
        Expect::Damaged(0, BLOCKS),
        |s| {
            s.map_root = s.usage_root;
        },
    );
    both(
        "the table's root in the usage's place",
        Expect::Refused,
        |s| {
            s.usage_root = s.map_root;
        },
    );
    let pair = |change: fn(&mut Superblock)| {
        let mut m = begun::<P>();
        let newest = m.checkpoint(0);
        let mut older = newest;
        older.generation -= 1;
        change(&mut older);
        m.image_of(&[newest, older])
    };
    add(
        "superblocks of two images",
        Expect::Refused,
        pair(|s| s.layout.uuid[0] ^= 1),
    );
    add(
        "superblocks of different layout",
        Expect::Refused,
        pair(|s| s.layout.record_size *= 2),
    );
    add("fingerprints of another table", Expect::Found, {
        let mut m = begun::<P>();
        let superblock = m.checkpoint(0);
        let mut bytes = m.image(&superblock);
        let at = superblock.offset() as usize;
        let mut fingerprints = Fingerprints::empty(BLOCKS).unwrap();
        fingerprints.replace(5, Entry::HOLE, Entry(u64::MAX));
        fingerprints.encode::<P>(&superblock, &mut bytes[at..at + BLOCK_SIZE]);
        bytes
    });
    add("an older superblock far behind", Expect::Found, {
        let mut m = begun::<P>();
        let mut newest = m.checkpoint(0);
        newest.generation = 10;
        let mut older = newest;
        older.generation = 7;
        m.image_of(&[newest, older])
    });
    add("a file that was cut", Expect::Refused, {
        let mut bytes = table::<P>(|_| {});
        bytes.truncate((1 << 20) + 2048);
        bytes
    });
}
