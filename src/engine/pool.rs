// SPDX-License-Identifier: GPL-2.0
//! [`Pool`]: memory for requests, a piece for each, which is made on demand.

use crate::engine::spares::{give_back_until, Spares};
use crate::engine::Result;
use crate::platform::mem::Need;
use crate::platform::{Monitor, MonitorGuard, Platform, Rank};
use core::sync::atomic::{AtomicU64, Ordering};

/// Memory for requests of one kind: a `T` for each request that is served at the same time.
///
/// Each `T` is made when it is needed, if there is memory for it, and given up when it is not needed any more. A pool with a
/// reserve always has one `T`. There a request that gets no memory waits until another one has ended, so requests that share
/// a pool must not wait for each other: then each of them is served at some time, however little memory there is.
pub struct Pool<P: Platform, T: Send + 'static> {
    spares: P::Monitor<Spares<T>>,
    /// Bytes of memory of a `T`.
    bytes: AtomicU64,
    /// Number of `T` that are never given up.
    reserve: AtomicU64,
    /// Bytes of memory of all `T` that exist. It is written under the lock, and read without.
    memory: AtomicU64,
}

/// The lock of a pool, held.
type Guard<'a, P, T> = <<P as Platform>::Monitor<Spares<T>> as Monitor<Spares<T>>>::Guard<'a>;

impl<P: Platform, T: Send + 'static> Pool<P, T> {
    /// A pool that begins with `reserve`, which takes `bytes` bytes as the others will. There are never more than `most`.
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`](crate::engine::Error::NoMemory).
    pub fn new(most: usize, reserve: T, bytes: u64) -> Result<Self> {
        let mut spares = Spares::new(most, 1)?;
        spares.add(reserve);
        Self::of(spares, bytes)
    }

    /// A pool for requests that can go on without. Each `T` takes `bytes` bytes, and there are never more than `most`.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub(crate) fn without_reserve(most: usize, bytes: u64) -> Result<Self> {
        Self::of(Spares::new(most, 0)?, bytes)
    }

    fn of(spares: Spares<T>, bytes: u64) -> Result<Self> {
        let reserve = spares.made() as u64;
        Ok(Self {
            spares: P::Monitor::new(spares, Rank::Pool)?,
            bytes: AtomicU64::new(bytes),
            reserve: AtomicU64::new(reserve),
            memory: AtomicU64::new(reserve * bytes),
        })
    }

    /// Adds `object` to the reserve.
    pub(crate) fn add_reserve(&self, object: T) {
        let mut spares = self.spares.lock();
        spares.add_reserve(object);
        self.reserve.fetch_add(1, Ordering::Relaxed);
        self.note(&spares);
        spares.notify_all();
    }

    /// From now on each `T` takes `bytes` bytes. Those that exist are counted as if they did as well.
    pub(crate) fn set_bytes(&self, bytes: u64) {
        let spares = self.spares.lock();
        self.bytes.store(bytes, Ordering::Relaxed);
        self.note(&spares);
    }

    /// Calls `f` with a `T` of its own. If all are in use, one more is made by `make`; if there is no memory for it, waits
    /// for one. Only for a pool with a reserve.
    pub fn with<R>(&self, make: impl Fn(Need) -> Result<T>, f: impl FnOnce(&mut T) -> R) -> R {
        let mut object = self.take(make);
        let result = f(&mut object);
        self.put(object);
        result
    }

    fn take(&self, make: impl Fn(Need) -> Result<T>) -> T {
        loop {
            // The reserve is there to wait for.
            if let Some(object) = self.take_if_any(&make) {
                return object;
            }
        }
    }

    /// Takes a `T` as [`with`](Self::with) does, in a pool that may be empty. `None` if it is, and there is no memory for the
    /// first `T`. What is taken is to be [put](Self::put) back or [given up](Self::give_up).
    // A stack frame of its own: a request is served below that of the caller.
    #[inline(never)]
    pub(crate) fn take_if_any(&self, make: impl Fn(Need) -> Result<T>) -> Option<T> {
        let mut spares = self.spares.lock();
        loop {
            let taken;
            (taken, spares) = self.take_or_make(spares, &make);
            if taken.is_some() || spares.made() == 0 {
                return taken;
            }
            if spares.is_empty() {
                spares.wait();
            }
        }
    }

    /// Gives up a `T` that was taken and does not belong to the reserve.
    pub(crate) fn give_up(&self, object: T) {
        let mut spares = self.spares.lock();
        spares.give_up();
        self.note(&spares);
        // One more may be made, or none is left to wait for.
        spares.notify_all();
        drop(spares);
        drop(object);
    }

    /// Takes a `T` that is idle, or one more that is made by `make`. `None` if there are as many as there may be, or there is
    /// no memory for it. It is to be [put](Self::put) back.
    pub(crate) fn try_take(&self, make: impl Fn(Need) -> Result<T>) -> Option<T> {
        self.take_or_make(self.spares.lock(), &make).0
    }

    fn take_or_make<'a>(
        &'a self,
        mut spares: Guard<'a, P, T>,
        make: &impl Fn(Need) -> Result<T>,
    ) -> (Option<T>, Guard<'a, P, T>) {
        let idle = spares.take();
        if idle.is_some() || !spares.may_grow() {
            return (idle, spares);
        }
        drop(spares);
        let made = make(Need::Optional).ok();
        let mut spares = self.spares.lock();
        spares.grown(made.is_some());
        self.note(&spares);
        (made, spares)
    }

    /// Puts a `T` back that was taken.
    pub(crate) fn put(&self, object: T) {
        let mut spares = self.spares.lock();
        spares.put(object);
        spares.notify_all();
    }

    fn note(&self, spares: &Spares<T>) {
        let memory = spares.made() as u64 * self.bytes.load(Ordering::Relaxed);
        self.memory.store(memory, Ordering::Relaxed);
    }

    /// Bytes of memory. Takes no lock.
    pub fn memory(&self) -> u64 {
        self.memory.load(Ordering::Relaxed)
    }

    /// Bytes of memory that [`shed`](Self::shed) may give back. Takes no lock.
    pub fn sheddable(&self) -> u64 {
        let reserve = self.reserve.load(Ordering::Relaxed) * self.bytes.load(Ordering::Relaxed);
        self.memory().saturating_sub(reserve)
    }

    /// Gives back what was not needed since the last call.
    pub fn trim(&self) {
        while self.give_back(Spares::trim) > 0 {}
    }

    /// Gives back what is not in use until `bytes` bytes are given back, and returns how many were.
    pub fn shed(&self, bytes: u64) -> u64 {
        give_back_until(bytes, || self.give_back(Spares::shed))
    }

    /// Gives back what `choose` gives up, and returns how many bytes that are.
    fn give_back(&self, choose: impl FnOnce(&mut Spares<T>) -> Option<T>) -> u64 {
        let mut spares = self.spares.lock();
        let object = choose(&mut spares);
        self.note(&spares);
        drop(spares);
        // Its memory is freed here, without the lock.
        object.map_or(0, |_| self.bytes.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Error;
    use crate::platform::std::Std;
    use std::sync::atomic::AtomicUsize;
    use std::sync::Barrier;
    use std::thread;

    fn pool(most: usize) -> Pool<Std, u64> {
        Pool::new(most, 0, 100).unwrap()
    }

    fn more(need: Need) -> Result<u64> {
        assert_eq!(need, Need::Optional);
        Ok(0)
    }

    /// So many requests at the same time.
    fn crowd(pool: &Pool<Std, u64>, count: usize) {
        let all = Barrier::new(count);
        thread::scope(|scope| {
            for _ in 0..count {
                scope.spawn(|| pool.with(more, |_| all.wait()));
            }
        });
    }

    #[test]
    fn a_pool_grows_with_the_requests_and_is_trimmed_to_those_of_late() {
        let pool = pool(8);
        assert_eq!((pool.memory(), pool.sheddable()), (100, 0));
        crowd(&pool, 8);
        assert_eq!((pool.memory(), pool.sheddable()), (800, 700));
        // All were needed since the last time.
        pool.trim();
        assert_eq!(pool.memory(), 800);
        crowd(&pool, 3);
        pool.trim();
        assert_eq!(pool.memory(), 300);
        pool.trim();
        assert_eq!(pool.memory(), 100);
        pool.trim();
        assert_eq!((pool.memory(), pool.shed(1)), (100, 0));
    }

    /// A pool that is empty has nothing to wait for, and one whose only object is in use has.
    #[test]
    fn requests_wait_for_what_exists_only() {
        let pool = Pool::<Std, u64>::without_reserve(8, 100).unwrap();
        let none = |_| Err(Error::NoMemory);
        assert_eq!(pool.take_if_any(none), None);
        assert_eq!(pool.take_if_any(more), Some(0));
        thread::scope(|scope| {
            let waiting = scope.spawn(|| pool.take_if_any(none));
            thread::sleep(std::time::Duration::from_millis(20));
            pool.put(7);
            assert_eq!(waiting.join().unwrap(), Some(7));
            let waiting = scope.spawn(|| pool.take_if_any(none));
            thread::sleep(std::time::Duration::from_millis(20));
            pool.give_up(7);
            assert_eq!(waiting.join().unwrap(), None);
        });
        assert_eq!(pool.memory(), 0);
        pool.add_reserve(3);
        assert_eq!((pool.memory(), pool.sheddable(), pool.shed(1)), (100, 0, 0));
        assert_eq!(pool.take_if_any(none), Some(3));
        pool.put(3);
        pool.set_bytes(5);
        assert_eq!((pool.memory(), pool.sheddable()), (5, 0));
    }

    #[test]
    fn all_but_one_can_be_shed() {
        let pool = pool(8);
        crowd(&pool, 8);
        assert_eq!(pool.shed(150), 200);
        assert_eq!(pool.shed(u64::MAX), 500);
        assert_eq!(pool.memory(), 100);
    }

    /// Without memory for more, requests take turns with the one that there is, also while others give memory back.
    #[test]
    fn requests_go_on_without_memory() {
        let pool = pool(64);
        let (running, failed) = (AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let none = |_| {
                        failed.fetch_add(1, Ordering::Relaxed);
                        Err(Error::NoMemory)
                    };
                    for _ in 0..200 {
                        pool.with(none, |_| {
                            assert_eq!(running.fetch_add(1, Ordering::Relaxed), 0);
                            thread::yield_now();
                            running.fetch_sub(1, Ordering::Relaxed);
                        });
                    }
                });
            }
            scope.spawn(|| (0..200).for_each(|_| pool.trim()));
        });
        assert!(failed.into_inner() > 0);
        assert_eq!(pool.memory(), 100);
    }

    #[test]
    fn there_are_never_more_than_the_most() {
        let pool = pool(2);
        let (running, worst) = (AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        pool.with(more, |_| {
                            let now = running.fetch_add(1, Ordering::Relaxed) + 1;
                            worst.fetch_max(now, Ordering::Relaxed);
                            thread::yield_now();
                            running.fetch_sub(1, Ordering::Relaxed);
                        });
                    }
                });
            }
        });
        assert!(worst.into_inner() <= 2 && pool.memory() <= 200);
    }
}
