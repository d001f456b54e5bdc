// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Runs simulated crash histories: many seeds, or one with a trace of what happened.

use clap::Parser;
use cloop::simulation::{run, Plan};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Mutex;

/// Simulate a volume that crashes, and judge what is left
#[derive(Parser)]
struct Args {
    /// First seed
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Number of seeds, each a random history
    #[arg(long, default_value_t = 1000)]
    count: u64,
    /// Replay the one seed and print what happens
    #[arg(long)]
    trace: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if !args.trace {
        std::panic::set_hook(Box::new(|_| {}));
    }
    if args.trace {
        return match run(Plan::random(args.seed), true) {
            Ok(report) => {
                println!("{}\nseed {}: passed, {report:?}", report.trace, args.seed);
                ExitCode::SUCCESS
            }
            Err(objection) => {
                println!("seed {}: {objection}", args.seed);
                ExitCode::FAILURE
            }
        };
    }
    let next = AtomicU64::new(args.seed);
    let end = args.seed + args.count;
    let (crashes, changes) = (AtomicU64::new(0), AtomicU64::new(0));
    let failed = Mutex::new(Vec::new());
    let workers = std::thread::available_parallelism().map_or(1, |n| n.get());
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= end {
                    return;
                }
                match run(Plan::random(seed), false) {
                    Ok(report) => {
                        crashes.fetch_add(report.crashes, Ordering::Relaxed);
                        changes.fetch_add(report.changes, Ordering::Relaxed);
                    }
                    Err(objection) => {
                        println!("seed {seed}: {objection}");
                        failed.lock().expect("no panic under the lock").push(seed);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().expect("no panic under the lock");
    println!(
        "{} histories, {} crashes, {} changes; failed seeds: {failed:?}",
        args.count,
        crashes.into_inner(),
        changes.into_inner()
    );
    if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
