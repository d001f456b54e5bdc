// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Promise P5: damage is found, never served, and costs only the blocks that it hit.

use crate::model::{fill, fresh, read_tags, Home, Tested, Vol, BLOCKS};
use crate::repair::records;
use cloop::engine::check::{check, Finding, Summary};
use cloop::engine::format::{Kind, Superblock};
use cloop::engine::Access;
use cloop::engine::{Error, BLOCK_SIZE};
use cloop::platform::sim::{Rng, SimFile};

/// A closed image, and its contents.
fn image() -> (SimFile, Vec<u32>) {
    let (file, volume) = fresh(16384);
    let mut tested = Tested::new(volume, vec![0; BLOCKS as usize], 0);
    let mut rng = Rng(5);
    for _ in 0..60 {
        assert!(tested.random_operation(&mut rng));
    }
    assert!(tested.write(0, 40, false, &mut rng));
    tested.volume.close().unwrap();
    (file, tested.state())
}

fn findings(file: &SimFile) -> (Result<Summary, Error>, Vec<Finding>) {
    let mut found = Vec::new();
    let summary = check::<Home>(file.copy(), &mut |f| found.push(*f), &mut |_, _| {});
    (summary, found)
}

#[test]
fn no_flipped_byte_is_served() {
    let (file, state) = image();
    let bytes = file.bytes();
    let mut rng = Rng(9);
    let used: Vec<usize> = (0..bytes.len()).filter(|&i| bytes[i] != 0).collect();
    let (mut refused, mut eio, mut spared) = (0, 0, 0);
    for _ in 0..400 {
        let at = used[rng.below(used.len() as u64) as usize];
        let hurt = file.copy();
        hurt.damage(at as u64, 1 << rng.below(8));
        let volume = match Vol::open(hurt.clone(), Access::Read) {
            Ok(volume) => volume,
            Err(error) => {
                assert!(
                    matches!(error, Error::Corrupt { .. } | Error::NotAnImage),
                    "byte {at}: {error}"
                );
                refused += 1;
                continue;
            }
        };
        let mut ws = volume.workspace().unwrap();
        let mut lost = 0;
        for block in 0..BLOCKS {
            match read_tags(&volume, &mut ws, block, 1) {
                Some(tags) => assert_eq!(tags[0], state[block as usize], "byte {at}"),
                None => lost += 1,
            }
        }
        let found = findings(&hurt).1;
        if lost > 0 {
            eio += 1;
            assert!(!found.is_empty(), "byte {at}: check finds nothing");
        } else {
            // The byte may belong to the other superblock, a dead record or padding.
            spared += 1;
        }
    }
    assert!(
        eio > 50,
        "{refused} refused, {eio} I/O errors, {spared} spared"
    );
}

#[test]
fn one_damaged_record_costs_its_blocks_alone() {
    let (file, volume) = fresh(16384);
    let mut ws = volume.workspace().unwrap();
    let mut data = vec![0; 8 * BLOCK_SIZE];
    for (tag, block) in (1..).zip(data.chunks_exact_mut(BLOCK_SIZE)) {
        fill(3 * tag + 2, block);
    }
    volume.write(&mut ws, 0, &data).unwrap();
    volume.close().unwrap();
    let mut first = data[5 * BLOCK_SIZE..5 * BLOCK_SIZE + 16].to_vec();
    let bytes = file.bytes();
    let at = bytes.windows(16).position(|w| w == first).unwrap();
    first.clear();
    file.damage(at as u64, 0x10);
    let volume = Vol::open(file.clone(), Access::Write).unwrap();
    for block in 0..8 {
        let ok = read_tags(&volume, &mut ws, block, 1).is_some();
        assert_eq!(ok, block < 4, "block {block}");
    }
    assert!(volume.stats().unwrap().damaged >= 4);
    let (summary, found) = findings(&file);
    assert!(summary.is_ok());
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].blocks, Some((4, 4)));
    // Overwriting makes the blocks readable again.
    volume.write(&mut ws, 4, &data[..4 * BLOCK_SIZE]).unwrap();
    assert!(read_tags(&volume, &mut ws, 0, 8).is_some());
}

#[test]
fn either_superblock_may_be_lost() {
    let (file, state) = image();
    for offset in [0, 64 * 1024] {
        let hurt = file.copy();
        hurt.damage(offset + 100, 1);
        let (summary, found) = findings(&hurt);
        assert!(summary.is_ok(), "slot at {offset}");
        assert!(!found.is_empty(), "slot at {offset}: check finds nothing");
        let volume = Vol::open(hurt, Access::Write).unwrap();
        assert_eq!(crate::model::read_all(&volume), state, "slot at {offset}");
    }
    let hurt = file.copy();
    hurt.damage(100, 1);
    hurt.damage(64 * 1024 + 100, 1);
    assert!(matches!(
        Vol::open(hurt, Access::Write),
        Err(Error::Corrupt { .. })
    ));
}

#[test]
fn what_is_not_an_image_is_refused() {
    let empty = SimFile::new();
    assert!(matches!(
        Vol::open(empty, Access::Read),
        Err(Error::NotAnImage)
    ));
    let (file, _) = image();
    let other = file.copy();
    other.damage(0, 1);
    other.damage(64 * 1024, 1);
    assert!(matches!(
        Vol::open(other, Access::Read),
        Err(Error::NotAnImage)
    ));
}

#[test]
fn a_cut_image_is_refused() {
    use cloop::platform::BackingFile;
    let (file, _) = image();
    let cut = file.copy();
    cut.truncate(file.len().unwrap() - 4096).unwrap();
    assert!(matches!(
        Vol::open(cut, Access::Read),
        Err(Error::Corrupt { .. })
    ));
}

/// A sector that cannot be read costs no more than a damaged one: the older superblock or checkpoint takes its place.
#[test]
fn a_sector_that_cannot_be_read_refuses_no_image() {
    let (file, state) = image();
    let bytes = file.bytes();
    let slots = [0, 64 * 1024].map(|at| {
        let mut page = bytes[at..at + BLOCK_SIZE].to_vec();
        Superblock::decode::<Home>(&mut page, at as u64).unwrap()
    });
    let newest = slots.iter().max_by_key(|slot| slot.generation).unwrap();
    let usage = newest.usage_root.address();
    for offset in [0, 64 * 1024, usage] {
        let hurt = file.copy();
        hurt.spoil(offset, 1);
        let (summary, found) = findings(&hurt);
        assert!(summary.is_ok() && !found.is_empty(), "at {offset}");
        for access in [Access::Read, Access::Write] {
            let volume = Vol::open(hurt.clone(), access).unwrap();
            assert_eq!(crate::model::read_all(&volume), state, "at {offset}");
            if access == Access::Write {
                volume.close().unwrap();
            }
        }
    }
    // Without both superblocks the error is that of the disk.
    file.spoil(0, 1);
    file.spoil(64 * 1024, 1);
    assert!(matches!(Vol::open(file, Access::Read), Err(Error::Io(_))));
}

/// A log that ends at a sector that cannot be read may have gone on there.
#[test]
fn a_log_that_cannot_be_read_on_is_refused() {
    let (file, volume) = fresh(4096);
    let mut ws = volume.workspace().unwrap();
    let mut data = vec![0; BLOCK_SIZE];
    for tag in 0..6 {
        fill(3 * tag + 2, &mut data);
        volume.write(&mut ws, u64::from(tag), &data).unwrap();
        volume.flush().unwrap();
    }
    let crashed = file.copy();
    let last = records(&crashed)
        .into_iter()
        .rfind(|(_, record)| record.kind == Kind::Data);
    crashed.spoil(last.expect("a data record").0 as u64, 1);
    let error = Vol::open(crashed, Access::Read).err();
    assert!(matches!(error, Some(Error::Corrupt { .. })), "{error:?}");
}

/// Something else that writes to the image stops the volume, which leaves the superblocks alone.
#[test]
fn a_second_writer_stops_the_first() {
    let (file, first) = fresh(4096);
    let second = Vol::open(file.clone(), Access::Write).unwrap();
    let slots = |file: &SimFile| [0, 64 * 1024].map(|at| file.bytes()[at..at + 512].to_vec());
    let before = slots(&file);
    assert_eq!(first.checkpoint(), Err(Error::Foreign));
    assert_eq!(first.flush(), Err(Error::Foreign));
    assert!(slots(&file) == before);
    second.close().unwrap();
}
