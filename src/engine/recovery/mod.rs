// SPDX-License-Identifier: GPL-2.0
//! From the bytes of a file to a volume: creating and opening an image, checking and repairing one.
//!
//! - [`create`]: a new image;
//! - [`superblocks`], [`usage`], [`replay`], [`open`]: the steps of an opening;
//! - [`check`]: verification of every structure and record, without writing anything;
//! - [`repair`]: putting a damaged image together again.

pub mod check;
pub(crate) mod create;
pub(crate) mod open;
pub mod repair;
mod replay;
pub(crate) mod superblocks;
mod usage;

use crate::engine::format::{RecordHeader, BLOCK_SIZE, UNIT};
use crate::engine::{Error, Result};
use crate::platform::{BackingFile, Platform};
use core::ops::Range;

/// Reads bytes of a file that may have bad sectors: those become zeros. Returns the range of `buf` that holds all of
/// them, empty if there is none.
///
/// # Errors
///
/// Those of the backing file other than [`Error::Io`].
fn read_around<P: Platform>(file: &P::File, buf: &mut [u8], offset: u64) -> Result<Range<usize>> {
    match file.read_at(buf, offset) {
        Err(Error::Io(_)) => {}
        read => return read.map(|()| 0..0),
    }
    let mut bad = 0..0;
    for (at, sector) in (0..).step_by(BLOCK_SIZE).zip(buf.chunks_mut(BLOCK_SIZE)) {
        match file.read_at(sector, offset + at as u64) {
            Err(Error::Io(_)) => {
                sector.fill(0);
                let first = if bad.is_empty() { at } else { bad.start };
                bad = first..at + BLOCK_SIZE;
            }
            read => read?,
        }
    }
    Ok(bad)
}

/// Whether the log seems to end at `offset` of a segment with these bytes only because what follows could not be read.
/// `bad` is the part that could not be read. A sector that cannot be read does not prove that the log ends.
fn ends_unread<P: Platform>(bytes: &[u8], offset: u32, bad: &Range<usize>) -> bool {
    let at = offset as usize;
    let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) else {
        return false;
    };
    // If the header can be read, it says how far its record reaches.
    let units = RecordHeader::measure::<P>(rest, offset).map_or(1, |(h, _)| h.units());
    !bad.is_empty() && at < bad.end && bad.start < at + units as usize * UNIT
}
