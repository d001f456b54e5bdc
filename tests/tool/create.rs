// SPDX-License-Identifier: GPL-2.0 OR MIT
//! `cloop create`, and the answers of `cloop info` about its images.

use crate::run::{allocated, Lab, Loop, Mount, Snapshot};
use std::fs;

#[test]
fn makes_what_was_asked_for() {
    let lab = Lab::new();
    for (size, bytes) in [
        ("4096", 4096u64),
        ("10M", 10 << 20),
        ("4KiB", 4096),
        ("1P", 1 << 50),
    ] {
        for record in [4096, 16384, 65536, 131_072] {
            for algorithm in ["lz4", "none"] {
                let name = format!("{size}-{record}-{algorithm}");
                let record_size = record.to_string();
                let args = [
                    "create",
                    "-s",
                    size,
                    "-r",
                    &record_size,
                    "-c",
                    algorithm,
                    &name,
                ];
                assert_eq!(lab.cloop(&args).succeeds(), "");
                let info = lab.info(&name);
                assert_eq!(info["size"], bytes);
                assert_eq!(info["record_size"], record);
                assert_eq!(info["algorithm"], algorithm);
                assert_eq!(info["mapped_blocks"], 0);
                assert_eq!(info["zero_blocks"], bytes / 4096);
                assert_eq!(info["live_bytes"], 0);
                assert_eq!(info["state"], "clean");
                assert!(info["ratio"].is_null() && info["device"].is_null());
                lab.cloop(&["check", &name]).succeeds();
            }
        }
    }
}

#[test]
fn defaults_and_text() {
    let lab = Lab::new();
    lab.create("disk", "1G");
    let text = lab.cloop(&["info", "disk"]).succeeds();
    for line in [
        "Image:         disk",
        "State:         clean",
        "Compression:   lz4, records of up to 64K",
        "Logical size:  1G (1073741824 bytes)",
        "Zero blocks:   262144 (1G)",
        "Data:          0 bytes",
        "Live records:  0 bytes",
        "Ratio:         -",
        "Reserve:       0 bytes",
    ] {
        assert!(text.lines().any(|l| l == line), "lacks {line:?}:\n{text}");
    }
}

#[test]
fn every_image_has_an_identity() {
    let lab = Lab::new();
    lab.create("a", "1M");
    lab.create("b", "1M");
    let (a, b) = (lab.info("a")["uuid"].clone(), lab.info("b")["uuid"].clone());
    assert_ne!(a, b);
    let uuid: uuid::Uuid = a.as_str().unwrap().parse().unwrap();
    assert_eq!(uuid.get_version(), Some(uuid::Version::Random));
}

#[test]
fn an_empty_tebibyte_takes_less_than_a_mebibyte() {
    let lab = Lab::new();
    let image = lab.create("disk", "1T");
    assert!(allocated(&image) < 1 << 20);
    assert!(fs::metadata(&image).unwrap().len() < 1 << 20);
    lab.cloop(&["check", "disk"]).succeeds();
    assert!(lab.info("disk")["allocated_bytes"].as_u64().unwrap() < 1 << 20);
}

#[test]
fn sizes_that_no_device_has() {
    let lab = Lab::new();
    for (size, part) in [
        ("5000", "4096 and 8192"),
        ("1", "nearest valid size is 4096"),
        ("1000KB", "999424 and 1003520"),
        ("0", "smallest size is 4K"),
        ("2P", "largest device, 1P"),
        ("99999999999999999999", "larger than any device"),
        ("1.0001K", "whole number"),
        ("big", "not a size"),
        ("-4096", "--size"),
    ] {
        lab.cloop(&["create", "--size", size, "disk"])
            .refuses(2, part);
    }
    lab.cloop(&["create", "disk"]).refuses(2, "--size");
    for record in ["0", "2K", "12K", "256K", "64KB"] {
        lab.cloop(&["create", "-s", "1M", "-r", record, "disk"])
            .refuses(2, "a record holds 4K");
    }
    lab.cloop(&["create", "-s", "1M", "-c", "zip", "disk"])
        .refuses(2, "lz4");
    assert!(lab.names().is_empty());
}

#[test]
fn does_not_overwrite_unless_forced() {
    let lab = Lab::new();
    let file = lab.file("precious", b"the only copy");
    let before = Snapshot::of(&file);
    lab.cloop(&["create", "-s", "1M", "precious"])
        .fails(1, &["precious: ", "not empty", "--force"]);
    before.assert_same(&file);
    lab.cloop(&["create", "-s", "1M", "--force", "precious"])
        .succeeds();
    assert_eq!(lab.info("precious")["size"], 1 << 20);

    // A new image over a longer one: nothing of the old one may be visible.
    lab.file("raw", &crate::run::noise(3 << 20, 1));
    lab.cloop(&["import", "--force", "raw", "precious"])
        .succeeds();
    lab.cloop(&["create", "-s", "2M", "--force", "precious"])
        .succeeds();
    lab.cloop(&["check", "precious"]).succeeds();
    assert_eq!(lab.info("precious")["mapped_blocks"], 0);
    assert!(allocated(&file) < 1 << 20);

    lab.file("empty", b"");
    lab.cloop(&["create", "-s", "1M", "empty"]).succeeds();
    lab.cloop(&["check", "empty"]).succeeds();
}

/// Of commands that make the same image at the same time one succeeds, and none removes the image of another.
#[test]
fn one_of_several_creators_succeeds() {
    let lab = Lab::new();
    lab.file("raw", &vec![7; 1 << 20]);
    for round in 0..30 {
        let name = format!("image{round}");
        let commands = [
            vec!["create", "--size", "8M", &name],
            vec!["import", "raw", &name],
            vec!["create", "--size", "8M", &name],
        ];
        let running: Vec<_> = commands
            .iter()
            .map(|args| {
                let mut command = lab.command(args);
                command.stderr(std::process::Stdio::piped());
                command.spawn().unwrap()
            })
            .collect();
        let mut succeeded = 0;
        for child in running {
            let output = child.wait_with_output().unwrap();
            let text = String::from_utf8(output.stderr).unwrap();
            match output.status.code() {
                Some(0) => succeeded += 1,
                code => assert!(
                    code == Some(1)
                        && (text.contains("in use by another process")
                            || text.contains("exists and is not empty")),
                    "round {round}: {code:?} {text}"
                ),
            }
        }
        assert_eq!(succeeded, 1, "round {round}");
        lab.cloop(&["check", &name]).succeeds();
    }
}

#[test]
fn paths_that_cannot_be_made() {
    let lab = Lab::new();
    fs::create_dir(lab.path("dir")).unwrap();
    lab.cloop(&["create", "-s", "1M", "dir"])
        .fails(1, &["dir: ", "is a directory"]);
    lab.cloop(&["create", "-s", "1M", "no/disk"])
        .fails(1, &["no/disk: ", "directory does not exist"]);
    lab.cloop(&["create", "-s", "1M", "/dev/null"])
        .fails(1, &["/dev/null: ", "neither"]);
    lab.file("file", b"x");
    lab.cloop(&["create", "-s", "1M", "file/disk"])
        .fails(1, &["file/disk: ", "not a directory"]);
    assert_eq!(lab.names(), ["dir", "file"]);
}

#[test]
fn full_and_read_only_file_systems() {
    let lab = Lab::new();
    let Some(mount) = Mount::tmpfs(lab.path("small"), "64K") else {
        return;
    };
    let ballast = lab.path("small/ballast");
    fs::write(&ballast, vec![1; 64 << 10]).unwrap();
    lab.cloop(&["create", "-s", "1M", "small/disk"])
        .fails(1, &["small/disk: ", "no space left", "free some"]);
    assert!(!lab.path("small/disk").exists());
    lab.file("small/empty", b"");
    lab.cloop(&["create", "-s", "1M", "small/empty"])
        .fails(1, &["no space left"]);
    assert_eq!(fs::metadata(lab.path("small/empty")).unwrap().len(), 0);

    let before = Snapshot::of(&ballast);
    mount.make_read_only();
    lab.cloop(&["create", "-s", "1M", "small/disk"])
        .fails(1, &["small/disk: ", "read-only"]);
    lab.cloop(&["create", "-s", "1M", "--force", "small/ballast"])
        .fails(1, &["small/ballast: ", "read-only"]);
    before.assert_same(&ballast);
}

#[test]
fn block_devices() {
    let lab = Lab::new();
    let file = lab.file("backing", &vec![0; 8 << 20]);
    let Some(device) = Loop::over(&file) else {
        return;
    };
    lab.cloop(&["create", "-s", "4M", device.node()]).succeeds();
    assert_eq!(lab.info(device.node())["size"], 4 << 20);
    lab.cloop(&["check", device.node()]).succeeds();
    lab.cloop(&["create", "-s", "5M", device.node()])
        .fails(1, &[device.node(), "has something on it", "--force"]);
    assert_eq!(lab.info(device.node())["size"], 4 << 20);
    lab.cloop(&["create", "-s", "5M", "--force", device.node()])
        .succeeds();
    assert_eq!(lab.info(device.node())["size"], 5 << 20);
}
