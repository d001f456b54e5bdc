// SPDX-License-Identifier: GPL-2.0
//! Calls of a function on another thread.

use crate::c;
use crate::engine::Error;
use core::sync::atomic::AtomicBool;
use kernel::ffi::c_void;
use kernel::prelude::*;

/// A function to be run elsewhere, and what it returned.
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

    /// # Safety
    ///
    /// `data` points to a `Call<F>` that nobody else uses meanwhile.
    unsafe extern "C" fn run(data: *mut c_void) {
        // SAFETY: By the safety requirement of this function.
        let call = unsafe { &mut *data.cast::<Self>() };
        if let Some(f) = call.f.take() {
            call.result = f();
        }
    }
}

/// Runs `f` in a kernel thread and waits for it: out of reach of the signals, resource limits and
/// credentials of the current process.
pub(crate) fn call<F: FnOnce() -> Result<(), Error> + Send>(f: F) -> Result<(), Error> {
    let mut call = Call::new(f);
    // SAFETY: `cloop_call` returns after `run` has; until then `call` is not used here.
    unsafe { c::cloop_call(Some(Call::<F>::run), (&raw mut call).cast()) };
    call.result
}

/// As [`call`], for what takes long: `f` should return soon once `stop` is set, which a signal to the
/// current process does. False if one came.
pub(crate) fn call_interruptible<F: FnOnce() -> Result<(), Error> + Send>(
    stop: &AtomicBool,
    f: F,
) -> Result<bool, Error> {
    let mut call = Call::new(f);
    // SAFETY: As for `call`; `stop` outlives the call, and is written atomically.
    let ret = unsafe {
        c::cloop_call_interruptible(Some(Call::<F>::run), (&raw mut call).cast(), stop.as_ptr())
    };
    call.result.map(|()| ret == 0)
}
