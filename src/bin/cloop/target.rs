// SPDX-License-Identifier: GPL-2.0 OR MIT
//! [`Target`]: a file or block device that a command fills, and that must not be left unfinished.

use crate::device;
use crate::fail::{self, fail};
use crate::image::{self, Lock};
use crate::signals;
use anyhow::Result;
use rustix::fs::OFlags;
use signal_hook::iterator::Signals;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::thread;

/// Bytes at the start of a device that decide whether it is empty.
const START: u64 = 1 << 20;

/// How to undo the work on a target.
#[derive(Clone, Copy)]
enum Undo {
    /// The command created the file.
    Unlink,
    /// The file existed; it was empty, or its owner gave it up with `--force`.
    Truncate,
    /// A device: its contents must not look like an image or a file system.
    Wipe,
}

struct HalfMade {
    path: PathBuf,
    file: File,
    undo: Undo,
}

/// The target that a signal must clean up. A command has one target at a time.
static HALF_MADE: Mutex<Option<HalfMade>> = Mutex::new(None);

fn half_made() -> MutexGuard<'static, Option<HalfMade>> {
    HALF_MADE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A locked file or block device that is removed again unless it is [kept](Self::keep).
pub(crate) struct Target {
    path: PathBuf,
    file: File,
}

impl Target {
    /// Opens `path` to be filled with `size` bytes (0: not known yet). It must be a new or empty file, or
    /// an empty device; with `force` it may have contents, which are lost by this call.
    ///
    /// Of several commands that make the same file at the same time one succeeds: the lock decides which. Only its holder
    /// looks at the contents, and only its holder cleans up.
    pub(crate) fn claim(path: &Path, force: bool, size: u64) -> Result<Self> {
        let (file, undo) = loop {
            let (file, undo) = open(path)?;
            image::lock(path, &file, Lock::Exclusive)?;
            // The command that held the lock before may have removed its unfinished file.
            if matches!(undo, Undo::Wipe)
                || leads_to(path, &file).map_err(|e| fail::io(path, &e))?
            {
                break (file, undo);
            }
        };
        match undo {
            Undo::Wipe => refuse_used_device(path, &file, force, size)?,
            Undo::Unlink | Undo::Truncate => refuse_used_file(path, &file, force)?,
        }
        let copy = file.try_clone().map_err(|e| fail::io(path, &e))?;
        clean_up_on_signals().map_err(|e| fail::io(path, &e))?;
        *half_made() = Some(HalfMade {
            path: path.to_owned(),
            file: copy,
            undo,
        });
        let target = Self {
            path: path.to_owned(),
            file,
        };
        if matches!(undo, Undo::Truncate) {
            target.file.set_len(0).map_err(|e| fail::io(path, &e))?;
        }
        Ok(target)
    }

    /// Another handle on the open file.
    pub(crate) fn file(&self) -> Result<File> {
        self.file.try_clone().map_err(|e| fail::io(&self.path, &e))
    }

    /// True for a block device.
    pub(crate) fn is_device(&self) -> bool {
        self.file
            .metadata()
            .is_ok_and(|m| m.file_type().is_block_device())
    }

    /// The work is done: makes it durable and keeps it.
    pub(crate) fn keep(self) -> Result<()> {
        self.file.sync_all().map_err(|e| fail::io(&self.path, &e))?;
        // The name of a new file is durable only with its directory.
        let parent = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        // Failing to open or sync the directory (for lack of permission to read it) is not worth an
        // error.
        let _ = File::open(parent).and_then(|dir| dir.sync_all());
        *half_made() = None;
        Ok(())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some(half) = half_made().take() {
            half.remove();
        }
    }
}

impl HalfMade {
    /// Best effort: the error that led here is the one to report.
    fn remove(&self) {
        let _ = match self.undo {
            Undo::Unlink => self.unlink(),
            Undo::Truncate => self.file.set_len(0),
            Undo::Wipe => self.file.write_all_at(&vec![0; START as usize], 0),
        };
    }

    /// Removes the file, unless the path leads to another file by now.
    fn unlink(&self) -> io::Result<()> {
        if leads_to(&self.path, &self.file)? {
            fs::remove_file(&self.path)?;
        }
        Ok(())
    }
}

/// True if `path` is a name of the open file `file`.
fn leads_to(path: &Path, file: &File) -> io::Result<bool> {
    let ours = file.metadata()?;
    match fs::metadata(path) {
        Ok(now) => Ok((ours.dev(), ours.ino()) == (now.dev(), now.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Dies of the signal as any program would, but without leaving an unfinished file behind.
fn clean_up_on_signals() -> io::Result<()> {
    static STARTED: Once = Once::new();
    let mut result = Ok(());
    STARTED.call_once(|| {
        result = Signals::new(signals::ending()).and_then(|mut signals| {
            thread::Builder::new()
                .name("cloop-signals".to_owned())
                .spawn(move || {
                    for signal in signals.forever() {
                        // Held until the end, so that the main thread cannot report success meanwhile.
                        let half = half_made();
                        if let Some(half) = half.as_ref() {
                            half.remove();
                        }
                        let _ = signal_hook::low_level::emulate_default_handler(signal);
                    }
                })
                .map(|_| ())
        });
    });
    result
}

fn new_file_error(path: &Path, error: &io::Error) -> anyhow::Error {
    match error.kind() {
        io::ErrorKind::NotFound => fail(path, "its directory does not exist; make it first"),
        _ => fail::io(path, error),
    }
}

/// Opens the file or device at `path`, or makes the file, and says how to undo the work on it.
fn open(path: &Path) -> Result<(File, Undo)> {
    loop {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        let undo = match fs::metadata(path) {
            Ok(meta) if device::is_node(path) && !meta.file_type().is_block_device() => {
                return Err(fail(
                    path,
                    device::obstacle(path).unwrap_or("no block device"),
                ));
            }
            Ok(meta) if meta.is_dir() => {
                return Err(fail(path, "is a directory; give the path of a file"));
            }
            Ok(meta) if meta.file_type().is_block_device() => {
                options.custom_flags(OFlags::EXCL.bits() as i32);
                Undo::Wipe
            }
            Ok(meta) if meta.is_file() => Undo::Truncate,
            Ok(_) => {
                return Err(fail(
                    path,
                    "neither a regular file nor a block device; choose another path",
                ));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound && device::is_node(path) => {
                return Err(fail(path, "no such device; see `cloop list`"));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                options.create_new(true);
                Undo::Unlink
            }
            Err(error) => return Err(fail::io(path, &error)),
        };
        match (options.open(path), undo) {
            (Ok(file), _) => return Ok((file, undo)),
            // Another command has made the file meanwhile.
            (Err(error), Undo::Unlink)
                if error.kind() == io::ErrorKind::AlreadyExists && path.exists() => {}
            (Err(error), Undo::Unlink) => return Err(new_file_error(path, &error)),
            // Another command has removed its unfinished file meanwhile.
            (Err(error), Undo::Truncate) if error.kind() == io::ErrorKind::NotFound => {}
            (Err(error), _) => return Err(fail::io(path, &error)),
        }
    }
}

fn refuse_used_file(path: &Path, file: &File, force: bool) -> Result<()> {
    let len = file.metadata().map_err(|e| fail::io(path, &e))?.len();
    if len > 0 && !force {
        return Err(fail(
            path,
            "exists and is not empty; choose another path, or overwrite it with --force",
        ));
    }
    Ok(())
}

fn refuse_used_device(path: &Path, mut file: &File, force: bool, size: u64) -> Result<()> {
    let capacity = file
        .seek(SeekFrom::End(0))
        .and_then(|end| file.rewind().map(|()| end))
        .map_err(|e| fail::io(path, &e))?;
    if capacity < size {
        return Err(fail(
            path,
            format_args!("has {capacity} bytes, but {size} are needed; use a larger device"),
        ));
    }
    if !force {
        let mut start = Vec::new();
        file.take(START)
            .read_to_end(&mut start)
            .and_then(|_| file.rewind())
            .map_err(|e| fail::io(path, &e))?;
        if start.iter().any(|&b| b != 0) {
            return Err(fail(
                path,
                "has something on it; choose another device, or overwrite it with --force",
            ));
        }
    }
    Ok(())
}
