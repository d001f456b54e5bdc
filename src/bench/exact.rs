// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Counts of I/O that follow from the work alone: one thread, a file in memory, a home without background threads.
//!
//! `tests/counts.rs` compares them with a file in the repository, so a change that makes the engine read or write more
//! is noticed on any machine.

use super::paths::counting;
use super::{Bench, Counted, Counts, Path};
use crate::engine::{Algorithm, Error, BLOCK_SIZE};
use crate::platform::fuzz::{Fuzz, LoneMonitor, MemFile, NoThread};
use crate::platform::std::{StdLz4, StdZstdCompressor, StdZstdDecompressor};
use crate::platform::Platform;
use core::time::Duration;
use std::vec::Vec;

/// Bytes of the device, and of the part that is used: without a thread that finds space, there must be enough.
const SIZE: u64 = 256 << 20;
const USED: u64 = 32 << 20;

/// Operations of the paths that do many: enough to tell what each costs.
const MOST: u64 = 2048;

/// What images the counts are of: a name, the size of records in bytes, the algorithm.
pub const IMAGES: [(&str, u32, Algorithm); 4] = [
    ("4K", 4 << 10, Algorithm::Lz4),
    ("64K", 64 << 10, Algorithm::Lz4),
    ("128K", 128 << 10, Algorithm::Lz4),
    ("none", 64 << 10, Algorithm::Raw),
];

/// The home for hostile images with a counted file.
#[derive(Debug)]
struct Exact;

impl Platform for Exact {
    type Monitor<T: Send + 'static> = LoneMonitor<T>;
    type File = Counted<MemFile>;
    type Thread = NoThread;
    type Lz4 = StdLz4;
    type ZstdCompressor = StdZstdCompressor;
    type ZstdDecompressor = StdZstdDecompressor;

    fn spawn<F: FnOnce() + Send + 'static>(name: &'static str, f: F) -> Result<NoThread, Error> {
        Fuzz::<true>::spawn(name, f)
    }

    fn random_u64() -> u64 {
        Fuzz::<true>::random_u64()
    }

    fn now_ms() -> u64 {
        Fuzz::<true>::now_ms()
    }

    fn crc32c(crc: u32, data: &[u8]) -> u32 {
        Fuzz::<true>::crc32c(crc, data)
    }
}

/// The work that is counted: its name, the number of operations, and the I/O.
pub type Row = (&'static str, u64, Counts);

/// The counts of every path on an image with these records, and those of the checkpoints that are written in between.
///
/// # Errors
///
/// Those of the engine.
pub fn counts(record_size: u32, algorithm: Algorithm) -> Result<Vec<Row>, Error> {
    Fuzz::<true>::begin(1);
    let file = Counted::new(MemFile::default(), Duration::ZERO);
    let bench = Bench::<Exact>::new(file.clone(), SIZE, USED, record_size, algorithm)?;
    let mut rows = Vec::new();
    let mut checkpoints = Counts::default();
    for path in Path::ALL {
        let operations = path.operations(USED / BLOCK_SIZE as u64).min(MOST);
        bench.prepare(path)?;
        let counts = counting(&file, || bench.run(path, operations, 1))?;
        rows.push((path.name(), operations, counts));
        checkpoints = checkpoints + counting(&file, || bench.checkpoint())?;
    }
    rows.push(("checkpoints", Path::ALL.len() as u64, checkpoints));
    Ok(rows)
}
