// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Names of files that are no names for people.

use crate::run::{prose, Lab};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// Names that would move the cursor, look like another line, or read backwards.
const ODD: [&str; 4] = ["new\nline", "esc\u{1b}[31m", "csi\u{9b}31m", "\u{202e}gmi"];

#[track_caller]
fn assert_harmless(about: &str, text: &str) {
    let bad = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
    assert!(!text.contains(bad), "{about}: {text:?}");
}

#[test]
fn odd_names_never_reach_a_terminal() {
    for name in ODD {
        let lab = Lab::new();
        lab.file("raw", &prose(1 << 20));
        lab.file("text", &prose(1 << 20));
        for args in [
            // Errors.
            vec!["info", name],
            vec!["attach", name],
            vec!["detach", name],
            vec!["import", name, "new"],
            vec!["create", "--size", "1M", name, "more"],
            vec!["create", "--size", name, "new"],
            vec!["info", "--device", name],
            vec![name],
            // Results.
            vec!["import", "raw", name],
            vec!["info", name],
            vec!["estimate", name],
            vec!["check", name],
            vec!["resize", "--size", "2M", name],
            vec!["set", "--compress", "zstd:2", name],
            vec!["set", "--compress", name, name],
            vec!["compact", name],
            vec!["export", name, "raw"],
        ] {
            let outcome = lab.cloop(&args);
            let stdout = String::from_utf8(outcome.stdout).unwrap();
            let about = format!("{args:?}");
            assert_harmless(&about, &stdout);
            assert_harmless(&about, &outcome.stderr);
            if outcome.status == Some(1) {
                assert_eq!(outcome.stderr.lines().count(), 1, "{about}");
            }
            if ["check", "resize", "compact"].contains(&args[0]) || args.contains(&"zstd:2") {
                // Figures without names are indented.
                let lines = stdout.lines().filter(|line| !line.starts_with("  "));
                assert_eq!((outcome.status, lines.count()), (Some(0), 1));
            }
        }
        assert_eq!(lab.info(name)["image"], name);
        assert_eq!(lab.info(name)["image_hex"], serde_json::Value::Null);
    }
}

#[test]
fn json_tells_every_byte_of_a_name() {
    let lab = Lab::new();
    let name = OsStr::from_bytes(b"disk\xff\n");
    let run = |args: &[&str]| lab.command(args).arg(name).output().unwrap();
    assert!(run(&["create", "--size", "1M"]).status.success());
    let output = run(&["info", "--json"]);
    assert!(output.status.success());
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["image"], "disk\u{fffd}\n");
    assert_eq!(json["image_hex"], "6469736bff0a");
    let text = String::from_utf8(run(&["info"]).stdout).unwrap();
    assert!(text.contains("Image:         disk\\xff\\n\n"), "{text}");
}
