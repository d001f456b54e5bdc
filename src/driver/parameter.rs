// SPDX-License-Identifier: GPL-2.0
//! The module parameters.

use crate::c;
use crate::engine::DEFAULT_TABLE_LIMIT;

// The initial value of the parameter is the default of the engine.
const _: () = assert!(DEFAULT_TABLE_LIMIT == c::CLOOP_TABLE_LIMIT as u64);

/// Bytes of memory that the sector table of a device may take which is attached now.
pub(crate) fn table_limit() -> u64 {
    // SAFETY: The function has no preconditions.
    unsafe { c::cloop_table_limit() }
}
