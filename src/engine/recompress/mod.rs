// SPDX-License-Identifier: GPL-2.0
//! Recompression: data that nobody has written for long is compressed again, with an algorithm that saves more and takes
//! longer, and neighbouring blocks that were written one by one become one record.
//!
//! A recompressed record is an ordinary record of the log with the contents that its blocks have at that place in the log, so
//! replay knows nothing of recompression, as it knows nothing of relocation. It is placed only if every entry of the blocks
//! is the one that led to the contents, and only if it saves space. So the live bytes shrink with each record, and the work
//! ends.
//!
//! A segment whose data has been through it, or that holds only results of it, is *marked*. Later passes look at the others
//! only, and write nothing once all are marked. What is written later lies in segments without a mark, and is looked at
//! together with its neighbours wherever those lie.
//!
//! - unit.rs compresses the blocks of one natural unit again;
//! - this file goes through the records of a segment;
//! - pass.rs has several threads go through all segments.

mod pass;
mod unit;

pub use self::pass::RecompressionPass;

use self::unit::Outcome;
use crate::engine::codec::Compression;
use crate::engine::format::{
    Entry, IncarnationId, Kind, RecordHeader, MAX_SPAN, RECORD_HEADER, SEGMENT_HEADER, UNIT,
};
use crate::engine::map::usage::State;
use crate::engine::space::SpaceClass;
use crate::engine::store::Store;
use crate::engine::workspace::Workspace;
use crate::engine::Result;
use crate::platform::mem::{Buf, Vec};
use crate::platform::{BackingFile, Platform, Sabotage};

/// How data is to be compressed again.
#[derive(Clone, Copy)]
pub(crate) struct Goal {
    /// The compression it gets.
    pub(crate) compression: Compression,
    /// What lies in segments of a lower sequence number is cold.
    pub(crate) cold_before: u64,
    /// The class of the space that the records take.
    pub(crate) class: SpaceClass,
}

/// How the work on a segment ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// There is nothing more to do in it.
    Done,
    /// The caller interrupted it.
    Interrupted,
}

/// How far the work on a segment has come.
#[derive(Clone, Copy)]
struct Position {
    index: u64,
    seed: u32,
    /// Offset of the next record.
    at: usize,
    /// The first block of the natural unit that was looked at last.
    unit: Option<u64>,
    /// Some data has to be looked at again later.
    later: bool,
}

/// Compresses data again, one segment after the other. It holds the memory that this takes.
pub(crate) struct Recompressor<P: Platform> {
    ws: Workspace<P>,
    /// The segment that is looked at.
    bytes: Buf,
    position: Option<Position>,
    /// The entries of the unit that is looked at, and the incarnations of their segments, before its blocks were read.
    found: Vec<(Entry, IncarnationId)>,
    /// Bytes of content that were compressed again.
    content: u64,
    /// Bytes of the records that came of it.
    appended: u64,
}

impl<P: Platform> Recompressor<P> {
    /// For the segments of `store`.
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`](crate::engine::Error::NoMemory).
    pub(crate) fn new(store: &Store<P>) -> Result<Self> {
        Ok(Self {
            ws: store.workspace()?,
            bytes: Buf::zeroed(store.layout.segment_size as usize)?,
            position: None,
            found: Vec::with_capacity(MAX_SPAN as usize)?,
            content: 0,
            appended: 0,
        })
    }

    /// Bytes of content that were compressed so far.
    pub(crate) fn content(&self) -> u64 {
        self.content
    }

    /// Bytes of the records that were placed so far.
    pub(crate) fn appended(&self) -> u64 {
        self.appended
    }

    /// Compresses the data of segment `index` again, and what belongs together with it. `go_on` is asked before each record.
    /// A call after one that was interrupted goes on where that one was.
    ///
    /// # Errors
    ///
    /// Those of the log and of memory. What is damaged or cannot be read stays as it is.
    pub(crate) fn segment(
        &mut self,
        store: &Store<P>,
        goal: &Goal,
        index: u64,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Ended> {
        let seed = match store.map.lock().segment(index) {
            Some(segment) if segment.state() == State::InUse => segment.seed(),
            _ => return Ok(Ended::Done),
        };
        let mut at = match self.position.take() {
            Some(at) if (at.index, at.seed) == (index, seed) => at,
            _ => match store
                .file
                .read_at(&mut self.bytes, store.layout.segment_offset(index))
            {
                Ok(()) => Position {
                    index,
                    seed,
                    at: SEGMENT_HEADER,
                    unit: None,
                    later: false,
                },
                Err(error) if error.is_damage() => return Ok(Ended::Done),
                Err(error) => return Err(error),
            },
        };
        if P::sabotaged(Sabotage::EarlyMark) {
            let mut map = store.map.lock();
            map.set_recompressed(index, seed, goal.compression);
        }
        while let Some((header, offset)) = next_data::<P>(&self.bytes, &mut at) {
            let blocks = store.layout.record_blocks();
            let unit = header.number - header.number % blocks;
            // Neighbouring blocks that were written one by one have one unit.
            if at.unit == Some(unit) || unit >= store.blocks() {
                continue;
            }
            if !go_on() {
                at.at = offset;
                self.position = Some(at);
                return Ok(Ended::Interrupted);
            }
            let address = store.layout.segment_offset(index) + offset as u64;
            match self.unit(store, goal, unit, address)? {
                Outcome::Done => {}
                Outcome::Later => at.later = true,
            }
            at.unit = Some(unit);
        }
        if !at.later {
            let mut map = store.map.lock();
            map.set_recompressed(index, seed, goal.compression);
        }
        Ok(Ended::Done)
    }
}

/// The next data record of a segment, and its offset. What is no record is passed over, as a hole or damage.
fn next_data<P: Platform>(bytes: &[u8], at: &mut Position) -> Option<(RecordHeader, usize)> {
    while at.at + RECORD_HEADER <= bytes.len() {
        let offset = at.at;
        let Some((header, _)) = RecordHeader::decode::<P>(&bytes[offset..], at.seed, offset as u32)
        else {
            at.at += UNIT;
            continue;
        };
        at.at += header.units() as usize * UNIT;
        match header.kind {
            Kind::Data => return Some((header, offset)),
            Kind::Link => at.at = bytes.len(),
            _ => {}
        }
    }
    None
}
