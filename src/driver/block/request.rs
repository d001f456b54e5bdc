// SPDX-License-Identifier: GPL-2.0
//! A block request, while the driver owns it.

use super::workqueue::Workqueue;
use crate::c;
use crate::engine::{self, Error, Sink, BLOCK_SIZE};
use core::ptr::NonNull;
use kernel::prelude::*;

/// Sectors, the block layer's unit, in a block.
const BLOCK_SECTORS: u64 = BLOCK_SIZE as u64 >> c::SECTOR_SHIFT;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Read,
    Write {
        /// True if the data is durable before the request ends.
        fua: bool,
        /// True if a file system writes its own structures.
        metadata: bool,
        /// True if a crash must leave all of the data or none.
        atomic: bool,
    },
    Flush,
    /// Discard and write-zeroes: the range reads as zeros afterwards.
    Zero,
    Unknown,
}

/// The object of the block layer that is a request.
#[derive(Clone, Copy)]
enum Raw {
    /// A `struct request`.
    Request(NonNull<c::request>),
    /// A `struct bio` that was parked.
    Bio(NonNull<c::bio>),
}

/// A `struct request` that the driver owns, or a `struct bio` that was part of one.
///
/// A `struct request` is in one of these states:
///
/// 1. Idle: the block layer owns the request, which is free or about to be queued.
/// 2. Started: the driver owns the request by a `Request`, which [`start`](Self::start) made in
///    `queue_rq`.
/// 3. Queued: the work item in the private data owns the request, until the workqueue runs the item. No
///    `Request` exists.
/// 4. Served: the driver owns the request by a `Request`, which [`from_work`](Self::from_work) made on a
///    thread of the workqueue.
///
/// [`end`](Self::end) returns a request from 2 or 4 to 1. Dropping a `Request` does the same with an I/O
/// error, so that a bug does not leave the submitter waiting for ever.
///
/// If too many requests exist, [`queue`](Self::queue) returns a request from 2 to 1, and parks its bios. The workqueue
/// makes a `Request` of each later ([`from_bio`](Self::from_bio)), which exists until it is ended.
///
/// # Invariants
///
/// - `raw` is a valid request in state 2 or 4, of a tag set with the functions of `OperationsVTable`, and its work item
///   is not queued; or a valid bio that was parked, of a disk with such a tag set. No other `Request` of it exists.
/// - `cursor` points into the data of `raw`.
pub(crate) struct Request {
    raw: Raw,
    cursor: c::cloop_cursor,
}

/// Bytes of private data of each request: the work item.
pub(super) const PRIVATE_SIZE: usize = size_of::<c::work_struct>();

/// The work item in the private data of a request.
///
/// # Safety
///
/// `raw` is a valid request of a tag set with [`PRIVATE_SIZE`] bytes of private data.
unsafe fn work_of(raw: *mut c::request) -> *mut c::work_struct {
    // SAFETY: The private data follows the request in the same allocation, so the result is in bounds.
    unsafe { raw.add(1) }.cast()
}

/// Prepares the private data of a request that has just been allocated. The workqueue calls `func` with
/// the work item of a queued request.
///
/// # Safety
///
/// `raw` is a valid request in state 1 of a tag set with [`PRIVATE_SIZE`] bytes of private data, and the
/// block layer does not use it yet.
pub(super) unsafe fn init(raw: *mut c::request, func: c::work_func_t) {
    // SAFETY: By the safety requirement of this function, nothing else uses the work item.
    unsafe { c::cloop_work_init(work_of(raw), func) };
}

impl Request {
    /// Takes the request `raw`.
    ///
    /// # Safety
    ///
    /// `raw` satisfies the type invariant.
    unsafe fn new(raw: Raw) -> Self {
        let mut cursor = c::cloop_cursor::default();
        let bio = match raw {
            // SAFETY: By the safety requirement of this function, `raw` is valid.
            Raw::Request(raw) => unsafe { (*raw.as_ptr()).bio },
            Raw::Bio(raw) => raw.as_ptr(),
        };
        // SAFETY: `bio` is null or valid.
        unsafe { c::cloop_cursor_init(&mut cursor, bio) };
        // INVARIANT: By the safety requirement of this function; the cursor is at the start of the data.
        Self { raw, cursor }
    }

    /// Takes a request from the block layer (state 1 to 2).
    ///
    /// # Safety
    ///
    /// The caller is `queue_rq` of the block layer, and `raw` the request to be queued.
    pub(super) unsafe fn start(raw: *mut c::request) -> Self {
        // SAFETY: By the safety requirement of this function, the driver owns the request from here on.
        unsafe { c::blk_mq_start_request(raw) };
        // SAFETY: The request is in state 2, and `queue_rq` is never called with a null pointer.
        unsafe { Self::new(Raw::Request(NonNull::new_unchecked(raw))) }
    }

    /// Queues the request to `workqueue`, which serves it (state 2 to 3), or its bios if too many requests exist
    /// (state 2 to 1).
    pub(crate) fn queue<T>(self, workqueue: &Workqueue<T>) {
        let Raw::Request(raw) = self.raw else {
            // A bio is never queued again: it fails.
            return;
        };
        core::mem::forget(self);
        // SAFETY: `init` initialised the work item, and by the type invariant the item is not queued.
        // It lives until the request ends, and only the function of the work item ends the request
        // from here on.
        unsafe {
            c::cloop_workqueue_add(workqueue.as_ptr(), raw.as_ptr(), work_of(raw.as_ptr()));
        }
    }

    /// Takes a request back from the workqueue (state 3 to 4).
    ///
    /// # Safety
    ///
    /// The caller is the function of `work`, the work item of a request in state 3, and calls this
    /// function once.
    pub(super) unsafe fn from_work(work: *mut c::work_struct) -> Self {
        // SAFETY: The work item directly follows its request, which is in state 4 from here on.
        unsafe {
            let raw = NonNull::new_unchecked(work.cast::<c::request>().sub(1));
            Self::new(Raw::Request(raw))
        }
    }

    /// Takes a parked bio from the workqueue.
    ///
    /// # Safety
    ///
    /// The caller is the workqueue that `bio` was parked at, and calls this function once.
    pub(super) unsafe fn from_bio(bio: *mut c::bio) -> Self {
        // SAFETY: By the safety requirement of this function, nothing else uses the bio.
        unsafe { Self::new(Raw::Bio(NonNull::new_unchecked(bio))) }
    }

    /// The disk of the request.
    fn disk(&self) -> *mut c::gendisk {
        match self.raw {
            // SAFETY: A started request has a queue, whose disk never changes.
            Raw::Request(raw) => unsafe { (*(*raw.as_ptr()).q).disk },
            // SAFETY: By the type invariant, the bio is valid, and it has a disk.
            Raw::Bio(raw) => unsafe { c::cloop_bio_disk(raw.as_ptr()) },
        }
    }

    /// The `queuedata` of the request's queue.
    pub(super) fn queue_data(&self) -> *mut c_void {
        // SAFETY: A disk with requests has a queue, whose `queuedata` never changes.
        unsafe { (*(*self.disk()).queue).queuedata }
    }

    /// The operation that the request asks for.
    pub(crate) fn operation(&self) -> Operation {
        let flags = match self.raw {
            // SAFETY: By the type invariant, `raw` is valid.
            Raw::Request(raw) => unsafe { (*raw.as_ptr()).cmd_flags },
            // SAFETY: As above.
            Raw::Bio(raw) => unsafe { (*raw.as_ptr()).bi_opf },
        };
        match flags & c::REQ_OP_MASK {
            c::req_op_REQ_OP_READ => Operation::Read,
            c::req_op_REQ_OP_WRITE => Operation::Write {
                fua: flags & c::REQ_FUA != 0,
                metadata: flags & c::REQ_META != 0,
                atomic: flags & c::REQ_ATOMIC != 0,
            },
            c::req_op_REQ_OP_FLUSH => Operation::Flush,
            c::req_op_REQ_OP_DISCARD | c::req_op_REQ_OP_WRITE_ZEROES => Operation::Zero,
            _ => Operation::Unknown,
        }
    }

    /// The first block and the number of blocks. The block layer splits requests at block boundaries.
    pub(crate) fn range(&self) -> (u64, u64) {
        let (sector, bytes) = match self.raw {
            Raw::Request(raw) => {
                // SAFETY: By the type invariant, `raw` is valid.
                unsafe { ((*raw.as_ptr()).__sector, (*raw.as_ptr()).__data_len) }
            }
            Raw::Bio(raw) => {
                // SAFETY: As above. The structure is packed, so it is copied.
                let iter = unsafe { (*raw.as_ptr()).bi_iter };
                (iter.bi_sector, iter.bi_size)
            }
        };
        (sector / BLOCK_SECTORS, u64::from(bytes) / BLOCK_SIZE as u64)
    }

    /// Copies the next bytes of a write's data into `buf`. Returns false if fewer are left.
    pub(crate) fn copy_out(&mut self, buf: &mut [u8]) -> bool {
        // SAFETY: By the type invariant, the cursor is valid; `buf` is writable for its length.
        unsafe { c::cloop_cursor_copy(&mut self.cursor, buf.as_mut_ptr().cast(), buf.len(), false) }
    }

    /// Copies `buf` to the next bytes of a read's data. Returns false if fewer are left.
    fn copy_in(&mut self, buf: &[u8]) -> bool {
        // SAFETY: By the type invariant, the cursor is valid; `buf` is readable for its length, and
        // the function does not write to it.
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
        unsafe { c::cloop_disk_raise_change_event(self.disk()) };
    }

    /// Ends the request: the block layer owns it again (state 2 or 4 to 1).
    pub(crate) fn end(self, status: c::blk_status_t) {
        let raw = self.raw;
        core::mem::forget(self);
        // SAFETY: `self` is gone, so the driver does not use the request again.
        unsafe { end(raw, status) };
    }
}

/// Ends the request `raw`.
///
/// # Safety
///
/// `raw` satisfies the type invariant of [`Request`], and the driver does not use it again.
unsafe fn end(raw: Raw, status: c::blk_status_t) {
    match raw {
        // SAFETY: By the safety requirement of this function, the driver owns the started request.
        Raw::Request(raw) => unsafe { c::blk_mq_end_request(raw.as_ptr(), status) },
        // SAFETY: By the safety requirement of this function, the driver owns the parked bio.
        Raw::Bio(raw) => unsafe { c::cloop_bio_end(raw.as_ptr(), status) },
    }
}

static ZEROS: [u8; BLOCK_SIZE] = [0; BLOCK_SIZE];

/// The data of a read. Its pages may change while they are written (another process has them mapped), so only
/// `copy_in` touches them.
impl Sink for Request {
    fn space(&mut self, _len: usize) -> Option<&mut [u8]> {
        None
    }

    fn advance(&mut self, _len: usize) {}

    fn put(&mut self, bytes: &[u8]) -> engine::Result {
        match self.copy_in(bytes) {
            true => Ok(()),
            false => Err(Error::Invalid("request")),
        }
    }

    fn put_zeros(&mut self, len: usize) -> engine::Result {
        for start in (0..len).step_by(ZEROS.len()) {
            self.put(&ZEROS[..ZEROS.len().min(len - start)])?;
        }
        Ok(())
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        // SAFETY: Nothing uses the request after its owner.
        unsafe { end(self.raw, c::BLK_STS_IOERR) };
    }
}
