// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The image is a function of the operations: the same operations with the same seed write the same bytes, in the
//! same order of writes and fsyncs, in every version of the engine.
//!
//! A change of the constants below is a change of what the engine writes. That is no fault in itself (reclaim may
//! choose better), but it is never an accident: a commit that only restructures leaves them alone, and one
//! that changes them says why.
//!
//! The home has no background threads, because the order in which threads run depends on how often the engine takes
//! a lock. Writers, flushes, checkpoints and compaction then do all the work themselves.

use cloop::engine::{
    Access, Algorithm, Compression, CreateOptions, Error, Recompression, Volume, BLOCK_SIZE,
};
use cloop::platform::fuzz::{LoneMonitor, NoThread};
use cloop::platform::sim::{Rng, SimFile, Survival};
use cloop::platform::std::{StdLz4, StdZstdCompressor, StdZstdDecompressor};
use cloop::platform::{BackingFile, Platform};
use cloop::simulation::{fill, tag_of};
use std::cell::RefCell;
use std::sync::{Arc, Mutex};

/// Size of the device at first and after growing, in blocks. The larger one needs one more level of the sector table.
const SIZES: [u64; 2] = [1100, 24_000];

/// Operations between two openings.
const OPERATIONS: u64 = 250;

/// The beginning of a checksum.
const EMPTY: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a. It is no CRC, because the sectors of fingerprints in a superblock leave a CRC-32C as it is.
fn checksum(sum: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(sum, |sum, &byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    })
}

/// A simulated file with a checksum over every change, in the order in which the engine asks for them.
#[derive(Clone)]
struct Recorded {
    file: SimFile,
    steps: Arc<Mutex<u64>>,
}

impl Recorded {
    fn new(file: SimFile) -> Self {
        let steps = Arc::new(Mutex::new(EMPTY));
        Self { file, steps }
    }

    fn record(&self, what: u64, offset: u64, len: u64, bytes: &[u8]) {
        let mut steps = self.steps.lock().unwrap();
        for word in [what, offset, len] {
            *steps = checksum(*steps, &word.to_le_bytes());
        }
        *steps = checksum(*steps, bytes);
    }
}

impl BackingFile for Recorded {
    fn len(&self) -> Result<u64, Error> {
        self.file.len()
    }

    fn fixed_size(&self) -> bool {
        self.file.fixed_size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Error> {
        self.file.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), Error> {
        self.record(0, offset, buf.len() as u64, buf);
        self.file.write_at(buf, offset)
    }

    fn sync(&self) -> Result<(), Error> {
        self.record(1, 0, 0, &[]);
        self.file.sync()
    }

    fn allocate(&self, offset: u64, len: u64) -> Result<(), Error> {
        self.record(2, offset, len, &[]);
        self.file.allocate(offset, len)
    }

    fn punch(&self, offset: u64, len: u64) -> Result<(), Error> {
        self.record(3, offset, len, &[]);
        self.file.punch(offset, len)
    }

    fn truncate(&self, len: u64) -> Result<(), Error> {
        self.record(4, 0, len, &[]);
        self.file.truncate(len)
    }

    fn free_space(&self) -> Result<Option<u64>, Error> {
        Ok(None)
    }

    fn allocated(&self) -> Result<u64, Error> {
        self.file.allocated()
    }
}

std::thread_local! {
    static RANDOM: RefCell<Rng> = const { RefCell::new(Rng(0)) };
}

/// The home: one thread, a recorded disk, and random numbers that follow from a seed.
#[derive(Debug)]
struct Still;

impl Platform for Still {
    type Monitor<T: Send + 'static> = LoneMonitor<T>;
    type File = Recorded;
    type Thread = NoThread;
    type Lz4 = StdLz4;
    type ZstdCompressor = StdZstdCompressor;
    type ZstdDecompressor = StdZstdDecompressor;

    fn spawn<F: FnOnce() + Send + 'static>(_: &'static str, _: F) -> Result<NoThread, Error> {
        Ok(NoThread)
    }

    fn random_u64() -> u64 {
        RANDOM.with_borrow_mut(Rng::next_u64)
    }

    fn now_ms() -> u64 {
        0
    }

    fn crc32c(seed: u32, data: &[u8]) -> u32 {
        crc32c::crc32c_append(seed, data)
    }
}

/// A volume beside an array of tags that says what it holds.
struct Play {
    volume: Volume<Still>,
    tags: Vec<u32>,
    last_tag: u32,
    rng: Rng,
}

impl Play {
    fn write(&mut self, block: u64, count: u64, class: u64) {
        let mut ws = self.volume.workspace().unwrap();
        let mut data = vec![0; count as usize * BLOCK_SIZE];
        for (at, bytes) in (block as usize..).zip(data.chunks_exact_mut(BLOCK_SIZE)) {
            self.last_tag += 1;
            // What follows from a tag compresses well, badly or not at all by its rest.
            let tag = match class {
                0..=2 => self.last_tag * 3 + class as u32,
                3 => self.last_tag * 3 + self.rng.below(3) as u32,
                _ => (self.last_tag * 3 + 1) * self.rng.below(2) as u32,
            };
            fill(tag, bytes);
            self.tags[at] = tag;
        }
        match self.rng.below(8) {
            0 => self.volume.write_metadata(&mut ws, block, &data).unwrap(),
            _ => self.volume.write(&mut ws, block, &data).unwrap(),
        }
    }

    fn zero(&mut self, block: u64, count: u64) {
        let mut ws = self.volume.workspace().unwrap();
        self.volume.zero(&mut ws, block, count).unwrap();
        self.tags[block as usize..(block + count) as usize].fill(0);
    }

    /// Reads, which loads leaves of the sector table that were taken out of memory.
    fn read(&mut self, block: u64, count: u64) {
        let mut ws = self.volume.workspace().unwrap();
        let mut data = vec![0; count as usize * BLOCK_SIZE];
        self.volume.read(&mut ws, block, &mut data).unwrap();
        for (at, bytes) in (block as usize..).zip(data.chunks_exact(BLOCK_SIZE)) {
            assert_eq!(tag_of(bytes), Some(self.tags[at]), "block {at}");
        }
    }

    fn resize(&mut self, blocks: u64) {
        let mut ws = self.volume.workspace().unwrap();
        let size = blocks * BLOCK_SIZE as u64;
        self.volume.resize(&mut ws, size, true).unwrap();
        self.tags.resize(blocks as usize, 0);
    }

    fn operate(&mut self) {
        let blocks = self.tags.len() as u64;
        let block = match self.rng.below(3) {
            0 => self.rng.below(blocks),
            _ => self.rng.below(200),
        };
        let rest = blocks - block;
        let size = self.rng.next_u64();
        let up_to = |max: u64| 1 + size % max.min(rest);
        let class = self.rng.below(5);
        match self.rng.below(32) {
            0..=9 => self.write(block, up_to(4), class),
            10..=17 => self.write(block, up_to(64), class),
            18..=19 => self.zero(block, up_to(16)),
            20 => self.zero(block, up_to(rest)),
            21..=23 => self.read(block, up_to(64)),
            24..=25 => self.volume.flush().unwrap(),
            26 => {
                self.write(block, 1, class);
                self.volume.force_unit_access().unwrap();
            }
            27 => self.volume.checkpoint().unwrap(),
            28 => self.volume.shed_table(u64::MAX),
            29 => {
                let mut steps = 1 + size % 4;
                let mut go_on = |_| {
                    steps -= 1;
                    steps > 0
                };
                self.volume.compact(&mut go_on).unwrap();
            }
            30 => self.resize(SIZES[size as usize % 2]),
            _ => self.zero(block / 512 * 512, 512.min(blocks - block / 512 * 512)),
        }
    }
}

/// Operates on an image, which is closed or loses its power in between. Answers with checksums over the changes of the file
/// and over the image they led to.
fn play(seed: u64, record_size: u32, algorithm: Algorithm) -> [u64; 2] {
    RANDOM.set(Rng(seed));
    let options = CreateOptions {
        size: SIZES[0] * BLOCK_SIZE as u64,
        record_size,
        segment_size: 256 << 10,
        compression: Compression::of(algorithm),
        recompression: Recompression::OFF,
        uuid: *b"a simulated disk",
    };
    let mut file = Recorded::new(SimFile::new());
    Volume::<Still>::create(&file, &options).unwrap();
    let mut play = Play {
        volume: Volume::open(file.clone(), Access::Write).unwrap(),
        tags: vec![0; SIZES[0] as usize],
        last_tag: 0,
        rng: Rng(seed),
    };
    for round in 0..4 {
        for _ in 0..OPERATIONS {
            play.operate();
        }
        let survives = match round {
            0 => Survival::Everything,
            1 => {
                play.volume.flush().unwrap();
                Survival::Nothing
            }
            _ => {
                play.volume.close().unwrap();
                Survival::Nothing
            }
        };
        file.file = file.file.after(survives);
        play.volume = Volume::open(file.clone(), Access::Write).unwrap();
        let blocks = play.volume.size().blocks();
        play.tags = (0..blocks)
            .map(|block| {
                let mut ws = play.volume.workspace().unwrap();
                let mut bytes = vec![0; BLOCK_SIZE];
                play.volume.read(&mut ws, block, &mut bytes).unwrap();
                let tag = tag_of(&bytes).expect("a block of mixed contents");
                assert!(
                    round == 0 || tag == play.tags[block as usize],
                    "block {block}"
                );
                tag
            })
            .collect();
    }
    play.volume.compact(&mut |_| true).unwrap();
    play.volume.close().unwrap();
    let steps = *file.steps.lock().unwrap();
    let taken = file.allocated().unwrap().to_le_bytes();
    let image = checksum(checksum(EMPTY, &file.file.bytes()), &taken);
    [steps, image]
}

/// Record size, algorithm, and the checksums that [`play`] answers with.
const KNOWN: [(u32, Algorithm, [u64; 2]); 6] = [
    (
        4096,
        Algorithm::Lz4,
        [13_442_847_574_156_629_094, 7_888_983_321_037_909_511],
    ),
    (
        8192,
        Algorithm::Raw,
        [15_026_883_222_479_552_343, 15_482_343_075_697_160_686],
    ),
    (
        16_384,
        Algorithm::Lz4,
        [10_443_852_079_325_884_005, 16_267_930_913_376_919_718],
    ),
    (
        65_536,
        Algorithm::Lz4,
        [4_682_928_190_768_733_519, 16_108_340_313_681_424_391],
    ),
    (
        65_536,
        Algorithm::Raw,
        [12_248_466_324_950_727_250, 13_166_818_246_639_798_210],
    ),
    (
        131_072,
        Algorithm::Lz4,
        [11_029_629_711_320_614_937, 12_963_337_885_416_614_993],
    ),
];

#[test]
fn the_same_operations_write_the_same_image() {
    let mut found = KNOWN;
    for (seed, (record_size, algorithm, checksums)) in (1..).zip(&mut found) {
        *checksums = play(seed, *record_size, *algorithm);
    }
    assert_eq!(found, KNOWN, "[changes of the file, image] differ");
}
