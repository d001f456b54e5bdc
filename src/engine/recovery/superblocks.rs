// SPDX-License-Identifier: GPL-2.0
//! Reading the two superblocks of an image.

use super::read_around;
use crate::engine::checkpoint::SlotIdentity;
use crate::engine::format::{
    corrupt, Fingerprints, Layout, SegmentHeader, Superblock, BLOCK_SIZE, SUPERBLOCK_OFFSETS,
};
use crate::engine::{Error, Result};
use crate::platform::mem::{boxed, Box, Buf};
use crate::platform::{BackingFile, Platform, Sabotage};

/// The valid superblocks of an image, which belong together.
pub(crate) struct Superblocks {
    /// The one of the higher generation.
    pub(crate) newest: Superblock,
    /// The other one, if it is valid as well.
    pub(crate) older: Option<Superblock>,
    /// What is known about superblocks newer than these.
    pub(crate) standing: Standing,
}

/// What is known about superblocks newer than the newest valid one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// There was none, or the log that follows this one leads to the same state: no damage to the superblocks goes on
    /// into the log.
    Sure,
    /// A newer one may be lost, and log that it led to as well.
    Doubtful,
}

impl Standing {
    /// How the newest of these valid superblocks stands, newest first. While one slot was written, the other one held
    /// the generation before (I10). So two such superblocks are all that there was. Otherwise a slot was damaged, and the
    /// damage may go on as far as the log. It does not if the header of segment 0 is whole, which is never given back.
    ///
    /// # Errors
    ///
    /// Those of the backing file other than [`Error::Io`].
    pub(crate) fn of<P: Platform>(
        file: &P::File,
        layout: &Layout,
        valid: [Option<&Superblock>; 2],
        page: &mut Buf,
    ) -> Result<Self> {
        let pair = matches!(valid, [Some(a), Some(b)] if a.generation == b.generation + 1);
        if pair || P::sabotaged(Sabotage::TrustLeft) {
            return Ok(Self::Sure);
        }
        read_around::<P>(file, &mut page[..BLOCK_SIZE], layout.segment_offset(0))?;
        Ok(match SegmentHeader::of_segment::<P>(page, layout, 0) {
            Some(_) => Self::Sure,
            None => Self::Doubtful,
        })
    }
}

impl Superblocks {
    /// The identities of the superblocks in the two slots, as far as they are known.
    pub(crate) fn slots(&self) -> [Option<SlotIdentity>; 2] {
        let mut slots = [None; 2];
        for superblock in [Some(&self.newest), self.older.as_ref()]
            .into_iter()
            .flatten()
        {
            slots[superblock.slot()] = Some(SlotIdentity::of(superblock));
        }
        slots
    }

    /// Whether there may be records that are compressed with Zstandard.
    pub(crate) fn zstd(&self) -> bool {
        self.newest.zstd || self.older.is_some_and(|older| older.zstd)
    }

    /// Whether segments may be marked as recompressed.
    pub(crate) fn marks(&self) -> bool {
        self.newest.marks || self.older.is_some_and(|older| older.marks)
    }

    /// The length in bytes that the file has at least, as either superblock says.
    pub(crate) fn length(&self) -> u64 {
        let older = self.older.map_or(0, |older| older.length);
        older.max(self.newest.length)
    }
}

/// Reads and checks the superblock in one slot.
///
/// # Errors
///
/// Those of [`Superblock::decode`] and of the backing file.
pub(crate) fn read_slot<P: Platform>(
    file: &P::File,
    slot: usize,
    page: &mut Buf,
) -> Result<Superblock> {
    let offset = SUPERBLOCK_OFFSETS[slot];
    file.read_at(&mut page[..BLOCK_SIZE], offset)?;
    Superblock::decode::<P>(&mut page[..BLOCK_SIZE], offset)
}

/// The fingerprints that are stored with a superblock. None are known if its slot cannot be read or holds another one.
///
/// # Errors
///
/// [`Error::NoMemory`].
pub(crate) fn read_fingerprints<P: Platform>(
    file: &P::File,
    superblock: &Superblock,
    page: &mut Buf,
) -> Result<Fingerprints> {
    if read_slot::<P>(file, superblock.slot(), page).as_ref() != Ok(superblock) {
        page.fill(0);
    }
    Fingerprints::decode::<P>(page, superblock)
}

/// Reads both slots.
///
/// # Errors
///
/// Neither slot has a valid superblock; the two belong to different images; or newer software wrote either of
/// them, which only that software can judge.
pub(crate) fn read_superblocks<P: Platform>(
    file: &P::File,
    page: &mut Buf,
) -> Result<Box<Superblocks>> {
    let first = read_slot::<P>(file, 0, page);
    let second = read_slot::<P>(file, 1, page);
    for slot in [&first, &second] {
        if let Err(error @ (Error::Version(_) | Error::Feature(_))) = slot {
            return Err(*error);
        }
    }
    let (newest, older) = match (first, second) {
        (Ok(a), Ok(b)) if a.layout != b.layout => {
            return corrupt(
                "superblock: the two copies belong to different images",
                SUPERBLOCK_OFFSETS[1],
            )
        }
        (Ok(a), Ok(b)) if a.generation > b.generation => (a, Some(b)),
        (Ok(a), Ok(b)) => (b, Some(a)),
        (Ok(only), Err(_)) | (Err(_), Ok(only)) => (only, None),
        (Err(Error::NotAnImage), Err(error)) | (Err(error), Err(_)) => return Err(error),
    };
    let valid = [Some(&newest), older.as_ref()];
    let standing = Standing::of::<P>(file, &newest.layout, valid, page)?;
    boxed(Superblocks {
        newest,
        older,
        standing,
    })
}
