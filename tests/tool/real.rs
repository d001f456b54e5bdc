// SPDX-License-Identifier: GPL-2.0 OR MIT
//! A real file system with real files: the size of its image, and that everything can be read back.

use crate::run::{allocated, same, skip, system, Lab};
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::Command;

/// Directories of a usual system; the first one that exists is used.
const TREES: [&str; 3] = ["/usr/share", "/usr/include", "/usr/lib"];
/// Bytes of files to put into the file system.
const ENOUGH: u64 = 300 << 20;

/// Copies files of a real tree to `to` until they are enough; returns their size in bytes.
fn copy_tree(from: &Path, to: &Path, left: &mut u64) -> u64 {
    let mut bytes = 0;
    let Ok(entries) = fs::read_dir(from) else {
        return 0;
    };
    let mut entries: Vec<_> = entries.flatten().collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    fs::create_dir_all(to).unwrap();
    for entry in entries {
        let (kind, target) = (entry.file_type().unwrap(), to.join(entry.file_name()));
        if kind.is_dir() {
            bytes += copy_tree(&entry.path(), &target, left);
        } else if kind.is_file() && *left > 0 {
            let copied = fs::copy(entry.path(), target).unwrap_or(0);
            *left = left.saturating_sub(copied);
            bytes += copied;
        }
    }
    bytes
}

/// The sum of the records of `raw`, computed here: blocks that are not zero, compressed together in units
/// of `record_size`, raw where they do not shrink.
fn plain_sum(raw: &Path, record_size: usize) -> u64 {
    let mut file = File::open(raw).unwrap();
    let mut unit = vec![0; record_size];
    let mut sum = 0;
    while file.read_exact(&mut unit).is_ok() {
        let blocks: Vec<u8> = unit
            .chunks(4096)
            .filter(|block| block.iter().any(|&b| b != 0))
            .flatten()
            .copied()
            .collect();
        let mut packed = vec![0; lzzzz::lz4::max_compressed_size(blocks.len())];
        let packed =
            lzzzz::lz4::compress(&blocks, &mut packed, lzzzz::lz4::ACC_LEVEL_DEFAULT).unwrap();
        sum += if blocks.is_empty() {
            0
        } else {
            packed.min(blocks.len()) as u64
        };
    }
    sum
}

#[test]
fn a_real_file_system() {
    if Command::new("mke2fs").arg("-V").output().is_err() {
        skip("no mke2fs");
        return;
    }
    let lab = Lab::new();
    let mut left = ENOUGH;
    let mut bytes = 0;
    for tree in TREES {
        bytes += copy_tree(
            Path::new(tree),
            &lab.path("tree").join(&tree[1..]),
            &mut left,
        );
    }
    if bytes < 32 << 20 {
        skip("this system has too few files for a file system of real data");
        return;
    }
    let raw = lab.path("raw");
    let size = (bytes + bytes / 2 + (64 << 20)).next_multiple_of(1 << 20);
    File::create(&raw).unwrap().set_len(size).unwrap();
    let args = ["-q", "-t", "ext4", "-d"];
    let paths = [lab.path("tree"), raw.clone()];
    system(
        "mke2fs",
        &[args.map(Into::into).to_vec(), paths.to_vec()].concat(),
    );

    lab.cloop(&["import", "raw", "image"]).succeeds();
    let text = lab.cloop(&["check", "image"]).succeeds();
    assert!(text.starts_with("image: clean"), "{text}");
    lab.cloop(&["export", "image", "back"]).succeeds();
    assert!(same(&raw, &lab.path("back")), "the export differs");

    let sum = plain_sum(&raw, 65_536);
    let cost = allocated(&lab.path("image"));
    let over = cost as f64 / sum as f64 - 1.0;
    println!(
        "{bytes} bytes of files, {sum} in records, {cost} in the image: {:.2} % more",
        over * 100.0
    );
    assert!(
        over <= 0.03,
        "{cost} bytes for {sum} bytes of records: {:.2} % more",
        over * 100.0
    );
    assert!(lab.info("image")["live_bytes"].as_u64().unwrap() <= cost);
}
