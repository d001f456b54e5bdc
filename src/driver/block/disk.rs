// SPDX-License-Identifier: GPL-2.0
//! The disk: the block device of a device.

use super::tag_set::TagSet;
use crate::c;
use crate::engine::{Layout, BLOCK_SIZE};
use crate::server::Server;
use core::ptr::NonNull;
use kernel::error::{from_err_ptr, to_result};
use kernel::fmt::Write;
use kernel::module::this_module;
use kernel::prelude::*;
use kernel::static_lock_class;
use kernel::str::NullTerminatedFormatter;
use kernel::sync::Arc;

/// Largest read or write. Larger ones come as several requests, which are served in parallel.
const MAX_TRANSFER: u32 = 1 << 20;

/// Largest discard or write-zeroes. The engine's cost does not follow the length, but whoever waits
/// for a request should see it end.
const MAX_ZERO: u32 = 1 << 30;

const SECTOR_SHIFT: u32 = c::SECTOR_SHIFT;

/// `/dev/cloopN`. Dropping it removes the block device, after all its requests have ended.
///
/// # Invariants
///
/// `raw` is a disk that was added, whose queue uses `_tags` and has `server` as its `queuedata`. Its
/// `private_data` is not null until [`retire`](Self::retire) succeeds.
pub(crate) struct Disk {
    raw: NonNull<c::gendisk>,
    // In this order: the requests go before what serves them.
    _tags: TagSet,
    server: Arc<Server>,
}

// SAFETY: A disk belongs to no thread, and the operations used here are synchronised.
unsafe impl Send for Disk {}
// SAFETY: As above.
unsafe impl Sync for Disk {}

const FOPS: &c::block_device_operations = &c::block_device_operations {
    owner: this_module::<crate::LocalModule>().as_ptr(),
    open: Some(open),
    ..pin_init::zeroed()
};

/// # Safety
///
/// Only for the block layer, which calls it with one of our disks and holds its `open_mutex`.
unsafe extern "C" fn open(disk: *mut c::gendisk, _mode: c::blk_mode_t) -> c_int {
    // SAFETY: The disk is valid, and `private_data` changes under `open_mutex` only.
    if unsafe { (*disk).private_data.is_null() } {
        return ENXIO.to_errno();
    }
    0
}

/// What the block layer has to know about a device.
fn limits(layout: &Layout) -> c::queue_limits {
    c::queue_limits {
        features: c::BLK_FEAT_WRITE_CACHE | c::BLK_FEAT_FUA | c::BLK_FEAT_STABLE_WRITES,
        logical_block_size: BLOCK_SIZE as c_uint,
        physical_block_size: BLOCK_SIZE as c_uint,
        io_min: BLOCK_SIZE as c_uint,
        io_opt: layout.record_size,
        max_hw_sectors: MAX_TRANSFER >> SECTOR_SHIFT,
        // Data is copied: as many pieces as there are pages, of any length.
        max_segments: (MAX_TRANSFER as usize / BLOCK_SIZE) as c_ushort,
        max_segment_size: MAX_TRANSFER,
        max_hw_discard_sectors: MAX_ZERO >> SECTOR_SHIFT,
        discard_granularity: BLOCK_SIZE as c_uint,
        max_write_zeroes_sectors: MAX_ZERO >> SECTOR_SHIFT,
        max_hw_wzeroes_unmap_sectors: MAX_ZERO >> SECTOR_SHIFT,
        ..pin_init::zeroed()
    }
}

impl Disk {
    /// Makes the block device `cloopN`, served by `server`.
    pub(crate) fn new(index: usize, server: Arc<Server>) -> Result<Self> {
        let tags = TagSet::new()?;
        let layout = server.layout();
        let queue_data = Arc::as_ptr(&server).cast_mut().cast::<c_void>();
        // SAFETY: The tag set is allocated. `queue_data` stays valid until after the disk is gone.
        let raw = from_err_ptr(unsafe {
            c::__blk_mq_alloc_disk(
                tags.as_ptr(),
                &mut limits(&layout),
                queue_data,
                static_lock_class!().as_ptr(),
            )
        })?;
        // SAFETY: The disk is fresh: nobody else uses it.
        match unsafe { Self::add(raw, index, queue_data, &server) } {
            Ok(raw) => Ok(Self {
                // INVARIANT: It has been added, with our tags and `server`.
                raw,
                _tags: tags,
                server,
            }),
            Err(e) => {
                // SAFETY: The disk was not added; its only reference is ours.
                unsafe { c::put_disk(raw) };
                Err(e)
            }
        }
    }

    /// Describes a disk and makes it appear.
    ///
    /// # Safety
    ///
    /// `raw` is a disk that has been allocated and not added.
    unsafe fn add(
        raw: *mut c::gendisk,
        index: usize,
        private_data: *mut c_void,
        server: &Server,
    ) -> Result<NonNull<c::gendisk>> {
        // SAFETY: By the safety requirement of this function, we may write to the disk.
        unsafe {
            (*raw).fops = FOPS;
            (*raw).private_data = private_data;
            c::cloop_disk_no_partscan(raw);
            c::set_disk_ro(raw, server.read_only());
            c::set_capacity(raw, server.size() >> SECTOR_SHIFT);
        }
        // SAFETY: As above.
        let name = unsafe { &mut (*raw).disk_name };
        NullTerminatedFormatter::new(name)
            .ok_or(EINVAL)?
            .write_fmt(fmt!("cloop{index}"))
            .map_err(|_| EINVAL)?;
        let disk = NonNull::new(raw).ok_or(EINVAL)?;
        let background = server.background();
        // SAFETY: Both are there until the disk is dropped, or until it is not made here.
        unsafe { background.start(index, raw, server)? };
        // SAFETY: The disk is complete.
        let added = to_result(unsafe { c::cloop_disk_add(raw) });
        if added.is_err() {
            // SAFETY: It has been started.
            unsafe { background.stop() };
        }
        added.map(|()| disk)
    }

    /// Changes the capacity, and tells everybody.
    pub(crate) fn set_size(&self, bytes: u64) {
        // SAFETY: By the type invariant, the disk is valid.
        unsafe { c::set_capacity_and_notify(self.raw.as_ptr(), bytes >> SECTOR_SHIFT) };
    }

    /// Calls `f` while nothing is under way at the disk, and everything is written that its file system
    /// had held back.
    pub(crate) fn paused<R>(&self, f: impl FnOnce() -> Result<R>) -> Result<R> {
        // SAFETY: By the type invariant, the disk is valid.
        to_result(unsafe { c::cloop_disk_pause(self.raw.as_ptr()) })?;
        let result = f();
        // SAFETY: It has just been paused.
        unsafe { c::cloop_disk_resume(self.raw.as_ptr()) };
        result
    }

    /// Keeps the disk from being opened; EBUSY if it is open.
    pub(crate) fn retire(&self) -> Result {
        // SAFETY: By the type invariant, the disk is valid.
        to_result(unsafe { c::cloop_disk_retire(self.raw.as_ptr()) })
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // SAFETY: It was started for this disk, and that is dropped once.
        unsafe { self.server.background().stop() };
        // SAFETY: By the type invariant, the disk was added.
        unsafe { c::del_gendisk(self.raw.as_ptr()) };
        // SAFETY: The reference from its allocation is ours.
        unsafe { c::put_disk(self.raw.as_ptr()) };
    }
}
