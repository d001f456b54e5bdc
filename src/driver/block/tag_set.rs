// SPDX-License-Identifier: GPL-2.0
//! The tag set: the requests of a disk, allocated with it.

use super::operations::{Operations, OperationsVTable};
use super::request;
use crate::c;
use core::marker::PhantomData;
use kernel::error::to_result;
use kernel::prelude::*;
use kernel::types::Opaque;

/// Requests that each hardware queue can have under way.
const QUEUE_DEPTH: u32 = 128;

/// Kinds of hardware queues: one for reads, one for everything else. So a read finds a free request even if all
/// others are taken by writes that wait for space.
const QUEUE_MAPS: u32 = 2;

/// A `struct blk_mq_tag_set` for the disks of a `T`.
///
/// # Invariants
///
/// `raw` is an allocated tag set with the functions of `OperationsVTable<T>` and the private data that
/// [`request`] needs.
pub(super) struct TagSet<T> {
    // The tag set contains list heads, so it must not move.
    raw: Pin<KBox<Opaque<c::blk_mq_tag_set>>>,
    _operations: PhantomData<T>,
}

impl<T: Operations> TagSet<T> {
    /// Allocates a tag set with a hardware queue of each kind for each CPU.
    pub(super) fn new() -> Result<Self> {
        let set = c::blk_mq_tag_set {
            ops: OperationsVTable::<T>::MQ,
            // SAFETY: The function has no preconditions.
            nr_hw_queues: QUEUE_MAPS * unsafe { c::cloop_num_cpus() },
            nr_maps: QUEUE_MAPS,
            queue_depth: QUEUE_DEPTH,
            numa_node: c::NUMA_NO_NODE,
            cmd_size: request::PRIVATE_SIZE as c_uint,
            // Our requests need requests of other devices to complete. An I/O scheduler would gain
            // nothing by sorting: the log writes sequentially in any case.
            flags: c::BLK_MQ_F_STACKING | c::BLK_MQ_F_NO_SCHED_BY_DEFAULT,
            ..pin_init::zeroed()
        };
        let raw = KBox::pin(Opaque::new(set), GFP_KERNEL)?;
        // SAFETY: The fields that a driver sets are set, and the others are zero.
        to_result(unsafe { c::blk_mq_alloc_tag_set(raw.get()) })?;
        // INVARIANT: The tag set has just been allocated, with the functions and the private data.
        Ok(Self {
            raw,
            _operations: PhantomData,
        })
    }
}

impl<T> TagSet<T> {
    /// The C object.
    pub(super) fn as_ptr(&self) -> *mut c::blk_mq_tag_set {
        self.raw.get()
    }
}

impl<T> Drop for TagSet<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant, the tag set is allocated. Nothing uses it after its owner.
        unsafe { c::blk_mq_free_tag_set(self.raw.get()) };
    }
}
