// SPDX-License-Identifier: GPL-2.0 OR MIT
//! [`StdFile`]: a regular file or block device as the backing file.

use super::BackingFile;
use crate::engine::Error;
use rustix::fs::{fallocate, FallocateFlags};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;

/// A file of the operating system. It takes no lock: that is the opener's part.
#[derive(Debug)]
pub struct StdFile {
    file: File,
    block_device: bool,
}

impl StdFile {
    /// Opens an existing file.
    ///
    /// # Errors
    ///
    /// Those of open(2).
    pub fn open(path: &Path, write: bool) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(write).open(path)?;
        Self::from_file(file)
    }

    /// Creates a file that does not exist yet.
    ///
    /// # Errors
    ///
    /// Those of open(2), with `O_EXCL`.
    pub fn create_new(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)?;
        Self::from_file(file)
    }

    /// Uses a file that is already open.
    ///
    /// # Errors
    ///
    /// Those of fstat(2).
    pub fn from_file(file: File) -> io::Result<Self> {
        let block_device = file.metadata()?.file_type().is_block_device();
        Ok(Self { file, block_device })
    }

    /// The open file, to lock it for example.
    pub fn as_file(&self) -> &File {
        &self.file
    }
}

fn error(error: &io::Error) -> Error {
    match error.raw_os_error() {
        Some(errno) if no_space(Errno::from_raw_os_error(errno)) => Error::NoSpace,
        Some(errno) if Errno::from_raw_os_error(errno) == Errno::NOMEM => Error::NoMemory,
        errno => Error::Io(errno.unwrap_or(0)),
    }
}

/// Whether the file cannot take more: its file system is full, or a quota is used up, or it is as long as its file system
/// or a limit of the process lets it be.
fn no_space(errno: Errno) -> bool {
    [Errno::NOSPC, Errno::DQUOT, Errno::FBIG].contains(&errno)
}

/// The outcome of a fallocate(2) that need not be supported.
fn best_effort(result: Result<(), Errno>) -> Result<(), Error> {
    match result {
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(()),
        Err(errno) if no_space(errno) => Err(Error::NoSpace),
        Err(errno) => Err(Error::Io(errno.raw_os_error())),
    }
}

impl BackingFile for StdFile {
    fn len(&self) -> Result<u64, Error> {
        if !self.block_device {
            return Ok(self.file.metadata().map_err(|e| error(&e))?.len());
        }
        let end = rustix::fs::SeekFrom::End(0);
        rustix::fs::seek(&self.file, end).map_err(|e| Error::Io(e.raw_os_error()))
    }

    fn fixed_size(&self) -> bool {
        self.block_device
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Error> {
        let mut done = 0;
        while done < buf.len() {
            match self.file.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => {
                    buf[done..].fill(0);
                    break;
                }
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(error(&e)),
            }
        }
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), Error> {
        self.file.write_all_at(buf, offset).map_err(|e| error(&e))
    }

    fn sync(&self) -> Result<(), Error> {
        self.file.sync_data().map_err(|e| error(&e))
    }

    fn allocate(&self, offset: u64, len: u64) -> Result<(), Error> {
        if self.block_device {
            return match offset.checked_add(len) {
                Some(end) if end <= self.len()? => Ok(()),
                _ => Err(Error::NoSpace),
            };
        }
        best_effort(fallocate(&self.file, FallocateFlags::empty(), offset, len))
    }

    fn punch(&self, offset: u64, len: u64) -> Result<(), Error> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        best_effort(fallocate(&self.file, flags, offset, len))
    }

    fn truncate(&self, len: u64) -> Result<(), Error> {
        if self.block_device {
            return Ok(());
        }
        self.file.set_len(len).map_err(|e| error(&e))
    }

    fn free_space(&self) -> Result<Option<u64>, Error> {
        if self.block_device {
            return Ok(None);
        }
        let stat =
            rustix::fs::fstatvfs(&self.file).map_err(|errno| Error::Io(errno.raw_os_error()))?;
        Ok(Some(stat.f_bavail.saturating_mul(stat.f_frsize)))
    }

    fn allocated(&self) -> Result<u64, Error> {
        if self.block_device {
            return self.len();
        }
        Ok(self.file.metadata().map_err(|e| error(&e))?.blocks() * 512)
    }
}
