// SPDX-License-Identifier: GPL-2.0
//! Errors of the engine, as the kernel knows them.

use crate::c;
use crate::engine;
use kernel::prelude::*;

/// An engine error as the kernel crate's.
pub(crate) fn errno(error: engine::Error) -> Error {
    Error::from_errno(-error.errno())
}

/// What a request that failed with `error` is ended with.
pub(crate) fn status(error: engine::Error) -> c::blk_status_t {
    match error {
        engine::Error::NoSpace => c::BLK_STS_NOSPC,
        engine::Error::NoMemory => c::BLK_STS_RESOURCE,
        engine::Error::Corrupt { .. } => c::BLK_STS_PROTECTION,
        _ => c::BLK_STS_IOERR,
    }
}

// The kernel crate has a `Display` of its own, so that it can hash pointers.
impl kernel::fmt::Display for engine::Error {
    fn fmt(&self, f: &mut kernel::fmt::Formatter<'_>) -> kernel::fmt::Result {
        core::fmt::Display::fmt(self, f)
    }
}
