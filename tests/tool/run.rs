// SPDX-License-Identifier: GPL-2.0 OR MIT
//! [`Lab`]: a directory to run the program in, and the assertions about a run.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// A temporary directory.
pub(crate) struct Lab(TempDir);

impl Lab {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a file and returns its path.
    pub(crate) fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        path
    }

    /// Names of the files in the directory.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.0.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// `cloop` with its arguments, run in the directory.
    pub(crate) fn cloop(&self, args: &[&str]) -> Outcome {
        self.run(&mut self.bounded(args), &[])
    }

    /// As [`cloop`](Self::cloop), with `input` on standard input through a pipe.
    pub(crate) fn feed(&self, args: &[&str], input: &[u8]) -> Outcome {
        self.run(&mut self.bounded(args), input)
    }

    /// As [`cloop`](Self::cloop), as the user "nobody". Needs root.
    pub(crate) fn cloop_as_nobody(&self, args: &[&str]) -> Outcome {
        self.run(self.bounded(args).uid(65534).gid(65534), &[])
    }

    /// The command, for a test that runs it in its own way.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cloop"));
        command.args(args).current_dir(self.0.path());
        command
    }

    /// The command with a time limit, so that a hang fails the test.
    fn bounded(&self, args: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command
            .args(["300", env!("CARGO_BIN_EXE_cloop")])
            .args(args)
            .current_dir(self.0.path());
        command
    }

    fn run(&self, command: &mut Command, input: &[u8]) -> Outcome {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        std::thread::scope(|scope| {
            // A program that stops reading early is no error of the writer.
            scope.spawn(move || stdin.write_all(input));
            let output = child.wait_with_output().unwrap();
            Outcome {
                command: format!("{command:?}"),
                status: output.status.code(),
                stdout: output.stdout,
                stderr: String::from_utf8(output.stderr).unwrap(),
            }
        })
    }

    /// The image made by `cloop create` with these arguments.
    pub(crate) fn create(&self, name: &str, size: &str) -> PathBuf {
        self.cloop(&["create", "--size", size, name]).succeeds();
        self.path(name)
    }

    /// The output of `cloop info --json`.
    pub(crate) fn info(&self, name: &str) -> serde_json::Value {
        let text = self.cloop(&["info", "--json", name]).succeeds();
        serde_json::from_str(&text).unwrap()
    }
}

/// The result of a run.
pub(crate) struct Outcome {
    command: String,
    pub(crate) status: Option<i32>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Outcome {
    /// Asserts success without any output on standard error, and returns the standard output.
    #[track_caller]
    pub(crate) fn succeeds(self) -> String {
        assert_eq!(self.status, Some(0), "{}: {}", self.command, self.stderr);
        assert_eq!(self.stderr, "", "{}", self.command);
        String::from_utf8(self.stdout).unwrap()
    }

    /// Asserts success with one sentence on standard error that contains all `parts`, and returns the standard output.
    #[track_caller]
    pub(crate) fn warns(self, parts: &[&str]) -> Vec<u8> {
        let about = format!("{}\n{}", self.command, self.stderr);
        assert_eq!(self.status, Some(0), "{about}");
        assert!(self.stderr.starts_with("cloop: "), "{about}");
        assert_eq!(self.stderr.lines().count(), 1, "{about}");
        for part in parts {
            assert!(self.stderr.contains(part), "lacks {part:?}: {about}");
        }
        self.stdout
    }

    /// Asserts failure with `status` and one sentence on standard error that contains all `parts`.
    #[track_caller]
    pub(crate) fn fails(self, status: i32, parts: &[&str]) {
        let about = format!("{}\n{}", self.command, self.stderr);
        assert_eq!(self.status, Some(status), "{about}");
        assert!(self.stderr.starts_with("cloop: "), "{about}");
        assert_eq!(self.stderr.lines().count(), 1, "{about}");
        assert!(!self.stderr.contains("os error"), "{about}");
        for part in parts {
            assert!(self.stderr.contains(part), "lacks {part:?}: {about}");
        }
    }

    /// Asserts that the arguments were refused for a reason that contains `part`.
    #[track_caller]
    pub(crate) fn refuses(self, status: i32, part: &str) {
        let about = format!("{}\n{}", self.command, self.stderr);
        assert_eq!(self.status, Some(status), "{about}");
        assert!(self.stderr.contains(part), "lacks {part:?}: {about}");
    }
}

/// Runs a command of the system that must succeed.
#[track_caller]
pub(crate) fn system(program: &str, args: &[impl AsRef<OsStr>]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program}: {text}");
    String::from_utf8(output.stdout).unwrap()
}

/// Reports a skipped test past the test harness, which would hide the message.
pub(crate) fn skip(why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}

/// True for root; otherwise reports that the test is skipped.
pub(crate) fn root() -> bool {
    let root = fs::metadata("/proc/self").unwrap().uid() == 0;
    if !root {
        skip("needs root");
    }
    root
}

/// A small file system of its own, which is removed with this value.
pub(crate) struct Mount(PathBuf);

impl Mount {
    /// A tmpfs of `size` on the new directory `at`; `None`, with a message, if mounting is not possible.
    pub(crate) fn tmpfs(at: PathBuf, size: &str) -> Option<Self> {
        if !root() {
            return None;
        }
        fs::create_dir(&at).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "none"])
            .arg(&at)
            .status()
            .is_ok_and(|s| s.success());
        if !mounted {
            skip("cannot mount a tmpfs");
            return None;
        }
        Some(Self(at))
    }

    pub(crate) fn make_read_only(&self) {
        system(
            "mount",
            &[
                OsStr::new("-o"),
                OsStr::new("remount,ro"),
                self.0.as_os_str(),
            ],
        );
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// A loop device over a file, which is removed with this value.
pub(crate) struct Loop(String);

impl Loop {
    /// `None`, with a message, if there are no loop devices here.
    pub(crate) fn over(file: &Path) -> Option<Self> {
        if !root() {
            return None;
        }
        let output = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(file)
            .output();
        match output {
            Ok(output) if output.status.success() => Some(Self(
                String::from_utf8(output.stdout).unwrap().trim().to_owned(),
            )),
            _ => {
                skip("cannot set up a loop device");
                None
            }
        }
    }

    pub(crate) fn node(&self) -> &str {
        &self.0
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

/// Incompressible bytes, the same each time.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    // xorshift64*: enough to look random to LZ4.
    let mut x = seed | 1;
    std::iter::repeat_with(|| {
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        x.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes()
    })
    .flatten()
    .take(len)
    .collect()
}

/// Bytes that compress about as well as prose.
pub(crate) fn prose(len: usize) -> Vec<u8> {
    const WORDS: [&str; 12] = [
        "block", "record", "segment", "table", "log", "the", "of", "is", "written", "read", "a",
        "flush",
    ];
    let mut text = Vec::with_capacity(len + 16);
    for byte in noise(len / 2 + 16, 7) {
        text.extend_from_slice(WORDS[usize::from(byte) % WORDS.len()].as_bytes());
        text.push(if byte < 20 { b'\n' } else { b' ' });
        if text.len() >= len {
            break;
        }
    }
    text.truncate(len);
    text
}

/// Bytes that the file at `path` occupies.
pub(crate) fn allocated(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

/// Content and modification time, which a failing command must not change.
#[derive(PartialEq, Eq)]
pub(crate) struct Snapshot(Vec<u8>, std::time::SystemTime);

impl Snapshot {
    pub(crate) fn of(path: &Path) -> Self {
        let time = fs::metadata(path).unwrap().modified().unwrap();
        Self(fs::read(path).unwrap(), time)
    }

    #[track_caller]
    pub(crate) fn assert_same(&self, path: &Path) {
        assert!(*self == Self::of(path), "{} was changed", path.display());
    }
}

/// A file with `pieces` at their offsets and holes between them, `len` bytes long.
pub(crate) fn sparse(path: &Path, len: u64, pieces: &[(u64, &[u8])]) {
    use std::os::unix::fs::FileExt;
    let file = File::create(path).unwrap();
    file.set_len(len).unwrap();
    for (at, bytes) in pieces {
        file.write_all_at(bytes, *at).unwrap();
    }
}

/// Compares two files without holding them in memory.
pub(crate) fn same(a: &Path, b: &Path) -> bool {
    Command::new("cmp")
        .arg("--quiet")
        .args([a, b])
        .status()
        .unwrap()
        .success()
}
