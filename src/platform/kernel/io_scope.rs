// SPDX-License-Identifier: GPL-2.0
//! The flags of a thread that serves a block device.

use crate::c;
use kernel::types::ScopeGuard;

/// Sets the flags of a thread that serves a block device, until the returned guard is dropped: the current
/// thread does not start I/O in order to allocate memory, and is throttled only by the backing device.
///
/// The caller drops the guard on the same thread.
pub(crate) fn io_scope() -> impl Drop {
    // SAFETY: The function changes flags of the current thread only.
    let saved = unsafe { c::cloop_io_begin() };
    ScopeGuard::new(move || {
        // SAFETY: As above. `saved` comes from `cloop_io_begin` on the same thread.
        unsafe { c::cloop_io_end(saved) };
    })
}
