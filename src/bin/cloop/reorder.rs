// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Writes batches in their order, whatever the order in which they are encoded.

use crate::workers::Stop;
use cloop::engine::Batch;
use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Batches of the workers of one job. A worker takes a batch, then a numbered part of the job, and hands the batch in when it
/// is encoded; the worker that handed in the next one in order writes it, and those behind it that wait already. No
/// worker waits for a batch of another to be encoded, unless all are in use: then the batch that is next is being
/// encoded by a worker, because batches are taken before numbers.
pub(crate) struct Reorder {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    spare: Vec<Batch>,
    /// Encoded batches that wait for the ones before them.
    waiting: BTreeMap<u64, Batch>,
    /// The number of the batch that is to be written next.
    next: u64,
    /// A worker writes.
    writing: bool,
}

impl Reorder {
    /// For a job with these batches.
    pub(crate) fn new(spare: Vec<Batch>) -> Self {
        Self {
            state: Mutex::new(State {
                spare,
                waiting: BTreeMap::new(),
                next: 0,
                writing: false,
            }),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An empty batch, when there is one; `None` if the job is stopped.
    pub(crate) fn take(&self, stop: &Stop) -> Option<Batch> {
        let mut state = self.lock();
        while !stop.requested() {
            if let Some(mut batch) = state.spare.pop() {
                batch.clear();
                return Some(batch);
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        None
    }

    /// Gives a batch back for which there is no part of the job left.
    pub(crate) fn give_back(&self, batch: Batch) {
        self.lock().spare.push(batch);
        self.changed.notify_one();
    }

    /// Hands in batch `number`, and writes it and those that have waited for it, unless another worker does.
    ///
    /// # Errors
    ///
    /// Those of `write`. Nothing is written after one.
    pub(crate) fn hand_in<E>(
        &self,
        number: u64,
        batch: Batch,
        mut write: impl FnMut(&Batch) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut state = self.lock();
        state.waiting.insert(number, batch);
        if state.writing {
            return Ok(());
        }
        state.writing = true;
        loop {
            let next = state.next;
            let Some(batch) = state.waiting.remove(&next) else {
                state.writing = false;
                return Ok(());
            };
            drop(state);
            write(&batch)?;
            state = self.lock();
            state.next += 1;
            state.spare.push(batch);
            self.changed.notify_one();
        }
    }

    /// Wakes those that wait, so that they notice that the job is stopped.
    pub(crate) fn wake(&self) {
        // The lock is taken so that no worker is between its check of `stop` and its sleep.
        let _state = self.lock();
        self.changed.notify_all();
    }
}
