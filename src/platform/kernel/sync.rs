// SPDX-License-Identifier: GPL-2.0
//! The engine's lock: a kernel mutex and two condition variables.

use crate::c;
use crate::engine::Error;
use crate::platform::{Monitor, MonitorGuard, Rank};
use core::mem::ManuallyDrop;
use core::ops::{Deref, DerefMut};
use core::pin::Pin;
use kernel::prelude::*;
use kernel::static_lock_class;
use kernel::sync::{CondVar, CondVarTimeoutResult, LockClassKey, Mutex, MutexGuard};
use kernel::time::msecs_to_jiffies;

/// A value that may move although its lock is pinned.
///
/// The guard of the kernel crate gives mutable access to `Unpin` values only, because a lock pins its
/// value. No value of the engine relies on being pinned.
struct Movable<T>(T);

impl<T> Unpin for Movable<T> {}

#[pin_data]
struct Inner<T> {
    #[pin]
    lock: Mutex<Movable<T>>,
    /// Those who wait for something to change.
    #[pin]
    changed: CondVar,
    /// Background threads that wait for something to do.
    #[pin]
    idle: CondVar,
}

/// A mutex and its condition variables, pinned together on the heap.
pub(crate) struct KernelMonitor<T>(Pin<KBox<Inner<T>>>);

/// The name of the locks of a rank, and their lockdep classes: one for the mutexes and one for the wait
/// queues.
fn class(
    rank: Rank,
) -> (
    &'static CStr,
    Pin<&'static LockClassKey>,
    Pin<&'static LockClassKey>,
) {
    // Each call of the macro makes another class.
    match rank {
        Rank::Checkpoint => (
            c"cloop_checkpoint",
            static_lock_class!(),
            static_lock_class!(),
        ),
        Rank::Log => (c"cloop_log", static_lock_class!(), static_lock_class!()),
        Rank::Map => (c"cloop_map", static_lock_class!(), static_lock_class!()),
        Rank::Cache => (c"cloop_cache", static_lock_class!(), static_lock_class!()),
        Rank::Pool => (c"cloop_pool", static_lock_class!(), static_lock_class!()),
    }
}

impl<T: Send> Monitor<T> for KernelMonitor<T> {
    type Guard<'a>
        = KernelGuard<'a, T>
    where
        Self: 'a,
        T: 'a;

    fn new(value: T, rank: Rank) -> Result<Self, Error> {
        let (name, lock_key, wait_key) = class(rank);
        KBox::pin_init(
            pin_init!(Inner {
                lock <- Mutex::new(Movable(value), name, lock_key),
                changed <- CondVar::new(name, wait_key),
                idle <- CondVar::new(name, wait_key),
            }),
            GFP_KERNEL,
        )
        .map(Self)
        .map_err(|_| Error::NoMemory)
    }

    fn lock(&self) -> KernelGuard<'_, T> {
        KernelGuard {
            value: ManuallyDrop::new(self.0.lock.lock()),
            inner: &self.0,
        }
    }
}

/// A held [`KernelMonitor`].
///
/// # Invariants
///
/// `value` holds the lock of `inner`, except while [`unlocked`](Self::unlocked) calls its function.
pub(crate) struct KernelGuard<'a, T> {
    value: ManuallyDrop<MutexGuard<'a, Movable<T>>>,
    inner: &'a Inner<T>,
}

impl<T> KernelGuard<'_, T> {
    /// Calls `f` without the lock.
    fn unlocked(&mut self, f: impl FnOnce()) {
        // SAFETY: By the type invariant, the guard is valid. Nothing uses it before it is replaced: `f`
        // has no access to it, and a panic does not unwind in the kernel.
        unsafe { ManuallyDrop::drop(&mut self.value) };
        f();
        // INVARIANT: The new guard holds the lock.
        self.value = ManuallyDrop::new(self.inner.lock.lock());
    }
}

impl<T> Drop for KernelGuard<'_, T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant, the guard is valid, and nothing uses it again.
        unsafe { ManuallyDrop::drop(&mut self.value) };
    }
}

impl<T> Deref for KernelGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value.0
    }
}

impl<T> DerefMut for KernelGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value.0
    }
}

impl<T> MonitorGuard for KernelGuard<'_, T> {
    fn wait(&mut self) {
        self.inner.changed.wait(&mut self.value);
    }

    fn wait_idle(&mut self, timeout_ms: u32) -> bool {
        let idle = &self.inner.idle;
        // SAFETY: The function has no preconditions.
        unsafe { c::cloop_rest_begin() };
        // A kernel thread ignores all signals, so an interruptible sleep lasts as long as an
        // uninterruptible one. It counts neither as load nor as a hung task.
        let mut passed = if timeout_ms == 0 {
            let _ = idle.wait_interruptible(&mut self.value);
            false
        } else {
            let jiffies = msecs_to_jiffies(timeout_ms);
            let result = idle.wait_interruptible_timeout(&mut self.value, jiffies);
            matches!(result, CondVarTimeoutResult::Timeout)
        };
        // While the machine sleeps, no thread of the engine begins anything.
        // SAFETY: As above.
        while !unsafe { c::cloop_rest_end() } {
            // SAFETY: The function has no preconditions but that the lock is not held.
            self.unlocked(|| unsafe { c::cloop_rest_on() });
            passed = false;
        }
        passed
    }

    fn notify_all(&self) {
        self.inner.changed.notify_all();
        self.inner.idle.notify_all();
    }

    fn notify_requests(&self) {
        self.inner.changed.notify_all();
    }
}
