// SPDX-License-Identifier: GPL-2.0 OR MIT
//! `cloop estimate`: it says what `cloop import` makes.

use crate::run::{noise, prose, root, skip, sparse, system, Lab, Loop};
use crate::transfer::mixed;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::{symlink, PermissionsExt};
use std::time::{Duration, Instant};

/// What the command says in JSON.
fn estimate(lab: &Lab, args: &[&str]) -> Value {
    let args = [&["estimate", "--json"], args].concat();
    serde_json::from_str(&lab.cloop(&args).succeeds()).unwrap()
}

fn number(value: &Value, name: &str) -> f64 {
    value[name].as_f64().unwrap()
}

/// The first estimate, and the error that it admits, both relative to what an import of the raw disk makes.
#[track_caller]
fn compare(lab: &Lab, report: &Value, raw: &str, with: &str, record: &str) -> (f64, f64) {
    lab.cloop(&["import", "--force", "-c", with, "-r", record, raw, "image"])
        .succeeds();
    let info = lab.info("image");
    let (mapped, live) = (number(&info, "mapped_bytes"), number(&info, "live_bytes"));
    let found = &report["estimates"][0];
    assert_eq!(found["algorithm"], info["algorithm"]);
    assert_eq!(found["level"], info["level"]);
    let error = number(report, "mapped_bytes_error");
    assert!((number(report, "mapped_bytes") - mapped).abs() <= error);
    let ratio = number(report, "mapped_bytes") / number(found, "live_bytes");
    assert!((number(found, "ratio") - ratio).abs() < 1e-6);
    (
        number(found, "live_bytes") / live - 1.,
        number(found, "live_bytes_error") / live,
    )
}

#[test]
fn all_of_a_disk_is_as_large_as_its_import() {
    let lab = Lab::new();
    mixed(&lab.path("raw"));
    for record in ["4K", "16K", "64K", "128K"] {
        for with in ["none", "lz4", "zstd:2"] {
            let report = estimate(&lab, &["-c", with, "-r", record, "--all", "raw"]);
            assert_eq!(number(&report, "sampled_share"), 1.);
            let (off, error) = compare(&lab, &report, "raw", with, record);
            assert!(off.abs() < 0.01, "{record} {with}: {off}");
            assert_eq!(error, 0.);
        }
    }
}

#[test]
fn a_block_device_is_as_large_as_its_file() {
    let lab = Lab::new();
    mixed(&lab.path("raw"));
    let Some(device) = Loop::over(&lab.path("raw")) else {
        return;
    };
    let report = estimate(&lab, &["-c", "lz4", "--all", device.node()]);
    let (off, _) = compare(&lab, &report, "raw", "lz4", "64K");
    assert!(off.abs() < 0.01, "{off}");
}

/// Pieces of very different contents: a quarter of them tells the rest, and how far it may be wrong.
#[test]
fn a_sample_tells_how_exact_it_is() {
    let lab = Lab::new();
    let (text, random) = (prose(16 << 20), noise(16 << 20, 5));
    let pieces: Vec<&[u8]> = (0..256)
        .map(|i| if i % 3 == 0 { &random } else { &text }.as_slice())
        .zip(0..)
        .map(|(from, i)| &from[i << 16..(i + 1) << 16])
        .collect();
    lab.file("raw", &pieces.concat());
    for (record, with) in [("64K", "lz4"), ("16K", "zstd:3")] {
        let report = estimate(&lab, &["-c", with, "-r", record, "-s", "4M", "raw"]);
        assert_eq!(number(&report, "sampled_share"), 0.25);
        let (off, error) = compare(&lab, &report, "raw", with, record);
        assert!(off.abs() < error, "{record} {with}: {off}, {error}");
        assert!((0.01..0.3).contains(&error), "{record} {with}: {error}");
        // The same pieces each time; only the leaves of the table differ, by the worker that fills them.
        let again = estimate(&lab, &["-c", with, "-r", record, "-s", "4M", "raw"]);
        let live = |report: &Value| number(&report["estimates"][0], "live_bytes");
        let off = live(&report) / live(&again) - 1.;
        assert!(off.abs() < 1e-3, "{record} {with}: {off}");
    }
}

#[test]
fn a_directory_is_its_files_in_whole_blocks() {
    let lab = Lab::new();
    let mut raw = Vec::new();
    let mut add = |name: &str, content: &[u8]| {
        lab.file(name, content);
        raw.extend_from_slice(content);
        raw.resize(raw.len().next_multiple_of(4096), 0);
    };
    fs::create_dir_all(lab.path("tree/sub")).unwrap();
    let text = prose(3 << 20);
    for len in [0, 1, 4095, 4096, 4097, 100_000, 3 << 20] {
        add(&format!("tree/file-{len:08}"), &text[..len]);
    }
    // A hole takes no room, zeros that are stored take it on the file system, and not in the image.
    let content = [prose(8192), noise(8192, 1)].concat();
    add("tree/sparse", &content);
    sparse(
        &lab.path("tree/sparse"),
        1 << 30,
        &[(1 << 20, &content[..8192]), (1 << 29, &content[8192..])],
    );
    add("tree/sub/file", &noise(300_001, 2));
    add("tree/zeros", &[0; 20_000]);
    lab.file("raw", &raw);
    fs::hard_link(lab.path("tree/sub/file"), lab.path("tree/sub/name")).unwrap();
    symlink("file", lab.path("tree/sub/link")).unwrap();
    symlink("..", lab.path("tree/sub/loop")).unwrap();
    system("mkfifo", &[lab.path("tree/fifo")]);
    for record in ["4K", "64K"] {
        let report = estimate(&lab, &["-c", "lz4", "-r", record, "tree"]);
        let (off, _) = compare(&lab, &report, "raw", "lz4", record);
        assert!(off.abs() < 0.01, "{record}: {off}");
    }
    assert_eq!(estimate(&lab, &["tree"])["files"], 10);
    // The same files again, at another place.
    let twice = estimate(&lab, &["tree", "tree/sub/file", "tree/sub/name"]);
    assert_eq!(twice["files"], 12);
}

#[test]
fn the_table_has_a_row_for_each_algorithm() {
    let lab = Lab::new();
    lab.file("raw", &prose(4 << 20));
    let text = lab.cloop(&["estimate", "raw"]).succeeds();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "Source:    4M in 1 file");
    assert_eq!(lines[1], "Sampled:   100.0 %, in records of up to 64K");
    assert_eq!(lines[2], "Data:      4M");
    let names = lines[5..].iter().map(|l| l.split(' ').next().unwrap());
    let names: Vec<&str> = names.collect();
    assert_eq!(
        names,
        ["none", "lz4", "zstd:1", "zstd:3", "zstd:9", "zstd:15"]
    );
    // Noise shrinks with none of them, and zeros have no ratio.
    lab.file("noise", &noise(1 << 20, 4));
    let text = lab.cloop(&["estimate", "noise"]).succeeds();
    for line in text.lines().skip(5) {
        assert!(line.contains(" 1.00    0.0 % "), "{text}");
    }
    sparse(&lab.path("zeros"), 1 << 40, &[]);
    let report = estimate(&lab, &["zeros"]);
    assert_eq!(report["mapped_bytes"], 0);
    assert!(report["estimates"][1]["ratio"].is_null());
}

/// Of a tebibyte only what is in it counts, and is looked at.
#[test]
fn holes_cost_no_time() {
    let lab = Lab::new();
    let text = prose(1 << 20);
    let tib = 1u64 << 40;
    sparse(&lab.path("raw"), tib, &[(4096, &text), (tib / 2, &text)]);
    let start = Instant::now();
    let report = estimate(&lab, &["-c", "lz4", "raw"]);
    assert!(start.elapsed() < Duration::from_secs(30));
    assert_eq!(number(&report, "sampled_share"), 1.);
    assert_eq!(report["mapped_bytes"], 2 << 20);
    let (off, _) = compare(&lab, &report, "raw", "lz4", "64K");
    assert!(off.abs() < 0.02, "{off}");
}

#[test]
fn refuses_what_it_cannot_read() {
    let lab = Lab::new();
    lab.cloop(&["estimate"]).refuses(2, "<PATH>");
    lab.cloop(&["estimate", "-c", "lz4,gzip", "x"])
        .refuses(2, "lz4, zstd, zstd:1 to zstd:19, none");
    lab.cloop(&["estimate", "--all", "-s", "1M", "x"])
        .refuses(2, "--all");
    lab.cloop(&["estimate", "missing"])
        .fails(1, &["missing: no such file"]);
    lab.cloop(&["estimate", "/dev/null"])
        .fails(1, &["/dev/null: neither a disk, a file nor a directory"]);
    lab.create("image", "1M");
    lab.cloop(&["estimate", "image"])
        .fails(1, &["image: is an image of cloop", "--read-only"]);
    assert_eq!(lab.names(), ["image"]);
}

#[test]
fn works_for_everyone_on_what_they_can_read() {
    if !root() {
        return;
    }
    let lab = Lab::new();
    fs::set_permissions(lab.path("."), fs::Permissions::from_mode(0o755)).unwrap();
    if lab.cloop_as_nobody(&["--version"]).status != Some(0) {
        skip("nobody cannot run the program where it was built");
        return;
    }
    fs::create_dir_all(lab.path("tree/private")).unwrap();
    lab.file("tree/a", &prose(10_000));
    lab.file("tree/secret", &prose(10_000));
    let close = |name: &str, mode| {
        fs::set_permissions(lab.path(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    lab.cloop_as_nobody(&["estimate", "tree"]).succeeds();
    close("tree/secret", 0o600);
    close("tree/private", 0o700);
    lab.cloop_as_nobody(&["estimate", "tree/secret"])
        .fails(1, &["tree/secret: permission denied"]);
    lab.cloop_as_nobody(&["estimate", "tree/private"])
        .fails(1, &["tree/private: permission denied"]);
    let outcome = lab.cloop_as_nobody(&["estimate", "tree"]);
    assert!(outcome.stdout.starts_with(b"Source:    9.8K in 1 file\n"));
    outcome.fails(
        1,
        &[
            "permission denied",
            "2 files or directories are not in the estimate",
        ],
    );
}
