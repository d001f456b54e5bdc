// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The user-space home of the engine: tools and tests.

mod codec;
mod file;
pub mod mem;

pub use self::codec::{StdLz4, StdZstdCompressor, StdZstdDecompressor};
pub use self::file::StdFile;

use super::held::Hold;
use super::{BackingFile, Monitor, MonitorGuard, Platform, Rank, Thread};
use crate::engine::Error;
use core::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The user-space home on backing files of type `F`.
#[derive(Debug)]
pub struct Std<F = StdFile>(PhantomData<F>);

impl<F: BackingFile> Platform for Std<F> {
    type Monitor<T: Send + 'static> = StdMonitor<T>;
    type File = F;
    type Thread = StdThread;
    type Lz4 = StdLz4;
    type ZstdCompressor = StdZstdCompressor;
    type ZstdDecompressor = StdZstdDecompressor;

    fn spawn<G: FnOnce() + Send + 'static>(name: &'static str, f: G) -> Result<StdThread, Error> {
        std::thread::Builder::new()
            .name(name.into())
            .spawn(f)
            .map(|handle| StdThread(Some(handle)))
            .map_err(|_| Error::NoMemory)
    }

    fn random_u64() -> u64 {
        let mut bytes = [0; 8];
        let mut filled = 0;
        while filled < bytes.len() {
            let flags = rustix::rand::GetRandomFlags::empty();
            // getrandom(2) without flags fails only by being interrupted before any byte came.
            filled += rustix::rand::getrandom(&mut bytes[filled..], flags).unwrap_or(0);
        }
        u64::from_ne_bytes(bytes)
    }

    fn now_ms() -> u64 {
        static START: OnceLock<Instant> = OnceLock::new();
        START.get_or_init(Instant::now).elapsed().as_millis() as u64
    }

    fn crc32c(crc: u32, data: &[u8]) -> u32 {
        crc32c::crc32c_append(crc, data)
    }
}

/// A mutex with its condition variables.
#[derive(Debug)]
pub struct StdMonitor<T> {
    value: Mutex<T>,
    /// Those who wait for something to change.
    changed: Condvar,
    /// Background threads that wait for something to do.
    idle: Condvar,
    rank: Rank,
}

impl<T: Send> Monitor<T> for StdMonitor<T> {
    type Guard<'a>
        = StdGuard<'a, T>
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

    fn lock(&self) -> StdGuard<'_, T> {
        let hold = cfg!(debug_assertions).then(|| Hold::take(0, self.rank));
        // A thread that panicked under the lock is a failed test; others need not hang on it.
        let guard = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        StdGuard {
            guard: Some(guard),
            changed: &self.changed,
            idle: &self.idle,
            hold,
        }
    }
}

/// The guard of a [`StdMonitor`].
#[derive(Debug)]
pub struct StdGuard<'a, T> {
    /// Absent only inside of the waiting functions.
    guard: Option<MutexGuard<'a, T>>,
    changed: &'a Condvar,
    idle: &'a Condvar,
    /// With debug assertions: the check of the lock order.
    hold: Option<Hold>,
}

impl<T> MonitorGuard for StdGuard<'_, T> {
    fn wait(&mut self) {
        self.wait_on(self.changed, 0);
    }

    fn wait_idle(&mut self, timeout_ms: u32) -> bool {
        self.wait_on(self.idle, timeout_ms)
    }

    fn notify_all(&self) {
        self.changed.notify_all();
        self.idle.notify_all();
    }

    fn notify_requests(&self) {
        self.changed.notify_all();
    }
}

impl<T> StdGuard<'_, T> {
    fn wait_on(&mut self, condition: &Condvar, timeout_ms: u32) -> bool {
        if let Some(hold) = &self.hold {
            hold.wait();
        }
        let Some(guard) = self.guard.take() else {
            return false;
        };
        let (guard, passed) = if timeout_ms == 0 {
            let waited = condition.wait(guard);
            (waited.unwrap_or_else(PoisonError::into_inner), false)
        } else {
            let timeout = Duration::from_millis(timeout_ms.into());
            let waited = condition.wait_timeout(guard, timeout);
            let (guard, result) = waited.unwrap_or_else(PoisonError::into_inner);
            (guard, result.timed_out())
        };
        self.guard = Some(guard);
        passed
    }
}

impl<T> Deref for StdGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        self.guard.as_ref().expect("held outside of waiting")
    }
}

impl<T> DerefMut for StdGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.guard.as_mut().expect("held outside of waiting")
    }
}

/// A thread of the standard library.
#[derive(Debug)]
pub struct StdThread(Option<JoinHandle<()>>);

impl Thread for StdThread {
    fn join(&mut self) {
        if let Some(handle) = self.0.take() {
            // A panic in it has been printed already.
            let _ = handle.join();
        }
    }
}
