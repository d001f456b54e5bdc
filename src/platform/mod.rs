// SPDX-License-Identifier: GPL-2.0
//! What the engine stands on: locks, memory, the backing file, threads, randomness and codecs.
//!
//! The engine sees its surroundings only through the [`Platform`] trait and the [`mem`] module. There is
//! one home per file tree: `kernel` (inside `cloop.ko`), `std` (tools and tests), `sim` (a backing file that
//! crashes) and `fuzz` (hostile images).

#[cfg(feature = "fuzz")]
pub mod fuzz;
#[cfg(not(MODULE))]
mod held;
#[cfg(MODULE)]
pub(crate) mod kernel;
#[cfg(feature = "sim")]
pub mod sim;
#[cfg(not(MODULE))]
pub mod std;

#[cfg(MODULE)]
pub(crate) use self::kernel::mem;
#[cfg(not(MODULE))]
pub use self::std::mem;

use crate::engine::Error;
use core::ops::DerefMut;

/// Place of a lock in the lock order; a thread takes locks only in increasing rank.
///
/// In the kernel each rank is a lockdep class of its own. The simulated home and that for hostile images panic at a
/// lock that is taken out of order, and so does `std` when it is built with debug assertions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// Serialises checkpoints and the closing of a volume.
    Checkpoint,
    /// The tail of the log: every change of the sector table happens under it.
    Log,
    /// The sector table and the segment usage.
    Map,
    /// The cache of decompressed records.
    Cache,
    /// A pool of reusable objects; nothing else is taken under it.
    Pool,
}

#[cfg(not(MODULE))]
impl Rank {
    /// All of them in order.
    pub(crate) const ALL: [Self; 5] = [
        Self::Checkpoint,
        Self::Log,
        Self::Map,
        Self::Cache,
        Self::Pool,
    ];
}

/// A sleeping mutex with two condition variables, one for requests and one for background threads: the only
/// synchronisation primitive of the engine.
pub trait Monitor<T: Send>: Sized + Send + Sync {
    /// Proof of holding the lock; gives access to the value.
    type Guard<'a>: MonitorGuard + DerefMut<Target = T>
    where
        Self: 'a,
        T: 'a;

    /// Makes an unlocked monitor around `value`.
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`] when the lock itself cannot be allocated.
    fn new(value: T, rank: Rank) -> Result<Self, Error>;

    /// Sleeps until the lock is free and takes it.
    fn lock(&self) -> Self::Guard<'_>;
}

/// Waiting on a held [`Monitor`].
pub trait MonitorGuard {
    /// Releases the lock, sleeps until any notification (or spuriously wakes), and takes it again.
    fn wait(&mut self);

    /// As [`wait`](Self::wait), for a background thread that may sleep for days: it must not count
    /// as hung or as load, and what concerns requests only does not wake it. `timeout_ms` bounds the sleep
    /// (0: no bound); true when that time passed without a notification by [`notify_all`](Self::notify_all).
    fn wait_idle(&mut self, timeout_ms: u32) -> bool;

    /// Wakes every waiter of this monitor.
    fn notify_all(&self);

    /// Wakes those who sleep in [`wait`](Self::wait), and no background thread: for a change that gives it nothing to do.
    fn notify_requests(&self);
}

/// The file (or block device) that holds an image. All offsets and lengths are in bytes.
// A file is not a container: nobody asks whether it is empty.
#[allow(clippy::len_without_is_empty)]
pub trait BackingFile: Send + Sync + 'static {
    /// Length of the file, or capacity of the block device.
    fn len(&self) -> Result<u64, Error>;

    /// True when the length cannot change: a block device.
    fn fixed_size(&self) -> bool;

    /// Reads exactly `buf.len()` bytes; what lies beyond the end of the file reads as zeros.
    ///
    /// `offset` and `buf.len()` are multiples of 4096 and `buf` starts on a page boundary
    /// ([`mem::Buf`]), so that direct I/O is possible.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Error>;

    /// Writes all of `buf`; alignment as for [`read_at`](Self::read_at). Extends a regular file.
    ///
    /// # Errors
    ///
    /// [`Error::NoSpace`] for ENOSPC, EDQUOT and EFBIG, [`Error::NoMemory`] for ENOMEM, [`Error::Io`] for the rest; part
    /// may be written.
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), Error>;

    /// Makes everything written so far durable (fdatasync, including the file size).
    fn sync(&self) -> Result<(), Error>;

    /// Reserves space for a range, extending the file if needed, without changing its contents.
    ///
    /// A file system without support for it is not an error: the reservation is then best effort.
    ///
    /// # Errors
    ///
    /// [`Error::NoSpace`] when the range cannot be reserved (or lies beyond a block device's end).
    fn allocate(&self, offset: u64, len: u64) -> Result<(), Error>;

    /// Gives the space of a range back; it reads as zeros (or, on a block device, anything) after.
    /// Best effort: a backing that cannot do it succeeds without doing anything.
    fn punch(&self, offset: u64, len: u64) -> Result<(), Error>;

    /// Cuts a regular file to `len` bytes; does nothing on a block device.
    fn truncate(&self, len: u64) -> Result<(), Error>;

    /// Bytes that the file system has left, for this file and others. `None` if it does not say, and for a block device.
    ///
    /// # Errors
    ///
    /// Those of statfs(2).
    fn free_space(&self) -> Result<Option<u64>, Error>;

    /// Bytes the file occupies on its file system (`st_blocks * 512`); the capacity of a block device.
    fn allocated(&self) -> Result<u64, Error>;
}

/// A background thread; dropping the handle does not stop it.
pub trait Thread: Send + Sync {
    /// Waits for the thread's function to return. Idempotent.
    fn join(&mut self);
}

/// Faults of the engine, one for each promise that could be broken, see [`Platform::sabotaged`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// A flush does everything but the fsync.
    SkipSync,
    /// A flush answers before anything is written.
    EarlyFlush,
    /// A flush takes the end of an fsync that began before its own data was written for its own.
    SharedSync,
    /// A checkpoint is committed without waiting for the log.
    EarlyCheckpoint,
    /// A discard changes the table before it takes its place in the log.
    EarlyDiscard,
    /// A write takes its place in the log, and changes the table some time later.
    LateTable,
    /// Recovery goes on in a segment of an earlier incarnation.
    StaleSegment,
    /// Checksums of records are not compared.
    IgnoreChecksum,
    /// A superblock is written to both slots at once.
    BothSuperblocks,
    /// A forced-unit-access write is acknowledged like any other.
    LazyFua,
    /// A segment is used again as soon as nothing in it is live.
    EarlyReuse,
    /// The space of a dead segment is given back before what supersedes it is durable.
    EarlyPunch,
    /// A record is moved although what it held was overwritten meanwhile.
    BlindMove,
    /// Recompression places a record although a block of it has changed.
    BlindRecompression,
    /// Recompression marks a segment before it has looked at its records.
    EarlyMark,
    /// Writes may use what is reserved for discards, reclaim and checkpoints.
    SpentReserve,
    /// A failed fsync is tried again, and its success taken for the truth.
    RetriedSync,
    /// A failed fsync is tried again if its error is one after which a write would be.
    TransientSync,
    /// A part of the log whose write failed for a reason that passes is taken for written.
    ForgottenRetry,
    /// A segment is written without having been reserved.
    Unreserved,
    /// A segment is used again before the log that supersedes it is durable.
    EarlyFree,
    /// A segment is used again when only a checkpoint to come says that nothing in it is needed.
    UnloggedFree,
    /// With the space of free segments that of the segments beside them is given back, which are in use.
    GreedyPunch,
    /// The log enters a segment that is still being filled with zeros.
    EarlyEntry,
    /// A checkpoint stores the entries of detached subtrees as if they were attached.
    LostDetach,
    /// Nodes of the sector table are taken out of memory although they were changed.
    EvictDirty,
    /// A checkpoint does not store a leaf of the sector table that was changed.
    ForgottenLeaf,
    /// A checkpoint does not store the nodes above the leaves.
    ForgottenNode,
    /// A discard is replayed for a half of its blocks.
    ShortZero,
    /// The live counts of a checkpoint include what comes after it.
    LooseCounts,
    /// One superblock alone has the new size of the device.
    HalfResize,
    /// An opening allows no segment more live bytes than its size, although detached subtrees may count in it as well.
    StrictCounts,
    /// A read whose look-up is out of date, because the segment was used again, fails and does not look up again.
    StaleLookUp,
    /// The cache of decompressed records ignores the incarnation of a segment.
    StaleCache,
    /// A leaf of the sector table is read, changed, stored elsewhere and evicted by other threads, and then installed as
    /// it was read.
    StaleLeaf,
    /// Readers take a part of the log for written as soon as it is sealed.
    EarlyWritten,
    /// A discard treats leaves of the sector table that are not in memory as unmapped.
    UnloadedHole,
    /// An atomic write becomes two records.
    TornAtomic,
    /// Of those who wait for space, the last one gets it first.
    UnfairGrant,
    /// A write that waits for space is told that there is none, without a search for it.
    HastyVerdict,
    /// A checkpoint overwrites the superblock of somebody else.
    BlindCheckpoint,
    /// A checkpoint stores the fingerprints of the one before.
    StaleFingerprints,
    /// An opening takes fingerprints beside a superblock that were written with another one in the same slot.
    MixedFingerprints,
    /// A repair takes the newest record that it finds of a block for the newest that there was.
    TrustFound,
    /// A repair replays the log across a lost part as if that had changed nothing.
    IgnoreLostLog,
    /// A repair does not compare fingerprints.
    IgnoreFingerprints,
    /// After the loss of superblocks an opening or a repair takes the newest one that is left for the newest that there
    /// was.
    TrustLeft,
    /// The first record of Zstandard is written before the superblocks say that there are such records.
    LateFeature,
}

/// A step of a record that needs space, see [`Platform::waited`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitEvent {
    /// A record of this class waits, with the ticket of this number.
    Queued(u8, u64),
    /// A record of this class gets its place, with its ticket if it has waited.
    Admitted(u8, Option<u64>),
    /// The ticket was granted space, or refused.
    Answered(u64),
    /// The ticket is given up.
    Left(u64),
}

impl Sabotage {
    /// All of them.
    pub const ALL: [Self; 48] = [
        Self::SkipSync,
        Self::EarlyFlush,
        Self::SharedSync,
        Self::EarlyCheckpoint,
        Self::EarlyDiscard,
        Self::LateTable,
        Self::StaleSegment,
        Self::IgnoreChecksum,
        Self::BothSuperblocks,
        Self::LazyFua,
        Self::EarlyReuse,
        Self::EarlyPunch,
        Self::BlindMove,
        Self::BlindRecompression,
        Self::EarlyMark,
        Self::SpentReserve,
        Self::RetriedSync,
        Self::TransientSync,
        Self::ForgottenRetry,
        Self::Unreserved,
        Self::EarlyFree,
        Self::UnloggedFree,
        Self::GreedyPunch,
        Self::EarlyEntry,
        Self::LostDetach,
        Self::EvictDirty,
        Self::ForgottenLeaf,
        Self::ForgottenNode,
        Self::ShortZero,
        Self::LooseCounts,
        Self::HalfResize,
        Self::StrictCounts,
        Self::StaleLookUp,
        Self::StaleCache,
        Self::StaleLeaf,
        Self::EarlyWritten,
        Self::UnloadedHole,
        Self::TornAtomic,
        Self::UnfairGrant,
        Self::HastyVerdict,
        Self::BlindCheckpoint,
        Self::StaleFingerprints,
        Self::MixedFingerprints,
        Self::TrustFound,
        Self::IgnoreLostLog,
        Self::IgnoreFingerprints,
        Self::TrustLeft,
        Self::LateFeature,
    ];

    /// Whether it is one of a repair, which shows only in disks that were damaged.
    #[cfg(feature = "sim")]
    pub fn is_of_repair(self) -> bool {
        matches!(
            self,
            Self::TrustFound | Self::IgnoreLostLog | Self::IgnoreFingerprints | Self::TrustLeft
        )
    }

    /// Whether it is a race between operations that shows in their results, without a crash.
    #[cfg(feature = "sim")]
    pub fn is_race(self) -> bool {
        matches!(
            self,
            Self::StaleLookUp
                | Self::StaleCache
                | Self::StaleLeaf
                | Self::EarlyWritten
                | Self::UnloadedHole
        )
    }
}

/// One home of the engine.
pub trait Platform: Sized + Send + Sync + 'static {
    /// The lock.
    type Monitor<T: Send + 'static>: Monitor<T> + 'static;
    /// The backing file.
    type File: BackingFile;
    /// The background thread.
    type Thread: Thread + 'static;
    /// State of one LZ4 compression (scratch memory, never shared between threads).
    type Lz4: Lz4;
    /// A context to compress with Zstandard.
    type ZstdCompressor: ZstdCompressor;
    /// A context to decompress Zstandard.
    type ZstdDecompressor: ZstdDecompressor;

    /// Starts a thread that runs `f` once.
    ///
    /// In the kernel the thread runs with the flags of a block-device worker (no recursion into I/O
    /// from allocation, local throttling), see loop(4)'s worker.
    fn spawn<F: FnOnce() + Send + 'static>(name: &'static str, f: F)
        -> Result<Self::Thread, Error>;

    /// A number that a guest cannot predict.
    fn random_u64() -> u64;

    /// Milliseconds since some moment in the past, by a clock that never goes back.
    fn now_ms() -> u64;

    /// Has the calling thread, one that [`spawn`](Self::spawn) started, leave the CPUs to all others that want them, or not
    /// any more.
    #[inline(always)]
    fn stand_back(_back: bool) {}

    /// Hears that writes to `file` have begun to fail with an error and are tried again, or, without an error, that they
    /// succeed again: for the log of the system.
    #[inline(always)]
    fn write_retried(_file: &Self::File, _error: Option<Error>) {}

    /// Hears that reclaim has set aside `segments` segments of the image in `file`, because something that it needs is
    /// damaged or cannot be read; or, with 0, that none is set aside any more: for the log of the system.
    #[inline(always)]
    fn segments_stuck(_file: &Self::File, _segments: u64) {}

    /// Whether the engine is to commit this fault. Only the simulated home ever says yes, to prove that
    /// its judge would notice; elsewhere the question disappears in compilation.
    #[inline(always)]
    fn sabotaged(_fault: Sabotage) -> bool {
        false
    }

    /// Hears of each change of the sector table by a user in log order, under the log's lock: `count`
    /// blocks from `block` on. For the simulated home, which keeps the history it judges by.
    #[inline(always)]
    fn placed(_block: u64, _count: u64) {}

    /// Hears of the order in which space is given to those who wait for it, under the log's lock. For the simulated home,
    /// which judges it.
    #[inline(always)]
    fn waited(_event: WaitEvent) {}

    /// CRC-32C (Castagnoli, reflected) of `data`, continuing from `crc`; `crc32c(0, b"123456789")` is
    /// 0xe3069283.
    fn crc32c(crc: u32, data: &[u8]) -> u32;
}

/// LZ4 block format, both directions.
pub trait Lz4: Send + Sized {
    /// Allocates the scratch memory, which is needed this much.
    fn new(need: mem::Need) -> Result<Self, Error>;

    /// Compresses `src` into `dst`; `None` when the result does not fit into `dst`.
    fn compress(&mut self, src: &[u8], dst: &mut [u8]) -> Option<usize>;

    /// Decompresses `src` into `dst` and returns the number of bytes written; `None` when `src` is
    /// not valid or does not fit. Never reads or writes out of bounds, whatever `src` holds.
    fn decompress(src: &[u8], dst: &mut [u8]) -> Option<usize>;

    /// As [`decompress`](Self::decompress), but ends when `dst` is full: what comes first in the content is decompressed
    /// alone, and costs as much less. What follows in `src` is not looked at.
    fn decompress_start(src: &[u8], dst: &mut [u8]) -> Option<usize>;
}

/// A context to compress with Zstandard at one level, never used by two threads at a time.
pub trait ZstdCompressor: Send + Sized + 'static {
    /// Allocates the context for contents of at most `most` bytes, which is needed this much. `level` is 1 to 19.
    fn new(need: mem::Need, level: i32, most: usize) -> Result<Self, Error>;

    /// Bytes of memory of such a context.
    fn bytes(level: i32, most: usize) -> usize;

    /// Compresses `src`, of at most `most` bytes, into one frame in `dst`, without size, checksum and dictionary. `None`
    /// when the result does not fit into `dst`.
    fn compress(&mut self, src: &[u8], dst: &mut [u8]) -> Option<usize>;
}

/// A context to decompress Zstandard, never used by two threads at a time.
pub trait ZstdDecompressor: Send + Sized + 'static {
    /// Allocates the context, which is needed this much.
    fn new(need: mem::Need) -> Result<Self, Error>;

    /// Bytes of memory of a context.
    fn bytes() -> usize;

    /// Decompresses the frame in `src` into `dst` and returns the number of bytes written; `None` when `src` is not valid or
    /// does not fit. Never reads or writes out of bounds and never allocates, whatever `src` holds.
    fn decompress(&mut self, src: &[u8], dst: &mut [u8]) -> Option<usize>;
}
