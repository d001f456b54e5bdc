// SPDX-License-Identifier: GPL-2.0
//! Work of a device that is done away from where it is caused: see `background.c`.

use crate::c;
use crate::server::Server;
use core::ptr::NonNull;
use kernel::error::to_result;
use kernel::prelude::*;

/// # Invariants
///
/// `raw` comes from `cloop_background_alloc` and is owned by this value.
pub(crate) struct Background {
    raw: NonNull<c::cloop_background>,
}

// SAFETY: It belongs to no thread, and all its operations are synchronised.
unsafe impl Send for Background {}
// SAFETY: As above.
unsafe impl Sync for Background {}

impl Background {
    /// One that does nothing yet.
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: It has no preconditions.
        let raw = unsafe { c::cloop_background_alloc() };
        // INVARIANT: It is fresh and ours.
        Ok(Self {
            raw: NonNull::new(raw).ok_or(ENOMEM)?,
        })
    }

    /// Starts working for `server`, which has this background, and its disk.
    ///
    /// # Safety
    ///
    /// To be called once; both stay valid until [`stop`](Self::stop).
    pub(crate) unsafe fn start(
        &self,
        index: usize,
        disk: *mut c::gendisk,
        server: *const Server,
    ) -> Result {
        // SAFETY: By the type invariant and the safety requirement of this function.
        to_result(unsafe {
            c::cloop_background_start(self.raw.as_ptr(), index as c_int, disk, server.cast())
        })
    }

    /// Stops for good.
    ///
    /// # Safety
    ///
    /// To be called once, after a successful [`start`](Self::start).
    pub(crate) unsafe fn stop(&self) {
        // SAFETY: By the type invariant and the safety requirement of this function.
        unsafe { c::cloop_background_stop(self.raw.as_ptr()) };
    }

    /// Has somebody look whether there is space.
    pub(crate) fn announce(&self) {
        // SAFETY: By the type invariant; requests come between `start` and the end of the disk.
        unsafe { c::cloop_background_announce(self.raw.as_ptr()) };
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // SAFETY: By the type invariant, it is ours; nothing runs after `stop`.
        unsafe { c::cloop_background_free(self.raw.as_ptr()) };
    }
}
