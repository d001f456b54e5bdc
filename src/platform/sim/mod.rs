// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The simulated home of the engine: a deterministic, seeded scheduler (shuttle) and a backing file with the
//! freedom and the faults of a real disk.
//! A simulation runs on one thread of the operating system, with the engine's threads as coroutines. So its
//! state is in thread-locals.

mod file;
mod history;

pub use self::file::{Fault, SimFile, Snapshot, Survival};
pub use self::history::{
    checkpointed, completed, mark, may_lose_older_superblock, opened, promised, sized,
    take_history, working_atomically_on, working_on, Mark, Placed,
};
pub(crate) use self::history::{overtaking, since};

use super::held::{self, Hold};
use super::std::mem::{set_failing_allocation, set_scarcity};
use super::std::{StdLz4, StdZstdCompressor, StdZstdDecompressor};
use super::{Monitor, MonitorGuard, Platform, Rank, Sabotage, Thread, WaitEvent};
use crate::engine::Error;
use core::cell::{Cell, RefCell};
use shuttle::sync::{Condvar, Mutex, MutexGuard};
use shuttle::thread::JoinHandle;
use std::ops::{Deref, DerefMut};

/// A small, fast, seeded generator (splitmix64); not for secrets.
#[derive(Clone, Debug)]
pub struct Rng(pub u64);

impl Rng {
    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`, which is not 0.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next_u64() % n
    }
}

std::thread_local! {
    static SIMULATING: Cell<bool> = const { Cell::new(false) };
    static SABOTAGE: Cell<Option<Sabotage>> = const { Cell::new(None) };
    static RANDOM: RefCell<Rng> = const { RefCell::new(Rng(0)) };
    /// A wait with a timeout ends at one of this many checks of it.
    static PATIENCE: Cell<u64> = const { Cell::new(1) };
    /// Simulated time in milliseconds: the timeouts that have ended.
    static CLOCK: Cell<u64> = const { Cell::new(0) };
}

/// Begins a simulation on this thread: everything random in the engine follows from `seed`.
pub fn begin(seed: u64, sabotage: Option<Sabotage>) {
    SIMULATING.set(true);
    SABOTAGE.set(sabotage);
    let mut random = Rng(seed);
    // A device that always appears idle never has a long log; one that never does never reclaims when idle.
    PATIENCE.set([4, 4, 100, 2000][random.below(4) as usize]);
    RANDOM.set(random);
    CLOCK.set(0);
    set_failing_allocation(None);
    // Apart from the other choices.
    let mut memory = Rng(seed ^ 0x6d65_6d6f_7279);
    set_scarcity([0, 0, 3, 1, 1, 1, 1, 1][memory.below(8) as usize]);
    held::forget();
    take_history();
}

/// Ends the simulation on this thread.
pub fn end() {
    SIMULATING.set(false);
    SABOTAGE.set(None);
    set_failing_allocation(None);
    set_scarcity(1);
}

/// Of the allocations of the engine without which it can go on, lets only each `n`th succeed, on this thread and from now
/// on; with 0 none of them.
pub fn scarce_memory(n: u64) {
    set_scarcity(n);
}

/// Lets the `n`th allocation of the engine from now on fail (0: the next), or none.
pub fn fail_allocation(n: Option<u64>) {
    set_failing_allocation(n);
}

/// In a simulation: lets other threads run.
fn scheduling_point() {
    if SIMULATING.get() {
        shuttle::thread::yield_now();
    }
}

/// The simulated home.
#[derive(Debug)]
pub struct Sim;

impl Platform for Sim {
    type Monitor<T: Send + 'static> = SimMonitor<T>;
    type File = SimFile;
    type Thread = SimThread;
    type Lz4 = StdLz4;
    type ZstdCompressor = StdZstdCompressor;
    type ZstdDecompressor = StdZstdDecompressor;

    fn spawn<F: FnOnce() + Send + 'static>(name: &'static str, f: F) -> Result<SimThread, Error> {
        shuttle::thread::Builder::new()
            .name(name.into())
            .spawn(f)
            .map(|handle| SimThread(Some(handle)))
            .map_err(|_| Error::NoMemory)
    }

    fn random_u64() -> u64 {
        RANDOM.with_borrow_mut(Rng::next_u64)
    }

    fn now_ms() -> u64 {
        CLOCK.get()
    }

    fn sabotaged(fault: Sabotage) -> bool {
        SABOTAGE.get() == Some(fault)
    }

    fn placed(block: u64, count: u64) {
        history::placed(block, count);
    }

    fn waited(event: WaitEvent) {
        history::waited(event);
    }

    fn crc32c(crc: u32, data: &[u8]) -> u32 {
        crc32c::crc32c_append(crc, data)
    }
}

/// A mutex with its condition variables, under the simulation's scheduler.
#[derive(Debug)]
pub struct SimMonitor<T> {
    value: Mutex<T>,
    /// Those who wait for something to change.
    changed: Condvar,
    /// Background threads that wait for something to do.
    idle: Condvar,
    rank: Rank,
}

impl<T: Send> Monitor<T> for SimMonitor<T> {
    type Guard<'a>
        = SimGuard<'a, T>
    where
        T: 'a;

    fn new(value: T, rank: Rank) -> Result<Self, Error> {
        Ok(Self {
            value: Mutex::new(value),
            changed: Condvar::new(),
            idle: Condvar::new(),
            rank,
        })
    }

    fn lock(&self) -> SimGuard<'_, T> {
        let hold = Hold::take(usize::from(shuttle::current::me()), self.rank);
        SimGuard {
            guard: Some(self.value.lock().expect("a simulation ends at a panic")),
            monitor: self,
            hold,
        }
    }
}

/// The guard of a [`SimMonitor`].
#[derive(Debug)]
pub struct SimGuard<'a, T> {
    /// `None` only during the waiting functions.
    guard: Option<MutexGuard<'a, T>>,
    monitor: &'a SimMonitor<T>,
    /// The check of the lock order.
    hold: Hold,
}

impl<T> MonitorGuard for SimGuard<'_, T> {
    fn wait(&mut self) {
        self.wait_on(&self.monitor.changed, 0);
    }

    fn wait_idle(&mut self, timeout_ms: u32) -> bool {
        self.wait_on(&self.monitor.idle, timeout_ms)
    }

    fn notify_all(&self) {
        self.monitor.changed.notify_all();
        self.monitor.idle.notify_all();
    }

    fn notify_requests(&self) {
        self.monitor.changed.notify_all();
    }
}

/// Has simulated time pass while nothing happens.
pub fn pass_time(ms: u64) {
    CLOCK.set(CLOCK.get() + ms);
}

impl<T> SimGuard<'_, T> {
    fn wait_on(&mut self, condition: &Condvar, timeout_ms: u32) -> bool {
        self.hold.wait();
        let Some(guard) = self.guard.take() else {
            return false;
        };
        let (again, passed) = if timeout_ms == 0 {
            (condition.wait(guard), false)
        } else {
            // Elsewhere time passes on request only: chance decides when the timeout is over.
            drop(guard);
            shuttle::thread::yield_now();
            let passed = RANDOM.with_borrow_mut(|random| random.below(PATIENCE.get()) == 0);
            if passed {
                CLOCK.set(CLOCK.get() + u64::from(timeout_ms));
            }
            (self.monitor.value.lock(), passed)
        };
        self.guard = Some(again.expect("a simulation ends at a panic"));
        passed
    }
}

impl<T> Deref for SimGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        self.guard.as_ref().expect("held outside of waiting")
    }
}

impl<T> DerefMut for SimGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.guard.as_mut().expect("held outside of waiting")
    }
}

/// A thread of the simulation.
#[derive(Debug)]
pub struct SimThread(Option<JoinHandle<()>>);

impl Thread for SimThread {
    fn join(&mut self) {
        if let Some(handle) = self.0.take() {
            let _ = handle.join();
        }
    }
}
