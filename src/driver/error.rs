// SPDX-License-Identifier: GPL-2.0
//! The engine's errors as the kernel's.

use crate::c;
use crate::engine;
use kernel::prelude::*;

/// Translates an error of the engine into one of the kernel crate.
pub(crate) fn errno(error: engine::Error) -> Error {
    Error::from_errno(-error.errno())
}

/// The status of a request that failed with `error`.
pub(crate) fn status(error: engine::Error) -> c::blk_status_t {
    match error {
        engine::Error::NoSpace => c::BLK_STS_NOSPC,
        engine::Error::NoMemory => c::BLK_STS_RESOURCE,
        engine::Error::Corrupt { .. } => c::BLK_STS_PROTECTION,
        _ => c::BLK_STS_IOERR,
    }
}

// The kernel crate has its own `Display`, which hashes pointers.
impl kernel::fmt::Display for engine::Error {
    fn fmt(&self, f: &mut kernel::fmt::Formatter<'_>) -> kernel::fmt::Result {
        core::fmt::Display::fmt(self, f)
    }
}
