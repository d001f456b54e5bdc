// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Several algorithms in one image, changes from one to another, and what the superblocks say of them.

use crate::model::{assert_checked, options, read_all, Home, Tested, Vol, BLOCKS};
use cloop::engine::format::{Superblock, SUPERBLOCK_OFFSETS};
use cloop::engine::repair::{repair, Doubtful};
use cloop::engine::{Access, Algorithm, Compression, CreateOptions, Error, BLOCK_SIZE};
use cloop::platform::sim::{Rng, SimFile, Survival};
use cloop::platform::BackingFile;

fn compression(text: &str) -> Compression {
    Compression::parse(text).unwrap()
}

/// The pages of the two superblocks.
fn pages(file: &SimFile) -> [Vec<u8>; 2] {
    SUPERBLOCK_OFFSETS.map(|offset| {
        let mut page = vec![0; BLOCK_SIZE];
        file.read_at(&mut page, offset).unwrap();
        page
    })
}

/// Whether each superblock says that there may be records of Zstandard.
fn announced(file: &SimFile) -> [bool; 2] {
    pages(file).map(|page| page[32] & 2 != 0)
}

/// A new image for data that is compressed like this, opened.
fn fresh(with: &str) -> (SimFile, Vol) {
    let file = SimFile::new();
    let options = CreateOptions {
        compression: compression(with),
        ..options(65_536, Algorithm::Lz4)
    };
    Vol::create(&file, &options).unwrap();
    let volume = Vol::open(file.clone(), Access::Write).unwrap();
    (file, volume)
}

fn tested(volume: Vol) -> Tested {
    Tested::new(volume, vec![0; BLOCKS as usize], 0)
}

#[test]
fn one_image_holds_records_of_all_algorithms() {
    let (file, volume) = fresh("lz4");
    let (mut tested, mut rng) = (tested(volume), Rng(14));
    for with in ["zstd:1", "none", "zstd:19", "lz4", "zstd:3", "zstd:9"] {
        tested.volume.set_compression(compression(with)).unwrap();
        assert_eq!(tested.volume.compression(), compression(with));
        for _ in 0..12 {
            let block = rng.below(BLOCKS - 40);
            assert!(tested.write(block, 1 + rng.below(40), true, &mut rng));
            assert!(tested.zero(rng.below(BLOCKS - 8), 8));
        }
        assert!(tested.flush());
        assert_eq!(read_all(&tested.volume), tested.state(), "{with}");
    }
    // Reclaim takes records of one algorithm apart, and makes ones of another.
    tested
        .volume
        .set_compression(compression("zstd:2"))
        .unwrap();
    tested.volume.compact(&mut |_| true).unwrap();
    assert_eq!(read_all(&tested.volume), tested.state());
    tested.volume.close().unwrap();
    assert_checked(&file, "closed");
    let volume = Vol::open(file, Access::Write).unwrap();
    assert_eq!(volume.compression(), compression("zstd:2"));
    assert_eq!(read_all(&volume), tested.state());
}

#[test]
fn the_superblocks_announce_zstd_with_its_first_record() {
    let (file, volume) = fresh("zstd:7");
    let mut tested = tested(volume);
    // Older versions open it, and go on with LZ4.
    for page in pages(&file) {
        assert_eq!((page[66], &page[176..178]), (1, &[2, 7][..]));
    }
    assert!(tested.zero(0, BLOCKS) && tested.flush() && tested.checkpoint());
    assert_eq!(announced(&file), [false; 2]);
    let volume = Vol::open(file.copy(), Access::Read).unwrap();
    assert_eq!(volume.compression(), compression("zstd:7"));
    // From the moment of the write on either superblock alone says it, whether the write is durable or not.
    assert!(tested.write(3, 1, false, &mut Rng(1)));
    assert_eq!(announced(&file.after(Survival::Nothing)), [true; 2]);
    // For ever, also with another compression.
    tested.volume.set_compression(compression("none")).unwrap();
    assert!(tested.write(3, 1, false, &mut Rng(1)) && tested.checkpoint());
    tested.volume.close().unwrap();
    assert_eq!(announced(&file), [true; 2]);
}

#[test]
fn other_algorithms_leave_the_superblocks_as_older_versions_know_them() {
    for (with, tag) in [("lz4", 1), ("none", 0)] {
        let (file, volume) = fresh(with);
        let mut tested = tested(volume);
        assert!(tested.write(3, 40, false, &mut Rng(1)));
        // Not even a level that was never used leaves a trace.
        tested
            .volume
            .set_compression(compression("zstd:3"))
            .unwrap();
        tested.volume.set_compression(compression(with)).unwrap();
        assert!(tested.write(3, 40, false, &mut Rng(1)));
        tested.volume.close().unwrap();
        for page in pages(&file) {
            assert_eq!((page[66], &page[176..512]), (tag, &[0; 336][..]));
        }
        assert_eq!(announced(&file), [false; 2]);
    }
}

#[test]
fn an_unknown_algorithm_or_level_is_refused_by_name() {
    let (file, volume) = fresh("zstd:7");
    volume.close().unwrap();
    let changed = |at: usize, value: u8| {
        let copy = file.copy();
        for (offset, mut page) in SUPERBLOCK_OFFSETS.into_iter().zip(pages(&copy)) {
            page[at] = value;
            page[12..16].fill(0);
            let crc = crc32c::crc32c(&page);
            page[12..16].copy_from_slice(&crc.to_le_bytes());
            copy.write_at(&page, offset).unwrap();
        }
        Vol::open(copy, Access::Read).map(|volume| volume.compression())
    };
    assert_eq!(changed(177, 19).unwrap(), compression("zstd:19"));
    assert_eq!(changed(176, 0).unwrap(), compression("lz4"));
    for (at, value) in [(176, 3), (66, 3), (66, 255)] {
        let error = changed(at, value).err().unwrap().to_string();
        assert!(error.contains("unknown compression algorithm"), "{error}");
    }
    // Zstandard has no such level, and byte 66 names only what all versions know.
    for (at, value) in [(177, 0), (177, 20), (66, 2)] {
        assert!(matches!(changed(at, value), Err(Error::Corrupt { .. })));
    }
}

/// Every crash of a change, and of the first write after it.
#[test]
fn a_change_that_has_returned_survives_a_crash() {
    let (original, volume) = fresh("lz4");
    let mut start = tested(volume);
    assert!(start.write(3, 40, false, &mut Rng(1)));
    start.volume.close().unwrap();
    let state = start.state();
    for crash in 0.. {
        let file = original.copy();
        let volume = Vol::open(file.clone(), Access::Write).unwrap();
        let mut tested = Tested::new(volume, state.clone(), start.next_tag());
        file.crash_after(crash);
        let set = tested.volume.set_compression(compression("zstd:5"));
        let wrote = tested.write(30, 20, false, &mut Rng(1)) && tested.flush();
        for survival in [
            Survival::Nothing,
            Survival::Everything,
            Survival::Random(crash),
        ] {
            let found = file.after(survival);
            assert_checked(&found, "after a crash");
            let volume = Vol::open(found, Access::Write).unwrap();
            let now = volume.compression();
            match set {
                Ok(()) => assert_eq!(now, compression("zstd:5"), "{crash}"),
                Err(_) => assert!(["lz4", "zstd:5"].map(compression).contains(&now)),
            }
            let read = read_all(&volume);
            let after = (0..=tested.steps.len())
                .rev()
                .map(|n| tested.state_after(n));
            match wrote {
                true => assert_eq!(read, tested.state()),
                false => assert!(after.into_iter().any(|state| state == read)),
            }
        }
        if !file.crashed() {
            assert!(set.is_ok() && wrote && crash > 8);
            return;
        }
    }
}

#[test]
fn nothing_is_changed_in_an_image_that_is_only_read() {
    let (file, volume) = fresh("lz4");
    volume.close().unwrap();
    let before = file.copy().bytes();
    let volume = Vol::open(file.clone(), Access::Read).unwrap();
    let refused = volume.set_compression(compression("zstd"));
    assert_eq!(refused, Err(Error::ReadOnly));
    drop(volume);
    assert_eq!(file.copy().bytes(), before);
}

/// The log has a copy of the superblock that says it, older than the first record.
#[test]
fn a_repair_without_superblocks_knows_of_zstd() {
    let (file, volume) = fresh("zstd:3");
    let (mut tested, mut rng) = (tested(volume), Rng(3));
    for _ in 0..4 {
        assert!(tested.write(3, 300, false, &mut rng) && tested.checkpoint());
    }
    tested.volume.close().unwrap();
    for offset in SUPERBLOCK_OFFSETS {
        file.write_at(&[0; BLOCK_SIZE], offset).unwrap();
    }
    let mut open = || Ok(file.clone());
    repair::<Home>(&mut open, Doubtful::Refuse, &mut |_| {}, &mut |_, _| {}).unwrap();
    assert_eq!(announced(&file), [true; 2]);
    let mut page = pages(&file)[0].clone();
    let superblock = Superblock::decode::<Home>(&mut page, 0).unwrap();
    assert_eq!(superblock.compression, compression("zstd:3"));
    let volume = Vol::open(file, Access::Read).unwrap();
    assert_eq!(read_all(&volume), tested.state());
}
