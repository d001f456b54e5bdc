// SPDX-License-Identifier: GPL-2.0
//! The kernel home of the engine.
//!
//! Everything here may be called from the path that writes a dirty page back in order to free
//! memory. The callers (the device's workers and the threads of [`thread`]) have set
//! `PF_MEMALLOC_NOIO` on themselves, which turns `GFP_KERNEL` into `GFP_NOIO` for every allocation
//! they make, so the allocations in these files say `GFP_KERNEL`: while a device is being attached,
//! nothing depends on it yet and waiting for reclaim is right.

mod call;
mod codec;
mod file;
mod io_scope;
pub(crate) mod mem;
mod sync;
mod thread;

pub(crate) use self::call::{call, call_interruptible};
pub(crate) use self::file::{file_of, identity, Identity, KernelFile};
pub(crate) use self::io_scope::io_scope;

use crate::c;
use crate::engine::Error;
use crate::platform::Platform;

/// The kernel, as the engine sees it.
pub(crate) struct Kernel;

impl Platform for Kernel {
    type Monitor<T: Send + 'static> = sync::KernelMonitor<T>;
    type File = KernelFile;
    type Thread = thread::KernelThread;
    type Lz4 = codec::KernelLz4;

    fn spawn<F: FnOnce() + Send + 'static>(
        name: &'static str,
        f: F,
    ) -> Result<Self::Thread, Error> {
        thread::KernelThread::spawn(name, f)
    }

    fn random_u64() -> u64 {
        // SAFETY: It has no preconditions.
        unsafe { c::get_random_u64() }
    }

    fn crc32c(crc: u32, data: &[u8]) -> u32 {
        // The kernel's function leaves both inversions to the caller.
        // SAFETY: `data` is readable for its length.
        !unsafe { c::crc32c(!crc, data.as_ptr().cast(), data.len()) }
    }
}
