// SPDX-License-Identifier: GPL-2.0
//! What can go wrong, in terms a front end can turn into an errno, a block status or a sentence.

use core::fmt;

/// An engine error. Small and `Copy`, so that it can be kept as the sticky error of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The backing file reported an I/O error; the value is the positive errno, 0 if unknown.
    Io(i32),
    /// The backing file system or device is full; nothing of the failed operation was acknowledged.
    NoSpace,
    /// An allocation failed.
    NoMemory,
    /// The volume is read-only, by choice or after an error that made writing unsafe.
    ReadOnly,
    /// The volume has been closed.
    Closed,
    /// Blocks that a smaller device would not have are mapped.
    InUse,
    /// The range lies beyond the end of the device, or a parameter is out of its domain.
    Invalid(&'static str),
    /// Not a cloop image: no superblock magic in either copy.
    NotAnImage,
    /// The image needs a newer format version than this software knows.
    Version(u32),
    /// The image uses an incompatible feature (bit mask of the unknown ones).
    Feature(u64),
    /// The program that makes the image has not finished it, or was interrupted.
    Incomplete,
    /// The superblocks on the backing file are not those that this volume read or wrote: something else writes to the
    /// image as well.
    Foreign,
    /// A structure or record failed its checks.
    Corrupt {
        /// Which structure.
        what: &'static str,
        /// Byte offset in the image, as near as known.
        offset: u64,
    },
}

/// The engine's result.
pub type Result<T = (), E = Error> = core::result::Result<T, E>;

impl Error {
    /// True if the operation may succeed when it is tried again later: memory or space was short at that moment, or the
    /// operation was interrupted. An error of the medium is none of these.
    pub fn is_transient(self) -> bool {
        const EINTR: i32 = 4;
        const EAGAIN: i32 = 11;
        matches!(
            self,
            Self::NoSpace | Self::NoMemory | Self::Io(EINTR | EAGAIN)
        )
    }

    /// Whether bytes of the image are damaged or cannot be read. Other parts of the image may be whole.
    pub(crate) fn is_damage(self) -> bool {
        matches!(self, Self::Corrupt { .. } | Self::Io(_))
    }

    /// The positive Linux errno that says the same.
    pub fn errno(self) -> i32 {
        match self {
            Self::Io(0) => 5,
            Self::Io(errno) => errno,
            Self::NoSpace => 28,
            Self::NoMemory => 12,
            Self::ReadOnly => 30,
            Self::Closed => 6,
            Self::InUse => 16,
            Self::Invalid(_) => 22,
            // EMEDIUMTYPE: "wrong medium type", as a drive says of a disk it cannot read.
            Self::NotAnImage => 124,
            // EOPNOTSUPP.
            Self::Version(_) | Self::Feature(_) => 95,
            // ENODATA: the image is whole, but not all of its data is there.
            Self::Incomplete => 61,
            // ESTALE: the image is not the one that was opened.
            Self::Foreign => 116,
            // EUCLEAN: "structure needs cleaning", as ext4 and XFS report damaged metadata.
            Self::Corrupt { .. } => 117,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Io(errno) => write!(f, "I/O error on the backing file (errno {errno})"),
            Self::NoSpace => f.write_str("no space left for the image"),
            Self::NoMemory => f.write_str("out of memory"),
            Self::ReadOnly => f.write_str("the volume is read-only"),
            Self::Closed => f.write_str("the volume is closed"),
            Self::InUse => f.write_str("there is data beyond the new end of the device"),
            Self::Invalid(what) => write!(f, "invalid {what}"),
            Self::NotAnImage => f.write_str("not a cloop image"),
            Self::Version(v) => write!(f, "format version {v} is newer than this software knows"),
            Self::Feature(bits) => write!(f, "unknown incompatible features {bits:#x}"),
            Self::Incomplete => {
                f.write_str("the image is incomplete: its maker was interrupted or still works")
            }
            Self::Foreign => f.write_str("something else has written to the image meanwhile"),
            Self::Corrupt { what, offset } => {
                write!(f, "damaged {what} at byte {offset} of the image")
            }
        }
    }
}

impl core::error::Error for Error {}
