// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Runs one function on all CPUs until all calls return or one fails, and lets the calls take turns.

use anyhow::{anyhow, Error, Result};
use std::num::NonZero;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
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

/// Gives each of the numbered parts of a job its turn, one after the other.
#[derive(Default)]
pub(crate) struct Turns {
    /// The part whose turn it is.
    turn: Mutex<u64>,
    next: Condvar,
}

impl Turns {
    /// Waits for the turn of part `number` and calls `f`. The turn then is that of the next part, unless `f` has failed.
    /// None if the job is stopped.
    pub(crate) fn wait<T, E>(
        &self,
        number: u64,
        stop: &Stop,
        f: impl FnOnce() -> Result<T, E>,
    ) -> Option<Result<T, E>> {
        let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        while *turn != number {
            if stop.requested() {
                return None;
            }
            turn = self.next.wait(turn).unwrap_or_else(PoisonError::into_inner);
        }
        let result = f();
        if result.is_ok() {
            *turn += 1;
            self.next.notify_all();
        }
        Some(result)
    }

    /// Wakes those that wait, so that they notice that the job is stopped.
    pub(crate) fn wake(&self) {
        // The lock is taken so that no worker is between its check of `stop` and its sleep.
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.next.notify_all();
    }
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
    run_several(1, stop, wake, work)
}

/// As [`run`], with several threads for each CPU, because most of them wait for their turn.
pub(crate) fn run_several(
    for_each_cpu: usize,
    stop: &Stop,
    wake: impl Fn() + Sync,
    work: impl Fn() -> Result<()> + Sync,
) -> Result<()> {
    let cpus = thread::available_parallelism().map_or(1, NonZero::get);
    let count = (cpus * for_each_cpu).min(MOST);
    let first: Mutex<Option<Error>> = Mutex::new(None);
    let fail = |error: Error| {
        let mut first = first.lock().unwrap_or_else(|e| e.into_inner());
        first.get_or_insert(error);
        stop.request();
        wake();
    };
    thread::scope(|scope| {
        for _ in 0..count {
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
