// SPDX-License-Identifier: GPL-2.0
//! Kernel threads.

use crate::c;
use crate::engine::Error;
use crate::platform::Thread;
use core::ptr::NonNull;
use kernel::ffi::c_void;
use kernel::prelude::*;

/// A kernel thread that the engine has started.
///
/// # Invariants
///
/// `raw` is a valid handle from `cloop_thread_spawn`, whose reference is owned by this value.
pub(crate) struct KernelThread {
    raw: NonNull<c::cloop_thread>,
    joined: bool,
}

// SAFETY: The handle may be used and dropped on any thread; it belongs to none.
unsafe impl Send for KernelThread {}
// SAFETY: There is nothing to do with a shared reference.
unsafe impl Sync for KernelThread {}

/// Calls the closure in `data`.
///
/// # Safety
///
/// `data` comes from `KBox::<F>::into_raw`, and its ownership passes to this function.
unsafe extern "C" fn run<F: FnOnce()>(data: *mut c_void) {
    // SAFETY: By the safety requirement of this function.
    let f = unsafe { KBox::from_raw(data.cast::<F>()) };
    KBox::into_inner(f)();
}

impl KernelThread {
    pub(super) fn spawn<F: FnOnce() + Send + 'static>(
        name: &'static str,
        f: F,
    ) -> Result<Self, Error> {
        // A closure without captures makes a box without memory; `from_raw` takes that back too.
        let data = KBox::into_raw(KBox::new(f, GFP_KERNEL).map_err(|_| Error::NoMemory)?);
        // SAFETY: `name` is readable for its length, and `run` is called at most once with `data`.
        let raw = unsafe {
            c::cloop_thread_spawn(
                name.as_ptr().cast(),
                name.len() as c_int,
                Some(run::<F>),
                data.cast(),
            )
        };
        match NonNull::new(raw) {
            // INVARIANT: The handle is fresh and ours.
            Some(raw) => Ok(Self { raw, joined: false }),
            None => {
                // SAFETY: No thread was started, so the box was not given away.
                drop(unsafe { KBox::from_raw(data) });
                Err(Error::NoMemory)
            }
        }
    }
}

impl Thread for KernelThread {
    fn join(&mut self) {
        if !self.joined {
            // SAFETY: By the type invariant, `raw` is valid.
            unsafe { c::cloop_thread_join(self.raw.as_ptr()) };
            self.joined = true;
        }
    }
}

impl Drop for KernelThread {
    fn drop(&mut self) {
        // SAFETY: By the type invariant, the reference is ours, and it is not used again.
        unsafe { c::cloop_thread_put(self.raw.as_ptr()) };
    }
}
