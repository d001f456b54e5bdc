// SPDX-License-Identifier: GPL-2.0
//! The workqueues that serve the requests of a disk.

use crate::c;
use core::ptr::NonNull;
use kernel::prelude::*;

/// A `struct workqueue_struct` for requests. Dropping it waits for the work that is queued.
///
/// # Invariants
///
/// `raw` is a valid workqueue, owned by this value.
pub(crate) struct Workqueue {
    raw: NonNull<c::workqueue_struct>,
}

// SAFETY: A workqueue belongs to no thread, and all its operations are synchronised.
unsafe impl Send for Workqueue {}
// SAFETY: As above.
unsafe impl Sync for Workqueue {}

impl Workqueue {
    /// Makes a workqueue of device `index` with the name `lane`, which runs at most `max_active` work items
    /// at a time.
    pub(crate) fn new(index: usize, lane: &'static str, max_active: usize) -> Result<Self> {
        // SAFETY: `lane` is readable for its length.
        let raw = unsafe {
            c::cloop_workqueue_alloc(
                index as c_int,
                lane.as_ptr().cast(),
                lane.len() as c_int,
                max_active as c_int,
            )
        };
        // INVARIANT: The workqueue is fresh and ours.
        Ok(Self {
            raw: NonNull::new(raw).ok_or(ENOMEM)?,
        })
    }

    /// The C object.
    pub(super) fn as_ptr(&self) -> *mut c::workqueue_struct {
        self.raw.as_ptr()
    }
}

impl Drop for Workqueue {
    fn drop(&mut self) {
        // SAFETY: By the type invariant, the workqueue is ours.
        unsafe { c::destroy_workqueue(self.raw.as_ptr()) };
    }
}

/// The number of CPUs that are online.
pub(crate) fn online_cpus() -> usize {
    // SAFETY: The function has no preconditions.
    unsafe { c::cloop_num_cpus() as usize }
}
