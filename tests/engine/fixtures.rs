// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Images that earlier versions wrote stay readable, and the bytes of the structures stay the same. I4,
//! I10.
//!
//! `CLOOP_WRITE_FIXTURES=1 cargo test --test engine fixtures` writes new ones. Only a new format version, or a new
//! fixture, is a reason to do so.

use crate::model::{assert_checked, options, read_all, Home, Tested, Vol, BLOCKS};
use cloop::engine::format::{
    fingerprint, seed, Entry, Fingerprints, Kind, RecordHeader, SegmentHeader, Superblock,
    FINGERPRINTS, RANGES, STRIPES,
};
use cloop::engine::repair::{repair, Doubtful};
use cloop::engine::Access;
use cloop::engine::{check, Algorithm, Compression, Error, Recompression, BLOCK_SIZE};
use cloop::platform::sim::{Rng, SimFile};
use cloop::platform::{BackingFile, Platform};
use std::fs;
use std::path::{Path, PathBuf};

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

/// The history of all fixtures, from which the state follows.
fn history(volume: Vol) -> Tested {
    let mut tested = Tested::new(volume, vec![0; BLOCKS as usize], 0);
    let mut rng = Rng(2026);
    assert!(tested.write(3, 40, true, &mut rng));
    assert!(tested.write(1020, 10, false, &mut rng));
    assert!(tested.zero(8, 3));
    assert!(tested.checkpoint());
    assert!(tested.write(500, 30, false, &mut rng));
    assert!(tested.zero(1022, 2));
    assert!(tested.write(5, 2, false, &mut rng));
    assert!(tested.flush());
    tested
}

fn new_volume() -> (SimFile, Vol) {
    let file = SimFile::new();
    Vol::create(&file, &options(16384, Algorithm::Lz4)).unwrap();
    let volume = Vol::open(file.clone(), Access::Write).unwrap();
    (file, volume)
}

fn load(name: &str) -> SimFile {
    let bytes = fs::read(path(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    let file = SimFile::new();
    file.write_at(&bytes, 0).unwrap();
    file.sync().unwrap();
    file
}

#[test]
fn images_of_format_1_are_read() {
    let (file, volume) = new_volume();
    let tested = history(volume);
    if std::env::var_os("CLOOP_WRITE_FIXTURES").is_some() {
        fs::create_dir_all(path("")).unwrap();
        fs::write(path("v1-crashed.cloop"), file.copy().bytes()).unwrap();
        tested.volume.close().unwrap();
        fs::write(path("v1-clean.cloop"), file.bytes()).unwrap();
    }
    for (name, clean) in [("v1-crashed.cloop", false), ("v1-clean.cloop", true)] {
        let file = load(name);
        assert_checked(&file, name);
        let summary = check::check::<Home>(file.clone(), &mut |_| {}, &mut |_, _| {}).unwrap();
        assert_eq!(
            (summary.clean, summary.replayed > 0),
            (clean, !clean),
            "{name}"
        );
        let volume = Vol::open(file, Access::Write).unwrap();
        assert_eq!(read_all(&volume), tested.state(), "{name}");
        assert_eq!(volume.layout().record_size, 16384);
        assert_eq!(&volume.layout().uuid, b"a simulated disk");
    }
}

#[test]
fn an_image_with_records_of_zstandard_is_read() {
    let (file, volume) = new_volume();
    volume
        .set_compression(Compression::parse("zstd:9").unwrap())
        .unwrap();
    let tested = history(volume);
    if std::env::var_os("CLOOP_WRITE_FIXTURES").is_some() {
        fs::write(path("v1-zstd.cloop"), file.copy().bytes()).unwrap();
    }
    let file = load("v1-zstd.cloop");
    assert_checked(&file, "v1-zstd.cloop");
    let (superblock, page) = newest(&file);
    assert!(superblock.zstd);
    assert_eq!((page[32], page[66], &page[176..178]), (2, 1, &[2, 9][..]));
    let volume = Vol::open(file, Access::Write).unwrap();
    assert_eq!(read_all(&volume), tested.state());
    assert_eq!(volume.compression().to_string(), "zstd:9");
}

/// With segments that are marked as recompressed.
#[test]
fn a_recompressed_image_is_read() {
    let (file, volume) = new_volume();
    let zstd = Compression::parse("zstd:9").unwrap();
    let recompression = Recompression {
        after: 7200,
        rate: 100,
        ..Recompression::with(zstd)
    };
    volume.set_recompression(recompression).unwrap();
    let tested = history(volume);
    let pass = tested.volume.begin_recompression(zstd).unwrap();
    tested.volume.recompress(&pass, &mut || true).unwrap();
    tested.volume.close().unwrap();
    if std::env::var_os("CLOOP_WRITE_FIXTURES").is_some() {
        fs::write(path("v1-recompressed.cloop"), file.bytes()).unwrap();
    }
    let file = load("v1-recompressed.cloop");
    assert_checked(&file, "v1-recompressed.cloop");
    let (superblock, page) = newest(&file);
    assert!(superblock.marks && superblock.zstd);
    assert_eq!((page[32], &page[178..180]), (6, &[2, 9][..]));
    let volume = Vol::open(file, Access::Write).unwrap();
    assert_eq!(read_all(&volume), tested.state());
    assert_eq!(volume.recompression(), recompression);
    // But for what the two checkpoints of the opening have written.
    assert_eq!(volume.stats().unwrap().pending_bytes, 0);
}

#[test]
fn an_unfinished_image_is_refused() {
    if std::env::var_os("CLOOP_WRITE_FIXTURES").is_some() {
        let file = SimFile::new();
        let options = options(16384, Algorithm::Lz4);
        drop(Vol::create_incomplete(file.clone(), &options).unwrap());
        fs::write(path("v1-incomplete.cloop"), file.bytes()).unwrap();
    }
    let file = load("v1-incomplete.cloop");
    for access in [Access::Read, Access::Write] {
        let refused = Vol::open(file.copy(), access).err();
        assert_eq!(refused, Some(Error::Incomplete));
    }
    let checked = check::check::<Home>(file.copy(), &mut |_| {}, &mut |_, _| {});
    assert_eq!(checked.unwrap_err(), Error::Incomplete);
    let mut page = vec![0; BLOCK_SIZE];
    for offset in [0, 64 << 10] {
        file.read_at(&mut page, offset).unwrap();
        let original = page.clone();
        assert_eq!(original[32..40], 1u64.to_le_bytes());
        let superblock = Superblock::decode::<Home>(&mut page, offset).unwrap();
        assert!(superblock.incomplete);
        superblock.encode::<Home>(&mut page);
        assert_eq!(page, original);
    }
}

/// The newest superblock of an image, with the page that it lies in.
fn newest(file: &SimFile) -> (Superblock, Vec<u8>) {
    let pages = [0, 65_536].map(|offset| {
        let mut page = vec![0; BLOCK_SIZE];
        file.read_at(&mut page, offset).unwrap();
        let original = page.clone();
        (
            Superblock::decode::<Home>(&mut page, offset).unwrap(),
            original,
        )
    });
    pages.into_iter().max_by_key(|s| s.0.generation).unwrap()
}

fn fingerprints(file: &SimFile) -> Fingerprints {
    let (superblock, page) = newest(file);
    Fingerprints::decode::<Home>(&page, &superblock).unwrap()
}

/// Makes the balance of the first sector of fingerprints right.
fn rebalance(page: &mut [u8]) {
    let balance = !Home::crc32c(!0, &page[512..1020]);
    page[1020..1024].copy_from_slice(&balance.to_le_bytes());
}

#[test]
fn fingerprints_have_their_bytes_where_the_format_says() {
    // Computed by another implementation; the first is the first number of SplitMix64 from 0.
    let golden = Entry(0x9e37_79b9_7f4a_7c15);
    assert_eq!(fingerprint(0, golden), 0xe220_a839_7b1d_cdaf);
    let entry = Entry::new(0x12_3450, 8, 3, 4);
    assert_eq!(fingerprint(1000, entry), 0xd7a5_46df_d0a6_a9e8);
    assert_eq!(fingerprint(1000, Entry::HOLE), 0);

    if std::env::var_os("CLOOP_WRITE_FIXTURES").is_some() {
        let (file, volume) = new_volume();
        history(volume).volume.close().unwrap();
        fs::write(path("v1-fingerprints.cloop"), file.bytes()).unwrap();
    }
    let file = load("v1-fingerprints.cloop");
    assert_checked(&file, "v1-fingerprints.cloop");
    let (superblock, page) = newest(&file);
    let found = fingerprints(&file);
    let shift = u32::from(page[1016]);
    assert_eq!((RANGES, STRIPES, FINGERPRINTS), (244, 183, 427));
    assert!((BLOCKS - 1) >> shift < 244 && (BLOCKS - 1) >> (shift - 1) >= 244);
    for part in 0..FINGERPRINTS {
        let sector = &page[512 * (1 + part / 61)..][..512];
        let tag = superblock.salt ^ superblock.generation;
        assert_eq!(sector[..8], tag.to_le_bytes());
        assert_eq!(sector[8..16], ((1u64 << 61) - 1).to_le_bytes());
        let sum = &sector[16 + 8 * (part % 61)..][..8];
        assert_eq!(found.get(part).map(u64::to_le_bytes).unwrap(), sum);
        let expected = if part < 244 { shift as u8 } else { 4 };
        assert_eq!(sector[504..508], [expected, 0, 0, 0]);
        // The CRC-32C of all of a sector, without the two inversions, is zero.
        assert_eq!(Home::crc32c(!0, sector), !0);
    }
    let (_, whole) = new_volume();
    let mut mapped = [false; FINGERPRINTS];
    for (block, _) in (0u64..)
        .zip(history(whole).state())
        .filter(|(_, tag)| *tag != 0)
    {
        for part in [block >> shift, 244 + (block >> 4) % 183] {
            mapped[part as usize] = true;
        }
    }
    for (part, mapped) in mapped.into_iter().enumerate() {
        assert_eq!(found.get(part) != Some(0), mapped, "fingerprint {part}");
    }
    let mut again = vec![0; BLOCK_SIZE];
    superblock.encode::<Home>(&mut again);
    found.encode::<Home>(&superblock, &mut again);
    assert_eq!(again, page);
}

#[test]
fn a_wrong_fingerprint_is_found_and_corrected() {
    let file = load("v1-fingerprints.cloop");
    let (superblock, mut page) = newest(&file);
    page[512 + 16 + 8 * 3] ^= 1;
    rebalance(&mut page);
    file.write_at(&page, superblock.offset()).unwrap();
    file.sync().unwrap();
    let mut found = Vec::new();
    check::check::<Home>(file.copy(), &mut |f| found.push(*f), &mut |_, _| {}).unwrap();
    let blocks = fingerprints(&file).blocks_of(3).unwrap();
    let expected = check::Finding {
        error: Error::Corrupt {
            what: "superblock: wrong fingerprint of the sector table",
            offset: superblock.offset(),
        },
        blocks: Some((blocks.start, blocks.end - blocks.start)),
        data: false,
    };
    assert_eq!(found, [expected]);
    // Nothing but a check and a repair cares.
    let volume = Vol::open(file.copy(), Access::Write).unwrap();
    let contents = read_all(&volume);
    let (_, whole) = new_volume();
    assert_eq!(contents, history(whole).state());
    let repaired = repair::<Home>(
        &mut || Ok(file.clone()),
        Doubtful::Refuse,
        &mut |_| {},
        &mut |_, _| {},
    );
    assert!(repaired.is_ok_and(|r| r.written && r.before == 1 && !r.leaves_damage()));
    assert_checked(&file, "repaired");
    assert_eq!(read_all(&Vol::open(file, Access::Read).unwrap()), contents);
}

/// An image that older software wrote has fingerprints once its table was empty.
#[test]
fn unknown_fingerprints_become_known() {
    let known = |file: &SimFile| {
        let found = fingerprints(file);
        (0..FINGERPRINTS)
            .filter(|&part| found.get(part).is_some())
            .count()
    };
    let file = load("v1-clean.cloop");
    assert_eq!(known(&file), 0);
    let volume = Vol::open(file.clone(), Access::Write).unwrap();
    let mut ws = volume.workspace().unwrap();
    let mut data = vec![0; BLOCK_SIZE];
    cloop::simulation::fill(7, &mut data);
    // In each leaf of the table, so that a discard finds all of them in memory and detaches none.
    for block in [9, 600, 1050] {
        volume.write(&mut ws, block, &data).unwrap();
    }
    volume.checkpoint().unwrap();
    assert_eq!(known(&file), 0);
    volume.zero(&mut ws, 0, BLOCKS).unwrap();
    volume.checkpoint().unwrap();
    volume.write(&mut ws, 10, &data).unwrap();
    volume.close().unwrap();
    assert_eq!(known(&file), FINGERPRINTS);
    assert_checked(&file, "emptied");
}

const UUID: [u8; 16] = *b"0123456789abcdef";

#[test]
fn the_superblock_has_its_bytes_where_the_format_says() {
    let file = load("v1-clean.cloop");
    let mut page = vec![0; BLOCK_SIZE];
    file.read_at(&mut page, 0).unwrap();
    let original = page.clone();
    let superblock = Superblock::decode::<Home>(&mut page, 0).unwrap();
    assert_eq!(&original[..8], b"cloopIMG");
    assert_eq!(original[8..12], 1u32.to_le_bytes());
    assert_eq!(&original[40..56], b"a simulated disk");
    assert_eq!(original[56..64], (BLOCKS * 4096).to_le_bytes());
    assert_eq!(original[64..67], [14, 18, 1]);
    assert_eq!(original[72..80], superblock.generation.to_le_bytes());
    assert_eq!(
        original[96..104],
        superblock.log_start.segment.to_le_bytes()
    );
    assert_eq!(
        original[104..108],
        superblock.log_start.offset.to_le_bytes()
    );
    assert_eq!(original[112..120], superblock.log_start.seq.to_le_bytes());
    assert_eq!(original[144..152], superblock.map_root.0.to_le_bytes());
    assert_eq!(original[168..176], superblock.length.to_le_bytes());
    assert!(original[176..].iter().all(|&b| b == 0));
    let mut again = vec![0; BLOCK_SIZE];
    superblock.encode::<Home>(&mut again);
    assert_eq!(again, original);
}

#[test]
fn superblocks_that_make_no_sense_are_refused() {
    let file = load("v1-clean.cloop");
    let mut page = vec![0; BLOCK_SIZE];
    file.read_at(&mut page, 0).unwrap();
    // A valid checksum over a wrong field, as in a hostile image.
    let forge = |at: usize, bytes: &[u8]| {
        let mut forged = page.clone();
        forged[at..at + bytes.len()].copy_from_slice(bytes);
        forged[12..16].fill(0);
        let crc = Home::crc32c(0, &forged);
        forged[12..16].copy_from_slice(&crc.to_le_bytes());
        Superblock::decode::<Home>(&mut forged, 0)
    };
    assert!(forge(180, &[0]).is_ok());
    assert_eq!(forge(8, &2u32.to_le_bytes()), Err(Error::Version(2)));
    assert_eq!(forge(32, &[8]), Err(Error::Feature(8)));
    assert_eq!(forge(32, &[9]), Err(Error::Feature(8)));
    assert!(forge(32, &[1]).is_ok_and(|superblock| superblock.incomplete));
    // Unknown compatible features are ignored; unknown read-only-compatible ones only forbid writing.
    assert!(forge(16, &[1]).is_ok());
    assert!(forge(24, &[1]).is_ok());
    let huge = u64::MAX.to_le_bytes();
    let wrong: [(usize, &[u8]); 19] = [
        (56, &[1]),
        (56, &[0; 8]),
        (56, &huge),
        (64, &[11]),
        (64, &[18]),
        (65, &[17]),
        (65, &[27]),
        (66, &[9]),
        (72, &[1]),
        (80, &huge),
        (96, &huge),
        (104, &[0; 4]),
        (112, &huge),
        (120, &huge),
        (128, &huge),
        (160, &huge),
        (178, &[9]),
        (178, &[2, 9]),
        (178, &[2, 20]),
    ];
    for (at, bytes) in wrong {
        let result = forge(at, bytes);
        assert!(
            matches!(result, Err(Error::Corrupt { .. })),
            "{at}: {result:?}"
        );
    }
    for at in [144, 152] {
        assert!(forge(at, &huge).is_err());
    }
}

#[test]
fn a_segment_header_has_its_bytes_where_the_format_says() {
    let header = SegmentHeader {
        segment_shift: 20,
        index: 7,
        seq: 0x0102_0304,
        epoch: 5,
        salt: 0x1122_3344_5566_7788,
        uuid: UUID,
        next: 8,
        durable: 0x0102_0303_0004_5000,
        first: 0x0102_0300,
    };
    let bytes = header.encode::<Home>();
    assert_eq!(bytes.len(), 96);
    assert_eq!(&bytes[..8], b"cloopSEG");
    // Computed by another implementation of CRC-32C.
    assert_eq!(bytes[8..12], 0x1113_1d97u32.to_le_bytes());
    assert_eq!(bytes[12..16], [20, 0, 0, 0]);
    assert_eq!(bytes[16], 7);
    assert_eq!(bytes[24..28], [4, 3, 2, 1]);
    assert_eq!(bytes[32], 5);
    assert_eq!(bytes[40..48], 0x1122_3344_5566_7788u64.to_le_bytes());
    assert_eq!(bytes[48..64], UUID);
    assert_eq!(bytes[64], 8);
    assert_eq!(bytes[72..80], 0x0102_0303_0004_5000u64.to_le_bytes());
    assert_eq!(bytes[80..84], [0, 3, 2, 1]);
    assert_eq!(bytes[88..], [0; 8]);
    assert_eq!(SegmentHeader::decode::<Home>(&bytes), Some(header));
    for at in 0..bytes.len() {
        let mut hurt = bytes;
        hurt[at] ^= 1;
        assert_eq!(SegmentHeader::decode::<Home>(&hurt), None, "byte {at}");
    }
    assert_eq!(
        header.seed::<Home>(),
        seed::<Home>(&UUID, header.salt, header.seq, 7)
    );
}

#[test]
fn a_record_has_its_bytes_where_the_format_says() {
    let payload = [0xa5; 100];
    let header = RecordHeader {
        kind: Kind::Data,
        algorithm: 1,
        span: 4,
        count: 4,
        number: 0x0123_4567_89ab,
        payload: payload.len(),
    };
    let mut bytes = header.encode::<Home>(&[&payload]).to_vec();
    bytes.extend_from_slice(&payload);
    RecordHeader::stamp(&mut bytes, 0xdead_beef, 96);
    assert_eq!(bytes[4..8], [1, 1, 4, 4]);
    assert_eq!(
        bytes[8..16],
        ((100u64 << 44) | 0x0123_4567_89ab).to_le_bytes()
    );
    let decoded = RecordHeader::decode::<Home>(&bytes, 0xdead_beef, 96);
    assert_eq!(decoded, Some((header, &payload[..])));
    // Another incarnation of the segment, another place in it, a cut record, and every flipped bit.
    assert_eq!(RecordHeader::decode::<Home>(&bytes, 0xdead_beee, 96), None);
    assert_eq!(RecordHeader::decode::<Home>(&bytes, 0xdead_beef, 112), None);
    assert_eq!(
        RecordHeader::decode::<Home>(&bytes[..115], 0xdead_beef, 96),
        None
    );
    for bit in 0..bytes.len() * 8 {
        let mut hurt = bytes.clone();
        hurt[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(
            RecordHeader::decode::<Home>(&hurt, 0xdead_beef, 96),
            None,
            "bit {bit}"
        );
    }
    // 116 bytes are 8 units of 16.
    assert_eq!(header.units(), 8);
    let entry = Entry::new(0x12_3450, 8, 3, 4);
    assert_eq!(entry.0, (0x12345 << 20) | (3 << 9) | 2);
}
