// SPDX-License-Identifier: GPL-2.0
//! The portable engine: a block volume in a compressed, log-structured image.
//!
//! It knows neither the kernel nor user space, only a [`Platform`](crate::platform::Platform).
//! [`Volume`] is the whole interface. `Documentation/architecture.rst` tells how data flows.

#![forbid(unsafe_code)]

mod access;
mod background;
mod checkpoint;
mod codec;
mod error;
pub mod format;
mod freeing;
mod index_set;
mod io;
mod log;
mod map;
mod pool;
mod reclaim;
mod recompress;
mod records;
mod recovery;
mod space;
mod spares;
mod store;
mod volume;
mod workspace;

pub use self::access::Access;
pub use self::codec::{Codec, Compression, Levels, Recompression};
pub use self::error::{Error, Result};
pub use self::format::{
    Algorithm, DeviceSize, Layout, BLOCK_SIZE, DEFAULT_SEGMENT_SIZE, FORMAT_VERSION,
    MAX_RECORD_SIZE,
};
pub use self::io::batch::Batch;
pub use self::io::estimate::{Cost, Estimator};
pub use self::io::sink::Sink;
pub use self::pool::Pool;
pub use self::recompress::RecompressionPass;
pub use self::records::ReadBuffers;
pub use self::recovery::create::CreateOptions;
pub use self::recovery::open::DEFAULT_TABLE_LIMIT;
pub use self::recovery::{check, repair};
pub use self::volume::{State, Stats, Volume};
pub use self::workspace::Workspace;
