// SPDX-License-Identifier: GPL-2.0
//! Space: which segments are free, how many the log keeps in reserve, and for whom.
//!
//! Space is reserved before a write is acknowledged (promise P2), and on a full backing file system the
//! operations that give space back must still find some: a discard takes its place in the log, reclaim
//! moves what is live, and a checkpoint makes it count. So the log reserves segments ahead, and each
//! [`SpaceClass`] has to leave a part of them to those that depend on it less than it does.

//! - class.rs: the classes, and the table of what each leaves;
//! - cost.rs: what the next checkpoints need;
//! - allocator.rs: which segments of the image are free, and which of them hold space;
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

pub(crate) use self::allocator::{Allocator, Backing, MAX_UNCOVERED};
pub(crate) use self::class::SpaceClass;
pub(crate) use self::cost::CheckpointCost;
pub(crate) use self::queue::{Answer, Supply, Verdict};
pub(crate) use self::watermark::Watermark;

use self::class::for_metadata;
use self::pace::Pace;
use self::queue::Queue;
use crate::engine::format::{DeviceSize, Layout};
use crate::engine::{Error, Result};
use crate::platform::mem::{boxed, Box, Vec};
use core::ops::Range;

/// Segments that users may fill after an open under a metadata class, until they first flush: a file system replays its
/// journal through the page cache of the device, which does not set REQ_META.
const JOURNAL_REPLAY: u64 = 16;
/// Segments after an open that always count as metadata: after replaying its journal, ext4 writes its superblock without
/// REQ_META.
const POST_MOUNT: u64 = 2;

/// The most segments that stay warm while users write. There are never more than an eighth of those in use.
const WARM: u64 = 32;
/// Segments left to users below which reclaim works beside their writes, whatever the garbage.
const LOW: u64 = 16;

/// The most bytes that one call allocates ahead of the log, or gives back.
const EXTENT: u64 = 32 << 20;
/// The part of what the backing file system has left that one call allocates ahead at most.
const OF_BACKING: u64 = 64;
/// The part of what the backing file system has left that free segments hold at most.
const HELD_OF_BACKING: u64 = 16;

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

/// Whether the space that free segments hold will be used soon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Demand {
    /// It will: users write.
    Writes,
    /// It will not: the device is idle, or the image is to become small.
    Idle,
}

/// What free segments hold and must not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Surplus {
    /// Nothing.
    Nothing,
    /// Space that is not needed elsewhere: it is given back when that holds up no read.
    Unneeded,
    /// Space that others need, or may need soon.
    Needed,
}

/// The space of an image, under [`Rank::Log`](crate::platform::Rank::Log).
///
/// A segment is *free*; it is taken and its space allocated: it is *reserved*; the log has it as its *next* and then its
/// *current* segment; then it is *in use*, until it is dead, released and free again. This structure knows the free and
/// the reserved ones.
///
/// A free segment may *hold* space, because one call allocates many segments: a call for each takes the backing file
/// exclusively, and so holds up reads of the image. For the same reason a segment that becomes free holds its space until
/// no read is under way. When the device is idle free segments hold none.
pub(crate) struct Space {
    allocator: Allocator,
    /// Segments with all of their space, which is allocated or written, for the log to use.
    reserve: Vec<(u64, Backing)>,
    file_end: FileEnd,
    /// Segments that the log took from the reserve since the device was idle.
    filled: u64,
    /// The most free segments that may hold space, by what the backing file system has left.
    most_held: u64,
    /// The backing file system said that it has no space for a segment.
    none_left: bool,
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
    // A stack frame of its own: opening an image has many.
    #[inline(never)]
    pub(crate) fn new(allocator: Allocator, layout: Layout, size: DeviceSize) -> Result<Box<Self>> {
        boxed(Self {
            allocator,
            reserve: Vec::new(),
            file_end: FileEnd::Free,
            filled: 0,
            most_held: u64::MAX,
            none_left: false,
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

    /// Number of free segments that hold space.
    pub(crate) fn held(&self) -> u64 {
        self.free() - self.allocator.free_with(Backing::Hole)
    }

    /// Takes a free segment that holds all of its space.
    pub(crate) fn take_held(&mut self) -> Option<(u64, Backing)> {
        self.allocator.take_held()
    }

    /// Takes the lowest free segment that does not hold all of its space, or a new one, and those behind it that are like it,
    /// `most` in all.
    ///
    /// # Errors
    ///
    /// [`Error::NoSpace`] when the image has as many segments as it can have, and those of
    /// memory.
    pub(crate) fn take_run(&mut self, most: u64) -> Result<Range<u64>> {
        let taken = self.allocator.take_run(self.layout.max_segments(), most)?;
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

    /// Makes segment `index` free. It holds no space.
    pub(crate) fn release(&mut self, index: u64) {
        self.release_with(index, Backing::Hole);
    }

    /// Makes segment `index` free, of which the backing file holds this.
    pub(crate) fn release_with(&mut self, index: u64, backing: Backing) {
        self.allocator.release(index, backing);
    }

    /// Enlarges the image to segment `index`, which is in use.
    pub(crate) fn extend_to(&mut self, index: u64) {
        self.allocator.extend(index + 1);
    }

    /// Forgets the free segments at the end of the image that hold no space, and returns how many segments are left.
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

    /// Bytes that the segments take which are not free.
    fn taken(&self) -> u64 {
        self.layout.segment_offset(self.in_use())
    }

    /// Bytes that the image takes at most.
    pub(crate) fn most_taken(&self) -> u64 {
        self.taken() + self.held_bytes()
    }

    /// Bytes that free segments hold at most.
    pub(crate) fn held_bytes(&self) -> u64 {
        self.held() * u64::from(self.layout.segment_size)
    }

    /// Bytes the image can take until it is at its bound, if it takes all of its segments. It may take less.
    pub(crate) fn below_bound(&self) -> u64 {
        self.bound().saturating_sub(self.taken())
    }

    /// True if the image is so near to its bound that what it really takes matters.
    pub(crate) fn near_bound(&self) -> bool {
        self.bound().saturating_sub(self.most_taken()) < LOW * u64::from(self.layout.segment_size)
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
        self.reserve.iter().map(|&(index, _)| index)
    }

    /// Puts segment `index`, of which the backing file holds all space, into the reserve.
    ///
    /// # Errors
    ///
    /// Those of memory. The segment is free then.
    pub(crate) fn add_to_reserve(&mut self, index: u64, backing: Backing) -> Result {
        let added = self.reserve.push((index, backing));
        if added.is_err() {
            self.release_with(index, Backing::Partial);
        }
        added
    }

    /// Takes the reserved segment nearest to the beginning of the image, for the log to fill.
    pub(crate) fn take_nearest(&mut self) -> Option<(u64, Backing)> {
        let segments = self.reserve.iter().enumerate();
        let (at, _) = segments.min_by_key(|(_, &(index, _))| index)?;
        self.filled += 1;
        self.reserve.remove(at)
    }

    /// Takes the reserved segment farthest from the beginning of the image.
    pub(crate) fn take_farthest(&mut self) -> Option<(u64, Backing)> {
        let segments = self.reserve.iter().enumerate();
        let (at, _) = segments.max_by_key(|(_, &(index, _))| index)?;
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

/// Free segments that hold space.
impl Space {
    /// Segments that one call takes of the backing file at most, or gives back.
    fn extent(&self) -> u64 {
        (EXTENT >> self.layout.segment_shift()).max(1)
    }

    /// Segments to allocate in one call, when the reserve lacks `lacking` and the backing file system has `left` bytes left.
    /// The more the log has filled since the device was idle, the more it gets ahead, so that a small image stays small: at
    /// most a half of that. There are fewer where little is left, also below the bound on the size of the image.
    pub(crate) fn run(&self, lacking: u64, left: u64) -> u64 {
        let shift = self.layout.segment_shift();
        let below = self.bound().saturating_sub(self.most_taken()) >> shift;
        let most = (below.saturating_sub(LOW) / 4).min((left / OF_BACKING) >> shift);
        let wanted = lacking.max(1 + self.filled / 2);
        wanted.min(self.extent()).min(most).max(1)
    }

    /// Notes how many bytes the backing file system says that it has left. The less, the fewer free segments may hold space.
    /// As long as they hold some, it is not asked for more, so this tells that it is full.
    pub(crate) fn set_backing_left(&mut self, left: u64) {
        self.most_held = (left / HELD_OF_BACKING) >> self.layout.segment_shift();
        self.none_left = left < u64::from(self.layout.segment_size);
    }

    /// Warm segments that are kept because users will soon fill them again. Then their space need not be given back and asked
    /// for again, and writing to it changes nothing in the file system.
    fn most_warm(&self) -> u64 {
        WARM.min(self.in_use() / 8)
    }

    /// True if all that free segments hold is to be given back: nothing is going to use it soon, or others may need it.
    fn keeps_nothing(&self, demand: Demand) -> bool {
        demand == Demand::Idle || self.backing_full()
    }

    /// Free segments that may hold all of their space, but are too many.
    fn too_many(&self) -> u64 {
        let warm = self.allocator.free_with(Backing::Warm);
        let beyond_warm = warm.saturating_sub(self.most_warm());
        let whole = self.held() - self.allocator.free_with(Backing::Partial);
        beyond_warm.max(whole.saturating_sub(self.most_held))
    }

    /// Takes free segments that must hold no space any more, as many as one call gives back. Who takes them punches and then
    /// releases them.
    pub(crate) fn take_surplus(&mut self, demand: Demand) -> Option<Range<u64>> {
        use Backing::{Ahead, Partial, Warm};
        let extent = self.extent();
        if self.keeps_nothing(demand) {
            return self.allocator.take_farthest(&Backing::HELD, extent);
        }
        let partial = self.allocator.take_farthest(&[Partial], extent);
        let most = self.too_many().min(extent);
        if partial.is_some() || most == 0 {
            return partial;
        }
        let warm = self.allocator.take_farthest(&[Warm], most);
        warm.or_else(|| self.allocator.take_farthest(&[Ahead], most))
    }

    /// Whether free segments hold space that is to be given back.
    pub(crate) fn surplus(&self, demand: Demand) -> Surplus {
        let partial = self.allocator.free_with(Backing::Partial);
        let any = match self.keeps_nothing(demand) {
            true => self.held() > 0,
            false => partial > 0 || self.too_many() > 0,
        };
        let needed = self.backing_full()
            || self.held() > self.most_held
            || partial > 0 && (self.near_bound() || self.waits(u64::MAX));
        match (any, needed) {
            (false, _) => Surplus::Nothing,
            (true, false) => Surplus::Unneeded,
            (true, true) => Surplus::Needed,
        }
    }

    /// The device is idle: the next writes count as the first ones.
    pub(crate) fn settle(&mut self) {
        self.filled = 0;
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

    /// True if the backing file system had no space when it was last asked for a segment, or said so itself.
    pub(crate) fn backing_full(&self) -> bool {
        self.backing_full || self.none_left
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
