// SPDX-License-Identifier: GPL-2.0
//! How often a device may say something in the kernel's log.

use crate::c;
use core::ptr::NonNull;
use kernel::prelude::*;

/// The limit of one device: ten messages in five seconds, the kernel's default
/// (`DEFAULT_RATELIMIT_BURST`). The kernel says how many were left out.
///
/// # Invariants
///
/// `raw` comes from `cloop_ratelimit_alloc` and is owned by this value.
pub(crate) struct RateLimit {
    raw: NonNull<c::cloop_ratelimit>,
}

// SAFETY: It belongs to no thread, and all its operations are synchronised.
unsafe impl Send for RateLimit {}
// SAFETY: As above.
unsafe impl Sync for RateLimit {}

impl RateLimit {
    /// One for device number `index`, which has said nothing yet.
    pub(crate) fn new(index: usize) -> Result<Self> {
        // SAFETY: It has no preconditions.
        let raw = unsafe { c::cloop_ratelimit_alloc(index as c_int) };
        // INVARIANT: It is fresh and ours.
        Ok(Self {
            raw: NonNull::new(raw).ok_or(ENOMEM)?,
        })
    }

    /// Whether one more message may be logged now; it is counted.
    pub(crate) fn allows(&self) -> bool {
        // SAFETY: By the type invariant.
        unsafe { c::cloop_ratelimit_allows(self.raw.as_ptr()) }
    }
}

impl Drop for RateLimit {
    fn drop(&mut self) {
        // SAFETY: By the type invariant, it is ours.
        unsafe { c::cloop_ratelimit_free(self.raw.as_ptr()) };
    }
}
