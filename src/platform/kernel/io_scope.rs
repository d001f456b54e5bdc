// SPDX-License-Identifier: GPL-2.0
//! The flags of a thread that serves a block device.

use crate::c;
use kernel::types::ScopeGuard;

/// Until the returned guard is dropped, the current thread neither starts I/O in order to allocate
/// memory nor is throttled for pages that others have dirtied.
///
/// To be dropped on the thread that called it.
pub(crate) fn io_scope() -> impl Drop {
    // SAFETY: It changes flags of the current thread only.
    let saved = unsafe { c::cloop_io_begin() };
    ScopeGuard::new(move || {
        // SAFETY: As above; `saved` comes from `cloop_io_begin`.
        unsafe { c::cloop_io_end(saved) };
    })
}
