// SPDX-License-Identifier: GPL-2.0
//! Threads, and the flags that a thread serving a block device runs with.

use crate::c;
use crate::engine::Error;
use crate::platform::Thread;
use core::ptr::NonNull;
use core::sync::atomic::AtomicBool;
use kernel::ffi::c_void;
use kernel::prelude::*;
use kernel::types::ScopeGuard;

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
