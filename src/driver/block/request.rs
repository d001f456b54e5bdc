// SPDX-License-Identifier: GPL-2.0
//! One block request in the hands of the driver.

use super::workqueue::Workqueue;
use crate::c;
use crate::engine::BLOCK_SIZE;
use core::ptr::NonNull;
use kernel::prelude::*;

/// Sectors, the block layer's unit, in a block.
const BLOCK_SECTORS: u64 = BLOCK_SIZE as u64 >> c::SECTOR_SHIFT;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Read,
    Write {
        fua: bool,
        /// Of the structures of a file system.
        metadata: bool,
    },
    Flush,
    /// Discard and write-zeroes: the range reads as zeros afterwards.
    Zero,
    Unknown,
}

/// A `struct request` that the driver owns.
///
/// A request is in one of these states:
///
/// 1. Owned by the block layer: free, or on its way to us.
/// 2. Started: a `Request` made by [`start`](Self::start) exists in `queue_rq`.
/// 3. Queued: owned by the work item in its private data, until the workqueue runs that. No `Request`
///    exists.
/// 4. Being served: a `Request` made by [`from_work`](Self::from_work) exists in a worker.
/// 5. Ended: owned by the block layer again.
///
/// From 2 on, the way out is [`end`](Self::end). A `Request` that is merely dropped ends with an I/O
/// error: a bug must not leave its submitter waiting for ever.
///
/// # Invariants
///
/// - `raw` is a valid, started request of one of our tag sets, of which no other `Request` exists and
///   whose work item is not queued.
/// - `cursor` points into the data of `raw`.
pub(crate) struct Request {
    raw: NonNull<c::request>,
    cursor: c::cloop_cursor,
}

/// Bytes of private data that each request of a tag set needs: the work item.
pub(super) const PRIVATE_SIZE: usize = size_of::<c::work_struct>();

/// The work item in the private data of a request.
///
/// # Safety
///
/// `raw` is a valid request of a tag set with [`PRIVATE_SIZE`].
unsafe fn work_of(raw: *mut c::request) -> *mut c::work_struct {
    // SAFETY: The private data follows the request in the same allocation.
    unsafe { raw.add(1) }.cast()
}

/// Prepares the private data of a request that has just been allocated: `func` will serve it.
///
/// # Safety
///
/// `raw` is a valid request of a tag set with [`PRIVATE_SIZE`], and not in use.
pub(super) unsafe fn init(raw: *mut c::request, func: c::work_func_t) {
    // SAFETY: By the safety requirement of this function.
    unsafe { c::cloop_work_init(work_of(raw), func) };
}

impl Request {
    /// # Safety
    ///
    /// `raw` satisfies the type invariant.
    unsafe fn new(raw: NonNull<c::request>) -> Self {
        let mut cursor = c::cloop_cursor::default();
        // SAFETY: By the safety requirement of this function, `raw` is valid.
        unsafe { c::cloop_cursor_init(&mut cursor, raw.as_ptr()) };
        // INVARIANT: The cursor is at the start of the request's data.
        Self { raw, cursor }
    }

    /// Takes a request from the block layer (state 1 to 2).
    ///
    /// # Safety
    ///
    /// To be called from `queue_rq` with the request to be queued.
    pub(super) unsafe fn start(raw: *mut c::request) -> Self {
        // SAFETY: By the safety requirement of this function, the request is ours from here on.
        unsafe { c::blk_mq_start_request(raw) };
        // SAFETY: `queue_rq` is never given a null pointer, and the request is started.
        unsafe { Self::new(NonNull::new_unchecked(raw)) }
    }

    /// Has `workqueue` serve the request (state 2 to 3).
    pub(crate) fn queue(self, workqueue: &Workqueue) {
        // SAFETY: By the type invariant, `raw` is valid.
        let work = unsafe { work_of(self.raw.as_ptr()) };
        core::mem::forget(self);
        // SAFETY: The work item was initialised by `init`, is not queued, and lives until the
        // request is ended, which only the work's function can do from here on.
        unsafe { c::cloop_work_queue(workqueue.as_ptr(), work) };
    }

    /// Takes a request back from the workqueue (state 3 to 4).
    ///
    /// # Safety
    ///
    /// To be called once by the function of a work item, with that work item.
    pub(super) unsafe fn from_work(work: *mut c::work_struct) -> Self {
        // SAFETY: The work item directly follows its request.
        unsafe { Self::new(NonNull::new_unchecked(work.cast::<c::request>().sub(1))) }
    }

    /// The `queuedata` of the queue the request came from.
    pub(super) fn queue_data(&self) -> *mut c_void {
        // SAFETY: A started request has a queue, whose `queuedata` never changes.
        unsafe { (*(*self.raw.as_ptr()).q).queuedata }
    }

    /// What is asked for.
    pub(crate) fn operation(&self) -> Operation {
        // SAFETY: By the type invariant, `raw` is valid.
        let flags = unsafe { (*self.raw.as_ptr()).cmd_flags };
        match flags & c::REQ_OP_MASK {
            c::req_op_REQ_OP_READ => Operation::Read,
            c::req_op_REQ_OP_WRITE => Operation::Write {
                fua: flags & c::REQ_FUA != 0,
                metadata: flags & c::REQ_META != 0,
            },
            c::req_op_REQ_OP_FLUSH => Operation::Flush,
            c::req_op_REQ_OP_DISCARD | c::req_op_REQ_OP_WRITE_ZEROES => Operation::Zero,
            _ => Operation::Unknown,
        }
    }

    /// The first block and the number of blocks. The block layer cuts requests at block borders.
    pub(crate) fn range(&self) -> (u64, u64) {
        // SAFETY: By the type invariant, `raw` is valid.
        let (sector, bytes) = unsafe {
            (
                (*self.raw.as_ptr()).__sector,
                (*self.raw.as_ptr()).__data_len,
            )
        };
        (sector / BLOCK_SECTORS, u64::from(bytes) / BLOCK_SIZE as u64)
    }

    /// Copies the next bytes of a write's data into `buf`; false when there are fewer.
    pub(crate) fn copy_out(&mut self, buf: &mut [u8]) -> bool {
        // SAFETY: By the type invariant, the cursor is valid; `buf` is writable for its length.
        unsafe { c::cloop_cursor_copy(&mut self.cursor, buf.as_mut_ptr().cast(), buf.len(), false) }
    }

    /// Copies `buf` to the next bytes of a read's data; false when there are fewer.
    pub(crate) fn copy_in(&mut self, buf: &[u8]) -> bool {
        // SAFETY: By the type invariant, the cursor is valid; `buf` is readable for its length, and
        // only read from.
        unsafe {
            c::cloop_cursor_copy(
                &mut self.cursor,
                buf.as_ptr().cast_mut().cast(),
                buf.len(),
                true,
            )
        }
    }

    /// Has the change uevent of the disk sent that [`Operations::change_event`] describes.
    ///
    /// [`Operations::change_event`]: super::Operations::change_event
    pub(crate) fn raise_change_event(&self) {
        // SAFETY: By the type invariant, the request is of a disk of ours, which is not removed while
        // a request of it is started.
        unsafe { c::cloop_disk_raise_change_event((*(*self.raw.as_ptr()).q).disk) };
    }

    /// Gives the request back to the block layer (state 2 or 4 to 5).
    pub(crate) fn end(self, status: c::blk_status_t) {
        let raw = self.raw;
        core::mem::forget(self);
        // SAFETY: By the type invariant, the request is started and ours; with `self` gone, nobody
        // uses it any more.
        unsafe { c::blk_mq_end_request(raw.as_ptr(), status) };
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        // SAFETY: As in `end`.
        unsafe { c::blk_mq_end_request(self.raw.as_ptr(), c::BLK_STS_IOERR) };
    }
}
