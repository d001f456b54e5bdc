// SPDX-License-Identifier: GPL-2.0 OR MIT
//! `cloop import` and `cloop export`.

use crate::run::{allocated, noise, prose, same, sparse, Lab, Loop, Mount, Snapshot};
use cloop::engine::format::{Kind, RecordHeader, SegmentHeader, DATA_START, SEGMENT_HEADER, UNIT};
use cloop::engine::DEFAULT_SEGMENT_SIZE;
use cloop::platform::std::Std;
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

/// A disk with text, noise, zeros, holes, and runs of every length between a single block and a chunk.
pub(crate) fn mixed(path: &Path) {
    let (text, random) = (prose(3 << 20), noise(2 << 20, 3));
    let mut patches = Vec::new();
    for i in 0..64u64 {
        // Odd blocks of a range, then single bytes in otherwise empty blocks.
        patches.push((20 * MIB + i * 8192, &random[..4096]));
        patches.push((24 * MIB + i * 40_960 + 4095, &random[7..8]));
    }
    let mut pieces: Vec<(u64, &[u8])> = vec![
        (0, &text),
        (5 * MIB + 12_288, &random),
        (9 * MIB - 4096, &text[..8192]),
        (12 * MIB, &[0; 1 << 20]),
        (32 * MIB - 4096, &random[..4096]),
    ];
    pieces.extend(patches);
    sparse(path, 32 * MIB, &pieces);
}

#[test]
fn round_trips_at_every_record_size() {
    let lab = Lab::new();
    mixed(&lab.path("raw"));
    for record in ["4K", "8K", "16K", "64K", "128K"] {
        for algorithm in ["lz4", "none", "zstd:2"] {
            let args = [
                "import", "-r", record, "-c", algorithm, "--force", "raw", "image",
            ];
            assert_eq!(lab.cloop(&args).succeeds(), "");
            lab.cloop(&["check", "image"]).succeeds();
            assert_eq!(
                lab.cloop(&["export", "--force", "image", "back"])
                    .succeeds(),
                ""
            );
            assert!(
                same(&lab.path("raw"), &lab.path("back")),
                "{record} {algorithm}"
            );
        }
    }
}

/// The first blocks of the data records of an image that was written once, in the order of the log.
fn places(image: &[u8]) -> Vec<u64> {
    let segments = image[DATA_START as usize..].chunks(DEFAULT_SEGMENT_SIZE as usize);
    let segments = segments.filter_map(|s| Some((SegmentHeader::decode::<Std>(s)?, s)));
    let in_order: BTreeMap<u64, _> = segments.map(|(h, s)| (h.seq, (h, s))).collect();
    let mut places = Vec::new();
    for (header, segment) in in_order.values() {
        let (seed, mut at) = (header.seed::<Std>(), SEGMENT_HEADER);
        let record = |at: usize| RecordHeader::decode::<Std>(segment.get(at..)?, seed, at as u32);
        while let Some((record, _)) = record(at) {
            if record.kind == Kind::Data {
                places.push(record.number);
            }
            at += record.units() as usize * UNIT;
        }
    }
    places
}

/// Neighbours on the disk are neighbours in the image, however many CPUs compress: they are read together.
#[test]
fn records_lie_in_the_order_of_the_disk() {
    let lab = Lab::new();
    // Chunks that are compressed in very different times.
    let (text, random) = (prose(MIB as usize), noise(MIB as usize, 4));
    let disk: Vec<&[u8]> = (0..32)
        .map(|i| if i % 3 == 0 { &random } else { &text }.as_slice())
        .collect();
    lab.file("raw", &disk.concat());
    for (record, with) in [("64K", "lz4"), ("128K", "zstd:9")] {
        lab.cloop(&["import", "-r", record, "-c", with, "-f", "raw", "image"])
            .succeeds();
        let places = places(&fs::read(lab.path("image")).unwrap());
        assert!(places.len() >= 256, "{record}: {places:?}");
        assert!(places.is_sorted_by(|a, b| a < b), "{record}: {places:?}");
        lab.cloop(&["export", "-f", "image", "back"]).succeeds();
        assert!(same(&lab.path("raw"), &lab.path("back")));
    }
}

#[test]
fn zeros_cost_nothing_and_text_shrinks() {
    let lab = Lab::new();
    mixed(&lab.path("raw"));
    lab.cloop(&["import", "raw", "image"]).succeeds();
    let info = lab.info("image");
    let number = |name: &str| info[name].as_u64().unwrap();
    // Counted from the file: the blocks that are not all zeros.
    let blocks = fs::read(lab.path("raw"))
        .unwrap()
        .chunks(4096)
        .filter(|b| b.iter().any(|&b| b != 0))
        .count() as u64;
    assert_eq!(number("mapped_blocks"), blocks);
    assert_eq!(number("zero_blocks"), 32 * MIB / 4096 - blocks);
    assert_eq!(number("allocated_bytes"), allocated(&lab.path("image")));
    assert!(number("allocated_bytes") >= number("live_bytes"));
    assert_eq!(number("mapped_bytes"), blocks * 4096);
    let expected = (blocks * 4096) as f64 / number("live_bytes") as f64;
    assert!((info["ratio"].as_f64().unwrap() - expected).abs() < 1e-9);
    let text = lab.cloop(&["info", "image"]).succeeds();
    let line = format!(
        "Ratio:         {expected:.2} (saves {:.1} % of the data)",
        100. - 100. / expected
    );
    assert!(text.lines().any(|l| l == line), "lacks {line:?}:\n{text}");

    lab.file("text", &prose(8 << 20));
    lab.cloop(&["import", "text", "text.img"]).succeeds();
    let ratio = lab.info("text.img")["ratio"].as_f64().unwrap();
    assert!(ratio > 1.5, "text does not compress: {ratio}");
    lab.file("noise", &noise(8 << 20, 9));
    lab.cloop(&["import", "noise", "noise.img"]).succeeds();
    let ratio = lab.info("noise.img")["ratio"].as_f64().unwrap();
    assert!(
        (0.97..=1.0).contains(&ratio),
        "noise costs too much: {ratio}"
    );
    let text = lab.cloop(&["info", "noise.img"]).succeeds();
    assert!(text.contains(" (saves nothing of the data)\n"), "{text}");
}

#[test]
fn large_holes_are_skipped_both_ways() {
    let lab = Lab::new();
    let text = prose(64 << 10);
    let tib = 1u64 << 40;
    sparse(
        &lab.path("raw"),
        tib,
        &[(0, &text), (tib / 2, &text), (tib - 65536, &text)],
    );
    let start = Instant::now();
    lab.cloop(&["import", "raw", "image"]).succeeds();
    lab.cloop(&["export", "image", "back"]).succeeds();
    // Reading a tebibyte of zeros would take minutes.
    assert!(start.elapsed() < Duration::from_secs(60));
    assert_eq!(lab.info("image")["mapped_blocks"], 48);
    assert!(allocated(&lab.path("image")) < 8 * MIB);
    let back = lab.path("back");
    assert_eq!(fs::metadata(&back).unwrap().len(), tib);
    assert!(allocated(&back) < MIB);
    let file = fs::File::open(&back).unwrap();
    for at in [0, tib / 2, tib - 65536] {
        use std::os::unix::fs::FileExt;
        let mut read = vec![0; text.len()];
        file.read_exact_at(&mut read, at).unwrap();
        assert!(read == text, "at {at}");
    }
}

#[test]
fn pipes() {
    let lab = Lab::new();
    mixed(&lab.path("raw"));
    let raw = fs::read(lab.path("raw")).unwrap();
    lab.feed(&["import", "--size", "32M", "-", "image"], &raw)
        .succeeds();
    lab.cloop(&["check", "image"]).succeeds();
    let out = lab.cloop(&["export", "image", "-"]);
    assert_eq!((out.status, out.stderr.as_str()), (Some(0), ""));
    assert!(out.stdout == raw, "the pipe got something else");

    // Shorter than the device, and in the middle of a block: the rest is zeros, which the user should know.
    lab.feed(&["import", "--size", "1M", "-", "short"], &raw[..10_000])
        .warns(&["standard input", "10000 bytes", "last 1038576 bytes"]);
    let out = lab.cloop(&["export", "short", "-"]);
    assert_eq!(out.stdout.len(), 1 << 20);
    assert_eq!(out.stdout[..10_000], raw[..10_000]);
    assert!(out.stdout[10_000..].iter().all(|&b| b == 0));
    lab.feed(&["import", "--size", "1M", "-", "none"], &[])
        .warns(&["after 0 bytes"]);
    assert_eq!(lab.info("none")["mapped_blocks"], 0);

    lab.feed(&["import", "-", "new"], &raw)
        .fails(1, &["standard input", "--size"]);
    lab.feed(&["import", "--size", "31M", "-", "new"], &raw)
        .fails(1, &["standard input", "more than the 32505856 bytes"]);
    assert!(!lab.path("new").exists());
}

#[test]
fn exactly_the_size() {
    let lab = Lab::new();
    let raw = prose(1 << 20);
    lab.file("raw", &raw);
    lab.feed(&["import", "--exact", "--size", "1M", "-", "a"], &raw)
        .succeeds();
    lab.cloop(&["import", "--exact", "raw", "b"]).succeeds();
    lab.feed(&["import", "--exact", "--size", "2M", "-", "new"], &raw)
        .fails(1, &["standard input", "after 1048576 bytes", "2097152"]);
    lab.cloop(&["import", "--exact", "--size", "2M", "raw", "new"])
        .fails(1, &["raw: ", "1048576 bytes", "2097152", "--exact"]);
    lab.file("odd", &raw[..10_001]);
    lab.cloop(&["import", "--exact", "odd", "new"])
        .fails(1, &["odd: ", "10001 bytes", "12288", "--exact"]);
    assert!(!lab.path("new").exists());
}

/// Starts an import and stops it in the middle: the image exists and is incomplete.
fn stopped_import(lab: &Lab, args: &[&str]) -> std::process::Child {
    for _ in 0..20 {
        let _ = fs::remove_file(lab.path("image"));
        let mut command = lab.command(args);
        command.stdin(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let made = || {
            let mut features = [0; 40];
            let image = fs::File::open(lab.path("image"));
            image.is_ok_and(|mut image| image.read_exact(&mut features).is_ok())
                && features[32] & 1 == 1
        };
        while !made() && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        signal(&child, "STOP");
        if child.try_wait().unwrap().is_none() && made() {
            return child;
        }
        signal(&child, "CONT");
        child.wait().unwrap();
    }
    panic!("the import is always faster");
}

/// Sends a signal, unless the program has ended.
pub(crate) fn signal(child: &std::process::Child, name: &str) {
    // The shell's own kill: kill(1) does not exist everywhere.
    let script = format!("kill -s {name} {} 2>/dev/null || :", child.id());
    crate::run::system("sh", &["-c", &script]);
}

#[test]
fn a_disk_that_becomes_shorter_is_an_error() {
    let lab = Lab::new();
    let raw = lab.path("raw");
    sparse(&raw, 512 * MIB, &[]);
    // Data first, so that the import takes a while, and then nothing but a hole: behind the new end it looks the same.
    fs::OpenOptions::new()
        .write(true)
        .open(&raw)
        .unwrap()
        .write_all(&noise(128 << 20, 4))
        .unwrap();
    let child = stopped_import(&lab, &["import", "raw", "image"]);
    fs::OpenOptions::new()
        .write(true)
        .open(&raw)
        .unwrap()
        .set_len(4096)
        .unwrap();
    signal(&child, "CONT");
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.starts_with("cloop: raw: became shorter")
            && text.contains("from 536870912 to 4096 bytes"),
        "{text}"
    );
    assert!(!lab.path("image").exists());
}

#[test]
fn a_killed_import_does_not_pass_for_an_image() {
    let lab = Lab::new();
    lab.file("raw", &noise(128 << 20, 4));
    let mut child = stopped_import(&lab, &["import", "raw", "image"]);
    signal(&child, "KILL");
    child.wait().unwrap();
    let before = Snapshot::of(&lab.path("image"));
    let parts = ["image: incomplete", "import"];
    for (status, args) in [
        (8, vec!["check", "image"]),
        (8, vec!["check", "--repair", "image"]),
        (1, vec!["info", "image"]),
        (1, vec!["export", "image", "back"]),
        (1, vec!["resize", "--size", "1G", "image"]),
        (1, vec!["set", "-c", "zstd", "image"]),
        (1, vec!["compact", "image"]),
    ] {
        lab.cloop(&args).fails(status, &parts);
        before.assert_same(&lab.path("image"));
    }
    assert!(!lab.path("back").exists());
    lab.cloop(&["import", "raw", "image"])
        .fails(1, &["image: ", "--force"]);
    lab.cloop(&["import", "--force", "raw", "image"]).succeeds();
    lab.cloop(&["check", "image"]).succeeds();
}

#[test]
fn standard_input_may_be_a_file() {
    let lab = Lab::new();
    let raw = lab.file("raw", &prose(256 << 10));
    let status = lab
        .command(&["import", "-", "image"])
        .stdin(fs::File::open(&raw).unwrap())
        .status();
    assert!(status.unwrap().success());
    lab.cloop(&["export", "image", "back"]).succeeds();
    assert!(same(&raw, &lab.path("back")));
}

#[test]
fn a_size_that_is_no_multiple_is_rounded_up() {
    let lab = Lab::new();
    let text = prose(10_001);
    lab.file("raw", &text);
    let outcome = lab.cloop(&["import", "raw", "image"]);
    assert_eq!(outcome.status, Some(0));
    assert!(outcome.stderr.contains("10001 bytes"), "{}", outcome.stderr);
    assert!(
        outcome.stderr.contains("gets 12288 bytes"),
        "{}",
        outcome.stderr
    );
    lab.cloop(&["export", "image", "back"]).succeeds();
    let back = fs::read(lab.path("back")).unwrap();
    assert_eq!(back[..10_001], text);
    assert_eq!(back[10_001..], [0; 12_288 - 10_001]);
}

#[test]
fn sizes_given_with_a_file() {
    let lab = Lab::new();
    let raw = lab.file("raw", &prose(100 << 10));
    lab.cloop(&["import", "--size", "1M", "raw", "image"])
        .succeeds();
    assert_eq!(lab.info("image")["size"], MIB);
    lab.cloop(&["import", "--size", "64K", "raw", "small"])
        .fails(1, &["raw: ", "102400 bytes", "--size"]);
    assert!(!lab.path("small").exists());
    lab.file("nothing", b"");
    lab.cloop(&["import", "nothing", "small"])
        .fails(1, &["nothing: ", "empty"]);
    lab.cloop(&["import", "--size", "4K", "nothing", "image2"])
        .succeeds();
    lab.cloop(&["import", "missing", "small"])
        .fails(1, &["missing: ", "no such file"]);
    lab.cloop(&["import", "/", "small"])
        .fails(1, &["/: ", "is a directory"]);
    assert!(!lab.path("small").exists());
    assert!(raw.exists());
}

#[test]
fn nothing_is_overwritten_unless_forced() {
    let lab = Lab::new();
    let raw = lab.file("raw", &prose(100 << 10));
    lab.cloop(&["import", "raw", "image"]).refuses(0, "");
    let (image, before_raw) = (lab.path("image"), Snapshot::of(&raw));
    let before = Snapshot::of(&image);
    lab.cloop(&["import", "raw", "image"])
        .fails(1, &["image: ", "--force"]);
    lab.cloop(&["export", "image", "raw"])
        .fails(1, &["raw: ", "--force"]);
    // Importing the image itself, or exporting over it, is refused even with `--force`.
    lab.cloop(&["import", "--force", "raw", "raw"])
        .fails(1, &["raw: ", "is the disk"]);
    lab.cloop(&["export", "--force", "image", "image"])
        .fails(1, &["image: ", "in use"]);
    before_raw.assert_same(&raw);
    before.assert_same(&image);
}

#[test]
fn a_full_file_system_leaves_nothing_half_made() {
    let lab = Lab::new();
    let Some(_mount) = Mount::tmpfs(lab.path("small"), "4M") else {
        return;
    };
    let kept = lab.file("small/kept", b"kept");
    let before = Snapshot::of(&kept);
    lab.file("raw", &noise(16 << 20, 5));
    lab.cloop(&["import", "raw", "small/image"])
        .fails(1, &["small/image: ", "no space left", "free some"]);
    assert!(!lab.path("small/image").exists());
    lab.cloop(&["import", "raw", "image"]).succeeds();
    let image = Snapshot::of(&lab.path("image"));
    lab.cloop(&["export", "image", "small/raw"])
        .fails(1, &["small/raw: ", "no space left"]);
    assert!(!lab.path("small/raw").exists());
    image.assert_same(&lab.path("image"));
    before.assert_same(&kept);
}

/// Interrupts a command that is waiting in the middle of its work.
fn interrupted(signal: &str, half: &str, args: &[&str], lab: &Lab, input: &[u8]) {
    // Whoever runs the tests may ignore the signal, as a shell does for what it runs in the background.
    let mut child = Command::new("env")
        .args(["--default-signal=HUP,INT,TERM", env!("CARGO_BIN_EXE_cloop")])
        .args(args)
        .current_dir(lab.path("."))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input).unwrap();
    let start = Instant::now();
    while !lab.path(half).exists() {
        assert!(start.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(100));
    self::signal(&child, signal);
    let status = child.wait().unwrap();
    // The process died of the signal, as every shell expects it.
    assert!(
        std::os::unix::process::ExitStatusExt::signal(&status).is_some(),
        "{status}"
    );
}

#[test]
fn an_interrupted_import_leaves_nothing() {
    let lab = Lab::new();
    for signal in ["INT", "TERM", "HUP"] {
        let args = ["import", "--size", "1G", "-", "image"];
        interrupted(signal, "image", &args, &lab, &noise(3 << 20, 1));
        assert!(lab.names().is_empty(), "{signal}: {:?}", lab.names());
    }
}

#[test]
fn a_reader_that_goes_away_ends_the_export() {
    let lab = Lab::new();
    lab.file("raw", &noise(8 << 20, 1));
    lab.cloop(&["import", "raw", "image"]).succeeds();
    let mut child = lab
        .command(&["export", "image", "-"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 100];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains("closed by its reader"), "{text}");
}

#[test]
fn block_devices_on_both_sides() {
    let lab = Lab::new();
    mixed(&lab.path("raw"));
    let Some(source) = Loop::over(&lab.path("raw")) else {
        return;
    };
    lab.cloop(&["import", source.node(), "image"]).succeeds();
    lab.cloop(&["export", "image", "back"]).succeeds();
    assert!(same(&lab.path("raw"), &lab.path("back")));

    // Onto a larger device with other contents: zeros must be written there, and the rest stays.
    let garbage = vec![0xa5; 33 << 20];
    let Some(target) = Loop::over(&lab.file("disk", &garbage)) else {
        return;
    };
    lab.cloop(&["export", "image", target.node()])
        .fails(1, &[target.node(), "has something on it", "--force"]);
    lab.cloop(&["export", "--force", "image", target.node()])
        .succeeds();
    let disk = fs::read(lab.path("disk")).unwrap();
    assert!(disk[..32 << 20] == fs::read(lab.path("raw")).unwrap());
    assert!(disk[32 << 20..] == garbage[32 << 20..]);

    let small = lab.file("small", &garbage[..16 << 20]);
    let before = Snapshot::of(&small);
    let Some(small_device) = Loop::over(&small) else {
        return;
    };
    lab.cloop(&["export", "--force", "image", small_device.node()])
        .fails(
            1,
            &[small_device.node(), "has 16777216 bytes", "larger device"],
        );
    assert!(before == Snapshot::of(&small));
}

/// What contains a disk is not taken for one without a word, and what the device cannot serve is told.
#[test]
fn what_is_no_raw_disk_is_refused() {
    let lab = Lab::new();
    let raw = prose(1 << 20);
    let mut qcow2 = raw.clone();
    qcow2[..4].copy_from_slice(b"QFI\xfb");
    lab.file("disk.qcow2", &qcow2);
    lab.file("image", b"precious");
    let before = Snapshot::of(&lab.path("image"));
    lab.cloop(&["import", "--force", "disk.qcow2", "image"])
        .fails(
            1,
            &["disk.qcow2: is a qcow2 image", "qemu-img convert", "--raw"],
        );
    before.assert_same(&lab.path("image"));
    // Through a pipe as well.
    let piped = ["import", "--size", "1M", "-", "new"];
    lab.feed(&piped, &qcow2)
        .fails(1, &["standard input", "is a qcow2 image"]);
    assert!(!lab.path("new").exists());
    lab.cloop(&["create", "--size", "1M", "made"]).succeeds();
    lab.cloop(&["import", "made", "new"])
        .fails(1, &["made: is a cloop image already", "cloop export"]);
    // The file itself is wanted.
    lab.cloop(&["import", "--raw", "disk.qcow2", "new"])
        .succeeds();
    lab.cloop(&["export", "new", "back"]).succeeds();
    assert!(same(&lab.path("disk.qcow2"), &lab.path("back")));
    // A disk for other sectors is imported, with a warning.
    let mut gpt = raw;
    gpt[512..520].copy_from_slice(b"EFI PART");
    lab.file("gpt", &gpt);
    let outcome = lab.cloop(&["import", "--force", "gpt", "new"]);
    assert_eq!(outcome.status, Some(0));
    assert!(
        outcome
            .stderr
            .contains("gpt: has a GPT for sectors of 512 bytes"),
        "{}",
        outcome.stderr
    );
}
