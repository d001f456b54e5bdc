// SPDX-License-Identifier: GPL-2.0
//! The limit of the messages that a device writes to the kernel's log.

use crate::c;
use core::ptr::NonNull;
use kernel::prelude::*;

/// The limit of one device: ten messages in five seconds, which is the default of the kernel
/// (`DEFAULT_RATELIMIT_BURST`). The kernel logs how many messages were left out.
///
/// # Invariants
///
/// `raw` comes from `cloop_ratelimit_alloc` and is owned by this value.
pub(crate) struct RateLimit {
    raw: NonNull<c::cloop_ratelimit>,
}

// SAFETY: A limit belongs to no thread, and all its operations are synchronised.
unsafe impl Send for RateLimit {}
// SAFETY: As above.
unsafe impl Sync for RateLimit {}

impl RateLimit {
    /// Makes the limit of device `index`, with no message counted.
    pub(crate) fn new(index: usize) -> Result<Self> {
        // SAFETY: The function has no preconditions.
        let raw = unsafe { c::cloop_ratelimit_alloc(index as c_int) };
        // INVARIANT: The limit is fresh and ours.
        Ok(Self {
            raw: NonNull::new(raw).ok_or(ENOMEM)?,
        })
    }

    /// Counts a message, and returns true if it may be logged now.
    pub(crate) fn allows(&self) -> bool {
        // SAFETY: By the type invariant, the limit is valid.
        unsafe { c::cloop_ratelimit_allows(self.raw.as_ptr()) }
    }
}

impl Drop for RateLimit {
    fn drop(&mut self) {
        // SAFETY: By the type invariant, the limit is ours.
        unsafe { c::cloop_ratelimit_free(self.raw.as_ptr()) };
    }
}
