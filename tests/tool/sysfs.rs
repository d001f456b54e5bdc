// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The files in sysfs and their documentation.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The text between `before` and `after` in the lines of a file of the source tree.
fn names(file: &str, before: &str, after: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
    text.lines()
        .filter_map(|line| line.trim().strip_prefix(before)?.strip_suffix(after))
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_file_is_documented() {
    let documented = names(
        "Documentation/ABI/testing/sysfs-block-cloop",
        "What:\t\t/sys/block/cloop<N>/cloop/",
        "",
    );
    let there = names("src/driver/sysfs.c", "&dev_attr_", ".attr,");
    assert!(there.len() > 20);
    assert_eq!(documented, there);
}
