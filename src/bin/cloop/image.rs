// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Opening and locking the file or block device that holds an image.

use crate::device::{self, Device};
use crate::fail::{self, fail};
use anyhow::Result;
use cloop::engine::Access;
use cloop::engine::{self, Volume};
use cloop::platform::mem::Buf;
use cloop::platform::std::{Std, StdFile};
use rustix::fs::{FlockOperation, OFlags};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// The lock on an image.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lock {
    /// Other readers may use the image at the same time.
    Shared,
    /// No other program may use the image at the same time.
    Exclusive,
}

/// Whether an image with the UUID of an attached one may be changed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Twins {
    /// It may not.
    Refuse,
    /// The user says that it is a copy.
    Allow,
}

impl From<bool> for Twins {
    /// Takes the option --force.
    fn from(force: bool) -> Self {
        match force {
            false => Self::Refuse,
            true => Self::Allow,
        }
    }
}

/// Opens the image at `path` and locks it.
pub(crate) fn open(path: &Path, write: bool, lock: Lock) -> Result<File> {
    open_with(path, write, lock, OFlags::empty()).map_err(|e| fail::io(path, &e))?
}

/// As [`open`], with direct I/O if the file system supports it.
pub(crate) fn open_direct(path: &Path, write: bool, lock: Lock) -> Result<File> {
    match open_with(path, write, lock, OFlags::DIRECT) {
        Ok(Ok(file)) if takes_direct(&file) => Ok(file),
        Ok(Err(refused)) => Err(refused),
        _ => open(path, write, lock),
    }
}

/// The outer error is that of open(2), the inner one a refusal after a successful open.
fn open_with(
    path: &Path,
    write: bool,
    lock: Lock,
    mut flags: OFlags,
) -> std::io::Result<Result<File>> {
    // Checked before opening, because open(2) of a FIFO would wait for its other end.
    let kind = std::fs::metadata(path)?.file_type();
    if let (true, Some(obstacle)) = (device::is_node(path), device::obstacle(path)) {
        return Ok(Err(fail(path, obstacle)));
    }
    if kind.is_dir() {
        return Ok(Err(fail(path, "is a directory; give the path of an image")));
    }
    if !kind.is_file() && !kind.is_block_device() {
        return Ok(Err(fail(
            path,
            "neither a regular file nor a block device; give the path of an image",
        )));
    }
    if kind.is_block_device() && lock == Lock::Exclusive {
        // O_EXCL on a block device is the claim that mount and mkfs respect as well.
        flags |= OFlags::EXCL;
    }
    let file = OpenOptions::new()
        .read(true)
        .write(write)
        .custom_flags(flags.bits() as i32)
        .open(path)?;
    Ok(self::lock(path, &file, lock)
        .and_then(|()| refuse_empty(path, &file))
        .map(|()| file))
}

/// Locks the open file `file`; the error names the user of the image.
pub(crate) fn lock(path: &Path, file: &File, lock: Lock) -> Result<()> {
    let operation = match lock {
        Lock::Shared => FlockOperation::NonBlockingLockShared,
        Lock::Exclusive => FlockOperation::NonBlockingLockExclusive,
    };
    // udev locks a block device for the moment in which it probes it.
    let patience = match file.metadata() {
        Ok(meta) if meta.file_type().is_block_device() => Duration::from_secs(2),
        _ => Duration::ZERO,
    };
    let start = Instant::now();
    loop {
        match rustix::fs::flock(file, operation) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK) if start.elapsed() < patience => {
                thread::sleep(Duration::from_millis(20));
            }
            Err(Errno::WOULDBLOCK) => return Err(in_use(path)),
            Err(Errno::INTR) => {}
            // A file system without locks (some network file systems) protects nothing, but works.
            Err(Errno::NOLCK | Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(()),
            Err(errno) => return Err(fail::io(path, &errno.into())),
        }
    }
}

/// The error for an image that another program has locked.
fn in_use(path: &Path) -> anyhow::Error {
    match device::backed_by(path) {
        Some(Device { index, .. }) => fail(
            path,
            format_args!(
                "in use as /dev/cloop{index}; detach it first (`cloop detach /dev/cloop{index}`)"
            ),
        ),
        None => fail(
            path,
            "in use by another process or device; see `cloop list`, or wait until it ends",
        ),
    }
}

/// An empty file is a frequent mistake (`touch`, a failed copy) that deserves its own sentence.
fn refuse_empty(path: &Path, mut file: &File) -> Result<()> {
    match file.seek(SeekFrom::End(0)) {
        Ok(0) => Err(fail(
            path,
            "empty, not a cloop image; make one with `cloop create`",
        )),
        Ok(_) => Ok(()),
        Err(error) => Err(fail::io(path, &error)),
    }
}

/// Whether a file that was opened for direct I/O accepts it in units of 4 KiB.
fn takes_direct(file: &File) -> bool {
    Buf::zeroed(engine::BLOCK_SIZE)
        .is_ok_and(|mut page| !matches!(rustix::io::pread(file, &mut *page, 0), Err(Errno::INVAL)))
}

/// Opens the volume in `file` for reading; a log that needs replaying is replayed in memory only.
pub(crate) fn open_volume(path: &Path, file: File) -> Result<Volume<Std>> {
    Volume::open(backing(path, file)?, Access::Read).map_err(|e| fail::engine(path, e))
}

/// Opens the image at `path` to change it while it is not attached.
///
/// The lock does not keep others from an image that they reach by another path: through a loop device of the file, or
/// the lower file of an overlay. With [`Twins::Refuse`] no device may have an image with the same UUID.
pub(crate) fn open_to_change(path: &Path, twins: Twins) -> Result<File> {
    let file = open(path, true, Lock::Exclusive)?;
    if twins == Twins::Allow {
        return Ok(file);
    }
    let again = file.try_clone().map_err(|e| fail::io(path, &e))?;
    // If the UUID cannot be read, the command itself finds out why.
    let uuid = Volume::<Std>::uuid_of(&backing(path, again)?).ok();
    match uuid.and_then(|uuid| device::with_uuid(Uuid::from_bytes(uuid))) {
        None => Ok(file),
        Some(index) => Err(fail(
            path,
            format_args!(
                "has the UUID of the image that is attached as /dev/cloop{index}: it may be the same one by another path; \
                 detach it first (`cloop detach /dev/cloop{index}`), or use --force if this is a copy"
            ),
        )),
    }
}

/// `file` in the type that the engine uses.
pub(crate) fn backing(path: &Path, file: File) -> Result<StdFile> {
    StdFile::from_file(file).map_err(|e| fail::io(path, &e))
}

/// The error that the engine reports for the image in the open file `file`.
pub(crate) fn diagnose(path: &Path, file: &File) -> Option<anyhow::Error> {
    open_volume(path, file.try_clone().ok()?).err()
}
