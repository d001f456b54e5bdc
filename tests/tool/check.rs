// SPDX-License-Identifier: GPL-2.0 OR MIT
//! `cloop check`, and how the other commands treat damaged and crashed images.

use crate::run::{noise, prose, Lab, Snapshot};
use cloop::engine::Access;
use cloop::engine::Volume;
use cloop::platform::std::{Std, StdFile};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// An image with some hundred records, small enough to be damaged many times. It was opened twice, so
/// that one leaf of the sector table is older than the newest checkpoint.
fn image(lab: &Lab) -> Vec<u8> {
    let mut raw = prose(1 << 20);
    raw.extend(noise(1 << 20, 11));
    raw.extend(vec![0; 1 << 20]);
    raw.extend(prose(512 << 10));
    lab.file("raw", &raw);
    lab.cloop(&["import", "-r", "16K", "raw", "image"])
        .succeeds();
    let file = StdFile::open(&lab.path("image"), true).unwrap();
    let volume = Volume::<Std>::open(file, Access::Write).unwrap();
    let mut ws = volume.workspace().unwrap();
    volume.write(&mut ws, 800, &raw[..16_384]).unwrap();
    volume.close().unwrap();
    raw.copy_within(..16_384, 800 * 4096);
    raw
}

fn flip(path: &Path, at: u64) {
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

#[test]
fn a_whole_image_is_clean() {
    let lab = Lab::new();
    image(&lab);
    let before = Snapshot::of(&lab.path("image"));
    let text = lab.cloop(&["check", "image"]).succeeds();
    assert!(text.starts_with("image: clean, "), "{text}");
    assert!(text.contains("640 mapped blocks"), "{text}");
    assert_eq!(lab.cloop(&["check", "--quiet", "image"]).succeeds(), "");
    before.assert_same(&lab.path("image"));
}

/// The result of a check: its exit status, and the offset and blocks of its first finding.
struct Verdict {
    status: Option<i32>,
    offset: u64,
    blocks: u64,
    text: String,
}

fn check(lab: &Lab) -> Verdict {
    let outcome = lab.cloop(&["check", "image"]);
    let text = String::from_utf8(outcome.stdout).unwrap() + &outcome.stderr;
    let numbers = |after: &str| -> Vec<u64> {
        let line = text.lines().next().unwrap_or_default();
        let rest = line.split_once(after).map_or("", |(_, rest)| rest);
        rest.split(|c: char| !c.is_ascii_digit())
            .filter_map(|n| n.parse().ok())
            .collect()
    };
    let blocks = match numbers("(block")[..] {
        [first, last] => last - first + 1,
        [_] => 1,
        _ => 0,
    };
    if outcome.status == Some(4) {
        assert!(
            text.starts_with("image: damaged ") && text.contains(" at byte "),
            "{text}"
        );
    }
    Verdict {
        status: outcome.status,
        offset: numbers(" at byte ").first().copied().unwrap_or(u64::MAX),
        blocks,
        text,
    }
}

/// Both superblocks and the headers of the segments: a flip anywhere in them is damage.
#[test]
fn flips_in_fixed_structures_are_found() {
    let lab = Lab::new();
    image(&lab);
    let path = lab.path("image");
    let whole = fs::read(&path).unwrap();
    let segments = (1 << 20..whole.len() as u64).step_by(1 << 20);
    let structures = [(0, 4096), (65_536, 4096)]
        .into_iter()
        .chain(segments.map(|at| (at, 96)));
    for (start, len) in structures {
        if whole[start as usize] == 0 {
            // A segment that is reserved but not begun.
            continue;
        }
        for at in (start..start + len).step_by(if len > 96 { 111 } else { 7 }) {
            flip(&path, at);
            let verdict = check(&lab);
            assert_eq!(verdict.status, Some(4), "byte {at}: {}", verdict.text);
            assert_eq!(verdict.offset, start, "byte {at}: {}", verdict.text);
            flip(&path, at);
        }
    }
    assert!(fs::read(&path).unwrap() == whole);
}

/// Flips one byte at many places. Either the check finds it and says where, or the byte has no meaning
/// and the data is intact.
#[test]
fn finds_every_flipped_byte_that_matters() {
    let lab = Lab::new();
    let raw = image(&lab);
    let path = lab.path("image");
    let whole = fs::read(&path).unwrap();
    let len = whole.len() as u64;
    let used = |at: &u64| whole[*at as usize] != 0;
    let mut places: Vec<u64> = (0..len).filter(used).step_by(9973).collect();
    // The first records, through header and payload.
    places.extend(((1 << 20) + 96..(1 << 20) + 192).step_by(3));
    // The end of the log in each segment, where a clean detach puts the table and the usage.
    for start in (1 << 20..len).step_by(1 << 20) {
        if let Some(end) = (start..len.min(start + (1 << 20))).rfind(used) {
            places.extend((end.saturating_sub(8 << 10)..=end).step_by(41));
        }
    }
    places.sort_unstable();
    places.dedup();
    assert!(places.len() > 300, "{}", places.len());

    // Findings in a record, in a node of the table, and in the structures that opening needs.
    let (mut record, mut node, mut whole_image, mut harmless) = (0, 0, 0, 0);
    for &at in &places {
        flip(&path, at);
        let verdict = check(&lab);
        let about = format!("byte {at}: {}", verdict.text);
        match verdict.status {
            Some(4) => {
                // The reported place is near the flip: the record or structure, or the segment of the
                // log.
                assert!(verdict.offset.abs_diff(at) <= 1 << 20, "{about}");
                match verdict.blocks {
                    0 => whole_image += 1,
                    1..=4 => record += 1,
                    _ => node += 1,
                }
            }
            Some(0) => {
                let out = lab.cloop(&["export", "image", "-"]);
                assert_eq!(out.status, Some(0), "{about}{}", out.stderr);
                assert!(out.stdout == raw, "undetected damage, {about}");
                harmless += 1;
            }
            _ => panic!("{about}"),
        }
        flip(&path, at);
    }
    assert!(fs::read(&path).unwrap() == whole, "the image was changed");
    println!(
        "{record} in records, {node} in table nodes, {whole_image} elsewhere, {harmless} harmless"
    );
    assert!(
        record > 100 && node > 0 && whole_image > 0,
        "{record} {node} {whole_image}"
    );
    // Records of an earlier checkpoint that a later one superseded: some of them lie at the ends.
    assert!(
        harmless < places.len() / 3,
        "{harmless} of {} undetected",
        places.len()
    );
}

#[test]
fn damage_is_confined_to_its_blocks() {
    let lab = Lab::new();
    image(&lab);
    // The middle of the noise: the payload of some record.
    flip(&lab.path("image"), (2 << 20) + 5000);
    let outcome = lab.cloop(&["check", "image"]);
    let text = String::from_utf8(outcome.stdout).unwrap();
    assert_eq!(outcome.status, Some(4), "{text}");
    assert!(
        text.contains(" (blocks ") && text.contains("1 error"),
        "{text}"
    );
    assert_eq!(lab.cloop(&["check", "-q", "image"]).status, Some(4));
    lab.cloop(&["export", "image", "back"])
        .fails(1, &["image: damaged ", "at byte ", "cloop check image"]);
    assert!(!lab.path("back").exists());
}

#[test]
fn truncated_images() {
    let lab = Lab::new();
    image(&lab);
    let path = lab.path("image");
    let whole = fs::read(&path).unwrap();
    for len in [
        1,
        511,
        4095,
        4096,
        65_536,
        69_632,
        1 << 20,
        (1 << 20) + 64,
        2 << 20,
        whole.len() - 1,
    ] {
        fs::write(&path, &whole[..len]).unwrap();
        let before = Snapshot::of(&path);
        let outcome = lab.cloop(&["check", "image"]);
        // Without a superblock the file is no image: an operational error.
        let expected = if len < 4096 { [4, 8] } else { [4, 4] };
        assert!(
            outcome.status.is_some_and(|s| expected.contains(&s)),
            "{len}: {:?} {}",
            outcome.status,
            outcome.stderr
        );
        lab.cloop(&["info", "image"]).fails(1, &["image: "]);
        lab.cloop(&["export", "image", "back"])
            .fails(1, &["image: "]);
        before.assert_same(&path);
        assert!(!lab.path("back").exists());
    }
}

/// Changes a field of both superblocks and makes their checksums right again.
fn rewrite_superblocks(path: &Path, at: usize, value: &[u8]) {
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    for offset in [0, 65_536] {
        let mut block = vec![0; 4096];
        file.read_exact_at(&mut block, offset).unwrap();
        block[at..at + value.len()].copy_from_slice(value);
        block[12..16].fill(0);
        let crc = crc32c::crc32c(&block);
        block[12..16].copy_from_slice(&crc.to_le_bytes());
        file.write_all_at(&block, offset).unwrap();
    }
}

#[test]
fn images_of_newer_software() {
    for (at, value, part) in [
        (8, &2u32.to_le_bytes()[..], "version 2"),
        (8, &0x0100_0000u32.to_le_bytes(), "version 16777216"),
        (32, &0x40u64.to_le_bytes(), "features 0x40"),
    ] {
        let lab = Lab::new();
        let path = lab.create("image", "1M");
        rewrite_superblocks(&path, at, value);
        let before = Snapshot::of(&path);
        lab.cloop(&["info", "image"])
            .fails(1, &["image: ", part, "newer"]);
        lab.cloop(&["check", "image"])
            .fails(8, &["image: ", part, "newer"]);
        lab.cloop(&["export", "image", "back"])
            .fails(1, &["image: ", part, "newer"]);
        before.assert_same(&path);
        assert_eq!(lab.names(), ["image"]);
    }
}

/// An image that was written to and flushed, then dropped without being closed.
fn crashed(lab: &Lab) -> Vec<u8> {
    crashed_into(lab, "image")
}

fn crashed_into(lab: &Lab, name: &str) -> Vec<u8> {
    let path = lab.create(name, "4M");
    let text = prose(1 << 20);
    let volume = Volume::<Std>::open(StdFile::open(&path, true).unwrap(), Access::Write).unwrap();
    let mut ws = volume.workspace().unwrap();
    for (i, piece) in text.chunks(65_536).enumerate() {
        volume.write(&mut ws, 96 + i as u64 * 16, piece).unwrap();
    }
    volume.flush().unwrap();
    text
}

#[test]
fn an_image_that_needs_recovery_is_fine() {
    let lab = Lab::new();
    let text = crashed(&lab);
    let path = lab.path("image");
    let before = Snapshot::of(&path);
    let said = lab.cloop(&["check", "image"]).succeeds();
    assert!(
        said.contains("no errors") && said.contains("16 records of the log replayed"),
        "{said}"
    );
    let info = lab.info("image");
    assert_eq!(info["state"], "needs-recovery");
    assert_eq!(info["replayed_records"], 16);
    assert_eq!(info["mapped_blocks"], 256);
    let said = lab.cloop(&["info", "image"]).succeeds();
    assert!(said.contains("needs recovery"), "{said}");
    lab.cloop(&["export", "image", "back"]).succeeds();
    let mut disk = vec![0; 4 << 20];
    disk[96 * 4096..][..text.len()].copy_from_slice(&text);
    assert!(fs::read(lab.path("back")).unwrap() == disk);
    before.assert_same(&path);
}

#[test]
fn exit_codes_are_those_of_fsck() {
    let lab = Lab::new();
    lab.create("image", "1M");
    lab.cloop(&["check", "missing"])
        .fails(8, &["missing: ", "no such file"]);
    lab.cloop(&["check"]).refuses(16, "IMAGE");
    lab.cloop(&["check", "--fix", "image"]).refuses(16, "--fix");
    assert_eq!(lab.cloop(&["check", "--help"]).status, Some(0));
}

/// The content that `cloop export` reads is still `raw`.
fn assert_holds(lab: &Lab, raw: &[u8]) {
    lab.cloop(&["export", "--force", "image", "back"])
        .succeeds();
    assert!(fs::read(lab.path("back")).unwrap() == raw);
}

#[test]
fn repair_leaves_a_whole_image_alone() {
    let lab = Lab::new();
    image(&lab);
    let before = Snapshot::of(&lab.path("image"));
    let text = lab.cloop(&["check", "--repair", "image"]).succeeds();
    assert!(text.contains("image: not changed\n"), "{text}");
    before.assert_same(&lab.path("image"));
    crashed_into(&lab, "crashed");
    let before = Snapshot::of(&lab.path("crashed"));
    lab.cloop(&["check", "--repair", "crashed"]).succeeds();
    before.assert_same(&lab.path("crashed"));
}

#[test]
fn repair_brings_back_both_superblocks() {
    let lab = Lab::new();
    let raw = image(&lab);
    let path = lab.path("image");
    for wipe in [false, true] {
        flip(&path, 100);
        flip(&path, 65_636);
        if wipe {
            let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
            file.write_all_at(&vec![0; 1 << 20], 0).unwrap();
        }
        assert_ne!(lab.cloop(&["check", "-q", "image"]).status, Some(0));
        let outcome = lab.cloop(&["check", "--repair", "image"]);
        let text = String::from_utf8(outcome.stdout).unwrap();
        assert_eq!(outcome.status, Some(1), "{text}{}", outcome.stderr);
        assert!(text.contains("image: repaired\n"), "{text}");
        lab.cloop(&["check", "image"]).succeeds();
        assert_holds(&lab, &raw);
    }
}

#[test]
fn repair_cannot_bring_back_data() {
    let lab = Lab::new();
    image(&lab);
    flip(&lab.path("image"), (2 << 20) + 5000);
    let before = Snapshot::of(&lab.path("image"));
    let outcome = lab.cloop(&["check", "--repair", "image"]);
    let text = String::from_utf8(outcome.stdout).unwrap();
    assert_eq!(outcome.status, Some(4), "{text}");
    assert!(
        text.contains(" (blocks ") && text.contains("not changed"),
        "{text}"
    );
    before.assert_same(&lab.path("image"));
    // With a superblock lost as well, the repair corrects that and leaves the rest.
    flip(&lab.path("image"), 100);
    let outcome = lab.cloop(&["check", "--repair", "image"]);
    let text = String::from_utf8(outcome.stdout).unwrap();
    assert_eq!(outcome.status, Some(5), "{text}");
    assert!(text.contains("image: still damaged record"), "{text}");
    assert_eq!(lab.cloop(&["check", "-q", "image"]).status, Some(4));
}

#[test]
fn repair_refuses_what_is_no_image() {
    let lab = Lab::new();
    let path = lab.file("image", &prose(3 << 20));
    let before = Snapshot::of(&path);
    lab.cloop(&["check", "--repair", "image"])
        .fails(8, &["image: not a cloop image"]);
    before.assert_same(&path);
}

/// The result of a repair: its exit status, and the blocks that it lists.
struct Repaired {
    status: Option<i32>,
    listed: Vec<std::ops::RangeInclusive<u64>>,
    text: String,
}

impl Repaired {
    fn lists(&self, block: u64) -> bool {
        self.listed.iter().any(|range| range.contains(&block))
    }
}

fn listed(text: &str) -> Vec<std::ops::RangeInclusive<u64>> {
    let ranges = text.lines().filter(|line| !line.contains("table rebuilt"));
    ranges
        .filter_map(|line| line.split_once("(block"))
        .map(|(_, rest)| {
            let mut numbers = rest.split(|c: char| !c.is_ascii_digit());
            let mut next = || numbers.find_map(|n| n.parse::<u64>().ok());
            let first = next().unwrap();
            first..=next().unwrap_or(first)
        })
        .collect()
}

fn repair(lab: &Lab, options: &[&str]) -> Repaired {
    let args = [&["check", "--repair"], options, &["image"]].concat();
    let outcome = lab.cloop(&args);
    let text = String::from_utf8(outcome.stdout).unwrap() + &outcome.stderr;
    Repaired {
        status: outcome.status,
        listed: listed(&text),
        text,
    }
}

/// P8: each block of the image reads as in `raw`, or gives an error and is listed.
fn assert_honest(lab: &Lab, raw: &[u8], repaired: &Repaired) -> u64 {
    let file = StdFile::open(&lab.path("image"), false).unwrap();
    let volume = Volume::<Std>::open(file, Access::Read).unwrap();
    let mut ws = volume.workspace().unwrap();
    let (mut data, mut errors) = (vec![0; 4096], 0);
    for (block, expected) in (0..).zip(raw.chunks_exact(4096)) {
        match volume.read(&mut ws, block, &mut data) {
            Ok(()) => assert!(data == expected, "block {block}; {}", repaired.text),
            Err(_) => {
                assert!(repaired.lists(block), "block {block}; {}", repaired.text);
                errors += 1;
            }
        }
    }
    errors
}

/// The tail of an image holds the table and what was written last. A repair must not take what is left for all there
/// was, whether the tail was cut off, or is zeros as on a block device, and whatever the height of the table.
#[test]
fn a_lost_tail_is_listed() {
    let lab = Lab::new();
    let mut raw = noise(4 << 20, 5);
    lab.file("raw", &raw);
    lab.cloop(&["import", "raw", "image"]).succeeds();
    overwrite(&lab, &mut raw);
    let mut hurt = 0;
    for size in ["4M", "64M", "2G"] {
        lab.cloop(&["resize", "--size", size, "image"]).succeeds();
        let whole = fs::read(lab.path("image")).unwrap();
        for cut in [true, false] {
            for lost in [4096, 65_536, 1 << 20, 3 << 20] {
                let mut bytes = whole.clone();
                let keep = bytes.len() - lost;
                match cut {
                    true => bytes.truncate(keep),
                    false => bytes[keep..].fill(0),
                }
                lab.file("image", &bytes);
                let what = format!("{size}, cut {cut}, {lost} lost");
                let before = lab.cloop(&["check", "image"]);
                assert_eq!(before.status, Some(4), "{what}");
                let repaired = repair(&lab, &[]);
                let errors = assert_honest(&lab, &raw, &repaired);
                // Blocks below nodes of the table that lay in the tail can be certain all the same.
                hurt += u32::from(errors > 0);
                let status = if errors > 0 { 5 } else { 1 };
                assert_eq!(repaired.status, Some(status), "{what}: {}", repaired.text);
                assert!(errors == 0 || !repaired.text.contains("clean"), "{what}");
                // The check before the repair had listed the same blocks.
                let said = String::from_utf8(before.stdout).unwrap();
                let before = listed(&said);
                let told = |block| before.iter().any(|range| range.contains(&block));
                assert!(
                    (0..1024).all(|b| !repaired.lists(b) || told(b)),
                    "{what}: {said}"
                );
            }
        }
        lab.file("image", &whole);
    }
    assert!(hurt >= 6, "{hurt} tails held data");
}

/// Writes blocks 700 to 715 of the image and of `raw` again.
fn overwrite(lab: &Lab, raw: &mut [u8]) {
    let file = StdFile::open(&lab.path("image"), true).unwrap();
    let volume = Volume::<Std>::open(file, Access::Write).unwrap();
    let mut ws = volume.workspace().unwrap();
    raw.copy_within(..65_536, 700 * 4096);
    volume.write(&mut ws, 700, &raw[..65_536]).unwrap();
    volume.close().unwrap();
}

/// Cuts the last 64 KiB off the image.
fn cut(lab: &Lab) {
    let mut bytes = fs::read(lab.path("image")).unwrap();
    bytes.truncate(bytes.len() - 65_536);
    lab.file("image", &bytes);
}

/// A tail of 64 KiB has parts of two records of 16 blocks at most. It holds the table of all blocks as well, but
/// fingerprints prove what is found of them again.
#[test]
fn a_lost_tail_costs_what_was_in_it() {
    // On a large device a stripe has two pieces in a range.
    for (size, most) in [(4 << 20, 32), (64 << 20, 32), (2 << 30, 64)] {
        for overwritten in [false, true] {
            let lab = Lab::new();
            let mut raw = noise(4 << 20, 8);
            let path = lab.file("raw", &raw);
            let file = fs::OpenOptions::new().write(true).open(path).unwrap();
            file.set_len(size).unwrap();
            lab.cloop(&["import", "raw", "image"]).succeeds();
            if overwritten {
                overwrite(&lab, &mut raw);
            }
            cut(&lab);
            let repaired = repair(&lab, &[]);
            let what = format!("{size} bytes, overwritten {overwritten}: {}", repaired.text);
            let errors = assert_honest(&lab, &raw, &repaired);
            let listed = (0..size / 4096).filter(|&b| repaired.lists(b)).count();
            assert!(errors > 0 && listed <= most, "{listed} blocks; {what}");
            assert_eq!(repaired.status, Some(5), "{what}");
            assert!(!overwritten || repaired.lists(700), "{what}");
        }
    }
}

/// If blocks may be older than they were, the user decides whether to keep them.
#[test]
fn doubtful_blocks_are_kept_on_request() {
    let lab = Lab::new();
    let before = noise(4 << 20, 6);
    lab.file("raw", &before);
    lab.cloop(&["import", "raw", "image"]).succeeds();
    overwrite(&lab, &mut before.clone());
    cut(&lab);
    lab.cloop(&["check", "--salvage", "image"])
        .refuses(16, "--repair");
    let repaired = repair(&lab, &["--salvage"]);
    assert_eq!(repaired.status, Some(5), "{}", repaired.text);
    assert!(
        repaired.text.contains("perhaps with older contents"),
        "{}",
        repaired.text
    );
    let file = StdFile::open(&lab.path("image"), false).unwrap();
    let volume = Volume::<Std>::open(file, Access::Read).unwrap();
    let mut data = vec![0; 4096];
    volume
        .read(&mut volume.workspace().unwrap(), 705, &mut data)
        .unwrap();
    assert!(repaired.lists(705) && data == before[705 * 4096..706 * 4096]);
}
