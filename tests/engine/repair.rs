// SPDX-License-Identifier: GPL-2.0 OR MIT
//! `repair`: everything that damage did not hit survives it, and everything that it hit is listed.

use crate::model::{assert_checked, fresh, read_all, read_tags, Home, Tested, Vol, BLOCKS};
use cloop::engine::check::{check, Finding};
use cloop::engine::format::{Kind, RecordHeader, SegmentHeader};
use cloop::engine::repair::{repair, Doubtful, Repaired, Report};
use cloop::engine::Access;
use cloop::engine::{Error, BLOCK_SIZE};
use cloop::platform::sim::{Rng, SimFile};
use cloop::platform::BackingFile;

const SEGMENT: usize = 256 * 1024;
const DATA: usize = 1 << 20;

/// An image with contents and a history of several openings and checkpoints. A log that was flushed
/// follows the last checkpoint. In the end the image is closed, or left as after a crash.
fn image(seed: u64, clean: bool) -> (SimFile, Vec<u32>) {
    let (file, volume) = fresh([4096, 16384, 65536][seed as usize % 3]);
    let mut rng = Rng(seed);
    let mut tested = Tested::new(volume, vec![0; BLOCKS as usize], 0);
    for round in 0..3 {
        for _ in 0..25 {
            assert!(tested.random_operation(&mut rng));
        }
        if round < 2 {
            assert!(tested.checkpoint());
            tested.volume.close().unwrap();
            let volume = Vol::open(file.clone(), Access::Write).unwrap();
            tested = Tested::new(volume, tested.state(), tested.next_tag());
        }
    }
    for _ in 0..6 {
        assert!(tested.write(rng.below(BLOCKS - 9), 9, true, &mut rng));
        assert!(tested.flush());
    }
    let state = tested.state();
    if clean {
        tested.volume.close().unwrap();
        return (file, state);
    }
    // No later structure proves that the very last flush was durable, so it writes only what is there
    // already.
    let block = state.iter().position(|&tag| tag != 0).unwrap();
    let mut data = vec![0; BLOCK_SIZE];
    cloop::simulation::fill(state[block], &mut data);
    tested
        .volume
        .write(&mut tested.ws, block as u64, &data)
        .unwrap();
    assert!(tested.flush());
    (file.copy(), state)
}

fn run(file: &SimFile) -> (Result<Repaired, Error>, Vec<Report>) {
    let mut reports = Vec::new();
    let outcome = repair::<Home>(
        &mut || Ok(file.clone()),
        Doubtful::Refuse,
        &mut |report| reports.push(*report),
        &mut |_, _| {},
    );
    (outcome, reports)
}

fn findings(file: &SimFile) -> Vec<Finding> {
    let mut found = Vec::new();
    check::<Home>(file.copy(), &mut |f| found.push(*f), &mut |_, _| {}).unwrap();
    found
}

pub(crate) fn overwrite(file: &SimFile, at: usize, bytes: &[u8]) {
    let first = at / BLOCK_SIZE * BLOCK_SIZE;
    let end = (at + bytes.len()).next_multiple_of(BLOCK_SIZE);
    let mut buf = vec![0; end - first];
    file.read_at(&mut buf, first as u64).unwrap();
    buf[at - first..at - first + bytes.len()].copy_from_slice(bytes);
    file.write_at(&buf, first as u64).unwrap();
    file.sync().unwrap();
}

/// The records of an image: offset, header, and whether they belong to the present incarnation of their
/// segment.
pub(crate) fn records(file: &SimFile) -> Vec<(usize, RecordHeader)> {
    let bytes = file.bytes();
    let mut found = Vec::new();
    for base in (DATA..bytes.len()).step_by(SEGMENT) {
        let segment = &bytes[base..bytes.len().min(base + SEGMENT)];
        let Some(header) = SegmentHeader::decode::<Home>(segment) else {
            continue;
        };
        let seed = header.seed::<Home>();
        let mut at = 96;
        while at < segment.len() {
            let Some((record, _)) = RecordHeader::decode::<Home>(&segment[at..], seed, at as u32)
            else {
                break;
            };
            found.push((base + at, record));
            at += record.units() as usize * 16;
        }
    }
    found
}

/// After a repair that wrote: the contents are unchanged except for what was reported, the check agrees
/// with the repair, and the image can be written to.
fn judge(file: &SimFile, state: &[u32], repaired: &Repaired, reports: &[Report], what: &str) {
    let Some(summary) = repaired.summary else {
        // Any block may be affected, so the repair leaves the image alone. It stays refused.
        assert!(repaired.unnamed > 0 && !repaired.written, "{what}");
        let error = Vol::open(file.copy(), Access::Read).err();
        assert!(matches!(error, Some(Error::Corrupt { .. })), "{what}");
        return;
    };
    let found = findings(file);
    assert_eq!(found.len() as u64, summary.findings, "{what}");
    if repaired.written {
        // A header that cannot be computed stays lost, together with the records that cannot be
        // relocated.
        let headers = found.iter().filter(|f| !f.data).all(|f| {
            matches!(
                f.error,
                Error::Corrupt {
                    what: "segment header",
                    ..
                }
            ) && found.iter().any(|f| f.data)
        });
        assert!(headers, "{what}: {found:?}");
    }
    let listed = |block: u64| {
        let within = |start: u64, count: u64| (start..start + count).contains(&block);
        reports.iter().any(|report| match report {
            Report::Left(finding) => finding.blocks.is_some_and(|(s, n)| within(s, n)),
            Report::Damage(finding) => {
                finding.data && finding.blocks.is_some_and(|(s, n)| within(s, n))
            }
            Report::Doubtful(start, count) => within(*start, *count),
            Report::Rebuilt(..) | Report::Unnamed(..) | Report::Unproven(..) => false,
        })
    };
    let volume = Vol::open(file.copy(), Access::Write).unwrap_or_else(|e| panic!("{what}: {e}"));
    let mut ws = volume.workspace().unwrap();
    for block in 0..BLOCKS {
        let tags = read_tags(&volume, &mut ws, block, 1);
        if tags.as_deref() != Some(&state[block as usize..=block as usize]) {
            assert!(
                listed(block),
                "{what}: block {block} reads as {tags:?}, not {}; {reports:?}",
                state[block as usize]
            );
        }
    }
    let mut data = vec![0; BLOCK_SIZE];
    cloop::simulation::fill(77, &mut data);
    volume.write(&mut ws, 5, &data).unwrap();
    volume.close().unwrap();
}

/// Repairs, and expects that nothing is lost.
fn mends(file: &SimFile, state: &[u32], what: &str) {
    let (outcome, reports) = run(file);
    let repaired = outcome.unwrap_or_else(|e| panic!("{what}: {e}"));
    assert!(
        repaired.written && repaired.before > 0,
        "{what}: {repaired:?}"
    );
    assert!(
        !repaired.leaves_damage(),
        "{what}: {repaired:?}, {reports:?}"
    );
    assert_checked(file, what);
    let volume = Vol::open(file.clone(), Access::Write).unwrap();
    assert_eq!(read_all(&volume), state, "{what}");
    volume.close().unwrap();
    assert_checked(file, what);
}

#[test]
fn a_whole_image_is_not_touched() {
    for clean in [true, false] {
        let (file, _) = image(1, clean);
        let (before, operations) = (file.bytes(), file.operations());
        let (outcome, reports) = run(&file);
        let repaired = outcome.unwrap();
        assert!(!repaired.written && reports.is_empty(), "{reports:?}");
        assert_eq!((repaired.before, repaired.leaves_damage()), (0, false));
        assert!(file.bytes() == before && file.operations() == operations);
    }
}

#[test]
fn superblocks_come_back() {
    for seed in 0..6 {
        for clean in [true, false] {
            let (file, state) = image(seed, clean);
            for lost in [&[0][..], &[65_536], &[0, 65_536]] {
                for how in 0..3 {
                    let hurt = file.copy();
                    for &at in lost {
                        match how {
                            0 => hurt.damage(at + 90, 4),
                            1 => overwrite(&hurt, at as usize, &[0; BLOCK_SIZE]),
                            _ => overwrite(&hurt, at as usize, &[0xa5; BLOCK_SIZE]),
                        }
                    }
                    let what = format!("seed {seed} clean {clean} lost {lost:?} how {how}");
                    mends(&hurt, &state, &what);
                }
            }
        }
    }
}

#[test]
fn the_first_megabyte_may_be_gone() {
    let (file, state) = image(2, false);
    overwrite(&file, 0, &vec![0x55; DATA]);
    mends(&file, &state, "the first MiB");
}

/// Damage from the beginning into the log may take all that tells of the newest checkpoint. Then an older one is not
/// taken for it, unless the user asks for that.
#[test]
fn an_older_state_is_not_taken_for_the_newest() {
    let mut unproven = 0;
    for seed in 0..3 {
        for clean in [true, false] {
            let (file, _) = image(seed, clean);
            let len = file.bytes().len();
            for end in (DATA + BLOCK_SIZE..len).step_by(SEGMENT / 2) {
                let hurt = file.copy();
                overwrite(&hurt, 0, &vec![0; end]);
                let what = format!("seed {seed} clean {clean} zeros up to {end}");
                let (outcome, reports) = run(&hurt);
                let Ok(repaired) = outcome else {
                    // Not even an older checkpoint is left.
                    continue;
                };
                let told = |r: &Report| matches!(r, Report::Unproven(_));
                assert!(reports.iter().any(told), "{what}: {reports:?}");
                assert!(repaired.unnamed > 0 && !repaired.written, "{what}");
                assert!(Vol::open(hurt.copy(), Access::Read).is_err(), "{what}");
                unproven += 1;
                let kept = repair::<Home>(
                    &mut || Ok(hurt.clone()),
                    Doubtful::Keep,
                    &mut |_| (),
                    &mut |_, _| {},
                );
                assert!(kept.unwrap().written, "{what}");
                Vol::open(hurt, Access::Read).unwrap();
            }
        }
    }
    assert!(unproven > 6, "{unproven}");
}

/// The header of segment 0 tells that damage has ended before the log, so it stays when the segment is free.
#[test]
fn a_free_segment_0_keeps_its_header() {
    let (file, volume) = fresh(4096);
    let mut tested = Tested::new(volume, vec![0; BLOCKS as usize], 0);
    let mut rng = Rng(5);
    let mut free = 0;
    for _ in 0..6 {
        // All that is live moves to the segment in which the opening began its log.
        assert!(tested.write(0, 32, false, &mut rng));
        for _ in 0..3 {
            assert!(tested.checkpoint());
        }
        let (state, tag) = (tested.state(), tested.next_tag());
        tested.volume.close().unwrap();
        let bytes = file.bytes();
        let behind = &bytes[DATA + BLOCK_SIZE..bytes.len().min(DATA + SEGMENT)];
        if behind.iter().all(|&byte| byte == 0) {
            free += 1;
            assert!(SegmentHeader::decode::<Home>(&bytes[DATA..]).is_some());
            let hurt = file.copy();
            overwrite(&hurt, 0, &vec![0; DATA]);
            mends(&hurt, &state, "the first MiB before a free segment");
        }
        let volume = Vol::open(file.clone(), Access::Write).unwrap();
        tested = Tested::new(volume, state, tag);
    }
    assert!(free > 0, "segment 0 was never free");
}

#[test]
fn the_size_survives_both_superblocks() {
    let (file, volume) = fresh(4096);
    let mut tested = Tested::new(volume, vec![0; BLOCKS as usize], 0);
    assert!(tested.write(3, 9, true, &mut Rng(1)));
    for blocks in [BLOCKS + 5000, BLOCKS + 70] {
        let size = blocks * BLOCK_SIZE as u64;
        tested.volume.resize(&mut tested.ws, size, false).unwrap();
        let hurt = file.copy();
        overwrite(&hurt, 0, &[0; 128 * 1024]);
        let (outcome, reports) = run(&hurt);
        assert!(outcome.unwrap().written, "{reports:?}");
        let volume = Vol::open(hurt, Access::Read).unwrap();
        assert_eq!(volume.size().blocks(), blocks);
    }
}

#[test]
fn a_superblock_of_another_image_is_told_from_ours() {
    let (file, state) = image(4, true);
    let other = SimFile::new();
    let mut options = crate::model::options(4096, cloop::engine::Algorithm::Lz4);
    options.uuid = *b"another one here";
    Vol::create(&other, &options).unwrap();
    for slot in [0, 65_536] {
        let hurt = file.copy();
        overwrite(&hurt, slot, &other.bytes()[slot..slot + BLOCK_SIZE]);
        assert!(matches!(
            Vol::open(hurt.clone(), Access::Read),
            Err(Error::Corrupt { .. })
        ));
        mends(&hurt, &state, &format!("slot at {slot}"));
    }
}

#[test]
fn segment_headers_are_written_again() {
    for seed in 0..3 {
        for clean in [true, false] {
            let (file, state) = image(seed, clean);
            for base in (DATA..file.bytes().len()).step_by(SEGMENT) {
                let hurt = file.copy();
                hurt.damage(base as u64 + 30, 0x11);
                if findings_or_refused(&hurt) {
                    mends(
                        &hurt,
                        &state,
                        &format!("seed {seed} clean {clean} header at {base}"),
                    );
                }
            }
        }
    }
}

/// Whether a check finds anything wrong with the image.
fn findings_or_refused(file: &SimFile) -> bool {
    let mut n = 0;
    let summary = check::<Home>(file.copy(), &mut |_| n += 1, &mut |_, _| {});
    n > 0 || summary.is_err()
}

#[test]
fn every_record_in_turn() {
    let (mut healed, mut lost, mut unnamed, mut refused) = (0, 0, 0, 0);
    for clean in [true, false] {
        let (file, state) = image(if clean { 7 } else { 8 }, clean);
        for (i, (at, record)) in records(&file).into_iter().enumerate() {
            // Damage the payload, the header, or both.
            let hurt = file.copy();
            let space = record.units() as usize * 16;
            match i % 3 {
                0 => hurt.damage(at as u64 + 16 + record.payload as u64 / 2, 2),
                1 => hurt.damage(at as u64 + 9, 0x10),
                _ => overwrite(&hurt, at, &vec![0x99; space]),
            }
            if record.kind == Kind::Pad && i % 3 == 0 || !findings_or_refused(&hurt) {
                continue;
            }
            let what = format!("clean {clean}, {record:?} at {at}, damage {}", i % 3);
            refused += u32::from(Vol::open(hurt.clone(), Access::Read).is_err());
            let (outcome, reports) = run(&hurt);
            let repaired = outcome.unwrap_or_else(|e| panic!("{what}: {e}"));
            judge(&hurt, &state, &repaired, &reports, &what);
            unnamed += repaired.unnamed;
            lost += u64::from(repaired.summary.is_some_and(|s| s.findings > 0));
            healed += u64::from(!repaired.leaves_damage());
            // The damage must not cost any other block.
            assert!(repaired.unnamed <= 1, "{what}");
        }
    }
    println!(
        "{healed} healed, {lost} with blocks lost, {unnamed} unnamed, {refused} had been refused"
    );
    assert!(
        healed > 10 && lost > 20 && refused > 5,
        "{healed} {lost} {refused}"
    );
}

#[test]
fn a_repair_may_be_interrupted() {
    let (file, state) = image(3, false);
    file.damage(100, 1);
    let node = records(&file)
        .into_iter()
        .rfind(|r| r.1.kind == Kind::UsageNode)
        .unwrap();
    file.damage(node.0 as u64 + 20, 1);
    let mut crash = 0;
    loop {
        let again = file.copy();
        again.crash_after(crash);
        let done = run(&again).0.is_ok();
        let found = again.after_crash(&mut Rng(crash));
        if !findings_or_refused(&found) {
            let volume = Vol::open(found, Access::Read).unwrap();
            assert_eq!(read_all(&volume), state, "crash at {crash}");
        } else {
            mends(&found, &state, &format!("crash at {crash}"));
        }
        if done {
            break;
        }
        crash += 1;
    }
    assert!(crash > 8, "{crash} backing operations");
}

#[test]
fn random_damage() {
    let rounds = std::env::var("CLOOP_REPAIR_ROUNDS").map_or(150, |n| n.parse().unwrap());
    let (mut repaired_all, mut left, mut hopeless) = (0, 0, 0);
    for round in 0..rounds {
        let mut rng = Rng(round ^ 0x7265_7061);
        let (file, state) = image(rng.below(6), rng.below(2) == 0);
        let bytes = file.bytes();
        let used: Vec<usize> = (0..bytes.len())
            .step_by(BLOCK_SIZE)
            .filter(|&at| bytes[at..at + BLOCK_SIZE].iter().any(|&b| b != 0))
            .collect();
        let mut place = || used[rng.below(used.len() as u64) as usize];
        let (a, b, kind, n) = (place(), place(), rng.below(4), 1 + rng.below(3));
        for i in 0..n as usize {
            match kind {
                0 => file.damage((a + rng.below(4096) as usize) as u64, 1 << rng.below(8)),
                1 => overwrite(&file, a, &[0; BLOCK_SIZE]),
                2 => overwrite(&file, a, &bytes[b..b + BLOCK_SIZE]),
                _ => overwrite(&file, a + 512 * (i % 8), &[0; 512]),
            }
        }
        let what = format!("round {round}: kind {kind} at {a} ({b}), {n} times");
        let (outcome, reports) = run(&file);
        match outcome {
            Ok(repaired) => {
                judge(&file, &state, &repaired, &reports, &what);
                if !repaired.leaves_damage() {
                    repaired_all += 1;
                } else {
                    left += 1;
                }
            }
            Err(error) => {
                assert!(
                    matches!(error, Error::Corrupt { .. } | Error::NotAnImage),
                    "{what}: {error}"
                );
                hopeless += 1;
            }
        }
    }
    println!("{repaired_all} whole again, {left} with something lost, {hopeless} hopeless");
    assert!(hopeless * 50 <= rounds, "{hopeless} of {rounds}");
}

/// A damaged record that lies before a position which a later flush proves durable is not the end of the
/// log. I15.
#[test]
fn a_damaged_log_is_not_taken_for_its_end() {
    let (file, _) = image(5, false);
    let start = newest_log_start(&file);
    let data: Vec<_> = records(&file)
        .into_iter()
        .filter(|(at, record)| *at > start && record.kind == Kind::Data)
        .collect();
    assert!(data.len() >= 6, "{} records", data.len());
    // All records except those of the last flush, which no later structure proves durable.
    for (at, _) in &data[..data.len() - 1] {
        let hurt = file.copy();
        hurt.damage(*at as u64 + 20, 1);
        let error = Vol::open(hurt.clone(), Access::Write).err();
        assert!(
            matches!(error, Some(Error::Corrupt { what: "log", .. })),
            "{error:?}"
        );
    }
}

/// Byte offset at which the replay from the newest superblock starts.
fn newest_log_start(file: &SimFile) -> usize {
    use cloop::engine::format::Superblock;
    let bytes = file.bytes();
    let newest = [0, 65_536]
        .into_iter()
        .map(|at| {
            let mut page = bytes[at..at + BLOCK_SIZE].to_vec();
            Superblock::decode::<Home>(&mut page, at as u64).unwrap()
        })
        .max_by_key(|superblock| superblock.generation)
        .unwrap();
    DATA + newest.log_start.segment as usize * SEGMENT + newest.log_start.offset as usize
}
