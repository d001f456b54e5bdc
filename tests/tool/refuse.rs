// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Wrong input: one clear sentence, the right exit status, nothing changed.

use crate::run::{noise, root, skip, Lab, Mount, Snapshot};
use rustix::fs::FlockOperation;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Runs every command that opens an image on `name` and expects `parts` in its error.
fn all_refuse(lab: &Lab, name: &str, parts: &[&str]) {
    for (status, args) in [
        (1, vec!["attach", name]),
        (1, vec!["attach", "--read-only", name]),
        (1, vec!["info", name]),
        (1, vec!["info", "--json", name]),
        (8, vec!["check", name]),
        (1, vec!["export", name, "back"]),
    ] {
        if args[0] == "attach" && !module_missing() {
            continue;
        }
        lab.cloop(&args).fails(status, parts);
        assert!(!lab.path("back").exists(), "{args:?}");
    }
}

fn module_missing() -> bool {
    !Path::new("/sys/module/cloop").exists()
}

#[test]
fn things_that_are_no_image() {
    let lab = Lab::new();
    for (name, content) in [
        ("text", b"This is not an image.\n".to_vec()),
        ("noise", noise(3 << 20, 21)),
        ("zeros", vec![0; 2 << 20]),
    ] {
        let path = lab.file(name, &content);
        let before = Snapshot::of(&path);
        let parts = [name, "not a cloop image", "cloop create"];
        lab.cloop(&["info", name]).fails(1, &parts);
        lab.cloop(&["check", name]).fails(8, &parts);
        lab.cloop(&["check", "--quiet", name]).fails(8, &parts);
        lab.cloop(&["export", name, "back"]).fails(1, &parts);
        before.assert_same(&path);
    }
    assert_eq!(lab.names(), ["noise", "text", "zeros"]);
}

#[test]
fn things_that_cannot_be_one() {
    let lab = Lab::new();
    lab.file("empty", b"");
    all_refuse(
        &lab,
        "empty",
        &["empty: empty, not a cloop image", "cloop create"],
    );
    fs::create_dir(lab.path("dir")).unwrap();
    all_refuse(&lab, "dir", &["dir: is a directory"]);
    crate::run::system("mkfifo", &[lab.path("fifo")]);
    all_refuse(
        &lab,
        "fifo",
        &["fifo: neither a regular file nor a block device"],
    );
    all_refuse(&lab, "/dev/null", &["/dev/null: neither"]);
    all_refuse(
        &lab,
        "missing",
        &["missing: no such file", "check the path"],
    );
    all_refuse(&lab, "empty/x", &["empty/x: ", "not a directory"]);
    assert_eq!(fs::metadata(lab.path("empty")).unwrap().len(), 0);
}

#[test]
fn a_link_to_nothing() {
    let lab = Lab::new();
    std::os::unix::fs::symlink("away", lab.path("link")).unwrap();
    let parts = [
        "link: a symbolic link to away, which does not exist",
        "remove the link",
    ];
    all_refuse(&lab, "link", &parts);
    for args in [
        vec!["create", "-s", "1M", "link"],
        vec!["import", "link", "image"],
        vec!["resize", "-s", "1M", "link"],
        vec!["set", "-c", "zstd", "link"],
        vec!["compact", "link"],
    ] {
        lab.cloop(&args).fails(1, &parts);
    }
    lab.create("image", "1M");
    lab.cloop(&["export", "image", "link"]).fails(1, &parts);
    assert!(!lab.path("away").exists() && !lab.path("back").exists());
}

#[test]
fn an_immutable_file() {
    let lab = Lab::new();
    let path = lab.create("image", "1M");
    let chattr = |what: &str| {
        let mut command = std::process::Command::new("chattr");
        command
            .arg(what)
            .arg(&path)
            .stderr(std::process::Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    for (set, clear, part) in [
        (
            "+i",
            "-i",
            "image: immutable; allow changes with `chattr -i`",
        ),
        ("+a", "-a", "image: can only be appended to"),
    ] {
        if !chattr(set) {
            skip("cannot make a file immutable here");
            return;
        }
        for args in [
            vec!["resize", "-s", "2M", "image"],
            vec!["set", "-c", "zstd", "image"],
            vec!["attach", "image"],
            vec!["create", "-s", "1M", "--force", "image"],
        ] {
            lab.cloop(&args).fails(1, &[part]);
        }
        lab.cloop(&["check", "image"]).succeeds();
        assert!(chattr(clear));
    }
}

#[test]
fn no_file_is_made_in_the_place_of_a_node() {
    let lab = Lab::new();
    let node = "/dev/cloop1023";
    lab.create("image", "1M");
    lab.file("raw", &noise(1 << 20, 2));
    for args in [
        vec!["create", "-s", "1M", node],
        vec!["import", "raw", node],
        vec!["export", "image", node],
    ] {
        lab.cloop(&args)
            .fails(1, &["/dev/cloop1023: no such device", "cloop list"]);
        assert!(!Path::new(node).exists());
    }
}

#[test]
fn no_permission() {
    if !root() {
        return;
    }
    let lab = Lab::new();
    let open = fs::Permissions::from_mode(0o755);
    fs::set_permissions(lab.path("."), open).unwrap();
    if lab.cloop_as_nobody(&["--version"]).status != Some(0) {
        skip("nobody cannot run the program where it was built");
        return;
    }
    let path = lab.create("image", "1M");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let before = Snapshot::of(&path);
    let parts = ["image: permission denied", "run as root"];
    for (status, args) in [
        (1, vec!["attach", "image"]),
        (1, vec!["info", "image"]),
        (8, vec!["check", "image"]),
        (1, vec!["export", "image", "/dev/null"]),
        (1, vec!["create", "-s", "1M", "--force", "image"]),
    ] {
        lab.cloop_as_nobody(&args).fails(status, &parts);
    }
    let parts = ["new: permission denied", "run as root"];
    lab.cloop_as_nobody(&["create", "-s", "1M", "new"])
        .fails(1, &parts);

    // The image is readable: commands that only read work, and attaching for writing does not.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
    lab.cloop_as_nobody(&["check", "image"]).succeeds();
    lab.cloop_as_nobody(&["attach", "image"])
        .fails(1, &["image: permission denied"]);
    before.assert_same(&path);
}

#[test]
fn a_locked_image_is_refused() {
    let lab = Lab::new();
    lab.file("raw", &noise(1 << 20, 2));
    lab.cloop(&["import", "raw", "image"]).succeeds();
    let path = lab.path("image");
    let before = Snapshot::of(&path);
    let file = fs::File::open(&path).unwrap();
    // Hold the lock as the kernel holds it while the image is attached.
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
    for (status, args) in [
        (1, vec!["attach", "image"]),
        (1, vec!["attach", "--read-only", "image"]),
        (1, vec!["info", "image"]),
        (8, vec!["check", "image"]),
        (8, vec!["check", "--repair", "image"]),
        (1, vec!["export", "image", "back"]),
        (1, vec!["create", "-s", "1M", "--force", "image"]),
        (1, vec!["import", "--force", "raw", "image"]),
    ] {
        lab.cloop(&args)
            .fails(status, &["image: in use", "cloop list"]);
        before.assert_same(&path);
        assert!(!lab.path("back").exists());
    }
    // Commands that only read can run at the same time.
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared).unwrap();
    lab.cloop(&["check", "image"]).succeeds();
    lab.cloop(&["info", "image"]).succeeds();
    lab.cloop(&["export", "image", "back"]).succeeds();
    lab.cloop(&["create", "-s", "1M", "--force", "image"])
        .fails(1, &["image: in use"]);
    before.assert_same(&path);
}

#[test]
fn a_read_only_file_system() {
    let lab = Lab::new();
    let Some(mount) = Mount::tmpfs(lab.path("fs"), "8M") else {
        return;
    };
    let path = lab.create("fs/image", "1M");
    mount.make_read_only();
    let before = Snapshot::of(&path);
    lab.cloop(&["attach", "fs/image"])
        .fails(1, &["fs/image: ", "read-only", "--read-only"]);
    lab.cloop(&["check", "fs/image"]).succeeds();
    lab.cloop(&["info", "fs/image"]).succeeds();
    lab.cloop(&["export", "fs/image", "back"]).succeeds();
    before.assert_same(&path);
}

#[test]
fn a_missing_module() {
    if !module_missing() {
        skip("the module is loaded here");
        return;
    }
    let lab = Lab::new();
    let path = lab.create("image", "1M");
    let before = Snapshot::of(&path);
    let parts = [
        "/dev/cloop-control: ",
        "module is not loaded",
        "modprobe cloop",
    ];
    lab.cloop(&["attach", "image"]).fails(1, &parts);
    lab.cloop(&["attach", "--read-only", "--device", "cloop3", "image"])
        .fails(1, &parts);
    lab.cloop(&["detach", "/dev/cloop0"]).fails(1, &parts);
    lab.cloop(&["info", "/dev/cloop0"]).fails(1, &parts);
    before.assert_same(&path);
    // Nothing is attached, which is no error.
    assert_eq!(lab.cloop(&["list"]).succeeds(), "");
    let json: serde_json::Value =
        serde_json::from_str(&lab.cloop(&["list", "--json"]).succeeds()).unwrap();
    assert_eq!(json, serde_json::json!({ "cloopdevices": [] }));
    assert_eq!(lab.cloop(&["detach", "--all"]).succeeds(), "");
}

#[test]
fn names_that_are_no_device() {
    let lab = Lab::new();
    lab.create("image", "1M");
    lab.cloop(&["detach", "image"]).fails(
        1,
        &[
            "image: neither a cloop device nor an attached image",
            "cloop list",
        ],
    );
    lab.cloop(&["detach", "/dev/null"])
        .fails(1, &["/dev/null: not a cloop device"]);
    lab.cloop(&["detach"]).refuses(2, "DEVICE");
    lab.cloop(&["detach", "--all", "cloop0"])
        .refuses(2, "--all");
    lab.cloop(&["attach", "--device", "loop0", "image"])
        .refuses(2, "cloop3");
    lab.cloop(&["frobnicate"]).refuses(2, "frobnicate");
    lab.cloop(&[]).refuses(2, "Usage");
    // Two wrong names are two errors.
    let outcome = lab.cloop(&["detach", "image", "/dev/null"]);
    assert_eq!(
        (outcome.status, outcome.stderr.lines().count()),
        (Some(1), 2)
    );
}

#[test]
fn help_and_version() {
    let lab = Lab::new();
    let version = lab.cloop(&["--version"]).succeeds();
    assert_eq!(version, format!("cloop {}\n", env!("CARGO_PKG_VERSION")));
    for command in [
        "create", "attach", "detach", "list", "info", "check", "estimate", "import", "export",
    ] {
        let help = lab.cloop(&[command, "--help"]).succeeds();
        assert!(help.contains("Usage: cloop"), "{help}");
        assert!(lab.cloop(&["--help"]).succeeds().contains(command));
    }
}
