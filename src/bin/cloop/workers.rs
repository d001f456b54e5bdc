// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Runs one function on all CPUs until all calls return or one fails.

use anyhow::{anyhow, Error, Result};
use std::num::NonZero;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Mutex;
use std::thread;

/// Most threads worth starting: beyond that number the backing file is the limit.
const MOST: usize = 64;

/// Tells the workers of a job that one of them has failed.
#[derive(Default)]
pub(crate) struct Stop(AtomicBool);

impl Stop {
    /// True when the work should end early.
    pub(crate) fn requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Asks all workers to end.
    pub(crate) fn request(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Number of workers of a job.
pub(crate) fn count() -> usize {
    thread::available_parallelism()
        .map_or(1, NonZero::get)
        .min(MOST)
}

/// Calls `work` once on each CPU's thread and returns the first error.
///
/// `stop` is requested as soon as one call fails, and `wake` is called, so that workers that wait for
/// each other notice it.
pub(crate) fn run(
    stop: &Stop,
    wake: impl Fn() + Sync,
    work: impl Fn() -> Result<()> + Sync,
) -> Result<()> {
    let first: Mutex<Option<Error>> = Mutex::new(None);
    let fail = |error: Error| {
        let mut first = first.lock().unwrap_or_else(|e| e.into_inner());
        first.get_or_insert(error);
        stop.request();
        wake();
    };
    thread::scope(|scope| {
        for _ in 0..count() {
            let spawned = thread::Builder::new()
                .name("cloop-worker".to_owned())
                .spawn_scoped(scope, || work().unwrap_or_else(&fail));
            if let Err(error) = spawned {
                fail(anyhow!("cannot start a thread: {error}"));
            }
        }
    });
    match first.into_inner().unwrap_or_else(|e| e.into_inner()) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}
