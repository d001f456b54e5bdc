// SPDX-License-Identifier: GPL-2.0
//! The workqueues that serve the requests of a disk.

use super::operations::{Operations, OperationsVTable};
use crate::c;
use core::marker::PhantomData;
use core::ptr::NonNull;
use kernel::prelude::*;

/// A workqueue for the requests of a disk with the operations of a `T`. Dropping it waits for the work that is
/// queued.
///
/// # Invariants
///
/// `raw` is a valid workqueue, owned by this value, with the functions of `OperationsVTable<T>`.
pub(crate) struct Workqueue<T> {
    raw: NonNull<c::cloop_workqueue>,
    _operations: PhantomData<T>,
}

// SAFETY: A workqueue belongs to no thread, and all its operations are synchronised.
unsafe impl<T> Send for Workqueue<T> {}
// SAFETY: As above.
unsafe impl<T> Sync for Workqueue<T> {}

impl<T: Operations> Workqueue<T> {
    /// Makes a workqueue of device `index` with the name `lane`, which serves at most `max_active` requests at a
    /// time.
    pub(crate) fn new(index: usize, lane: &'static str, max_active: usize) -> Result<Self> {
        // SAFETY: `lane` is readable for its length.
        let raw = unsafe {
            c::cloop_workqueue_alloc(
                index as c_int,
                lane.as_ptr().cast(),
                lane.len() as c_int,
                max_active as c_int,
                Some(OperationsVTable::<T>::serve_bio),
            )
        };
        // INVARIANT: The workqueue is fresh and ours, and has the function.
        Ok(Self {
            raw: NonNull::new(raw).ok_or(ENOMEM)?,
            _operations: PhantomData,
        })
    }
}

impl<T> Workqueue<T> {
    /// The C object.
    pub(super) fn as_ptr(&self) -> *mut c::cloop_workqueue {
        self.raw.as_ptr()
    }
}

impl<T> Drop for Workqueue<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant, the workqueue is ours.
        unsafe { c::cloop_workqueue_free(self.raw.as_ptr()) };
    }
}

/// The number of CPUs that are online.
pub(crate) fn online_cpus() -> usize {
    // SAFETY: The function has no preconditions.
    unsafe { c::cloop_num_cpus() as usize }
}
