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
/// A thread is in one of these states:
///
/// 1. Running: it calls the function that it was spawned with.
/// 2. Done: the function has returned.
/// 3. Joined: [`join`](Thread::join) has waited for the exit of the thread, and so for its reference to
///    the module.
///
/// Dropping the handle does not stop the thread, which goes on to state 2 and exits.
///
/// # Invariants
///
/// - `raw` is a valid handle from `cloop_thread_spawn`, and this value owns the handle's reference.
/// - The thread is in state 3 if and only if `joined` is true.
pub(crate) struct KernelThread {
    raw: NonNull<c::cloop_thread>,
    joined: bool,
}

// SAFETY: The handle belongs to no thread.
unsafe impl Send for KernelThread {}
// SAFETY: A shared reference has no operations.
unsafe impl Sync for KernelThread {}

/// Calls the closure in `data`.
///
/// # Safety
///
/// `data` comes from `KBox::<F>::into_raw`, and this function takes its ownership.
unsafe extern "C" fn run<F: FnOnce()>(data: *mut c_void) {
    // SAFETY: By the safety requirement of this function, the box is ours.
    let f = unsafe { KBox::from_raw(data.cast::<F>()) };
    KBox::into_inner(f)();
}

impl KernelThread {
    /// Starts a thread with the name `name`, which calls `f`.
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`].
    pub(super) fn spawn<F: FnOnce() + Send + 'static>(
        name: &'static str,
        f: F,
    ) -> Result<Self, Error> {
        // The box of a closure without captures has no memory. `from_raw` accepts its pointer too.
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
            // INVARIANT: The handle is fresh and ours, and the thread is not joined.
            Some(raw) => Ok(Self { raw, joined: false }),
            None => {
                // SAFETY: No thread was started, so `run` does not take the box.
                drop(unsafe { KBox::from_raw(data) });
                Err(Error::NoMemory)
            }
        }
    }
}

impl Thread for KernelThread {
    fn join(&mut self) {
        if !self.joined {
            // SAFETY: By the type invariant, `raw` is valid and the thread is not joined yet.
            unsafe { c::cloop_thread_join(self.raw.as_ptr()) };
            // INVARIANT: The thread has just been joined.
            self.joined = true;
        }
    }
}

impl Drop for KernelThread {
    fn drop(&mut self) {
        // SAFETY: By the type invariant, the reference is ours. Nothing uses it again.
        unsafe { c::cloop_thread_put(self.raw.as_ptr()) };
    }
}
