// SPDX-License-Identifier: GPL-2.0
//! Reclaim: empties segments that hold little that is live by relocating it to the head of the log.
//!
//! A relocated record is an ordinary record of the log with the same contents, so replay knows nothing of
//! relocation. It is appended only if the sector table still points to the old record when the log's lock is
//! held (otherwise it would undo a newer write), and in pieces that cover only blocks that were live in the old
//! record, and holes. Once two checkpoints have found the segment dead it is free, as any other.
//!
//! What is damaged or cannot be read holds up nothing but itself: the records around it are relocated, and its segment is
//! set aside ([`State::Stuck`](crate::engine::map::usage::State::Stuck)) and looked at again later.
//!
//! - policy.rs chooses the segments;
//! - live.rs tells which records are live;
//! - relocate.rs appends them again;
//! - punch.rs punches dead ranges of segments that stay in use;
//! - make_space.rs finds space for writers that wait;
//! - compact.rs shrinks the image on request;
//! - again.rs has cold data compressed again, whose records then lie elsewhere.

mod again;
mod compact;
mod live;
mod make_space;
mod policy;
mod punch;
mod relocate;

pub(crate) use self::compact::compact;
pub(crate) use self::policy::{busy_garbage, idle_garbage, Effort};

use self::again::Again;
use self::policy::{score, victims};
use crate::engine::checkpoint::{CheckpointKind, CheckpointState};
use crate::engine::format::{SegmentHeader, BLOCK_SIZE};
use crate::engine::freeing;
use crate::engine::log::DurableLog;
use crate::engine::map::reaper::{Progress, Reaper};
use crate::engine::space::{Demand, SpaceClass, Surplus};
use crate::engine::store::Store;
use crate::engine::{Error, Result};
use crate::platform::mem::{boxed, Box, Buf, Vec};
use crate::platform::{BackingFile, Platform};

/// Nodes of detached subtrees that the reaper looks at in one go.
const REAP_BATCH: usize = 64;

/// The maintenance of an open image, under [`Rank::Checkpoint`](crate::platform::Rank::Checkpoint): its checkpoints, its
/// reaper, and reclaim.
pub(crate) struct Maintenance<P: Platform> {
    checkpoint: Box<CheckpointState<P>>,
    reaper: Reaper,
    /// Memory for the segment being emptied, allocated with the first one. It stays until the device is idle, because
    /// writers may wait for the next one.
    segment: Option<Buf>,
    /// Segments chosen to be emptied beside users' writes or for writers that wait, the best one last.
    victims: Vec<u64>,
    /// For what they were chosen.
    chosen_for: Effort,
    /// Bytes that the backing file gives back together at least, as far as that is known.
    punch_unit: usize,
    /// Bytes of garbage in the segments that were emptied.
    gained: u64,
    again: Again<P>,
}

/// The maintenance of an open image with its lock. It is in a box, so that no stack frame of an opening holds it.
pub(crate) type SharedMaintenance<P> = <P as Platform>::Monitor<Box<Maintenance<P>>>;

impl<P: Platform> Maintenance<P> {
    /// Goes on after the checkpoint that `checkpoint` tells of.
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`].
    // A stack frame of its own: opening an image has many.
    #[inline(never)]
    pub(crate) fn new(checkpoint: Box<CheckpointState<P>>) -> Result<Box<Self>> {
        let reaper = Reaper::new(checkpoint.superblock().detached);
        boxed(Self {
            checkpoint,
            reaper,
            segment: None,
            victims: Vec::new(),
            chosen_for: Effort::Busy,
            punch_unit: BLOCK_SIZE,
            gained: 0,
            again: Again::default(),
        })
    }

    /// Bytes of scratch memory.
    pub(crate) fn memory(&self) -> u64 {
        self.checkpoint.memory()
    }

    /// Gives back the memory for a segment. The next segment to be emptied allocates it again.
    pub(crate) fn give_back_memory(&mut self) {
        self.segment = None;
        self.again.give_back_memory();
    }

    /// The state of checkpoints.
    pub(crate) fn checkpoint_state(&self) -> &CheckpointState<P> {
        &self.checkpoint
    }

    /// The state of checkpoints, to commit a superblock without writing a whole checkpoint.
    pub(crate) fn checkpoint_state_mut(&mut self) -> &mut CheckpointState<P> {
        &mut self.checkpoint
    }

    /// How long the image is according to the superblock last written, in bytes.
    pub(crate) fn image_length(&self) -> u64 {
        self.checkpoint.superblock().length
    }

    /// Writes a checkpoint.
    ///
    /// # Errors
    ///
    /// Those of [`CheckpointState::write`].
    pub(crate) fn checkpoint(
        &mut self,
        store: &Store<P>,
        kind: CheckpointKind,
    ) -> Result<DurableLog> {
        self.checkpoint
            .write(store, kind, self.reaper.may_have_missed())
    }

    /// Writes two checkpoints, after which the segments that are dead now are free.
    ///
    /// # Errors
    ///
    /// Those of [`checkpoint`](Self::checkpoint).
    pub(crate) fn free_dead(&mut self, store: &Store<P>) -> Result {
        self.checkpoint(store, CheckpointKind::Running)?;
        self.checkpoint(store, CheckpointKind::Running)?;
        Ok(())
    }

    /// Gives back in one call what free segments hold beside what the log is going to use, and cuts off the end of the image
    /// once nothing more is to be given back. False if there was nothing.
    pub(crate) fn deallocate(&mut self, store: &Store<P>, demand: Demand) -> bool {
        let some = store.log.deallocate_surplus(&store.file, demand);
        if some && store.log.lock().space.surplus(demand) == Surplus::Nothing {
            freeing::truncate_free_end(store, self.checkpoint.least_length());
        }
        some
    }

    /// Gives back all that free segments hold.
    pub(super) fn deallocate_all(&mut self, store: &Store<P>) {
        store.log.shrink_reserve();
        while self.deallocate(store, Demand::Idle) {}
    }

    /// Takes some nodes of detached subtrees off the counts.
    pub(crate) fn reap(&mut self, store: &Store<P>) -> Result<Progress> {
        let ws = self.checkpoint.workspace();
        self.reaper.reap(&store.loader(), &mut ws.read, REAP_BATCH)
    }

    /// Empties up to `limit` segments as long as `go_on` says so; returns how many.
    ///
    /// # Errors
    ///
    /// Those of the log. Running out of what reclaim may use just ends the batch.
    pub(crate) fn empty_segments(
        &mut self,
        store: &Store<P>,
        effort: Effort,
        limit: usize,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<usize> {
        // Where few are emptied at a time, a look at all segments for each of them would take longer than emptying it.
        // But where writers wait, on a full file system, what was chosen before may be full of live records by now: to
        // empty such a segment takes from the reserve and gives nothing.
        let kept = matches!(effort, Effort::Busy | Effort::Ahead);
        let mut chosen = match kept && self.chosen_for == effort {
            true => core::mem::take(&mut self.victims),
            false => Vec::new(),
        };
        let mut looked = false;
        let mut emptied = 0;
        while emptied < limit && go_on() {
            let Some(index) = chosen.pop() else {
                if looked || emptied > 0 {
                    break;
                }
                chosen = victims(store, effort)?;
                looked = true;
                continue;
            };
            // The segment may have changed since it was chosen.
            let garbage = {
                let log = store.log.lock();
                let map = store.map.lock();
                let worth = score(&store.layout, &log, &map, index, effort).is_some();
                let segment = map.segment(index).filter(|_| worth);
                segment.map(|segment| segment.garbage(&store.layout))
            };
            let Some(garbage) = garbage else { continue };
            match self.empty_segment(store, index, effort) {
                Ok(()) => {
                    emptied += 1;
                    self.gained += garbage;
                }
                Err(Error::NoSpace) => break,
                Err(error) => return Err(error),
            }
        }
        if kept {
            (self.victims, self.chosen_for) = (chosen, effort);
        }
        Ok(emptied)
    }

    /// Relocates all live records of a segment, or punches its dead ranges where that is as good. A damaged record stays,
    /// and the segment with it. If something that it needs is damaged the segment is set aside.
    fn empty_segment(&mut self, store: &Store<P>, index: u64, effort: Effort) -> Result {
        let seed = match store.map.lock().segment(index) {
            Some(segment) if !segment.is_free() => segment.seed(),
            _ => return Ok(()),
        };
        let mut bytes = match self.segment.take() {
            Some(bytes) => bytes,
            None => Buf::zeroed(store.layout.segment_size as usize)?,
        };
        let emptied = self.empty_bytes(store, &mut bytes, index, seed, effort);
        self.segment = Some(bytes);
        match emptied {
            Ok(Emptied::InPlace) => {}
            Ok(Emptied::ByMoving) => store.map.lock().set_relocated(index, seed),
            Ok(Emptied::Partly) => store.map.lock().set_aside(index, seed),
            Err(error) if error.is_damage() => {
                // Unless it is the log that has stopped.
                store.log.lock().check()?;
                store.map.lock().set_aside(index, seed);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// As [`empty_segment`](Self::empty_segment), with memory for the segment.
    fn empty_bytes(
        &mut self,
        store: &Store<P>,
        bytes: &mut [u8],
        index: u64,
        seed: u32,
        effort: Effort,
    ) -> Result<Emptied> {
        let base = store.layout.segment_offset(index);
        let read = read_around::<P>(&store.file, bytes, base)?;
        match SegmentHeader::of_segment::<P>(bytes, &store.layout, index) {
            Some(header) if header.seed::<P>() == seed => {}
            _ if read == ReadSectors::All => return Ok(Emptied::ByMoving),
            // Its header cannot be read, and each record names the incarnation by itself.
            _ => {}
        }
        // What cannot be read may be live.
        let may_punch = matches!(effort, Effort::Busy | Effort::Idle) && read == ReadSectors::All;
        if may_punch && self.punch_segment(store, index, bytes, seed)? {
            return Ok(Emptied::InPlace);
        }
        let class = relocation_class(store, index, effort)?;
        self.relocate_records(store, bytes, base, seed, class)?;
        Ok(match read {
            ReadSectors::All => Emptied::ByMoving,
            ReadSectors::Some => Emptied::Partly,
        })
    }
}

/// Which sectors of a segment were read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ReadSectors {
    All,
    /// Those that could not be read are zeros in memory.
    Some,
}

/// Reads the segment at byte `base` of the image, around sectors that cannot be read.
fn read_around<P: Platform>(file: &P::File, bytes: &mut [u8], base: u64) -> Result<ReadSectors> {
    match file.read_at(bytes, base) {
        Ok(()) => return Ok(ReadSectors::All),
        Err(error) if error.is_damage() => {}
        Err(error) => return Err(error),
    }
    let mut read = ReadSectors::All;
    for (offset, sector) in (base..)
        .step_by(BLOCK_SIZE)
        .zip(bytes.chunks_exact_mut(BLOCK_SIZE))
    {
        match file.read_at(sector, offset) {
            Ok(()) => {}
            Err(error) if error.is_damage() => {
                sector.fill(0);
                read = ReadSectors::Some;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}

/// How a segment was emptied.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Emptied {
    /// Its dead ranges were punched, and its live records stay.
    InPlace,
    /// Its live records were relocated, as far as they are whole.
    ByMoving,
    /// As `ByMoving`, but sectors of it could not be read.
    Partly,
}

/// The space class under which live records of segment `index` are relocated.
fn relocation_class<P: Platform>(
    store: &Store<P>,
    index: u64,
    effort: Effort,
) -> Result<SpaceClass> {
    // No writer waits for it, so it may not use what is left to discards.
    if effort == Effort::Ahead {
        return Ok(SpaceClass::ReclaimUnbacked);
    }
    if !store.log.backing_full(&store.file)? {
        return Ok(SpaceClass::Reclaim);
    }
    // With all its space allocated the segment is not lost to other files when it is free.
    if effort == Effort::Urgent && store.log.allocate_punched(&store.file, index)? {
        return Ok(SpaceClass::Reclaim);
    }
    Ok(SpaceClass::ReclaimUnbacked)
}
