// SPDX-License-Identifier: GPL-2.0 OR MIT
//! How much I/O the engine makes of a given work. The counts follow from the work alone, on any machine, so they are
//! stated in `tests/counts.txt`, and a change that makes one of them larger fails here.
//!
//! `CLOOP_WRITE_COUNTS=1` writes the file anew, for a change that lowers a count, or raises one for a reason that its
//! commit message gives.

use cloop::bench::exact::{counts, IMAGES};
use cloop::bench::Counts;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

/// What a line of the file is about: the image and the path through the engine.
type Name = (String, String);

const HEADER: &str = "\
# SPDX-License-Identifier: GPL-2.0
#
# I/O of the backing file, exactly: one thread, 32 MiB in use, 60 % compressible data, no background threads.
# tests/counts.rs fails if a count becomes larger than this. CLOOP_WRITE_COUNTS=1 writes the file anew.
#
";

/// The counts of today, with the number of operations.
fn measure() -> BTreeMap<Name, (u64, Counts)> {
    let mut found = BTreeMap::new();
    for (image, record_size, algorithm) in IMAGES {
        for (path, operations, counts) in counts(record_size, algorithm).unwrap() {
            found.insert((image.into(), path.into()), (operations, counts));
        }
    }
    found
}

fn to_text(found: &BTreeMap<Name, (u64, Counts)>) -> String {
    let mut text = String::from(HEADER);
    let mut line = |image: &str, path: &str, operations: &str, values: [String; 7]| {
        write!(text, "{image:<6} {path:<15} {operations:>10}").unwrap();
        for value in values {
            write!(text, " {value:>13}").unwrap();
        }
        text.push('\n');
    };
    line(
        "#image",
        "load",
        "operations",
        Counts::NAMES.map(String::from),
    );
    for ((image, path), (operations, counts)) in found {
        let values = counts.values().map(|value| value.to_string());
        line(image, path, &operations.to_string(), values);
    }
    text
}

fn from_text(text: &str) -> BTreeMap<Name, (u64, Counts)> {
    let mut stated = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let mut words = line.split_whitespace();
        let mut word = || words.next().expect("a line of ten words");
        let name = (word().into(), word().into());
        let operations = word().parse().unwrap();
        let values = [(); 7].map(|()| word().parse().unwrap());
        stated.insert(name, (operations, Counts::from_values(values)));
    }
    stated
}

/// A sentence for each count that is larger than stated.
fn worse(
    stated: &BTreeMap<Name, (u64, Counts)>,
    found: &BTreeMap<Name, (u64, Counts)>,
) -> Vec<String> {
    let mut sentences = Vec::new();
    for (name, (_, counts)) in found {
        let (_, bounds) = &stated[name];
        let values = counts.values().into_iter().zip(bounds.values());
        for (what, (value, bound)) in Counts::NAMES.into_iter().zip(values) {
            if value > bound {
                sentences.push(format!("{} {}: {what} {bound} -> {value}", name.0, name.1));
            }
        }
    }
    sentences
}

#[test]
fn no_path_needs_more_io_than_stated() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/counts.txt");
    let found = measure();
    if std::env::var_os("CLOOP_WRITE_COUNTS").is_some() {
        fs::write(&path, to_text(&found)).unwrap();
        return;
    }
    let stated = from_text(&fs::read_to_string(&path).unwrap());
    let work = |of: &BTreeMap<Name, (u64, Counts)>| -> Vec<_> {
        of.iter()
            .map(|(name, (operations, _))| (name.clone(), *operations))
            .collect()
    };
    assert_eq!(work(&stated), work(&found), "the work is another one");
    let worse = worse(&stated, &found);
    assert!(worse.is_empty(), "more I/O than stated:\n{worse:#?}");
    if stated != found {
        println!("less I/O than stated: CLOOP_WRITE_COUNTS=1 writes tests/counts.txt anew");
    }
}

#[test]
fn the_same_work_has_the_same_counts() {
    let (_, record_size, algorithm) = IMAGES[1];
    assert_eq!(
        counts(record_size, algorithm).unwrap(),
        counts(record_size, algorithm).unwrap()
    );
}

#[test]
fn a_larger_count_is_noticed() {
    let stated = from_text("64K seq-read-128k 256 1 2 3 4 5 6 7\n");
    assert_eq!(worse(&stated, &stated), Vec::<String>::new());
    let found = from_text("64K seq-read-128k 256 0 3 3 4 5 6 7\n");
    assert_eq!(
        worse(&stated, &found),
        ["64K seq-read-128k: read_bytes 2 -> 3"]
    );
    assert_eq!(from_text(&to_text(&found)), found);
}
