// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Error sentences: `PATH: what happened; the way out`.

use crate::output::shown;
use crate::signals;
use anyhow::{anyhow, Error};
use cloop::engine;
use rustix::fs::IFlags;
use rustix::io::Errno;
use std::fmt::Display;
use std::fs;
use std::io;
use std::path::Path;

/// Returns an error `subject: sentence`.
pub(crate) fn fail(subject: &Path, sentence: impl Display) -> Error {
    if subject.as_os_str() == "-" {
        return anyhow!("standard input or output: {sentence}");
    }
    anyhow!("{}: {sentence}", shown(subject))
}

/// Tells the user of `subject` what the command does not fail for.
pub(crate) fn warn(subject: &Path, sentence: impl Display) {
    eprintln!("cloop: {}", fail(subject, sentence));
}

/// The sentence for an error of the kernel about `path`.
pub(crate) fn io(path: &Path, error: &io::Error) -> Error {
    match error.raw_os_error() {
        Some(errno) => fail(path, cause(path, errno).unwrap_or_else(|| os(errno))),
        None => fail(path, error),
    }
}

/// The sentence for an errno that has a cause which the errno does not name.
fn cause(path: &Path, errno: i32) -> Option<String> {
    match Errno::from_raw_os_error(errno) {
        // Making a file through a symbolic link to nothing is refused as if the file were there.
        Errno::NOENT | Errno::EXIST if !path.exists() => {
            let target = fs::read_link(path).ok()?;
            Some(format!(
                "a symbolic link to {}, which does not exist; remove the link or make that file",
                shown(target)
            ))
        }
        Errno::PERM => {
            // Opening anything else could wait, or do something.
            fs::metadata(path).ok().filter(|meta| meta.is_file())?;
            let flags = rustix::fs::ioctl_getflags(fs::File::open(path).ok()?).ok()?;
            if flags.contains(IFlags::IMMUTABLE) {
                Some("immutable; allow changes with `chattr -i`".to_owned())
            } else if flags.contains(IFlags::APPEND) {
                Some("can only be appended to; allow other changes with `chattr -a`".to_owned())
            } else {
                None
            }
        }
        _ => None,
    }
}

/// The sentence for an error of the engine about the image at `path`.
pub(crate) fn engine(path: &Path, error: engine::Error) -> Error {
    use engine::Error as E;
    match error {
        E::Io(0) => fail(path, os(5)),
        // The engine treats a file that cannot become longer as a full file system, and does not tell them apart.
        E::NoSpace if signals::is_file_size_limited() => fail(
            path,
            "no space left on its file system, or larger than `ulimit -f` allows; free some space or raise the limit",
        ),
        E::NoSpace => fail(
            path,
            "no space left on its file system, or larger than that allows; free some space or use another one",
        ),
        E::Io(_) | E::NoMemory => fail(path, os(error.errno())),
        E::NotAnImage => fail(
            path,
            format_args!(
                "not a cloop image; make one with `cloop create` or `cloop import`, or, if it was one and its beginning was \
                 overwritten, save the rest with `cloop check --repair {}`",
                shown(path)
            ),
        ),
        E::Version(_) | E::Feature(_) => fail(
            path,
            format_args!("{error}; install a newer cloop tool and module"),
        ),
        E::Incomplete => fail(
            path,
            "incomplete: the `cloop import` that made it was interrupted; import again with --force",
        ),
        E::Foreign => fail(
            path,
            format_args!("{error}; use only one way to it at a time, and check it with `cloop check`"),
        ),
        E::Corrupt { .. } => fail(
            path,
            format_args!(
                "{error}; `cloop check {0}` shows the extent of the damage, `cloop check --repair {0}` saves the rest",
                shown(path)
            ),
        ),
        E::InUse => fail(
            path,
            format_args!("{error}; shrink the file system first, or discard it with --force"),
        ),
        E::ReadOnly | E::Closed | E::Invalid(_) => fail(path, error),
    }
}

/// The sentence for an errno of a file operation.
fn os(errno: i32) -> String {
    let way_out = match Errno::from_raw_os_error(errno) {
        Errno::ACCESS | Errno::PERM => "permission denied; run as root, or change its permissions",
        Errno::NOENT => "no such file or directory; check the path",
        Errno::NOTDIR => "a part of the path is not a directory; check the path",
        Errno::ISDIR => "is a directory; give the path of a file",
        Errno::EXIST => "exists already; choose another path",
        Errno::NOSPC => "no space left on its file system; free some space and try again",
        Errno::DQUOT => "disk quota exceeded; free some space and try again",
        Errno::FBIG => "larger than its file system (or `ulimit -f`) allows; use another one",
        Errno::ROFS => "its file system is read-only; remount it read-write or use another one",
        Errno::BUSY => "in use (mounted?); unmount or close it first",
        Errno::NXIO | Errno::NODEV => "no such device; check that it is attached",
        Errno::NOMEM => "out of memory; free some and try again",
        Errno::IO => "input/output error; look at the kernel log (dmesg) for its cause",
        Errno::TXTBSY => "in use as a swap file or program; choose another path",
        Errno::PIPE => "closed by its reader before the end; let it read everything",
        Errno::MFILE | Errno::NFILE => "too many open files; close some and try again",
        Errno::LOOP => "too many symbolic links; check the path",
        Errno::NAMETOOLONG => "the name is too long; choose a shorter one",
        _ => return io::Error::from_raw_os_error(errno).to_string(),
    };
    way_out.to_owned()
}
