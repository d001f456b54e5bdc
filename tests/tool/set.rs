// SPDX-License-Identifier: GPL-2.0 OR MIT
//! `cloop set`, and the choice of compression in other commands.

use crate::run::{prose, same, Lab, Snapshot};

#[test]
fn changes_what_is_compressed_from_now_on() {
    let lab = Lab::new();
    lab.create("image", "64M");
    for (with, algorithm, level) in [
        ("zstd", "zstd", Some(3)),
        ("zstd:19", "zstd", Some(19)),
        ("none", "none", None),
        ("lz4", "lz4", None),
        ("zstd:1", "zstd", Some(1)),
    ] {
        let said = lab.cloop(&["set", "--compress", with, "image"]).succeeds();
        let name = level.map_or(algorithm.to_owned(), |level| format!("{algorithm}:{level}"));
        assert_eq!(said, format!("image: new data is compressed with {name}\n"));
        let info = lab.info("image");
        assert_eq!(
            (&info["algorithm"], &info["state"]),
            (&algorithm.into(), &"clean".into())
        );
        assert_eq!(info["level"].as_u64(), level);
        let text = lab.cloop(&["info", "image"]).succeeds();
        let line = format!("Compression:   {name}, records of up to 64K");
        assert!(text.lines().any(|l| l == line), "lacks {line:?}:\n{text}");
        lab.cloop(&["check", "--quiet", "image"]).succeeds();
    }
}

#[test]
fn refuses_what_is_no_compression() {
    let lab = Lab::new();
    let before = Snapshot::of(&lab.create("image", "1M"));
    for wrong in [
        "zstd:0", "zstd:20", "zstd:", "zstd:-1", "lz4:1", "gzip", "ZSTD", "",
    ] {
        for command in ["set", "create", "import"] {
            let part = "lz4, zstd, zstd:1 to zstd:19, none";
            let args = match command {
                "set" => vec!["set", "-c", wrong, "image"],
                "create" => vec!["create", "-s", "1M", "-c", wrong, "other"],
                _ => vec!["import", "-c", wrong, "image", "other"],
            };
            lab.cloop(&args).refuses(2, part);
        }
    }
    lab.cloop(&["set", "image"]).refuses(2, "--compress");
    lab.cloop(&["set", "-c", "lz4", "missing"])
        .fails(1, &["missing"]);
    before.assert_same(&lab.path("image"));
    assert_eq!(lab.names(), ["image"]);
}

#[test]
fn a_higher_level_makes_a_smaller_image_of_the_same_content() {
    let lab = Lab::new();
    lab.file("raw", &prose(8 << 20));
    let mut sizes = Vec::new();
    for with in ["none", "lz4", "zstd:1", "zstd:9"] {
        lab.cloop(&[
            "import", "-r", "128K", "-c", with, "--force", "raw", "image",
        ])
        .succeeds();
        lab.cloop(&["check", "--quiet", "image"]).succeeds();
        lab.cloop(&["export", "--force", "image", "back"])
            .succeeds();
        assert!(same(&lab.path("raw"), &lab.path("back")), "{with}");
        sizes.push(lab.info("image")["live_bytes"].as_u64().unwrap());
    }
    assert!(sizes.is_sorted_by(|a, b| a > b), "{sizes:?}");
}
