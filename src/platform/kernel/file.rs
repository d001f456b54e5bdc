// SPDX-License-Identifier: GPL-2.0
//! The file or block device that holds an image.

use crate::c;
use crate::engine::Error;
use crate::platform::BackingFile;
use kernel::error::code::*;
use kernel::error::to_result;
use kernel::fs::{File, LocalFile};
use kernel::prelude::*;
use kernel::sync::aref::ARef;

/// An open file that the kernel reads and writes on behalf of a device.
///
/// Cycles (an image that lies, through however many devices and file systems, on its own device)
/// cannot come up here. Unlike loop's, a device of ours does not exist before its backing file is
/// chosen, and the file never changes afterwards; whatever a file lies on when it is attached is
/// older than the device that the attach makes. What is attached twice is refused by [`registry`].
///
/// [`registry`]: crate::registry
///
/// # Invariants
///
/// - `file` passed `cloop_file_check`, for writing if `write` is set.
/// - While a value exists, the mapping of `file` allocates without `__GFP_IO` and `__GFP_FS`; `gfp`
///   is what it allocated with before.
pub(crate) struct KernelFile {
    file: ARef<File>,
    direct: bool,
    write: bool,
    gfp: c::gfp_t,
}

/// What distinguishes the data of two files, whatever their paths: the address of the inode. Good
/// as long as one of the files is held open.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity(usize);

/// What `stat(2)` says of the backing file.
pub(crate) struct Stat {
    pub(crate) allocated: u64,
    pub(crate) dev: u64,
    pub(crate) ino: u64,
}

/// Takes the file behind a descriptor of the current process, if it can hold an image.
///
/// To be called from an ioctl or another system call that does not use the file position.
pub(crate) fn file_of(fd: i32, write: bool) -> Result<ARef<File>> {
    let file = LocalFile::fget(fd.try_into().map_err(|_| EBADF)?)?;
    // SAFETY: By the requirement of this function, there is no `fdget_pos` on this thread.
    let file = unsafe { LocalFile::assume_no_fdget_pos(file) };
    // SAFETY: `file` is a valid open file.
    to_result(unsafe { c::cloop_file_check(file.as_ptr(), write) })?;
    Ok(file)
}

/// What the data of `file` is known by.
pub(crate) fn identity(file: &File) -> Identity {
    // SAFETY: An open file has a mapping, which stays the same; that of a regular file or a block
    // device has a host.
    Identity(unsafe { (*(*file.as_ptr()).f_mapping).host } as usize)
}

impl KernelFile {
    /// Prepares a file for use below a block device.
    pub(crate) fn new(file: ARef<File>, write: bool) -> Result<Self> {
        // SAFETY: `file` is a valid open file, as in all calls below.
        to_result(unsafe { c::cloop_file_check(file.as_ptr(), write) })?;
        // SAFETY: As above.
        let direct = unsafe { c::cloop_file_can_direct(file.as_ptr()) };
        // SAFETY: As above.
        let gfp = unsafe { c::cloop_file_restrict_gfp(file.as_ptr()) };
        // INVARIANT: The file has been checked, its mapping restricted; `drop` undoes that.
        Ok(Self {
            file,
            direct,
            write,
            gfp,
        })
    }

    /// The C object.
    pub(crate) fn as_ptr(&self) -> *mut c::file {
        self.file.as_ptr()
    }

    /// Whether the page cache is bypassed.
    pub(crate) fn direct(&self) -> bool {
        self.direct
    }

    /// Writes the path of the file, as the current process sees it, into `buf`; `None` when it is
    /// longer than that.
    pub(crate) fn path<'a>(&self, buf: &'a mut [u8]) -> Option<&'a CStr> {
        // SAFETY: The file is valid, and `buf` writable for its length.
        let path = unsafe {
            c::file_path(
                self.file.as_ptr(),
                buf.as_mut_ptr().cast(),
                buf.len().try_into().ok()?,
            )
        };
        // The path is put at the end of the buffer, and errors are pointers outside of it.
        let start = (path as usize).checked_sub(buf.as_ptr() as usize)?;
        CStr::from_bytes_until_nul(buf.get(start..)?).ok()
    }

    /// What `stat(2)` says.
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
        // SAFETY: The file is valid; by the type invariant, `gfp` was its mask.
        unsafe { c::cloop_file_restore_gfp(self.file.as_ptr(), self.gfp) };
    }
}

/// A negative errno as an error of the engine.
fn check(ret: c_int) -> Result<(), Error> {
    match to_result(ret) {
        Ok(()) => Ok(()),
        Err(ENOSPC | EDQUOT) => Err(Error::NoSpace),
        Err(ENOMEM) => Err(Error::NoMemory),
        Err(e) => Err(Error::Io(-e.to_errno())),
    }
}

/// Offsets are signed in the kernel.
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
        if !self.write {
            return Err(Error::ReadOnly);
        }
        // SAFETY: By the type invariant, the file can be written; `buf` is readable for its length,
        // and a write only reads from it.
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
        // There is nothing to make durable, and perhaps no operation for it.
        if !self.write {
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
            // A file system that cannot reserve; writing will extend the file.
            Err(EOPNOTSUPP) => Ok(()),
            other => check(other.map_or_else(|e| e.to_errno(), |()| 0)),
        }
    }

    fn punch(&self, pos: u64, len: u64) -> Result<(), Error> {
        let (pos, len) = (offset(pos)?, offset(len)?);
        // Best effort: space that cannot be given back is only space.
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

    fn allocated(&self) -> Result<u64, Error> {
        if self.fixed_size() {
            return self.len();
        }
        self.stat()
            .map(|stat| stat.allocated)
            .map_err(|e| Error::Io(-e.to_errno()))
    }
}
