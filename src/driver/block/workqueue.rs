// SPDX-License-Identifier: GPL-2.0
//! The workqueue that serves the requests of a device.

use crate::c;
use core::ptr::NonNull;
use kernel::prelude::*;

/// The workqueue that serves a device's requests.
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
    /// Makes the workqueue of device `index`, which runs at most `max_active` requests at a time.
    pub(crate) fn new(index: usize, max_active: usize) -> Result<Self> {
        // SAFETY: It has no preconditions.
        let raw = unsafe { c::cloop_alloc_workqueue(index as c_int, max_active as c_int) };
        // INVARIANT: The workqueue is fresh and ours.
        Ok(Self {
            raw: NonNull::new(raw).ok_or(ENOMEM)?,
        })
    }

    /// The C object.
    pub(crate) fn as_ptr(&self) -> *mut c::workqueue_struct {
        self.raw.as_ptr()
    }
}

impl Drop for Workqueue {
    fn drop(&mut self) {
        // SAFETY: By the type invariant, it is ours.
        unsafe { c::destroy_workqueue(self.raw.as_ptr()) };
    }
}
