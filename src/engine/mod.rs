// SPDX-License-Identifier: GPL-2.0
//! The portable engine: a block volume in a compressed, log-structured image.
//!
//! It knows neither the kernel nor user space, only a [`Platform`](crate::platform::Platform).
//! [`Volume`] is the whole interface. `Documentation/architecture.rst` tells how data flows.

#![forbid(unsafe_code)]

mod cache;
pub mod check;
mod checkpoint;
mod codec;
mod error;
pub mod format;
mod log;
mod maintain;
mod map;
mod open;
mod orphans;
mod punch;
mod read;
mod reclaim;
pub mod repair;
mod shared;
mod space;
mod table;
mod usage;
mod volume;
mod workspace;
mod write;

pub use self::error::{Error, Result};
pub use self::format::{
    Algorithm, Geometry, BLOCK_SIZE, DEFAULT_SEGMENT_SIZE, FORMAT_VERSION, MAX_RECORD_SIZE,
};
pub use self::open::{CreateOptions, DEFAULT_TABLE_LIMIT};
pub use self::volume::{State, Stats, Volume};
pub use self::workspace::Workspace;
