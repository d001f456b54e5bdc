// SPDX-License-Identifier: GPL-2.0
//! The commit path: sealed chunks are written, and an fsync makes them durable.

use super::{ChunkState, Log, Tail};
use crate::engine::{Error, Result};
use crate::platform::mem::Unique;
use crate::platform::{BackingFile, MonitorGuard, Platform, Sabotage};

impl<P: Platform> Log<P> {
    /// Writes the oldest queued chunk, or waits for one that is being written.
    pub(super) fn write_or_wait(&self, file: &P::File) -> Result<()> {
        if !self.write_one(file) {
            let mut tail = self.lock();
            if let Some(error) = tail.error {
                return Err(error);
            }
            let idle =
                tail.pool.is_empty() && !tail.chunks.iter().any(|c| c.state == ChunkState::Queued);
            if idle {
                tail.wait();
            }
        }
        Ok(())
    }

    /// Writes the oldest queued chunk; false when there is none.
    pub(crate) fn write_one(&self, file: &P::File) -> bool {
        let (lsn, offset, len, unused, buf) = {
            let mut tail = self.lock();
            if tail.error.is_some() {
                return false;
            }
            let queued = tail
                .chunks
                .iter_mut()
                .find(|c| c.state == ChunkState::Queued);
            let Some(chunk) = queued else { return false };
            chunk.state = ChunkState::Writing;
            let buf = chunk.buf.clone();
            (chunk.lsn, chunk.offset, chunk.len, chunk.unused, buf)
        };
        let result = file.write_at(&buf[..len], offset);
        let mut punched = Ok(());
        if unused > 0 {
            // As long as the chunk is listed the segment cannot become free, let alone be used again.
            punched = file.punch(offset + len as u64, unused);
        }
        // The lock is not held: readers of the chunk do not share it but look under the lock.
        drop(buf);
        let mut tail = self.lock();
        tail.stats.errors += u64::from(punched.is_err());
        let at = tail.chunks.iter().position(|c| c.lsn == lsn);
        match (result, at) {
            (Ok(()), Some(at)) => {
                let buf = tail.chunks.remove(at).and_then(|c| Unique::reclaim(c.buf));
                if let Some(buf) = buf {
                    // Within the capacity the pool was made with.
                    let _ = tail.pool.push(buf);
                }
            }
            (Err(error), Some(at)) => {
                tail.chunks[at].state = ChunkState::Failed;
                tail.fail(error);
            }
            (_, None) => {}
        }
        tail.notify_all();
        true
    }

    /// Whether a chunk waits to be written.
    pub(crate) fn wants_writing(tail: &Tail) -> bool {
        tail.error.is_none() && tail.chunks.iter().any(|c| c.state == ChunkState::Queued)
    }

    /// A flush by a user: see [`sync`](Self::sync).
    pub(crate) fn flush(&self, file: &P::File) -> Result {
        self.sync(file)?;
        let mut tail = self.lock();
        tail.flushed |= tail.stats.user_bytes > 0;
        Ok(())
    }

    /// Makes everything appended before the call durable. All callers that wait share the fsync of one
    /// of them, but none rides on an fsync that began before its own data was written. Without anything
    /// new it does no I/O. Returns the position up to which the log is durable.
    ///
    /// # Errors
    ///
    /// The first error of a write or fsync, and again the same for every later call: a failed fsync
    /// may have dropped what it failed on, so a later success would prove nothing.
    pub(crate) fn sync(&self, file: &P::File) -> Result<u64> {
        let mut tail = self.lock();
        let target = tail.appended;
        loop {
            if let Some(error) = tail.error {
                // A read-only volume has nothing to make durable.
                return if error == Error::ReadOnly {
                    Ok(0)
                } else {
                    Err(error)
                };
            }
            if tail.durable >= target {
                return Ok(tail.durable);
            }
            if !tail.syncing {
                break;
            }
            tail.wait();
            if P::sabotaged(Sabotage::SharedSync) && !tail.syncing && tail.error.is_none() {
                return Ok(target);
            }
        }
        if P::sabotaged(Sabotage::EarlyFlush) {
            return Ok(target);
        }
        tail.syncing = true;
        let upto = tail.appended;
        let sealed = self.seal(&mut tail, false);
        if let Err(error) = sealed {
            tail.fail(error);
        }
        // Write, and wait for what others are writing, up to that position.
        while tail.error.is_none() && tail.chunks.iter().any(|c| c.lsn < upto) {
            if tail
                .chunks
                .iter()
                .any(|c| c.lsn < upto && c.state == ChunkState::Queued)
            {
                drop(tail);
                self.write_one(file);
                tail = self.lock();
            } else {
                tail.wait();
            }
        }
        if tail.error.is_none() {
            drop(tail);
            let synced = if P::sabotaged(Sabotage::SkipSync) {
                Ok(())
            } else {
                file.sync()
            };
            tail = self.lock();
            tail.stats.syncs += 1;
            match synced {
                Ok(()) => tail.durable = tail.durable.max(upto),
                Err(error) if P::sabotaged(Sabotage::RetriedSync) => {
                    tail.syncing = false;
                    tail.notify_all();
                    return Err(error);
                }
                Err(error) => tail.fail(error),
            }
        }
        tail.syncing = false;
        tail.notify_all();
        match tail.error {
            Some(error) => Err(error),
            None => Ok(tail.durable),
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
        let mut tail = self.lock();
        while tail.syncing {
            tail.wait();
        }
        if let Some(error) = tail.error {
            return Err(error);
        }
        tail.syncing = true;
        drop(tail);
        let synced = file.sync();
        let mut tail = self.lock();
        tail.syncing = false;
        tail.stats.syncs += 1;
        if let Err(error) = synced {
            tail.fail(error);
        }
        tail.notify_all();
        synced
    }
}
