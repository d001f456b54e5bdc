// SPDX-License-Identifier: GPL-2.0 OR MIT
//! `cloop resize` and `cloop compact` of images that are not attached.

use crate::run::{allocated, noise, same, sparse, Lab, Snapshot};
use cloop::engine::Access;
use cloop::engine::{Volume, BLOCK_SIZE};
use cloop::platform::std::{Std, StdFile};
use rustix::fs::FlockOperation;
use std::fs::{self, File};
use std::process::Command;

#[test]
fn grows_and_shrinks_what_is_empty() {
    let lab = Lab::new();
    lab.create("image", "64M");
    for (size, said) in [
        (
            "1T",
            "image: 1T (1099511627776 bytes), was 64M (67108864 bytes)\n",
        ),
        (
            "-1023G",
            "image: 1G (1073741824 bytes), was 1T (1099511627776 bytes)\n",
        ),
        (
            "+4K",
            "image: 1G (1073745920 bytes), was 1G (1073741824 bytes)\n",
        ),
        (
            "4096",
            "image: 4K (4096 bytes), was 1G (1073745920 bytes)\n",
        ),
        ("4096", "image: 4K (4096 bytes), was 4K (4096 bytes)\n"),
    ] {
        assert_eq!(
            lab.cloop(&["resize", "--size", size, "image"]).succeeds(),
            said
        );
        lab.cloop(&["check", "--quiet", "image"]).succeeds();
    }
    let info = lab.info("image");
    assert_eq!(
        (&info["size"], &info["state"]),
        (&4096.into(), &"clean".into())
    );
}

#[test]
fn keeps_what_is_inside_and_asks_before_it_discards() {
    let lab = Lab::new();
    let data = noise(1 << 20, 31);
    sparse(&lab.path("raw"), 8 << 20, &[(0, &data), (7 << 20, &data)]);
    lab.cloop(&["import", "raw", "image"]).succeeds();
    let parts = ["image: there is data beyond the new end", "--force"];
    lab.cloop(&["resize", "--size", "7M", "image"])
        .fails(1, &parts);
    lab.cloop(&["resize", "--size", "-4K", "image"])
        .fails(1, &parts);
    lab.cloop(&["check", "--quiet", "image"]).succeeds();
    lab.cloop(&["export", "image", "back"]).succeeds();
    assert!(same(&lab.path("raw"), &lab.path("back")));

    lab.cloop(&["resize", "--force", "--size", "7M", "image"])
        .succeeds();
    assert_eq!(lab.info("image")["mapped_blocks"], 256);
    // Discarded blocks stay zero.
    lab.cloop(&["resize", "--size", "8M", "image"]).succeeds();
    lab.cloop(&["check", "--quiet", "image"]).succeeds();
    lab.cloop(&["export", "--force", "image", "back"])
        .succeeds();
    sparse(&lab.path("raw"), 8 << 20, &[(0, &data)]);
    assert!(same(&lab.path("raw"), &lab.path("back")));
}

#[test]
fn refuses_sizes_that_cannot_be() {
    let lab = Lab::new();
    let image = lab.create("image", "1M");
    let before = Snapshot::of(&image);
    for (size, part) in [
        ("5000", "4096 and 8192"),
        ("+1", "not a multiple of 4096"),
        ("0", "cannot be empty"),
        ("2P", "larger than the largest device"),
        ("much", "not a size"),
        ("--4K", "not a size"),
    ] {
        lab.cloop(&["resize", "--size", size, "image"])
            .refuses(2, part);
    }
    before.assert_same(&image);
    lab.cloop(&["resize", "image"]).refuses(2, "--size");
    lab.cloop(&["resize", "--size", "-1M", "image"])
        .fails(1, &["image: has only 1048576 bytes"]);
    lab.cloop(&["resize", "--size", "+1P", "image"])
        .fails(1, &["image: larger than the largest device"]);
    assert_eq!(lab.info("image")["size"], 1 << 20);
}

#[test]
fn both_refuse_what_is_no_image_or_in_use() {
    let lab = Lab::new();
    let image = lab.create("image", "1M");
    let text = lab.file("text", &noise(1 << 20, 3));
    let before = Snapshot::of(&text);
    for args in [vec!["compact"], vec!["resize", "--size", "2M"]] {
        let with = |name| [args.clone(), vec![name]].concat();
        lab.cloop(&with("text"))
            .fails(1, &["text: not a cloop image"]);
        lab.cloop(&with("missing"))
            .fails(1, &["missing: no such file"]);
        lab.cloop(&with("/dev/null"))
            .fails(1, &["/dev/null: neither"]);
        let file = File::open(&image).unwrap();
        rustix::fs::flock(&file, FlockOperation::LockShared).unwrap();
        lab.cloop(&with("image")).fails(1, &["image: in use"]);
    }
    before.assert_same(&text);
}

/// An image of `mebibytes` of noise with every other 64 KiB discarded, and the raw disk that it holds.
fn full_of_holes(lab: &Lab, mebibytes: usize) {
    let mut left = noise(mebibytes << 20, 77);
    lab.file("raw", &left);
    lab.cloop(&["import", "raw", "image"]).succeeds();
    let file = File::options()
        .read(true)
        .write(true)
        .open(lab.path("image"))
        .unwrap();
    let volume = Volume::<Std>::open(StdFile::from_file(file).unwrap(), Access::Write).unwrap();
    let mut workspace = volume.workspace().unwrap();
    for (at, piece) in left.chunks_mut(64 << 10).enumerate().skip(1).step_by(2) {
        let (first, count) = (at * (64 << 10) / BLOCK_SIZE, piece.len() / BLOCK_SIZE);
        volume
            .zero(&mut workspace, first as u64, count as u64)
            .unwrap();
        piece.fill(0);
    }
    volume.close().unwrap();
    lab.file("raw", &left);
}

#[test]
fn compacts_to_what_is_needed() {
    let lab = Lab::new();
    full_of_holes(&lab, 24);
    let before = allocated(&lab.path("image"));
    assert!(before > 20 << 20);
    let said = lab.cloop(&["compact", "image"]).succeeds();
    let after = allocated(&lab.path("image"));
    assert!(after < (12 << 20) + (2 << 20), "{before} -> {after}");
    assert!(said.contains(&format!("({after} bytes), was ")), "{said}");
    assert!(said.ends_with(&format!("({before} bytes)\n")), "{said}");
    lab.cloop(&["check", "--quiet", "image"]).succeeds();
    lab.cloop(&["export", "image", "back"]).succeeds();
    assert!(same(&lab.path("raw"), &lab.path("back")));
    // A second compaction gains nothing, and costs at most a segment.
    lab.cloop(&["compact", "image"]).succeeds();
    assert!(allocated(&lab.path("image")) <= after + (1 << 20));
}

#[test]
fn an_interrupted_compaction_loses_nothing() {
    let lab = Lab::new();
    full_of_holes(&lab, 24);
    let image = lab.path("image");
    let full = fs::read(&image).unwrap();
    for (delay, signal) in [
        ("0.001", "INT"),
        ("0.01", "TERM"),
        ("0.02", "KILL"),
        ("0.06", "KILL"),
    ] {
        fs::write(&image, &full).unwrap();
        Command::new("timeout")
            .args(["--signal", signal, delay])
            .args([env!("CARGO_BIN_EXE_cloop"), "compact", "image"])
            .current_dir(lab.path("."))
            .output()
            .unwrap();
        lab.cloop(&["check", "--quiet", "image"]).succeeds();
        lab.cloop(&["export", "--force", "image", "back"])
            .succeeds();
        assert!(
            same(&lab.path("raw"), &lab.path("back")),
            "{signal} after {delay} s"
        );
    }
}
