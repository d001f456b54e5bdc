// SPDX-License-Identifier: GPL-2.0
//! The commit path: an fsync makes the log durable, and all who wait share it.

use super::seal::End;
use super::{Log, LogGuard};
use crate::engine::{Error, Result};
use crate::platform::{BackingFile, MonitorGuard, Platform, Sabotage};

/// Proof that the log is durable up to a position: only [`Log::sync`] makes one. What must not happen before the log
/// is durable takes it as an argument.
pub(crate) struct DurableLog {
    end: u64,
}

impl DurableLog {
    /// The log position up to which the log is durable.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }
}

impl<P: Platform> Log<P> {
    /// A flush by a user: see [`sync`](Self::sync).
    pub(crate) fn flush(&self, file: &P::File) -> Result {
        self.sync(file)?;
        let mut state = self.lock();
        state.flushed |= state.stats.user_bytes > 0;
        Ok(())
    }

    /// Makes everything appended before the call durable. All callers that wait share the fsync of one
    /// of them, but none rides on an fsync that began before its own data was written. Without anything
    /// new it does no I/O.
    ///
    /// # Errors
    ///
    /// The first error of a write or fsync, and again the same for every later call: a failed fsync
    /// may have dropped what it failed on, so a later success would prove nothing.
    pub(crate) fn sync(&self, file: &P::File) -> Result<DurableLog> {
        let end = self.sync_to_end(file)?;
        Ok(DurableLog { end })
    }

    /// As [`sync`](Self::sync), but a simulated platform that sabotages this very order gets its proof for nothing. It
    /// is the only forgery there is, and no other platform has it.
    pub(crate) fn sync_unless(&self, sabotage: Sabotage, file: &P::File) -> Result<DurableLog> {
        if cfg!(feature = "sim") && P::sabotaged(sabotage) {
            let end = self.lock().appended;
            return Ok(DurableLog { end });
        }
        self.sync(file)
    }

    /// Returns the log position up to which the log is durable.
    fn sync_to_end(&self, file: &P::File) -> Result<u64> {
        let mut state = self.lock();
        let target = state.appended;
        if let Some(done) = self.wait_for_sync(&mut state, target) {
            return done;
        }
        if P::sabotaged(Sabotage::EarlyFlush) {
            return Ok(target);
        }
        state.syncing = true;
        let upto = state.appended;
        if let Err(error) = self.seal(&mut state, End::Flush) {
            state.fail(error);
        }
        let mut state = self.write_up_to(file, state, upto);
        if state.error.is_none() {
            drop(state);
            let synced = if P::sabotaged(Sabotage::SkipSync) {
                Ok(())
            } else {
                file.sync()
            };
            state = self.lock();
            state.stats.syncs += 1;
            match synced {
                Ok(()) => {
                    state.durable = state.durable.max(upto);
                    state.flushes.count();
                }
                Err(error) if Self::forgives(error) => {
                    state.syncing = false;
                    state.notify_all();
                    return Err(error);
                }
                Err(error) => state.fail(error),
            }
        }
        state.syncing = false;
        match state.error {
            // The thread that fills segments beforehand does not know yet that it should.
            None if self.wants_warm_up(file, &state) => state.notify_all(),
            None => Self::notify_of_progress(&mut state),
            Some(_) => state.notify_all(),
        }
        state.check()?;
        Ok(state.durable)
    }

    /// Sabotage: a failed fsync is tried again.
    fn forgives(error: Error) -> bool {
        P::sabotaged(Sabotage::RetriedSync)
            || P::sabotaged(Sabotage::TransientSync) && error.is_transient()
    }

    /// Waits as long as another thread makes the backing file durable, and the log is not durable up to log position
    /// `target`. Nothing is returned if the caller must do it.
    fn wait_for_sync(&self, state: &mut LogGuard<'_, P>, target: u64) -> Option<Result<u64>> {
        loop {
            if let Some(error) = state.error {
                // A read-only volume has nothing to make durable.
                return Some(match error {
                    Error::ReadOnly => Ok(0),
                    error => Err(error),
                });
            }
            if state.durable >= target {
                return Some(Ok(state.durable));
            }
            if !state.syncing {
                return None;
            }
            state.wait();
            if P::sabotaged(Sabotage::SharedSync) && !state.syncing && state.error.is_none() {
                return Some(Ok(target));
            }
        }
    }

    /// One fsync for what is not in the log: a superblock.
    ///
    /// Never beside another one: of two that run at once on the same open file, the kernel tells only one
    /// that writing back failed, and the other's success would prove nothing.
    ///
    /// # Errors
    ///
    /// That of the fsync, which becomes the log's own.
    pub(crate) fn sync_file(&self, file: &P::File) -> Result {
        let mut state = self.lock();
        while state.syncing {
            state.wait();
        }
        state.check()?;
        state.syncing = true;
        drop(state);
        let synced = file.sync();
        let mut state = self.lock();
        state.syncing = false;
        state.stats.syncs += 1;
        if let Err(error) = synced {
            state.fail(error);
        }
        state.notify_all();
        synced
    }
}
