// SPDX-License-Identifier: GPL-2.0
//! The file or block device that holds an image.

use crate::c;
use crate::engine::{Access, Error};
use crate::platform::BackingFile;
use kernel::error::code::*;
use kernel::error::to_result;
use kernel::fs::{File, LocalFile};
use kernel::prelude::*;
use kernel::sync::aref::ARef;

/// An open file that the kernel reads and writes on behalf of a device.
///
/// A file is in one of these states:
///
/// 1. Open: user space owns it by a descriptor, and [`file_of`] takes a reference.
/// 2. Backing: a `KernelFile` exists. The page cache of the file allocates without waiting for I/O.
/// 3. Released: the `KernelFile` is dropped, and the page cache allocates as before.
///
/// A file cannot lie on the device that it backs, not even through other devices and file systems. Unlike
/// a device of loop, ours does not exist before its backing file is chosen, and the file never changes
/// afterwards, so everything below the file is older than the device. The [`registry`] refuses a file
/// that backs a device already.
///
/// [`registry`]: crate::registry
///
/// # Invariants
///
/// - `file` passed `cloop_file_check` for `access`.
/// - The mapping of `file` allocates without `__GFP_IO` and `__GFP_FS`. `gfp` is its mask of before.
pub(crate) struct KernelFile {
    file: ARef<File>,
    direct: bool,
    access: Access,
    gfp: c::gfp_t,
}

/// The identity of the data of a file, independent of its path: the address of the inode. It is valid as
/// long as the file is open.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity(usize);

/// Fields of `stat(2)` for the backing file.
pub(crate) struct Stat {
    /// Bytes that the file occupies.
    pub(crate) allocated: u64,
    /// `st_dev`.
    pub(crate) dev: u64,
    /// `st_ino`.
    pub(crate) ino: u64,
}

/// Takes the file behind the descriptor `fd` of the current process (state 1).
///
/// The caller is an ioctl, or another system call that does not use the file position.
///
/// # Errors
///
/// EBADF if `fd` is not open, or not for writing although `access` is [`Access::Write`]; EISDIR, EINVAL or ETXTBSY if
/// the file cannot hold an image.
pub(crate) fn file_of(fd: i32, access: Access) -> Result<ARef<File>> {
    let file = LocalFile::fget(fd.try_into().map_err(|_| EBADF)?)?;
    // SAFETY: By the requirement on the caller, no `fdget_pos` is active on this thread.
    let file = unsafe { LocalFile::assume_no_fdget_pos(file) };
    // SAFETY: `file` is a valid open file.
    to_result(unsafe { c::cloop_file_check(file.as_ptr(), access == Access::Write) })?;
    Ok(file)
}

/// The identity of the data of `file`.
pub(crate) fn identity(file: &File) -> Identity {
    // SAFETY: An open file has a mapping, which stays the same. The mapping of a regular file or a
    // block device has a host.
    Identity(unsafe { (*(*file.as_ptr()).f_mapping).host } as usize)
}

impl KernelFile {
    /// Prepares a file for use below a block device (state 1 to 2).
    ///
    /// # Errors
    ///
    /// Those of [`file_of`] for a file that cannot hold an image.
    pub(crate) fn new(file: ARef<File>, access: Access) -> Result<Self> {
        // SAFETY: `file` is a valid open file, as in all calls below.
        to_result(unsafe { c::cloop_file_check(file.as_ptr(), access == Access::Write) })?;
        // SAFETY: As above.
        let direct = unsafe { c::cloop_file_can_direct(file.as_ptr()) };
        // SAFETY: As above.
        let gfp = unsafe { c::cloop_file_restrict_gfp(file.as_ptr()) };
        // INVARIANT: The file has been checked, and its mapping restricted.
        Ok(Self {
            file,
            direct,
            access,
            gfp,
        })
    }

    /// The C object.
    pub(crate) fn as_ptr(&self) -> *mut c::file {
        self.file.as_ptr()
    }

    /// Returns true if the file lies on a device on which seeking costs time.
    pub(crate) fn is_rotational(&self) -> bool {
        // SAFETY: `file` is an open file.
        unsafe { c::cloop_file_is_rotational(self.file.as_ptr()) }
    }

    /// Returns true if I/O bypasses the page cache.
    pub(crate) fn direct(&self) -> bool {
        self.direct
    }

    /// Returns the path of the file, as the current process sees it, in `buf`, or `None` if the path is
    /// longer than `buf`.
    pub(crate) fn path<'a>(&self, buf: &'a mut [u8]) -> Option<&'a CStr> {
        // SAFETY: The file is valid, and `buf` writable for its length.
        let path = unsafe {
            c::file_path(
                self.file.as_ptr(),
                buf.as_mut_ptr().cast(),
                buf.len().try_into().ok()?,
            )
        };
        // The function puts the path at the end of the buffer. An error is a pointer outside of it.
        let start = (path as usize).checked_sub(buf.as_ptr() as usize)?;
        CStr::from_bytes_until_nul(buf.get(start..)?).ok()
    }

    /// Logs that writes have begun to fail with an error and are tried again, or that they succeed again.
    pub(super) fn report_retry(&self, error: Option<Error>) {
        let error = error.map_or(0, Error::errno);
        // SAFETY: The file is valid.
        unsafe { c::cloop_file_report_retry(self.file.as_ptr(), error) };
    }

    /// Logs that reclaim has set aside `segments` segments, or, for 0, that none is set aside any more.
    pub(super) fn report_stuck(&self, segments: u64) {
        // SAFETY: The file is valid.
        unsafe { c::cloop_file_report_stuck(self.file.as_ptr(), segments) };
    }

    /// Fields of `stat(2)`.
    ///
    /// # Errors
    ///
    /// Those of the file system.
    pub(crate) fn stat(&self) -> Result<Stat> {
        let (mut allocated, mut dev, mut ino) = (0, 0, 0);
        // SAFETY: The file is valid, and the three variables are writable.
        to_result(unsafe {
            c::cloop_file_stat(
                self.file.as_ptr(),
                &raw mut allocated,
                &raw mut dev,
                &raw mut ino,
            )
        })?;
        Ok(Stat {
            allocated,
            dev,
            ino,
        })
    }
}

impl Drop for KernelFile {
    fn drop(&mut self) {
        // SAFETY: The file is valid, and by the type invariant `gfp` is the mask of its mapping before
        // `new` restricted it.
        unsafe { c::cloop_file_restore_gfp(self.file.as_ptr(), self.gfp) };
    }
}

/// Translates a negative errno into an error of the engine.
fn check(ret: c_int) -> Result<(), Error> {
    match to_result(ret) {
        Ok(()) => Ok(()),
        // EFBIG: the file cannot become longer, on FAT at 4 GiB for instance. Discards make room in it all the same.
        Err(ENOSPC | EDQUOT | EFBIG) => Err(Error::NoSpace),
        Err(ENOMEM) => Err(Error::NoMemory),
        Err(e) => Err(Error::Io(-e.to_errno())),
    }
}

/// Translates an offset or a length into the signed type of the kernel.
fn offset(value: u64) -> Result<i64, Error> {
    i64::try_from(value).map_err(|_| Error::Io(-EFBIG.to_errno()))
}

impl BackingFile for KernelFile {
    fn len(&self) -> Result<u64, Error> {
        // SAFETY: The file is valid.
        let size = unsafe { c::cloop_file_size(self.file.as_ptr()) };
        u64::try_from(size).map_err(|_| Error::Io(0))
    }

    fn fixed_size(&self) -> bool {
        // SAFETY: The file is valid.
        unsafe { c::cloop_file_is_bdev(self.file.as_ptr()) }
    }

    fn read_at(&self, buf: &mut [u8], pos: u64) -> Result<(), Error> {
        let pos = offset(pos)?;
        // SAFETY: By the type invariant, the file can be read; `buf` is writable for its length.
        check(unsafe {
            c::cloop_file_io(
                self.file.as_ptr(),
                buf.as_mut_ptr().cast(),
                buf.len(),
                pos,
                false,
                self.direct,
            )
        })
    }

    fn write_at(&self, buf: &[u8], pos: u64) -> Result<(), Error> {
        let pos = offset(pos)?;
        if self.access == Access::Read {
            return Err(Error::ReadOnly);
        }
        // SAFETY: By the type invariant, the file can be written; `buf` is readable for its length, and
        // a write does not change it.
        check(unsafe {
            c::cloop_file_io(
                self.file.as_ptr(),
                buf.as_ptr().cast_mut().cast(),
                buf.len(),
                pos,
                true,
                self.direct,
            )
        })
    }

    fn sync(&self) -> Result<(), Error> {
        // Nothing was written, and the file may have no operation to make it durable.
        if self.access == Access::Read {
            return Ok(());
        }
        // SAFETY: The file is valid, and by the type invariant it has the operation.
        check(unsafe { c::cloop_file_sync(self.file.as_ptr()) })
    }

    fn allocate(&self, pos: u64, len: u64) -> Result<(), Error> {
        if self.fixed_size() {
            return match pos.checked_add(len) {
                Some(end) if end <= self.len()? => Ok(()),
                _ => Err(Error::NoSpace),
            };
        }
        let (pos, len) = (offset(pos)?, offset(len)?);
        // SAFETY: The file is valid.
        match to_result(unsafe { c::cloop_file_allocate(self.file.as_ptr(), pos, len) }) {
            // The file system cannot reserve space. Writing extends the file.
            Err(EOPNOTSUPP) => Ok(()),
            other => check(other.map_or_else(|e| e.to_errno(), |()| 0)),
        }
    }

    fn punch(&self, pos: u64, len: u64) -> Result<(), Error> {
        let (pos, len) = (offset(pos)?, offset(len)?);
        // An error is ignored: the data is correct if space is not given back.
        // SAFETY: The file is valid.
        let _ = unsafe { c::cloop_file_punch(self.file.as_ptr(), pos, len) };
        Ok(())
    }

    fn truncate(&self, len: u64) -> Result<(), Error> {
        if self.fixed_size() {
            return Ok(());
        }
        let len = offset(len)?;
        // SAFETY: The file is valid.
        check(unsafe { c::cloop_file_truncate(self.file.as_ptr(), len) })
    }

    fn free_space(&self) -> Result<Option<u64>, Error> {
        if self.fixed_size() {
            return Ok(None);
        }
        let mut free = 0;
        // SAFETY: The file is valid, and the variable is writable.
        check(unsafe { c::cloop_file_free_space(self.file.as_ptr(), &raw mut free) })?;
        Ok(Some(free))
    }

    fn allocated(&self) -> Result<u64, Error> {
        if self.fixed_size() {
            return self.len();
        }
        self.stat()
            .map(|stat| stat.allocated)
            .map_err(|e| Error::Io(-e.to_errno()))
    }
}
