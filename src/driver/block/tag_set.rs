// SPDX-License-Identifier: GPL-2.0
//! The requests of a device, allocated with it.

use super::request;
use crate::c;
use crate::queue;
use kernel::error::to_result;
use kernel::prelude::*;
use kernel::types::Opaque;

/// Requests that each hardware queue can have under way.
const QUEUE_DEPTH: u32 = 128;

/// The requests of a device.
///
/// # Invariants
///
/// `raw` is a tag set that was allocated, with [`queue::OPERATIONS`].
pub(super) struct TagSet {
    // It has list heads in it, and must not move.
    raw: Pin<KBox<Opaque<c::blk_mq_tag_set>>>,
}

impl TagSet {
    /// Allocates the requests.
    pub(super) fn new() -> Result<Self> {
        let set = c::blk_mq_tag_set {
            ops: queue::OPERATIONS,
            // SAFETY: It has no preconditions.
            nr_hw_queues: unsafe { c::cloop_num_cpus() },
            queue_depth: QUEUE_DEPTH,
            numa_node: c::NUMA_NO_NODE,
            cmd_size: request::PRIVATE_SIZE as c_uint,
            // Our requests need other devices' requests to complete; and whatever an I/O scheduler
            // could gain by sorting, the log has gained already.
            flags: c::BLK_MQ_F_STACKING | c::BLK_MQ_F_NO_SCHED_BY_DEFAULT,
            ..pin_init::zeroed()
        };
        let raw = KBox::pin(Opaque::new(set), GFP_KERNEL)?;
        // SAFETY: The fields that a driver fills in are filled in, the others are zero.
        to_result(unsafe { c::blk_mq_alloc_tag_set(raw.get()) })?;
        // INVARIANT: It has just been allocated.
        Ok(Self { raw })
    }

    /// The C object.
    pub(super) fn as_ptr(&self) -> *mut c::blk_mq_tag_set {
        self.raw.get()
    }
}

impl Drop for TagSet {
    fn drop(&mut self) {
        // SAFETY: By the type invariant, it was allocated.
        unsafe { c::blk_mq_free_tag_set(self.raw.get()) };
    }
}
