// SPDX-License-Identifier: GPL-2.0
//! Writes that fail for a reason that passes, and are tried again.
//!
//! A failed write proves no loss, because its buffer is still there: when memory or space was short for a moment, the
//! chunk stays in the queue, flushes wait for it, and the device goes on. Only a failed fsync proves a loss, so the error
//! of an fsync stops the log in any case, and so does an error of the medium.

use super::state::{LogState, Patience, Retry};
use super::{Log, LogGuard};
use crate::engine::{Error, Result};
use crate::platform::{BackingFile, MonitorGuard, Platform};

/// Milliseconds between the first failure and the next try. The time doubles with each failure in a row.
const FIRST_MS: u64 = 10;
/// The most milliseconds between two tries.
const MOST_MS: u64 = 1000;
/// Failures in a row after which a write is given up unless the log is to [wait for ever](Patience::Endless).
const TRIES: u32 = 8;

/// When a chunk can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// Now.
    Now,
    /// After this many milliseconds, because writes have failed.
    In(u32),
    /// No chunk waits to be written, or the log has stopped.
    Never,
}

impl LogState {
    /// The error of a write that is tried again, as long as no write has succeeded since.
    pub(crate) fn retrying(&self) -> Option<Error> {
        self.retry.map(|retry| retry.error)
    }

    /// Milliseconds until writes may be tried again; 0 when they may be tried now.
    fn held_up<P: Platform>(&self) -> u32 {
        let Some(retry) = self.retry else { return 0 };
        // Less than the longest time between two tries.
        retry.at.saturating_sub(P::now_ms()) as u32
    }

    /// When a chunk that begins before log position `end` can be written.
    pub(crate) fn due<P: Platform>(&self, end: u64) -> Due {
        if self.error.is_some() || !self.queued(end) {
            return Due::Never;
        }
        match self.held_up::<P>() {
            0 => Due::Now,
            ms => Due::In(ms),
        }
    }

    /// Decides what becomes of a write that failed with `error`: true if it is tried again.
    pub(super) fn try_again<P: Platform>(&mut self, error: Error) -> bool {
        let failures = self.retry.map_or(0, |retry| retry.failures);
        let endless = self.patience == Patience::Endless && !self.closing() && !self.stopping();
        if !error.is_transient() || (failures >= TRIES && !endless) {
            return false;
        }
        self.stats.errors += 1;
        self.stats.retries += 1;
        if self.held_up::<P>() == 0 {
            let wait = FIRST_MS << failures.min(TRIES);
            self.retry = Some(Retry {
                error,
                failures: failures + 1,
                at: P::now_ms() + wait.min(MOST_MS),
            });
        }
        true
    }

    /// A write has succeeded.
    pub(super) fn write_succeeded(&mut self) {
        self.retry = None;
    }
}

impl<P: Platform> Log<P> {
    /// From now on, writes that fail for a reason that passes are tried again until the volume is closed.
    pub(crate) fn wait_for_ever(&self) {
        self.lock().patience = Patience::Endless;
    }

    /// Tells the platform if writes began to fail, or succeed again.
    pub(super) fn tell_retry(file: &P::File, before: Option<Error>, after: Option<Error>) {
        if before.is_some() != after.is_some() {
            P::write_retried(file, after);
        }
    }

    /// Waits until a chunk that begins before log position `end` may be written, or something else has changed.
    pub(super) fn wait_for_write(state: &mut LogGuard<'_, P>, end: u64) {
        match state.due::<P>(end) {
            Due::Now => {}
            Due::In(ms) => {
                state.wait_idle(ms);
            }
            // Other threads write.
            Due::Never => state.wait(),
        }
    }

    /// Writes a superblock, which is not a part of the log, at byte `offset` of the file. It is tried again as chunks are.
    ///
    /// # Errors
    ///
    /// That of the write, if it is not to be tried again, and the error that has stopped the log meanwhile.
    pub(crate) fn write_superblock(&self, file: &P::File, bytes: &[u8], offset: u64) -> Result {
        loop {
            let written = file.write_at(bytes, offset);
            let mut state = self.lock();
            let before = state.retrying();
            match written {
                Ok(()) => state.write_succeeded(),
                Err(error) if state.try_again::<P>(error) => {}
                Err(error) => return Err(error),
            }
            state.notify_all();
            let after = state.retrying();
            drop(state);
            Self::tell_retry(file, before, after);
            if written.is_ok() {
                return Ok(());
            }
            let mut state = self.lock();
            loop {
                state.check()?;
                let ms = state.held_up::<P>();
                if ms == 0 {
                    break;
                }
                state.wait_idle(ms);
            }
        }
    }
}
