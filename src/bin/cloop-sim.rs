// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Runs simulated crash histories: many seeds, or one with a trace of what happened.

use clap::Parser;
use cloop::platform::Sabotage;
use cloop::simulation::script::{Depth, SCRIPTS};
use cloop::simulation::{run, Plan, Profile, Report};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// Simulate a volume that crashes, and judge what is left
#[derive(Parser)]
struct Args {
    /// First seed
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Number of seeds, each a random history
    #[arg(long, default_value_t = 1000)]
    count: u64,
    /// Stop after this number of crash points
    #[arg(long)]
    points: Option<u64>,
    /// Take a snapshot at one of this many operations of the disk: each snapshot is a crash point
    #[arg(long, default_value_t = 4)]
    snapshots: u64,
    /// Damage and repair a copy of one of this many states; 0: of none
    #[arg(long)]
    damage: Option<u64>,
    /// Number of histories run at once; by default the number of CPUs
    #[arg(long)]
    jobs: Option<usize>,
    /// Instead run the scripts with this in their name: short histories that crash everywhere
    #[arg(long)]
    script: Option<String>,
    /// Let the engine commit this fault, which the judge must notice
    #[arg(long, value_parser = sabotage)]
    sabotage: Option<Sabotage>,
    /// Let the submitters do this, whatever the seed says
    #[arg(long, value_parser = profile)]
    profile: Option<Profile>,
    /// Replay the one seed and print what happens
    #[arg(long)]
    trace: bool,
}

/// Seconds between two progress lines.
const PROGRESS: u64 = 10;

fn sabotage(name: &str) -> Result<Sabotage, String> {
    let found = Sabotage::ALL.iter().find(|s| format!("{s:?}") == name);
    found
        .copied()
        .ok_or_else(|| format!("it is one of {:?}", Sabotage::ALL))
}

fn profile(name: &str) -> Result<Profile, String> {
    let found = Profile::ALL.iter().find(|p| format!("{p:?}") == name);
    found
        .copied()
        .ok_or_else(|| format!("it is one of {:?}", Profile::ALL))
}

impl Args {
    fn plan(&self, seed: u64) -> Plan {
        let plan = match self.sabotage {
            Some(sabotage) => Plan::hunt(seed, sabotage),
            None => Plan::random(seed),
        };
        let plan = match self.profile {
            Some(profile) => plan.with_profile(profile),
            None => plan,
        };
        Plan {
            snapshots: self.snapshots,
            damage: self.damage.unwrap_or(plan.damage),
            ..plan
        }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.trace {
        return trace(&args);
    }
    std::panic::set_hook(Box::new(|_| {}));
    if let Some(name) = &args.script {
        return scripts(name);
    }
    let begin = Instant::now();
    let next = AtomicU64::new(args.seed);
    let end = args.points.map_or(args.seed + args.count, |_| u64::MAX / 2);
    let sum = Mutex::new((0u64, Report::default(), Vec::new()));
    let told = AtomicU64::new(0);
    let jobs = args
        .jobs
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get));
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= end {
                    return;
                }
                let result = run(args.plan(seed), None);
                let mut sum = sum.lock().expect("no panic under the lock");
                let (histories, report, failed) = &mut *sum;
                *histories += 1;
                match result {
                    Ok(more) => *report += more,
                    Err(objection) => {
                        println!("seed {seed}: {objection}");
                        failed.push(seed);
                    }
                }
                let points = report.points();
                let seconds = begin.elapsed().as_secs();
                if seconds >= told.load(Ordering::Relaxed) + PROGRESS {
                    told.store(seconds, Ordering::Relaxed);
                    eprintln!(
                        "{seconds} s: {histories} histories, {points} crash points, {} failed",
                        failed.len()
                    );
                }
                if args.points.is_some_and(|max| points >= max) {
                    next.store(u64::MAX / 2, Ordering::Relaxed);
                    return;
                }
            });
        }
    });
    let (histories, report, failed) = sum.into_inner().expect("no panic under the lock");
    let seconds = begin.elapsed().as_secs_f64();
    let points = report.points();
    println!(
        "{histories} histories in {seconds:.0} s, {:.0} crash points a second",
        points as f64 / seconds
    );
    println!("{report}");
    match failed[..] {
        [] => println!("no history failed"),
        _ => println!("{} failed, seeds {failed:?}", failed.len()),
    }
    if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn scripts(name: &str) -> ExitCode {
    for script in SCRIPTS.iter().filter(|script| script.name.contains(name)) {
        let begin = Instant::now();
        match script.exhaust(Depth::SHORT, None) {
            Ok(report) => println!(
                "{}: {:.0} s, {report}",
                script.name,
                begin.elapsed().as_secs_f64()
            ),
            Err(objection) => {
                println!("{objection}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

fn trace(args: &Args) -> ExitCode {
    let lines = Arc::new(Mutex::new(String::new()));
    let result = run(args.plan(args.seed), Some(lines.clone()));
    let lines = lines.lock().map(|lines| lines.clone()).unwrap_or_default();
    print!("{lines}");
    match result {
        Ok(report) => {
            println!("seed {}: passed, {report}", args.seed);
            ExitCode::SUCCESS
        }
        Err(objection) => {
            println!("seed {}: {objection}", args.seed);
            ExitCode::FAILURE
        }
    }
}
