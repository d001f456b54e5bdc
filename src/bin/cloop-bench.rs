// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Speed of the engine by itself: one thread on a backing file of the host, without a kernel in between.
//!
//! Each load does a fixed amount of work that follows from a seed, so two versions of the engine can be compared by
//! their time as well as by their instructions (`valgrind --tool=callgrind`, which needs no quiet machine).

use cloop::engine::{
    Access, Algorithm, CreateOptions, Error, Volume, Workspace, BLOCK_SIZE, DEFAULT_SEGMENT_SIZE,
};
use cloop::platform::std::{Std, StdFile};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

const USAGE: &str = "\
usage: cloop-bench [DIRECTORY [RECORD-SIZE [MIB [LOAD]]]]

Measures the engine on an image in DIRECTORY (/dev/shm), which is removed afterwards, with records of RECORD-SIZE
bytes (65536) and a device of MIB MiB (256). Runs all loads, or those with LOAD in their name.";

/// What the command line asks for.
struct Args {
    directory: PathBuf,
    record_size: u32,
    size: u64,
    only: String,
}

impl Args {
    /// `None` when something is no number, or when there is too much of it.
    fn parse(mut args: impl Iterator<Item = String>) -> Option<Self> {
        let parsed = Self {
            directory: args.next().unwrap_or_else(|| "/dev/shm".into()).into(),
            record_size: args.next().map_or(Some(65_536), |n| n.parse().ok())?,
            size: args.next().map_or(Some(256), |n| n.parse().ok())?,
            only: args.next().unwrap_or_default(),
        };
        args.next().is_none().then_some(parsed)
    }
}

/// Blocks of a sequential request: 128 KiB.
const REQUEST: usize = 32;
/// Distinct requests of test data.
const PATTERNS: usize = 16;

type Home = Std<StdFile>;

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

/// What a load works on.
struct Bench {
    volume: Volume<Home>,
    ws: Workspace<Home>,
    /// Requests of data that compresses to about 60 %.
    patterns: Vec<Vec<u8>>,
    out: Vec<u8>,
    rng: Rng,
}

/// Runs once over the device or as many operations; answers with the number of bytes and of operations.
type Load = fn(&mut Bench) -> Result<(u64, u64), Error>;

/// The loads in the order in which they run: reads find what the writes before them left.
const LOADS: [(&str, Load); 6] = [
    ("seq-write-128k", Bench::sequential_write),
    ("seq-read-128k", Bench::sequential_read),
    ("rand-read-4k", Bench::random_read),
    ("hot-read-4k", Bench::hot_read),
    ("rand-write-4k", Bench::random_write),
    ("write-4k-flush", Bench::write_and_flush),
];

impl Bench {
    fn blocks(&self) -> u64 {
        self.volume.size().blocks()
    }

    fn sequential_write(&mut self) -> Result<(u64, u64), Error> {
        let requests = self.blocks() / REQUEST as u64;
        for n in 0..requests {
            let data = &self.patterns[n as usize % PATTERNS];
            self.volume.write(&mut self.ws, n * REQUEST as u64, data)?;
        }
        self.volume.flush()?;
        Ok((self.blocks() * BLOCK_SIZE as u64, requests))
    }

    fn sequential_read(&mut self) -> Result<(u64, u64), Error> {
        let requests = self.blocks() / REQUEST as u64;
        for n in 0..requests {
            let block = n * REQUEST as u64;
            self.volume.read(&mut self.ws, block, &mut self.out)?;
        }
        Ok((self.blocks() * BLOCK_SIZE as u64, requests))
    }

    fn read_within(&mut self, range: u64, operations: u64) -> Result<(u64, u64), Error> {
        for _ in 0..operations {
            let block = self.rng.below(range);
            let out = &mut self.out[..BLOCK_SIZE];
            self.volume.read(&mut self.ws, block, out)?;
        }
        Ok((operations * BLOCK_SIZE as u64, operations))
    }

    fn random_read(&mut self) -> Result<(u64, u64), Error> {
        self.read_within(self.blocks(), self.blocks() / 4)
    }

    /// Reads blocks of one record, which the engine keeps decompressed if records hold more than one block.
    fn hot_read(&mut self) -> Result<(u64, u64), Error> {
        self.volume.write(&mut self.ws, 0, &self.patterns[0])?;
        self.read_within(8, self.blocks() * 32)
    }

    fn random_write(&mut self) -> Result<(u64, u64), Error> {
        let operations = self.blocks();
        for n in 0..operations {
            let block = self.rng.below(operations);
            let pattern = &self.patterns[n as usize % PATTERNS];
            let from = self.rng.below(REQUEST as u64) as usize * BLOCK_SIZE;
            let data = &pattern[from..from + BLOCK_SIZE];
            self.volume.write(&mut self.ws, block, data)?;
        }
        self.volume.flush()?;
        Ok((operations * BLOCK_SIZE as u64, operations))
    }

    fn write_and_flush(&mut self) -> Result<(u64, u64), Error> {
        let operations = self.blocks() / 8;
        for n in 0..operations {
            let block = self.rng.below(self.blocks());
            let data = &self.patterns[n as usize % PATTERNS][..BLOCK_SIZE];
            self.volume.write(&mut self.ws, block, data)?;
            self.volume.flush()?;
        }
        Ok((operations * BLOCK_SIZE as u64, operations))
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

/// Time that the threads of this process have run on a CPU so far. Nothing on a kernel that does not count it.
fn cpu_time() -> Duration {
    let mut nanoseconds = 0;
    for task in std::fs::read_dir("/proc/self/task").into_iter().flatten() {
        let stat = task.and_then(|task| std::fs::read_to_string(task.path().join("schedstat")));
        let run = stat
            .ok()
            .and_then(|stat| stat.split(' ').next()?.parse().ok());
        nanoseconds += run.unwrap_or(0);
    }
    Duration::from_nanos(nanoseconds)
}

fn run(args: &Args, path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let file = StdFile::create_new(path)?;
    let options = CreateOptions {
        size: args.size << 20,
        record_size: args.record_size,
        algorithm: Algorithm::Lz4,
        segment_size: DEFAULT_SEGMENT_SIZE,
        uuid: *b"a bench's volume",
    };
    Volume::<Home>::create(&file, &options)?;
    let volume = Volume::open(file, Access::Write)?;
    let mut rng = Rng(1);
    let mut bench = Bench {
        ws: volume.workspace()?,
        volume,
        patterns: (0..PATTERNS).map(|_| pattern(&mut rng)).collect(),
        out: vec![0; REQUEST * BLOCK_SIZE],
        rng,
    };
    println!(
        "# {:<20} {:>10} {:>12} {:>12} {:>12}",
        "load", "MB/s", "op/s", "wall us/op", "CPU us/op"
    );
    for (name, load) in LOADS.iter().filter(|load| load.0.contains(&args.only)) {
        let (wall, cpu) = (Instant::now(), cpu_time());
        let (bytes, operations) = load(&mut bench)?;
        let (wall, cpu) = (
            wall.elapsed().as_secs_f64(),
            cpu_time().saturating_sub(cpu).as_secs_f64(),
        );
        let (bytes, operations) = (bytes as f64, operations as f64);
        println!(
            "{name:<22} {:>10.1} {:>12.0} {:>12.3} {:>12.3}",
            bytes / wall / 1e6,
            operations / wall,
            wall / operations * 1e6,
            cpu / operations * 1e6
        );
    }
    bench.volume.close()?;
    Ok(())
}

fn main() -> ExitCode {
    let Some(args) = Args::parse(std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::FAILURE;
    };
    let path = args
        .directory
        .join(format!("cloop-bench.{}", std::process::id()));
    let result = run(&args, &path);
    // Nothing was written if it could not even be created.
    let _ = std::fs::remove_file(&path);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cloop-bench: {}: {error}", path.display());
            ExitCode::FAILURE
        }
    }
}
