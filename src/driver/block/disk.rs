// SPDX-License-Identifier: GPL-2.0
//! The disk: the block device of a device.

use super::operations::{Operations, OperationsVTable};
use super::tag_set::TagSet;
use crate::c;
use crate::engine::BLOCK_SIZE;
use core::ptr::NonNull;
use kernel::error::{from_err_ptr, to_result};
use kernel::fmt::Write;
use kernel::prelude::*;
use kernel::static_lock_class;
use kernel::str::NullTerminatedFormatter;
use kernel::sync::Arc;

/// Largest read or write, in bytes. A larger one comes as several requests, which are served in parallel.
const MAX_TRANSFER: u32 = 1 << 20;

/// Largest discard or write-zeroes, in bytes: the most units of 1 GiB, by which the engine discards without loading nodes,
/// that fit into the 32 bits of a bio. The engine skips what was never written, so the discard of a large device costs
/// hardly more than its requests.
const MAX_ZERO: u32 = 3 << 30;

const SECTOR_SHIFT: u32 = c::SECTOR_SHIFT;

/// What the block layer has to know about a device.
pub(crate) struct Shape {
    /// Size in bytes, a multiple of [`BLOCK_SIZE`].
    pub(crate) size: u64,
    /// Length in bytes of the writes that cost least, a power of two. A write within a multiple of it can be atomic.
    pub(crate) record_size: u32,
    /// True if seeking costs time below.
    pub(crate) rotational: bool,
    /// True if the block layer refuses writes.
    pub(crate) read_only: bool,
}

impl Shape {
    fn limits(&self) -> c::queue_limits {
        // Without BLK_FEAT_STABLE_WRITES: the data of a write is copied before anything looks at it, so its pages may
        // change meanwhile.
        let mut features = c::BLK_FEAT_WRITE_CACHE | c::BLK_FEAT_FUA | c::BLK_FEAT_ATOMIC_WRITES;
        if self.rotational {
            features |= c::BLK_FEAT_ROTATIONAL;
        }
        c::queue_limits {
            features,
            logical_block_size: BLOCK_SIZE as c_uint,
            physical_block_size: BLOCK_SIZE as c_uint,
            io_min: BLOCK_SIZE as c_uint,
            io_opt: self.record_size,
            max_hw_sectors: MAX_TRANSFER >> SECTOR_SHIFT,
            // Without chunk_sectors, which would end every request at a multiple of a record: the block layer cuts
            // write-zeroes there as well, and a gigabyte of it would be thousands of requests instead of one.
            //
            // Data is copied, from any number of segments of any length: if the memory of a transfer does not begin
            // with a page, it has one segment more than pages.
            max_segments: c_ushort::MAX,
            max_segment_size: MAX_TRANSFER,
            // An atomic request lies in one natural unit, also after merging, and so becomes one record.
            atomic_write_hw_max: self.record_size,
            atomic_write_hw_boundary: self.record_size,
            atomic_write_hw_unit_min: BLOCK_SIZE as c_uint,
            atomic_write_hw_unit_max: self.record_size,
            max_hw_discard_sectors: MAX_ZERO >> SECTOR_SHIFT,
            discard_granularity: BLOCK_SIZE as c_uint,
            max_write_zeroes_sectors: MAX_ZERO >> SECTOR_SHIFT,
            max_hw_wzeroes_unmap_sectors: MAX_ZERO >> SECTOR_SHIFT,
            ..pin_init::zeroed()
        }
    }
}

/// The sysfs files of a disk: a null-terminated array of groups.
///
/// # Invariants
///
/// The array and its groups are valid as long as the module is loaded.
pub(crate) struct AttributeGroups(*mut *const c::attribute_group);

impl AttributeGroups {
    /// # Safety
    ///
    /// `raw` satisfies the type invariant.
    pub(crate) unsafe fn from_raw(raw: *mut *const c::attribute_group) -> Self {
        // INVARIANT: By the safety requirement of this function.
        Self(raw)
    }
}

/// `/dev/cloopN`, a `struct gendisk` that calls the operations of a `T`.
///
/// A disk is in one of these states:
///
/// 1. Allocated: [`new`](Self::new) has the only reference, and nothing else knows the disk.
/// 2. Added: a `Disk` exists. User space opens the block device, and requests come.
/// 3. Paused: a closure runs in [`paused`](Self::paused). Requests wait.
/// 4. Retired: [`retire`](Self::retire) found that nothing has the block device open, and opening it
///    fails from here on.
/// 5. Removed: the `Disk` is dropped, from state 2 or 4, and all requests have ended.
///
/// # Invariants
///
/// - `raw` is a disk in one of the states 2 to 4. It uses `_tags`, and its `private_data` comes from
///   `cloop_disk_init`.
/// - Its `queuedata` points to `_queue_data`.
pub(crate) struct Disk<T: Operations> {
    raw: NonNull<c::gendisk>,
    // In this order: the requests are freed before what serves them.
    _tags: TagSet<T>,
    _queue_data: Arc<T>,
}

// SAFETY: A disk belongs to no thread, and the operations used here are synchronised. `T` is `Send` and
// `Sync`.
unsafe impl<T: Operations> Send for Disk<T> {}
// SAFETY: As above.
unsafe impl<T: Operations> Sync for Disk<T> {}

impl<T: Operations> Disk<T> {
    /// Makes the block device `cloopN`, N being `index`, with `groups` in sysfs (state 1 to 2).
    pub(crate) fn new(
        index: usize,
        shape: &Shape,
        groups: AttributeGroups,
        queue_data: Arc<T>,
    ) -> Result<Self> {
        let tags = TagSet::new()?;
        // SAFETY: The tag set is allocated. `queue_data` is valid until after the disk is removed.
        let raw = from_err_ptr(unsafe {
            c::__blk_mq_alloc_disk(
                tags.as_ptr(),
                &mut shape.limits(),
                Arc::as_ptr(&queue_data).cast_mut().cast(),
                static_lock_class!().as_ptr(),
            )
        })?;
        // SAFETY: The disk is in state 1, and the block layer never returns a null pointer.
        let disk = unsafe { NonNull::new_unchecked(raw) };
        // SAFETY: As above; its `queuedata` points to a `T`.
        if let Err(e) = unsafe { Self::add(disk, index, shape, groups) } {
            // SAFETY: The disk is in state 1 still: the only reference is ours.
            unsafe { c::cloop_disk_free(raw) };
            return Err(e);
        }
        Ok(Self {
            // INVARIANT: The disk has been added, with our tags, and `queue_data` as its `queuedata`.
            raw: disk,
            _tags: tags,
            _queue_data: queue_data,
        })
    }

    /// Describes a disk to the block layer and adds it (state 1 to 2, or still 1 on an error).
    ///
    /// # Safety
    ///
    /// `disk` is in state 1, and its `queuedata` points to a `T` that outlives it.
    unsafe fn add(
        disk: NonNull<c::gendisk>,
        index: usize,
        shape: &Shape,
        groups: AttributeGroups,
    ) -> Result {
        let raw = disk.as_ptr();
        // SAFETY: By the safety requirement of this function, nothing else uses the disk.
        let name = unsafe { &mut (*raw).disk_name };
        NullTerminatedFormatter::new(name)
            .ok_or(EINVAL)?
            .write_fmt(fmt!("cloop{index}"))
            .map_err(|_| EINVAL)?;
        // SAFETY: As above. The functions are those of the `T` in `queuedata`.
        to_result(unsafe {
            c::cloop_disk_init(
                raw,
                Some(OperationsVTable::<T>::change_event),
                Some(OperationsVTable::<T>::closed),
            )
        })?;
        // SAFETY: As above; by its type invariant, `groups` stays valid.
        to_result(unsafe {
            c::set_disk_ro(raw, shape.read_only);
            c::set_capacity(raw, shape.size >> SECTOR_SHIFT);
            c::device_add_disk(core::ptr::null_mut(), raw, groups.0)
        })
    }

    /// Changes the size of the block device and tells user space.
    pub(crate) fn set_size(&self, bytes: u64) {
        // SAFETY: By the type invariant, the disk is valid.
        unsafe { c::set_capacity_and_notify(self.raw.as_ptr(), bytes >> SECTOR_SHIFT) };
    }

    /// Calls `f` while no request is under way, after the file system on the disk has written
    /// everything that it held back (state 2 to 3 to 2).
    pub(crate) fn paused<R>(&self, f: impl FnOnce() -> Result<R>) -> Result<R> {
        // SAFETY: By the type invariant, the disk is valid.
        to_result(unsafe { c::cloop_disk_pause(self.raw.as_ptr()) })?;
        let result = f();
        // SAFETY: The disk has just been paused.
        unsafe { c::cloop_disk_resume(self.raw.as_ptr()) };
        result
    }

    /// Returns true if the disk is open at this moment.
    pub(crate) fn is_open(&self) -> bool {
        // SAFETY: By the type invariant, the disk is valid.
        unsafe { c::cloop_disk_is_open(self.raw.as_ptr()) }
    }

    /// Keeps the disk from being opened (state 2 to 4).
    ///
    /// # Errors
    ///
    /// EBUSY if the disk is open; its state is unchanged then.
    pub(crate) fn retire(&self) -> Result {
        // SAFETY: By the type invariant, the disk is valid.
        to_result(unsafe { c::cloop_disk_retire(self.raw.as_ptr()) })
    }
}

impl<T: Operations> Drop for Disk<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant, the disk was added; it is removed here only (state 2 or 4 to 5).
        unsafe { c::cloop_disk_remove(self.raw.as_ptr()) };
    }
}
