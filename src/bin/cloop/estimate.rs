// SPDX-License-Identifier: GPL-2.0 OR MIT
//! `cloop estimate`: what data would take in an image.

use crate::contents::{Contents, Pieces};
use crate::create::parse_compression;
use crate::info::{hundredths, level, ratio};
use crate::output;
use crate::progress;
use crate::size;
use crate::workers::{self, Stop};
use anyhow::{anyhow, Result};
use cloop::engine::{
    Codec, Compression, Cost, CreateOptions, Estimator, Recompression, BLOCK_SIZE,
    DEFAULT_SEGMENT_SIZE,
};
use cloop::platform::std::Std;
use indicatif::ProgressBar;
use rustix::time::{clock_gettime, ClockId};
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Estimate what disks, files or directories would take in an image, with each algorithm.
///
/// Nothing is written. A part of the data, spread evenly over all of it, is compressed as an image would store it.
/// Directories count as the blocks of their files; other file systems that are mounted in them do not count.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Print JSON, sizes in bytes
    #[arg(short = 'J', long)]
    json: bool,
    /// Algorithms to compare, separated by commas: lz4, zstd or zstd:1 to zstd:19, none
    #[arg(short, long, value_name = "ALGORITHM[:LEVEL],...", value_delimiter = ',', value_parser = parse_compression,
          default_value = "none,lz4,zstd:1,zstd:3,zstd:9,zstd:15")]
    compress: Vec<Compression>,
    /// Bytes compressed together: 4K to 128K
    #[arg(short, long, value_name = "SIZE", default_value = "64K", value_parser = size::parse_record)]
    record_size: u32,
    /// Bytes to compress: more take longer, and make the estimate more exact
    #[arg(short, long, value_name = "SIZE", default_value = "48M", value_parser = size::parse)]
    sample: u64,
    /// Compress everything
    #[arg(short, long, conflicts_with = "sample")]
    all: bool,
    /// Block devices, raw disk images, other files, or directories
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
}

#[derive(Serialize)]
struct Report {
    record_size: u32,
    /// Files and block devices.
    files: u64,
    /// Bytes of them, without holes.
    source_bytes: u64,
    /// The part of these bytes that was compressed.
    sampled_share: f64,
    mapped_bytes: u64,
    /// Bytes by which `mapped_bytes` may be wrong, with a probability of 5 %; 0 if everything was looked at.
    mapped_bytes_error: u64,
    estimates: Vec<Estimate>,
}

/// What is found for one algorithm.
#[derive(Serialize)]
struct Estimate {
    algorithm: &'static str,
    /// Absent where the algorithm leaves nothing to choose.
    #[serde(skip_serializing_if = "Option::is_none")]
    level: Option<u8>,
    #[serde(skip)]
    compression: Compression,
    live_bytes: u64,
    /// As `mapped_bytes_error`.
    live_bytes_error: u64,
    ratio: Option<f64>,
    /// Bytes of data that one CPU compresses in a second.
    bytes_per_cpu_second: Option<u64>,
}

/// A sum over pieces, and what is needed to tell how exact it is.
#[derive(Clone, Copy, Default)]
struct Sum {
    sum: f64,
    squares: f64,
}

impl Sum {
    fn add(&mut self, value: u64) {
        let value = value as f64;
        self.sum += value;
        self.squares += value * value;
    }

    fn merge(&mut self, other: Self) {
        self.sum += other.sum;
        self.squares += other.squares;
    }

    /// The sum over `count` pieces, `sampled` of which are in this one, and the error that it exceeds with a probability
    /// of 5 %.
    fn scaled(self, sampled: u64, count: u64) -> (f64, f64) {
        if sampled == 0 {
            return (0., 0.);
        }
        let (n, all) = (sampled as f64, count as f64);
        let mean = self.sum / n;
        let variance = (self.squares / n - mean * mean).max(0.) * n / (n - 1.).max(1.);
        (
            mean * all,
            1.96 * all * (variance / n * (1. - n / all)).sqrt(),
        )
    }
}

/// What one worker, or all of them, found for one algorithm.
#[derive(Clone, Copy, Default)]
struct Found {
    records: Sum,
    table: Cost,
    nanoseconds: u64,
}

/// What one worker, or all of them, found.
struct Totals {
    data: Sum,
    /// In the order of the algorithms.
    found: Vec<Found>,
}

impl Totals {
    fn new(algorithms: usize) -> Self {
        Self {
            data: Sum::default(),
            found: vec![Found::default(); algorithms],
        }
    }

    fn merge(&mut self, other: &Self) {
        self.data.merge(other.data);
        for (to, from) in self.found.iter_mut().zip(&other.found) {
            to.records.merge(from.records);
            to.table.blocks += from.table.blocks;
            to.table.bytes += from.table.bytes;
            to.nanoseconds += from.nanoseconds;
        }
    }
}

/// The pieces to be compressed: one in each of `sampled` parts of the same length.
struct Sample<'a> {
    args: &'a Args,
    contents: &'a Contents<'a>,
    pieces: Pieces,
    sampled: u64,
    next: AtomicU64,
    totals: Mutex<Totals>,
    bar: &'a ProgressBar,
    stop: Stop,
}

impl Sample<'_> {
    /// The piece of the device that is the `n`th of the sample.
    fn piece(&self, n: u64) -> u64 {
        let bound = |n: u64| {
            (u128::from(n) * u128::from(self.pieces.count) / u128::from(self.sampled)) as u64
        };
        let (start, end) = (bound(n), bound(n + 1));
        // Not always at the same place of its part: data may be periodic. The same in each run.
        let random = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        self.pieces.nth(start + random % (end - start))
    }

    /// Takes pieces of the sample and encodes them with each algorithm, until none is left.
    fn work(&self) -> Result<()> {
        let estimator = |&compression: &Compression| {
            let options = CreateOptions {
                size: 0,
                record_size: self.args.record_size,
                segment_size: DEFAULT_SEGMENT_SIZE,
                compression,
                recompression: Recompression::OFF,
                uuid: [0; 16],
            };
            Estimator::<Std>::new(&options).map_err(|e| anyhow!("{e}"))
        };
        let compressions = self.args.compress.iter();
        let mut estimators = compressions.map(estimator).collect::<Result<Vec<_>>>()?;
        let mut reader = self.contents.reader();
        let mut buf = vec![0; self.args.record_size as usize];
        let mut totals = Totals::new(estimators.len());
        while !self.stop.requested() {
            let n = self.next.fetch_add(1, Ordering::Relaxed);
            if n >= self.sampled {
                break;
            }
            let data = reader.read(self.piece(n), &mut buf)?;
            let mut blocks = 0;
            for (estimator, found) in estimators.iter_mut().zip(&mut totals.found) {
                let began = cpu_nanoseconds();
                let cost = estimator.add(data);
                found.nanoseconds += cpu_nanoseconds() - began;
                found.records.add(cost.bytes);
                blocks = cost.blocks;
            }
            totals.data.add(blocks * BLOCK_SIZE as u64);
            self.bar.inc(data.len() as u64);
        }
        for (estimator, found) in estimators.iter_mut().zip(&mut totals.found) {
            found.table = estimator.table();
        }
        let mut all = self.totals.lock().unwrap_or_else(PoisonError::into_inner);
        all.merge(&totals);
        Ok(())
    }

    fn report(self) -> Report {
        let totals = self
            .totals
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        let (sampled, count) = (self.sampled, self.pieces.count);
        let (mapped, mapped_error) = totals.data.scaled(sampled, count);
        let estimate = |(&compression, found): (&Compression, &Found)| {
            let (records, error) = found.records.scaled(sampled, count);
            let Cost { blocks, bytes } = found.table;
            let table = mapped / BLOCK_SIZE as f64 * bytes as f64 / (blocks as f64).max(1.);
            let live_bytes = (records + table).round() as u64;
            let seconds = found.nanoseconds as f64 / 1e9;
            Estimate {
                algorithm: Codec::of(compression.algorithm()).name,
                level: level(compression),
                compression,
                live_bytes,
                live_bytes_error: error.round() as u64,
                ratio: ratio(mapped.round() as u64, live_bytes),
                bytes_per_cpu_second: (seconds > 0.).then(|| (totals.data.sum / seconds) as u64),
            }
        };
        let (files, source_bytes) = self.contents.total();
        Report {
            record_size: self.args.record_size,
            files,
            source_bytes,
            sampled_share: if count == 0 {
                1.
            } else {
                sampled as f64 / count as f64
            },
            mapped_bytes: mapped.round() as u64,
            mapped_bytes_error: mapped_error.round() as u64,
            estimates: self
                .args
                .compress
                .iter()
                .zip(&totals.found)
                .map(estimate)
                .collect(),
        }
    }
}

/// The time that the thread has had a CPU.
fn cpu_nanoseconds() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let bar = progress::bar("looking for files", 0);
    let contents = Contents::of(&args.paths, &bar)?;
    bar.finish_and_clear();
    let record_size = u64::from(args.record_size);
    let pieces = contents.pieces(record_size);
    let sampled = match args.all {
        true => pieces.count,
        // One alone would not tell how much they differ.
        false => pieces.count.min(args.sample.div_ceil(record_size).max(2)),
    };
    let bar = progress::bar("estimating", sampled * record_size);
    let sample = Sample {
        args,
        contents: &contents,
        pieces,
        sampled,
        next: AtomicU64::new(0),
        totals: Mutex::new(Totals::new(args.compress.len())),
        bar: &bar,
        stop: Stop::default(),
    };
    workers::run(&sample.stop, || (), || sample.work())?;
    bar.finish_and_clear();
    let report = sample.report();
    if args.json {
        output::print_json(&report)?;
    } else {
        output::print(&report.text())?;
    }
    Ok(match contents.unreadable() {
        None => ExitCode::SUCCESS,
        Some(sentence) => {
            eprintln!("cloop: {sentence}");
            ExitCode::FAILURE
        }
    })
}

/// `part` of `whole` in percent, for people.
fn percent(part: f64, whole: f64) -> String {
    if whole == 0. {
        return "-".to_owned();
    }
    format!("{:.1} %", 100. * part / whole)
}

/// A possible error, for people.
fn error(bytes: u64, of: u64) -> String {
    match bytes {
        0 => "-".to_owned(),
        _ => format!("\u{b1}{}", percent(bytes as f64, of as f64)),
    }
}

impl Report {
    fn text(&self) -> String {
        let mapped = size::human(self.mapped_bytes);
        let files = match self.files {
            1 => "1 file".to_owned(),
            files => format!("{files} files"),
        };
        let mut text = format!("Source:    {} in {files}\n", size::human(self.source_bytes));
        text += &format!(
            "Sampled:   {}, in records of up to {}\n",
            percent(self.sampled_share, 1.),
            size::human(self.record_size.into())
        );
        text += &match self.mapped_bytes_error {
            0 => format!("Data:      {mapped}\n\n"),
            bytes => format!(
                "Data:      {mapped}, {}\n\n",
                error(bytes, self.mapped_bytes)
            ),
        };
        let head = ["ALGORITHM", "LIVE", "ERROR", "RATIO", "SAVES", "SPEED"].map(str::to_owned);
        let rows = self.estimates.iter().map(|e| {
            let saved = self.mapped_bytes as f64 - e.live_bytes as f64;
            [
                e.compression.to_string(),
                size::human(e.live_bytes),
                error(e.live_bytes_error, e.live_bytes),
                hundredths(e.ratio),
                percent(saved.max(0.), self.mapped_bytes as f64),
                e.bytes_per_cpu_second
                    .map_or("-".to_owned(), |speed| format!("{}/s", size::human(speed))),
            ]
        });
        for [name, numbers @ ..] in std::iter::once(head).chain(rows) {
            text += &format!("{name:<10}");
            for number in numbers {
                text += &format!(" {number:>8}");
            }
            text += "\n";
        }
        text
    }
}
