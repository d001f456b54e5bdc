// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Speed of the engine by itself, on a backing file of the host, without a kernel in between.
//!
//! Each load does a fixed amount of work that follows from a seed, so two versions of the engine can be compared by
//! their time as well as by their instructions (`valgrind --tool=callgrind`, which needs no quiet machine). The I/O of
//! the backing file is counted on the way.

use anyhow::{Context, Result};
use clap::Parser;
use cloop::bench::{Bench, Counted, Counts, Path as Load};
use cloop::engine::{Algorithm, BLOCK_SIZE};
use cloop::platform::std::{Std, StdFile};
use serde_json::{json, Map, Value};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

type Home = Std<Counted<StdFile>>;

/// Measure the speed of the engine without a kernel.
#[derive(Parser)]
struct Args {
    /// Where the image lies while it is measured
    #[arg(long, default_value = "/dev/shm")]
    directory: PathBuf,
    /// Size of the records in KiB, or `none` for no compression; several with commas
    #[arg(long, value_delimiter = ',', default_value = "64")]
    records: Vec<String>,
    /// Size of the device in MiB
    #[arg(long, default_value_t = 256)]
    mib: u64,
    /// Only loads with this in their name
    #[arg(long, default_value = "")]
    load: String,
    /// Numbers of threads
    #[arg(long, value_delimiter = ',', default_value = "1", value_parser = clap::value_parser!(u64).range(1..=64))]
    threads: Vec<u64>,
    /// Latencies of the backing file in microseconds: each read, write and fsync takes longer by it
    #[arg(long, value_delimiter = ',', default_value = "0")]
    delay: Vec<u64>,
    /// Measure everything so often, in turn, and print medians
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    repeat: u64,
    /// Write the results to this file as well
    #[arg(long)]
    json: Option<PathBuf>,
}

/// What was measured, in the order in which it is printed.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    delay: u64,
    records: String,
    load: usize,
    threads: u64,
}

/// One measurement.
struct Sample {
    operations: u64,
    wall: f64,
    cpu: f64,
    counts: Counts,
}

/// Seconds that the threads of this process have run on a CPU so far, those that have ended included.
fn cpu_time() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// The size of records in bytes, and the algorithm.
fn parse_records(records: &str) -> Result<(u32, Algorithm)> {
    if records == "none" {
        return Ok((64 << 10, Algorithm::Raw));
    }
    let kib: u32 = records
        .parse()
        .with_context(|| format!("--records {records}"))?;
    let bytes = kib.checked_mul(1 << 10).context("--records: too large")?;
    Ok((bytes, Algorithm::Lz4))
}

/// The middle value, or the mean of the two in the middle.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        1 => values[middle],
        _ => (values[middle - 1] + values[middle]) / 2.0,
    }
}

/// Runs all loads on a new image at `path`. A slow file gets a share of the operations, since each waits.
fn run(
    args: &Args,
    path: &Path,
    (delay, records, threads): (u64, &str, u64),
    samples: &mut BTreeMap<Key, Vec<Sample>>,
) -> Result<()> {
    let (record_size, algorithm) = parse_records(records)?;
    let file = Counted::new(StdFile::create_new(path)?, Duration::from_micros(delay));
    let size = args.mib << 20;
    let bench = Bench::<Home>::new(file.clone(), size, size, record_size, algorithm)?;
    for (index, load) in Load::ALL.into_iter().enumerate() {
        let all = load.operations(size / BLOCK_SIZE as u64);
        if !load.name().contains(&args.load) {
            // Without it the others would read what was never written.
            if load == Load::SequentialWrite {
                bench.run(load, all, 1)?;
            }
            continue;
        }
        let operations = match (delay, load) {
            (0, _) | (_, Load::SequentialWrite | Load::SequentialRead) => all,
            // Long enough that the start of the threads does not count.
            _ => all.min(2048 * threads),
        };
        bench.prepare(load)?;
        let (wall, cpu, before) = (Instant::now(), cpu_time(), file.counts());
        bench.run(load, operations, threads)?;
        let sample = Sample {
            operations,
            wall: wall.elapsed().as_secs_f64(),
            cpu: cpu_time() - cpu,
            counts: file.counts() - before,
        };
        let key = Key {
            delay,
            records: records.into(),
            load: index,
            threads,
        };
        samples.entry(key).or_default().push(sample);
    }
    Ok(bench.close()?)
}

/// One result as JSON: medians, and half of the range of the times in percent of their median.
fn summary(key: &Key, samples: &[Sample]) -> Value {
    let load = Load::ALL[key.load];
    let operations = samples[0].operations as f64;
    let median_of = |value: &dyn Fn(&Sample) -> f64| median(samples.iter().map(value).collect());
    let wall = median_of(&|sample| sample.wall);
    let walls = samples.iter().map(|sample| sample.wall);
    let range = walls.clone().fold(0.0, f64::max) - walls.fold(f64::INFINITY, f64::min);
    let mut per_operation = Map::new();
    for (name, at) in Counts::NAMES.into_iter().zip(0..) {
        let count = median_of(&|sample| sample.counts.values()[at] as f64);
        per_operation.insert(name.into(), json!(count / operations));
    }
    json!({
        "load": load.name(),
        "records": key.records,
        "threads": key.threads,
        "delay_us": key.delay,
        "samples": samples.len(),
        "operations": operations,
        "mb_per_s": operations * load.request_bytes() as f64 / wall / 1e6,
        "ops_per_s": operations / wall,
        "cpu_us_per_op": median_of(&|sample| sample.cpu) / operations * 1e6,
        "spread_percent": range / wall * 50.0,
        "io_per_op": per_operation,
    })
}

/// Prints the results as a table, each beside its ratio to the same with one thread.
fn print(results: &[Value]) {
    println!(
        "# {:<16} {:>7} {:>8} {:>7} {:>9} {:>10} {:>6} {:>6} {:>10} {:>9} {:>10} {:>9} {:>11} {:>7}",
        "load", "records", "delay us", "threads", "MB/s", "op/s", "+-%", "x1", "CPU us/op", "reads/op", "bytes/op", "writes/op", "bytes/op", "syncs/op",
    );
    for result in results {
        let number = |name: &str| result[name].as_f64().unwrap_or(f64::NAN);
        let io = |name: &str| result["io_per_op"][name].as_f64().unwrap_or(f64::NAN);
        let alone = results.iter().find(|other| {
            other["threads"] == 1
                && ["load", "records", "delay_us"]
                    .iter()
                    .all(|name| other[*name] == result[*name])
        });
        let ratio =
            alone.and_then(|other| Some(number("ops_per_s") / other["ops_per_s"].as_f64()?));
        println!(
            "{:<18} {:>7} {:>8} {:>7} {:>9.1} {:>10.0} {:>6.1} {:>6.2} {:>10.3} {:>9.3} {:>10.0} {:>9.3} {:>11.0} {:>7.3}",
            result["load"].as_str().unwrap_or_default(),
            result["records"].as_str().unwrap_or_default(),
            number("delay_us"),
            number("threads"),
            number("mb_per_s"),
            number("ops_per_s"),
            number("spread_percent"),
            ratio.unwrap_or(f64::NAN),
            number("cpu_us_per_op"),
            io("reads"),
            io("read_bytes"),
            io("writes"),
            io("written_bytes"),
            io("syncs"),
        );
    }
}

fn measure(args: &Args) -> Result<()> {
    let path = args
        .directory
        .join(format!("cloop-bench.{}", std::process::id()));
    let mut samples = BTreeMap::new();
    for _ in 0..args.repeat {
        for &delay in &args.delay {
            for records in &args.records {
                for &threads in &args.threads {
                    let result = run(args, &path, (delay, records, threads), &mut samples);
                    // Nothing was written if it could not even be created.
                    let _ = fs::remove_file(&path);
                    result.with_context(|| path.display().to_string())?;
                }
            }
        }
    }
    let results: Vec<_> = samples
        .iter()
        .map(|(key, samples)| summary(key, samples))
        .collect();
    print(&results);
    if let Some(json) = &args.json {
        fs::write(json, serde_json::to_string_pretty(&results)? + "\n")
            .with_context(|| json.display().to_string())?;
    }
    Ok(())
}

fn main() -> ExitCode {
    match measure(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cloop-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
