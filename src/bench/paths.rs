// SPDX-License-Identifier: GPL-2.0 OR MIT
//! [`Bench`]: a volume that is driven along one [`Path`] after the other.

use super::{Counted, Counts};
use crate::engine::{
    Access, Algorithm, Compression, CreateOptions, Error, Recompression, Volume, Workspace,
    BLOCK_SIZE, DEFAULT_SEGMENT_SIZE,
};
use crate::platform::{BackingFile, Platform};
use core::ops::Range;
use std::thread;
use std::vec::Vec;

/// Blocks of a sequential request: 128 KiB.
const REQUEST: usize = 32;
/// Blocks of one discard: 1 MiB.
const DISCARD: u64 = 256;
/// Blocks that hot reads choose from: one record of 64 KiB holds them all.
const HOT: u64 = 8;
/// Distinct requests of test data.
const PATTERNS: usize = 16;

/// A path through the engine that is measured. In this order each finds what it needs: reads what the writes before
/// them left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// Writes of 128 KiB over the whole device, and a flush at the end.
    SequentialWrite,
    /// Reads of 128 KiB over the whole device.
    SequentialRead,
    /// Reads of 4 KiB of what was written in requests of 128 KiB.
    RandomRead,
    /// Reads of 4 KiB from one record, which the engine keeps decompressed.
    HotRead,
    /// Writes of 4 KiB, and a flush at the end.
    RandomWrite,
    /// Writes of 4 KiB with a flush after each.
    WriteFlush,
    /// Discards of 1 MiB over the whole device, and a flush at the end.
    Discard,
}

impl Path {
    /// All of them in order.
    pub const ALL: [Self; 7] = [
        Self::SequentialWrite,
        Self::SequentialRead,
        Self::RandomRead,
        Self::HotRead,
        Self::RandomWrite,
        Self::WriteFlush,
        Self::Discard,
    ];

    /// What it is called on the command line and in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::SequentialWrite => "seq-write-128k",
            Self::SequentialRead => "seq-read-128k",
            Self::RandomRead => "rand-read-4k",
            Self::HotRead => "hot-read-4k",
            Self::RandomWrite => "rand-write-4k",
            Self::WriteFlush => "write-4k-flush",
            Self::Discard => "discard-1m",
        }
    }

    /// Bytes of one operation.
    pub fn request_bytes(self) -> u64 {
        let blocks = match self {
            Self::SequentialWrite | Self::SequentialRead => REQUEST as u64,
            Self::RandomRead | Self::HotRead | Self::RandomWrite | Self::WriteFlush => 1,
            Self::Discard => DISCARD,
        };
        blocks * BLOCK_SIZE as u64
    }

    /// Operations on a device of `blocks` blocks.
    pub fn operations(self, blocks: u64) -> u64 {
        match self {
            Self::SequentialWrite | Self::SequentialRead => blocks / REQUEST as u64,
            Self::RandomRead => blocks / 4,
            Self::HotRead => blocks * 32,
            Self::RandomWrite => blocks,
            Self::WriteFlush => blocks / 8,
            Self::Discard => blocks / DISCARD,
        }
    }

    fn ends_with_flush(self) -> bool {
        matches!(
            self,
            Self::SequentialWrite | Self::RandomWrite | Self::Discard
        )
    }
}

/// A small, fast, seeded generator (xorshift64*).
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// Data of which LZ4 stores about 60 %: random bytes and repetitions of a word in turn.
fn pattern(rng: &mut Rng) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(REQUEST * BLOCK_SIZE);
    while bytes.len() < REQUEST * BLOCK_SIZE {
        let word = rng.next().to_le_bytes();
        for n in 0..16 {
            let random = rng.next().to_le_bytes();
            bytes.extend_from_slice(if n < 9 { &random } else { &word });
        }
    }
    bytes
}

/// What belongs to one thread.
struct Worker<P: Platform> {
    ws: Workspace<P>,
    rng: Rng,
    out: Vec<u8>,
}

/// A volume on a counted backing file, and the data that is written to it.
pub struct Bench<P: Platform> {
    volume: Volume<P>,
    /// The blocks that are used, from the first on.
    blocks: u64,
    patterns: Vec<Vec<u8>>,
}

impl<F: BackingFile, P: Platform<File = Counted<F>>> Bench<P> {
    /// Makes an image for a device of `size` bytes in `file` and opens it. Only the first `used` bytes of the device
    /// will be used.
    ///
    /// # Errors
    ///
    /// Those of [`Volume::create`] and [`Volume::open`].
    pub fn new(
        file: Counted<F>,
        size: u64,
        used: u64,
        record_size: u32,
        algorithm: Algorithm,
    ) -> Result<Self, Error> {
        let options = CreateOptions {
            size,
            record_size,
            compression: Compression::of(algorithm),
            segment_size: DEFAULT_SEGMENT_SIZE,
            recompression: Recompression::OFF,
            uuid: *b"a bench's volume",
        };
        Volume::<P>::create(&file, &options)?;
        let mut rng = Rng(1);
        Ok(Self {
            volume: Volume::open(file, Access::Write)?,
            blocks: used / BLOCK_SIZE as u64,
            patterns: (0..PATTERNS).map(|_| pattern(&mut rng)).collect(),
        })
    }

    /// Does what a path needs that is no part of it.
    ///
    /// # Errors
    ///
    /// Those of [`Volume::write`] and [`Volume::flush`].
    pub fn prepare(&self, path: Path) -> Result<(), Error> {
        if path == Path::HotRead {
            let mut ws = self.volume.workspace()?;
            self.volume.write(&mut ws, 0, &self.patterns[0])?;
            self.volume.flush()?;
        }
        Ok(())
    }

    /// Runs `operations` operations of the path, divided among this many threads. Which blocks they touch depends on
    /// the number of threads, and on nothing else.
    ///
    /// # Errors
    ///
    /// Those of the operations. [`Error::NoMemory`] if a thread cannot be started.
    pub fn run(&self, path: Path, operations: u64, threads: u64) -> Result<(), Error> {
        // The only thread is this one: a home may know no other.
        if threads == 1 {
            self.run_thread(path, 0..operations, 0)?;
        } else {
            thread::scope(|scope| {
                let start = |index| {
                    let share = operations * index / threads..operations * (index + 1) / threads;
                    thread::Builder::new()
                        .spawn_scoped(scope, move || self.run_thread(path, share, index))
                        .map_err(|_| Error::NoMemory)
                };
                let running: Vec<_> = (0..threads).map(start).collect();
                running
                    .into_iter()
                    .try_for_each(|handle| handle?.join().unwrap_or(Err(Error::Io(0))))
            })?;
        }
        match path.ends_with_flush() {
            true => self.volume.flush(),
            false => Ok(()),
        }
    }

    fn run_thread(&self, path: Path, share: Range<u64>, index: u64) -> Result<(), Error> {
        let mut worker = Worker {
            ws: self.volume.workspace()?,
            rng: Rng(1 + path as u64 + (index << 8)),
            out: std::vec![0; REQUEST * BLOCK_SIZE],
        };
        for n in share {
            self.operate(path, n, &mut worker)?;
        }
        Ok(())
    }

    fn operate(&self, path: Path, n: u64, worker: &mut Worker<P>) -> Result<(), Error> {
        let Worker { ws, rng, out } = worker;
        let data = &self.patterns[n as usize % PATTERNS];
        match path {
            Path::SequentialWrite => self.volume.write(ws, n * REQUEST as u64, data),
            Path::SequentialRead => self.volume.read(ws, n * REQUEST as u64, out),
            Path::RandomRead => {
                let block = rng.below(self.blocks);
                self.volume.read(ws, block, &mut out[..BLOCK_SIZE])
            }
            Path::HotRead => self.volume.read(ws, rng.below(HOT), &mut out[..BLOCK_SIZE]),
            Path::RandomWrite => {
                let from = rng.below(REQUEST as u64) as usize * BLOCK_SIZE;
                let block = rng.below(self.blocks);
                self.volume.write(ws, block, &data[from..from + BLOCK_SIZE])
            }
            Path::WriteFlush => {
                self.volume
                    .write(ws, rng.below(self.blocks), &data[..BLOCK_SIZE])?;
                self.volume.flush()
            }
            Path::Discard => self.volume.zero(ws, n * DISCARD, DISCARD),
        }
    }

    /// Writes a checkpoint.
    ///
    /// # Errors
    ///
    /// Those of [`Volume::checkpoint`].
    pub fn checkpoint(&self) -> Result<(), Error> {
        self.volume.checkpoint()
    }

    /// Closes the volume.
    ///
    /// # Errors
    ///
    /// Those of [`Volume::close`].
    pub fn close(self) -> Result<(), Error> {
        self.volume.close()
    }
}

/// The I/O that `work` leads to.
///
/// # Errors
///
/// Those of `work`.
pub(crate) fn counting<F>(
    file: &Counted<F>,
    work: impl FnOnce() -> Result<(), Error>,
) -> Result<Counts, Error> {
    let before = file.counts();
    work()?;
    Ok(file.counts() - before)
}
