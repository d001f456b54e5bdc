// SPDX-License-Identifier: GPL-2.0
//! Space: which segments are free, how many the log keeps in reserve, and for whom.
//!
//! Space is reserved before a write is acknowledged (promise P2), and on a full backing file system the
//! operations that give space back must still find some: a discard takes its place in the log, reclaim
//! moves what is live, and a checkpoint makes it count. So the log reserves segments ahead, and each
//! [`SpaceClass`] has to leave a part of them to those that depend on it less than it does.

//! - class.rs: the classes, and the table of what each leaves;
//! - cost.rs: what the next checkpoints need;
//! - allocator.rs: which segments of the image are free;
//! - queue.rs: those who wait for space, in order;
//! - watermark.rs: whether space runs low;
//! - pace.rs: how much reclaim has to gain before writers wait for it;
//! - [`Space`], here: the reserve, and the state of the space.

mod allocator;
mod class;
mod cost;
mod pace;
mod queue;
mod watermark;

pub(crate) use self::allocator::{Allocator, MAX_UNCOVERED};
pub(crate) use self::class::SpaceClass;
pub(crate) use self::cost::CheckpointCost;
pub(crate) use self::queue::{Answer, Supply, Verdict};
pub(crate) use self::watermark::Watermark;

use self::class::for_metadata;
use self::pace::Pace;
use self::queue::Queue;
use crate::engine::format::{DeviceSize, Layout};
use crate::engine::{Error, Result};
use crate::platform::mem::Vec;

/// Segments that users may fill after an open under a metadata class, until they first flush: a file system replays its
/// journal through the page cache of the device, which does not set REQ_META.
const JOURNAL_REPLAY: u64 = 16;
/// Segments after an open that always count as metadata: after replaying its journal, ext4 writes its superblock without
/// REQ_META.
const POST_MOUNT: u64 = 2;

/// The most segments that stay allocated while users write after they became free, beside those the reserve needs. There are
/// never more than an eighth of those in use.
const WARM: u64 = 32;
/// Segments left to users below which reclaim works beside their writes, whatever the garbage.
const LOW: u64 = 16;

/// Segments below the bound on the image's size that are left to checkpoints.
const BELOW_BOUND: u64 = 3;

/// Who may change which space of the backing file is allocated behind the segments in use.
#[derive(Clone, Copy, PartialEq, Eq)]
enum FileEnd {
    /// Any thread.
    Free,
    /// The one thread that reserves a segment, or cuts the file.
    Held,
}

/// The space of an image, under [`Rank::Log`](crate::platform::Rank::Log).
///
/// A segment is *free*; it is taken and its space allocated: it is *reserved*; the log has it as its *next* and then its
/// *current* segment; then it is *in use*, until it is dead, released and free again. This structure knows the free and
/// the reserved ones.
pub(crate) struct Space {
    allocator: Allocator,
    /// Segments with their space, for the log to use.
    reserve: Vec<u64>,
    file_end: FileEnd,
    queue: Queue,
    pace: Pace,
    /// The backing file system had no space when it was last asked for a segment.
    backing_full: bool,
    /// The last write that needed space found none.
    refused: bool,
    size: DeviceSize,
    layout: Layout,
}

/// The free segments, and what is known of them.
impl Space {
    /// The space of an image with a device of this size, without a reserve.
    ///
    /// # Errors
    ///
    /// Those of memory.
    pub(crate) fn new(allocator: Allocator, layout: Layout, size: DeviceSize) -> Result<Self> {
        Ok(Self {
            allocator,
            reserve: Vec::new(),
            file_end: FileEnd::Free,
            queue: Queue::new()?,
            pace: Pace::default(),
            backing_full: false,
            refused: false,
            size,
            layout,
        })
    }

    /// Number of segments of the image, the free ones included.
    pub(crate) fn segments(&self) -> u64 {
        self.allocator.count()
    }

    /// Number of segments that are not free.
    pub(crate) fn in_use(&self) -> u64 {
        self.allocator.in_use()
    }

    /// Number of free segments.
    pub(crate) fn free(&self) -> u64 {
        self.allocator.free()
    }

    /// Takes the lowest free segment, or a new one.
    ///
    /// # Errors
    ///
    /// [`Error::NoSpace`] when the image has as many segments as it can have, and those of
    /// memory.
    pub(crate) fn take(&mut self) -> Result<u64> {
        let taken = self.allocator.take(self.layout.max_segments())?;
        taken.ok_or(Error::NoSpace)
    }

    /// Makes room in memory to note that any segment of the image is free. For opening only.
    ///
    /// # Errors
    ///
    /// Those of memory.
    pub(crate) fn make_room(&mut self) -> Result {
        self.allocator.make_room()
    }

    /// Makes segment `index` free.
    pub(crate) fn release(&mut self, index: u64) {
        self.allocator.release(index);
    }

    /// Enlarges the image to segment `index`, which is in use.
    pub(crate) fn extend_to(&mut self, index: u64) {
        self.allocator.extend(index + 1);
    }

    /// Forgets the free segments at the end of the image, and returns how many segments are left.
    pub(crate) fn shrink(&mut self) -> u64 {
        self.allocator.shrink();
        self.allocator.count()
    }

    /// Notes that the stored segment usage covers `segments` segments.
    pub(crate) fn cover(&mut self, segments: u64) {
        self.allocator.cover(segments);
    }

    /// Notes the size of the device, which bounds the size of the image.
    pub(crate) fn resize(&mut self, size: DeviceSize) {
        self.size = size;
    }

    /// Bytes the image may take, but for checkpoints: the bound on its size less what those may take at that moment.
    pub(crate) fn bound(&self) -> u64 {
        let checkpoints = BELOW_BOUND * u64::from(self.layout.segment_size);
        self.size.image_bound().saturating_sub(checkpoints)
    }

    /// Bytes the image can take until it is at its bound, if it takes all of its segments. It may take less.
    pub(crate) fn below_bound(&self) -> u64 {
        let taken = self.layout.segment_offset(self.in_use());
        self.bound().saturating_sub(taken)
    }

    /// True if the image is so near to its bound that what it really takes matters.
    pub(crate) fn near_bound(&self) -> bool {
        self.below_bound() < LOW * u64::from(self.layout.segment_size)
    }
}

/// The reserve.
impl Space {
    /// Number of segments in the reserve.
    pub(crate) fn reserved(&self) -> u64 {
        self.reserve.len() as u64
    }

    /// The segments in the reserve.
    pub(crate) fn reserve(&self) -> impl Iterator<Item = u64> + Clone + '_ {
        self.reserve.iter().copied()
    }

    /// Puts segment `index`, whose space is allocated, into the reserve.
    ///
    /// # Errors
    ///
    /// Those of memory. The segment is free then.
    pub(crate) fn add_to_reserve(&mut self, index: u64) -> Result {
        let added = self.reserve.push(index);
        if added.is_err() {
            self.release(index);
        }
        added
    }

    /// Segments that the reserve keeps beside those it needs, because they will be used again soon. Their space need not be
    /// given back and asked for again, and writing to it changes nothing in the file system. On a full file system others
    /// may need it more.
    pub(crate) fn warm(&self) -> u64 {
        match self.backing_full {
            true => 0,
            false => WARM.min(self.in_use() / 8),
        }
    }

    /// Takes the reserved segment nearest to the beginning of the image.
    pub(crate) fn take_nearest(&mut self) -> Option<u64> {
        let indices = self.reserve.iter().enumerate();
        let (at, _) = indices.min_by_key(|(_, &index)| index)?;
        self.reserve.remove(at)
    }

    /// Takes the reserved segment farthest from the beginning of the image.
    pub(crate) fn take_farthest(&mut self) -> Option<u64> {
        let indices = self.reserve.iter().enumerate();
        let (at, _) = indices.max_by_key(|(_, &index)| index)?;
        self.reserve.remove(at)
    }

    /// Takes a free segment that lies nearer to the beginning of the image than one in the reserve, if there is one.
    pub(crate) fn take_nearer(&mut self) -> Option<u64> {
        let farthest = self.reserve().max()?;
        self.allocator.take_before(farthest)
    }

    /// Reserved segments that must be left once `class` has appended, when two checkpoints need `checkpoints`.
    pub(crate) fn must_leave(&self, class: SpaceClass, checkpoints: u64) -> u64 {
        class.leaves(checkpoints, for_metadata(self.size))
    }

    /// True if what users append counts as metadata, see [`SpaceClass::effective`], when they have filled `written`
    /// segments since the open, and whether they have `flushed`.
    pub(crate) fn early(written: u64, flushed: bool) -> bool {
        written < POST_MOUNT || !flushed && written < JOURNAL_REPLAY
    }
}

/// What happened to the space, for those who decide by it.
impl Space {
    /// True if a thread reserves a segment or cuts the file: no other thread may.
    pub(crate) fn file_end_held(&self) -> bool {
        self.file_end == FileEnd::Held
    }

    /// A thread begins to reserve a segment or to cut the file.
    pub(crate) fn hold_file_end(&mut self) {
        self.file_end = FileEnd::Held;
    }

    /// That thread is done.
    pub(crate) fn release_file_end(&mut self) {
        self.file_end = FileEnd::Free;
    }

    /// True if the backing file system had no space when it was last asked for a segment.
    pub(crate) fn backing_full(&self) -> bool {
        self.backing_full
    }

    /// Notes whether the backing file system had space for a segment.
    pub(crate) fn set_backing_full(&mut self, full: bool) {
        self.backing_full = full;
    }

    /// True if the last write that needed space found none.
    pub(crate) fn refused(&self) -> bool {
        self.refused
    }

    /// A record of this class was appended, `bytes` bytes long.
    pub(crate) fn appended(&mut self, bytes: u64, class: SpaceClass) {
        self.refused &= class != SpaceClass::User;
        if class.is_of_user() {
            self.pace.owe(bytes);
        }
    }

    /// Notes that reclaim can gain `garbage` bytes, and that users can use `left` bytes before they wait for it.
    pub(crate) fn set_left(&mut self, left: u64, garbage: u64) {
        let segment = u64::from(self.layout.segment_size);
        self.pace.look(left, garbage, segment, LOW * segment);
    }

    /// Bytes that reclaim has to gain beside users' writes.
    pub(crate) fn owed(&self) -> u64 {
        self.pace.owed()
    }

    /// Reclaim has gained `bytes`.
    pub(crate) fn pay(&mut self, bytes: u64) {
        self.pace.pay(bytes);
    }
}
