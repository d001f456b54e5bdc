// SPDX-License-Identifier: GPL-2.0
//! The operations that a driver gives to the block layer.

use super::request::{self, Request};
use crate::c;
use core::marker::PhantomData;
use core::ptr;
use kernel::prelude::*;

/// What a driver does with the requests of its disks. `Self` is the data of a request queue: one value
/// exists for each disk.
///
/// There is no `timeout` operation: a slow backing file is not an error, and without the operation the
/// block layer keeps waiting.
pub(crate) trait Operations: Sized + Send + Sync + 'static {
    /// Accepts a request from the block layer. The function must not sleep: it hands the request to a
    /// workqueue, which calls [`serve`](Self::serve).
    fn queue_rq(&self, request: Request);

    /// Serves a request and ends it, on a thread of the workqueue.
    fn serve(&self, request: Request);

    /// Notes that the last user of the disk has closed it. The function must not sleep, nor wait for an open.
    fn closed(&self);

    /// The variable of the change uevent that [`Request::raise_change_event`] asked for, as
    /// `NAME=value`, or `None` if nothing has changed since the last event. Called on a thread of a
    /// workqueue.
    fn change_event(&self) -> Option<&'static CStr>;
}

/// The functions that the block layer and the workqueues call for the disks of a `T`.
///
/// # Invariants
///
/// They are used only for tag sets with [`request::PRIVATE_SIZE`] bytes of private data for each
/// request, and for disks whose `queuedata` points to a `T` that lives until the disk is removed. A
/// request of the disk, and work for it, end before that.
pub(super) struct OperationsVTable<T>(PhantomData<T>);

impl<T: Operations> OperationsVTable<T> {
    /// For a tag set.
    pub(super) const MQ: &'static c::blk_mq_ops = &c::blk_mq_ops {
        queue_rq: Some(Self::queue_rq),
        init_request: Some(Self::init_request),
        map_queues: Some(c::cloop_map_queues),
        ..pin_init::zeroed()
    };

    /// The data of a queue.
    ///
    /// # Safety
    ///
    /// `queue_data` is the `queuedata` of a disk with these functions. The disk is not removed before `'a`
    /// ends: a request of it or its work is under way.
    unsafe fn data_of<'a>(queue_data: *const c_void) -> &'a T {
        // SAFETY: By the type invariant, `queue_data` points to a `T`, which by the safety requirement
        // of this function lives for `'a`.
        unsafe { &*queue_data.cast::<T>() }
    }

    /// # Safety
    ///
    /// For the block layer only: `data` has the request to be queued, which belongs to the driver from
    /// here on.
    unsafe extern "C" fn queue_rq(
        _hctx: *mut c::blk_mq_hw_ctx,
        data: *const c::blk_mq_queue_data,
    ) -> c::blk_status_t {
        // SAFETY: By the safety requirement of this function.
        let raw = unsafe { (*data).rq };
        // SAFETY: The request is of a disk whose `private_data` comes from `cloop_disk_init`, and is not
        // started.
        match unsafe { c::cloop_disk_admit(raw) } {
            c::cloop_admission_CLOOP_SERVE => {}
            c::cloop_admission_CLOOP_DEFER => return c::BLK_STS_OK as c::blk_status_t,
            _ => return c::BLK_STS_IOERR,
        }
        // SAFETY: By the safety requirement of this function.
        let request = unsafe { Request::start(raw) };
        // SAFETY: The request is of a disk with these functions, and is not ended.
        let queue = unsafe { Self::data_of(request.queue_data()) };
        queue.queue_rq(request);
        c::BLK_STS_OK as c::blk_status_t
    }

    /// # Safety
    ///
    /// For the block layer only: `raw` is a request that has just been allocated.
    unsafe extern "C" fn init_request(
        _set: *mut c::blk_mq_tag_set,
        raw: *mut c::request,
        _hctx: c_uint,
        _node: c_int,
    ) -> c_int {
        // SAFETY: By the safety requirement of this function; by the type invariant, the tag set has
        // the private data.
        unsafe { request::init(raw, Some(Self::serve)) };
        0
    }

    /// # Safety
    ///
    /// For the workqueue only: `work` is the work item that a request was queued with.
    unsafe extern "C" fn serve(work: *mut c::work_struct) {
        // SAFETY: By the safety requirement of this function.
        let request = unsafe { Request::from_work(work) };
        // SAFETY: The request is of a disk with these functions, and is not ended.
        let queue = unsafe { Self::data_of(request.queue_data()) };
        queue.serve(request);
    }

    /// # Safety
    ///
    /// For a workqueue only: `bio` is one that `cloop_workqueue_add` has parked, of a disk with these functions.
    pub(super) unsafe extern "C" fn serve_bio(bio: *mut c::bio) {
        // SAFETY: By the safety requirement of this function.
        let request = unsafe { Request::from_bio(bio) };
        // SAFETY: As above; the bio is not ended.
        let queue = unsafe { Self::data_of(request.queue_data()) };
        queue.serve(request);
    }

    /// # Safety
    ///
    /// For the release operation of a disk with these functions only, with the disk's `queuedata`.
    pub(super) unsafe extern "C" fn closed(queue_data: *const c_void) {
        // SAFETY: By the safety requirement of this function; an open disk is not removed.
        unsafe { Self::data_of(queue_data) }.closed();
    }

    /// # Safety
    ///
    /// For the event work of a disk with these functions only, with the disk's `queuedata`.
    pub(super) unsafe extern "C" fn change_event(queue_data: *const c_void) -> *const c_char {
        // SAFETY: By the safety requirement of this function; the work ends before the disk is removed.
        let queue = unsafe { Self::data_of(queue_data) };
        queue
            .change_event()
            .map_or(ptr::null(), |text| text.as_char_ptr())
    }
}
