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
    lab.cloop(&["compact", "--recompress", "none", "image"])
        .refuses(2, "it must be an algorithm that compresses");
    lab.cloop(&["set", "--recompress-rate", "1x", "image"])
        .refuses(2, "--recompress-rate");
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

#[test]
fn changes_what_is_done_with_cold_data() {
    let lab = Lab::new();
    lab.create("image", "64M");
    let told = |info: &serde_json::Value| {
        let text = |name: &str| info[name].as_str().map(str::to_owned);
        (
            text("recompress"),
            info["recompress_after"].as_u64(),
            info["recompress_rate"].as_u64(),
        )
    };
    // The default goes with LZ4.
    let zstd = |level| Some(format!("zstd:{level}"));
    assert_eq!(told(&lab.info("image")), (zstd(9), Some(600), Some(0)));
    let set = [
        "set",
        "--recompress",
        "zstd:15",
        "--recompress-after",
        "60",
        "--recompress-rate",
        "2M",
    ];
    let said = lab.cloop(&[&set[..], &["image"]].concat()).succeeds();
    assert_eq!(
        said,
        "image: data is compressed again with zstd:15 when the device is idle\n"
    );
    let info = lab.info("image");
    assert_eq!(told(&info), (zstd(15), Some(60), Some(2 << 20)));
    let text = lab.cloop(&["info", "image"]).succeeds();
    let line = "Recompression: zstd:15 when idle, 60 s after it was written, up to 2M a second; ";
    let found = text
        .lines()
        .any(|l| l.starts_with(line) && l.ends_with(" to go"));
    assert!(found, "lacks {line:?}:\n{text}");
    // A part of it.
    lab.cloop(&["set", "--recompress-after", "61", "image"])
        .succeeds();
    assert_eq!(
        told(&lab.info("image")),
        (zstd(15), Some(61), Some(2 << 20))
    );
    lab.cloop(&["set", "--recompress", "none", "image"])
        .succeeds();
    assert_eq!(told(&lab.info("image")).0, None);
    lab.cloop(&["check", "--quiet", "image"]).succeeds();
    for (args, expected) in [
        (&["-c", "zstd:3"][..], None),
        (&["-c", "none"], None),
        (&["-c", "lz4", "--recompress", "none"], None),
        (&["-c", "zstd:1", "--recompress", "zstd:19"], zstd(19)),
    ] {
        let create = [&["create", "--force", "-s", "1M"], args, &["image"]].concat();
        lab.cloop(&create).succeeds();
        assert_eq!(told(&lab.info("image")).0, expected, "{args:?}");
    }
}

/// `cloop compact --recompress` makes an image as small as one that was imported with this algorithm.
#[test]
fn compresses_everything_again() {
    let lab = Lab::new();
    lab.file("raw", &prose(8 << 20));
    lab.cloop(&["import", "-r", "128K", "raw", "image"])
        .succeeds();
    let import = ["import", "-r", "128K", "-c", "zstd:12", "raw", "direct"];
    lab.cloop(&import).succeeds();
    let live = |image: &str| lab.info(image)["live_bytes"].as_u64().unwrap();
    assert!(live("direct") * 10 < live("image") * 9);
    for _ in 0..2 {
        lab.cloop(&["compact", "--recompress", "zstd:12", "image"])
            .succeeds();
        assert!(live("image") * 100 <= live("direct") * 101);
        // What is compressed with what.
        let said = lab.cloop(&["check", "image"]).succeeds();
        let algorithms = |line: &str| line.strip_prefix("  ").map(|l| l[..4].to_owned());
        let named: Vec<_> = said.lines().filter_map(algorithms).collect();
        assert_eq!(named, ["zstd"], "{said}");
    }
    lab.cloop(&["export", "image", "back"]).succeeds();
    assert!(same(&lab.path("raw"), &lab.path("back")));
    let taken = |image: &str| lab.info(image)["allocated_bytes"].as_u64().unwrap();
    assert!(taken("image") <= taken("direct") + (1 << 20));
}
