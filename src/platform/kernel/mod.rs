// SPDX-License-Identifier: GPL-2.0
//! The platform of the engine in the kernel.
//!
//! A thread may call these functions while it writes a dirty page back in order to free memory. An
//! allocation must not wait for such a write, so it needs `GFP_NOIO`. The files here nevertheless say
//! `GFP_KERNEL`: the workers of a device, the threads of [`thread`] and the thread that attaches a device
//! set `PF_MEMALLOC_NOIO` ([`io_scope()`]), which turns `GFP_KERNEL` into `GFP_NOIO` for every allocation
//! that they make. Only what is allocated before a device exists may wait for I/O.

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

/// The kernel as a platform of the engine.
pub(crate) struct Kernel;

impl Platform for Kernel {
    type Monitor<T: Send + 'static> = sync::KernelMonitor<T>;
    type File = KernelFile;
    type Thread = thread::KernelThread;
    type Lz4 = codec::KernelLz4;
    type ZstdCompressor = codec::KernelZstdCompressor;
    type ZstdDecompressor = codec::KernelZstdDecompressor;

    fn spawn<F: FnOnce() + Send + 'static>(
        name: &'static str,
        f: F,
    ) -> Result<Self::Thread, Error> {
        thread::KernelThread::spawn(name, f)
    }

    fn random_u64() -> u64 {
        // SAFETY: The function has no preconditions.
        unsafe { c::get_random_u64() }
    }

    fn now_ms() -> u64 {
        // SAFETY: The function has no preconditions.
        unsafe { c::cloop_now_ms() }
    }

    fn stand_back(back: bool) {
        // SAFETY: The engine calls this on its own threads only.
        unsafe { c::cloop_stand_back(back) };
    }

    fn write_retried(file: &Self::File, error: Option<Error>) {
        file.report_retry(error);
    }

    fn segments_stuck(file: &Self::File, segments: u64) {
        file.report_stuck(segments);
    }

    fn crc32c(crc: u32, data: &[u8]) -> u32 {
        // The function of the kernel leaves the inversion before and after to the caller.
        // SAFETY: `data` is readable for its length.
        !unsafe { c::crc32c(!crc, data.as_ptr().cast(), data.len()) }
    }
}
