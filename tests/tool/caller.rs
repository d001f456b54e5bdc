// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What the caller chose: limits, and signals that are ignored.

use crate::run::{noise, Lab};
use crate::transfer::signal;
use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Runs `script` in a shell, in which `$0` is the program.
fn shell(lab: &Lab, script: &str) -> Command {
    let mut command = Command::new("bash");
    command
        .args(["-c", script, env!("CARGO_BIN_EXE_cloop")])
        .current_dir(lab.path("."));
    command
}

/// Runs `cloop` with these words under a limit of 1 MiB for files.
fn limited(lab: &Lab, words: &str) -> Output {
    let script = format!("ulimit -f 1024; \"$0\" {words}");
    shell(lab, &script).output().unwrap()
}

#[test]
fn a_file_size_limit_is_an_error_like_others() {
    let lab = Lab::new();
    lab.file("raw", &noise(4 << 20, 5));
    lab.cloop(&["import", "raw", "image"]).succeeds();
    let whole = std::fs::read(lab.path("image")).unwrap();
    lab.file("cut", &whole[..whole.len() - 65_536]);
    for (status, words, subject) in [
        (1, "import raw new", "new"),
        (1, "export image new", "new"),
        (1, "resize --size 64M image", "image"),
        (1, "compact image", "image"),
        (8, "check --repair --quiet cut", "cut"),
    ] {
        let output = limited(&lab, words);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{words}: {text}");
        assert_eq!(text.lines().count(), 1, "{words}: {text}");
        assert!(
            text.starts_with(&format!("cloop: {subject}: ")) && text.contains("ulimit"),
            "{words}: {text}"
        );
    }
    assert_eq!(lab.names(), ["cut", "image", "raw"]);
    lab.cloop(&["check", "image"]).succeeds();
    lab.cloop(&["export", "image", "back"]).succeeds();
    assert!(crate::run::same(&lab.path("raw"), &lab.path("back")));
}

#[test]
fn signals_that_were_ignored_stay_ignored() {
    let lab = Lab::new();
    let data = noise(3 << 20, 1);
    for name in ["HUP", "INT", "TERM"] {
        let script =
            format!("trap '' {name}; exec \"$0\" import --exact --size 6M --force - image");
        let mut child = shell(&lab, &script)
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(&data).unwrap();
        let start = Instant::now();
        while !lab.path("image").exists() {
            assert!(start.elapsed() < Duration::from_secs(30));
            std::thread::sleep(Duration::from_millis(5));
        }
        signal(&child, name);
        std::thread::sleep(Duration::from_millis(100));
        let ended = child.try_wait().unwrap();
        assert!(ended.is_none(), "{name}: {ended:?}");
        stdin.write_all(&data).unwrap();
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{name}: {text}");
        lab.cloop(&["check", "image"]).succeeds();
        std::fs::remove_file(lab.path("image")).unwrap();
    }
}
