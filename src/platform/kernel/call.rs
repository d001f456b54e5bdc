// SPDX-License-Identifier: GPL-2.0
//! Calls of a function on another thread.

use crate::c;
use crate::engine::Error;
use core::sync::atomic::AtomicBool;
use kernel::ffi::c_void;
use kernel::prelude::*;

/// A function that another thread calls, and its result.
struct Call<F> {
    f: Option<F>,
    result: Result<(), Error>,
}

impl<F: FnOnce() -> Result<(), Error> + Send> Call<F> {
    fn new(f: F) -> Self {
        Self {
            f: Some(f),
            result: Err(Error::Io(0)),
        }
    }

    /// Calls the function in `data`.
    ///
    /// # Safety
    ///
    /// `data` points to a `Call<F>` that no other thread uses until this function has returned.
    unsafe extern "C" fn run(data: *mut c_void) {
        // SAFETY: By the safety requirement of this function, the reference is the only one.
        let call = unsafe { &mut *data.cast::<Self>() };
        if let Some(f) = call.f.take() {
            call.result = f();
        }
    }
}

/// Calls `f` on a thread of a workqueue and waits for it. The signals, resource limits and credentials of
/// the current process do not affect `f`.
///
/// # Errors
///
/// Those of `f`.
pub(crate) fn call<F: FnOnce() -> Result<(), Error> + Send>(f: F) -> Result<(), Error> {
    let mut call = Call::new(f);
    // SAFETY: `cloop_call` returns after `run` has returned, and nothing else uses `call` until then.
    unsafe { c::cloop_call(Some(Call::<F>::run), (&raw mut call).cast()) };
    call.result
}

/// As [`call`], for a function that takes long. A signal to the current process sets `stop`, and `f`
/// returns soon when it sees that. Returns false if a signal came.
///
/// # Errors
///
/// Those of `f`.
pub(crate) fn call_interruptible<F: FnOnce() -> Result<(), Error> + Send>(
    stop: &AtomicBool,
    f: F,
) -> Result<bool, Error> {
    let mut call = Call::new(f);
    // SAFETY: As in `call`. `stop` outlives the call, and the function writes it atomically.
    let ret = unsafe {
        c::cloop_call_interruptible(Some(Call::<F>::run), (&raw mut call).cast(), stop.as_ptr())
    };
    call.result.map(|()| ret == 0)
}
