// SPDX-License-Identifier: GPL-2.0
//! The shrinker of a device: it gives back memory that the device can do without when the kernel is short of it, and
//! every few seconds memory that the device has not needed lately.

use crate::c;
use crate::server::Server;
use core::ptr::NonNull;
use kernel::prelude::*;
use kernel::sync::Arc;

const PAGE_SIZE: u64 = c::PAGE_SIZE as u64;

/// A registered shrinker. Dropping it waits for its work.
///
/// # Invariants
///
/// `raw` comes from `cloop_shrinker_alloc` with the address of `_server`, and is owned by this value.
pub(crate) struct Shrinker {
    raw: NonNull<c::cloop_shrinker>,
    _server: Arc<Server>,
}

// SAFETY: A shrinker belongs to no thread; it is registered and freed once, and `Server` is `Send` and
// `Sync`.
unsafe impl Send for Shrinker {}
// SAFETY: A shared reference has no operations.
unsafe impl Sync for Shrinker {}

impl Shrinker {
    /// Registers a shrinker for the memory of `server`.
    pub(crate) fn new(server: Arc<Server>) -> Result<Self> {
        // SAFETY: `server` is valid until the shrinker is freed: the new value owns both.
        let raw = unsafe {
            c::cloop_shrinker_alloc(server.index() as c_int, Arc::as_ptr(&server).cast())
        };
        // INVARIANT: The shrinker is fresh and ours, and has the address of `server`.
        Ok(Self {
            raw: NonNull::new(raw).ok_or(ENOMEM)?,
            _server: server,
        })
    }
}

impl Drop for Shrinker {
    fn drop(&mut self) {
        // SAFETY: By the type invariant, the shrinker is ours.
        unsafe { c::cloop_shrinker_free(self.raw.as_ptr()) };
    }
}

// bindgen reads the declarations in driver.h. The arrays have a type only if those are the same.
const _: () = {
    let _ = [c::cloop_server_pages, cloop_server_pages];
    let _ = [c::cloop_server_shed, cloop_server_shed];
    let _ = [c::cloop_server_trim, cloop_server_trim];
};

/// # Safety
///
/// For shrinker.c only: `server` is the argument of `cloop_shrinker_alloc`, and the shrinker is not freed
/// before `'a` ends.
unsafe fn server_of<'a>(server: *const c::cloop_server) -> &'a Server {
    // SAFETY: By the safety requirement of this function and the type invariant of `Shrinker`, `server`
    // points to a `Server` that lives for `'a`.
    unsafe { &*server.cast::<Server>() }
}

/// Memory that can be given back, in pages.
///
/// # Safety
///
/// As [`server_of`].
#[no_mangle]
unsafe extern "C" fn cloop_server_pages(server: *const c::cloop_server) -> c_ulong {
    // SAFETY: By the safety requirement of this function.
    (unsafe { server_of(server) }.sheddable() / PAGE_SIZE) as c_ulong
}

/// Gives about `pages` pages back.
///
/// # Safety
///
/// As [`server_of`].
#[no_mangle]
unsafe extern "C" fn cloop_server_shed(server: *const c::cloop_server, pages: c_ulong) {
    // SAFETY: By the safety requirement of this function.
    unsafe { server_of(server) }.shed((pages as u64).saturating_mul(PAGE_SIZE));
}

/// Gives back what was not needed since the last call.
///
/// # Safety
///
/// As [`server_of`].
#[no_mangle]
unsafe extern "C" fn cloop_server_trim(server: *const c::cloop_server) {
    // SAFETY: By the safety requirement of this function.
    unsafe { server_of(server) }.trim();
}
