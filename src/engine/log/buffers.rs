// SPDX-License-Identifier: GPL-2.0
//! The memory of chunks: buffers that are allocated when writers need them, and given back when the log is idle.

use super::state::LogState;
use super::{Log, LogGuard, RESERVE};
use crate::engine::spares::{give_back_until, Spares};
use crate::engine::Result;
use crate::platform::mem::{Buf, Need, Unique};
use crate::platform::{MonitorGuard, Platform};
use core::sync::atomic::Ordering;

impl<P: Platform> Log<P> {
    /// Gets a buffer for a chunk, which a chunk can then be opened with: allocates one more, or writes a chunk that is
    /// queued, or waits for one that is being written. A log without memory for more goes on with one buffer.
    ///
    /// # Errors
    ///
    /// The error that stopped the log.
    pub(super) fn get_buffer<'a>(&'a self, file: &P::File, mut state: LogGuard<'a, P>) -> Result {
        if state.buffers.may_grow() {
            drop(state);
            let made = Self::buffer(&self.layout, Need::Optional);
            state = self.lock();
            let grown = made.is_ok();
            state.buffers.grown(grown);
            if let Ok(buf) = made {
                state.buffers.put(buf);
                // Others may wait for any buffer.
                state.notify_requests();
            }
            self.note_buffers(&state);
            if grown {
                return Ok(());
            }
        }
        drop(state);
        self.write_or_wait(file)
    }

    fn note_buffers(&self, state: &LogState) {
        let made = state.buffers.made() as u64;
        self.buffers.store(made, Ordering::Relaxed);
    }

    /// Bytes of memory of the buffers. Takes no lock.
    pub(crate) fn memory(&self) -> u64 {
        self.buffers.load(Ordering::Relaxed) << self.layout.segment_shift()
    }

    /// Bytes of memory of the buffers that [`shed`](Self::shed) may give back. Takes no lock.
    pub(crate) fn sheddable(&self) -> u64 {
        let reserve = (RESERVE as u64) << self.layout.segment_shift();
        self.memory().saturating_sub(reserve)
    }

    /// Gives back the buffers that were not needed since the last call.
    pub(crate) fn trim(&self) {
        while self.give_back(Spares::trim) > 0 {}
    }

    /// Gives back buffers that are not in use until `bytes` bytes are given back, and returns how many were.
    pub(crate) fn shed(&self, bytes: u64) -> u64 {
        give_back_until(bytes, || self.give_back(Spares::shed))
    }

    fn give_back(
        &self,
        choose: impl FnOnce(&mut Spares<Unique<Buf>>) -> Option<Unique<Buf>>,
    ) -> u64 {
        let mut state = self.lock();
        let buf = choose(&mut state.buffers);
        self.note_buffers(&state);
        drop(state);
        // The memory is freed here, without the lock.
        buf.map_or(0, |buf| buf.len() as u64)
    }
}
