// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The order of durable steps stands in the types of the engine (promise P1): each wrong order here is one edit of its
//! source, after which it does not compile.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// An edit of the engine that breaks the order of durable steps.
struct WrongOrder {
    what: &'static str,
    file: &'static str,
    right: &'static str,
    wrong: &'static str,
    /// The error of the compiler.
    error: &'static str,
}

const WRONG_ORDERS: [WrongOrder; 5] = [
    WrongOrder {
        what: "a superblock is committed with a proof that no sync has made",
        file: "checkpoint/mod.rs",
        right: "self.commit(store, &next, &durable)?;",
        wrong: "self.commit(store, &next, &DurableLog { end: 0 })?;",
        error: "E0451",
    },
    WrongOrder {
        what: "a superblock is committed before the log is made durable",
        file: "checkpoint/mod.rs",
        right: "self.append_superblock(store, &next)?;",
        wrong: "self.append_superblock(store, &next)?; self.commit(store, &next, &durable)?;",
        error: "E0425",
    },
    WrongOrder {
        what: "segments are free before the log that supersedes them is durable",
        file: "freeing/dead.rs",
        right: "let unneeded = found.durably(&log);",
        wrong: "let unneeded = found;",
        error: "E0308",
    },
    WrongOrder {
        what: "ranges are punched before the log that supersedes them is durable",
        file: "reclaim/punch.rs",
        right: "self.punch_measured(store, index, &superseded.durably(&log), gain)?;",
        wrong: "self.punch_measured(store, index, &superseded, gain)?;",
        error: "E0308",
    },
    WrongOrder {
        what: "reclaim frees segments of its own choice",
        file: "reclaim/make_space.rs",
        right: "freeing::free_superseded(store)?;",
        wrong: "freeing::free(store, &self.victims)?;",
        error: "E0308",
    },
];

/// Copies a directory, and what is below it.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(fs::copy(entry.path(), to).unwrap()),
        }
    }
}

/// A copy of the package, to be edited.
fn copied_package() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let copied = Path::new(env!("CARGO_TARGET_TMPDIR")).join("order");
    let _ = fs::remove_dir_all(copied.join("src"));
    copy(&package.join("src"), &copied.join("src"));
    for file in ["Cargo.toml", "Cargo.lock"] {
        fs::copy(package.join(file), copied.join(file)).unwrap();
    }
    copied
}

/// Compiles the engine of a package as far as errors are found. The errors are returned, nothing if there are none.
fn errors(package: &Path) -> Option<String> {
    let output = Command::new(env!("CARGO"))
        .args(["check", "--quiet", "--lib", "--no-default-features"])
        .args(["--locked", "--offline"])
        .current_dir(package)
        .env("CARGO_TARGET_DIR", package.join("target"))
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    (!output.status.success()).then_some(said)
}

#[test]
fn wrong_orders_do_not_compile() {
    let package = copied_package();
    // As it is, it compiles: so each of the errors below comes from the edit.
    assert_eq!(errors(&package), None);
    for order in &WRONG_ORDERS {
        let path = package.join("src/engine").join(order.file);
        let source = fs::read_to_string(&path).unwrap();
        assert!(source.contains(order.right), "{}: not found", order.what);
        fs::write(&path, source.replacen(order.right, order.wrong, 1)).unwrap();
        let said = errors(&package).unwrap_or_default();
        let expected = format!("error[{}]", order.error);
        assert!(
            said.contains(&expected),
            "{}: expected {expected}\n{said}",
            order.what
        );
        println!("{}: {expected}", order.what);
        fs::write(&path, source).unwrap();
    }
}
