// SPDX-License-Identifier: GPL-2.0
//! Recompression in the background: which segments, and how much at a time.

use super::relocate::many_dirty;
use super::{relocation_class, Effort, Maintenance};
use crate::engine::checkpoint::CheckpointKind;
use crate::engine::codec::{Compression, Recompression};
use crate::engine::recompress::{Ended, Goal, RecompressionPass, Recompressor};
use crate::engine::space::SpaceClass;
use crate::engine::store::Store;
use crate::engine::{Error, Result};
use crate::platform::Platform;

/// Segments' worth of records between two checkpoints, which free what they replace.
const BATCH: u64 = 8;
/// Segments whose marks are taken off before others may take the lock.
const UNMARKED_AT_ONCE: u64 = 1 << 12;

/// What recompression keeps between two steps.
pub(crate) struct Again<P: Platform> {
    /// Its memory, as long as it has something to do.
    recompressor: Option<Recompressor<P>>,
    /// The segment it looks at next.
    next: u64,
}

impl<P: Platform> Default for Again<P> {
    fn default() -> Self {
        Self {
            recompressor: None,
            next: 0,
        }
    }
}

impl<P: Platform> Again<P> {
    pub(super) fn give_back_memory(&mut self) {
        self.recompressor = None;
    }
}

/// The result of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// Bytes of content that were compressed again.
    pub(crate) content: u64,
    /// Bytes of the records that came of it.
    pub(crate) appended: u64,
    /// All that is cold was looked at.
    pub(crate) finished: bool,
}

impl Step {
    /// There was nothing to do.
    pub(crate) const FINISHED: Self = Self {
        content: 0,
        appended: 0,
        finished: true,
    };
}

impl<P: Platform> Maintenance<P> {
    /// Compresses some cold data again, as the image is told to: what lies in segments with sequence numbers below
    /// `cold_before`. `go_on` is asked before each record.
    ///
    /// # Errors
    ///
    /// Those of the log and of memory.
    pub(crate) fn recompress(
        &mut self,
        store: &Store<P>,
        cold_before: u64,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Step> {
        let Some(compression) = store.codecs.recompression().compression else {
            return Ok(Step::FINISHED);
        };
        if !store.codecs.may_make(compression.algorithm()) {
            self.checkpoint.announce_zstd(store)?;
        }
        if cold_before == u64::MAX {
            leave_written_segment(store)?;
        }
        store.log.write_all(&store.file)?;
        let mut recompressor = match self.again.recompressor.take() {
            Some(recompressor) => recompressor,
            None => Recompressor::new(store)?,
        };
        let mut goal = Goal {
            compression,
            cold_before,
            class: SpaceClass::Reclaim,
        };
        let step = self.recompress_with(store, &mut recompressor, &mut goal, go_on);
        self.again.recompressor = Some(recompressor);
        step
    }

    /// Begins to compress all data again with `compression`, whatever the image is told to do with cold data.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] if it compresses nothing, and those of [`checkpoint`](Self::checkpoint).
    pub(crate) fn begin_pass(
        &mut self,
        store: &Store<P>,
        compression: Compression,
    ) -> Result<RecompressionPass> {
        Recompression::with(compression).check()?;
        if !store.codecs.may_make(compression.algorithm()) {
            self.checkpoint(store, CheckpointKind::Running)?;
            self.checkpoint.announce_zstd(store)?;
        }
        leave_written_segment(store)?;
        store.codecs.prepare_again(compression);
        let told = store.codecs.recompression().compression;
        let map = store.map.lock();
        let goal = Goal {
            compression,
            // The log has entered a segment in which nothing lies yet, or only what need not be compressed again.
            cold_before: map.newest_seq() + 1,
            class: SpaceClass::User,
        };
        let skips_marked = told == Some(compression);
        Ok(RecompressionPass::new(
            goal,
            map.segment_count(),
            skips_marked,
        ))
    }

    fn recompress_with(
        &mut self,
        store: &Store<P>,
        recompressor: &mut Recompressor<P>,
        goal: &mut Goal,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Step> {
        let (content, appended) = (recompressor.content(), recompressor.appended());
        let most = BATCH * u64::from(store.layout.segment_size);
        let finished = loop {
            let Some(index) = next_cold(store, self.again.next, goal.cold_before) else {
                self.again.next = 0;
                break true;
            };
            self.again.next = index;
            if many_dirty(store) {
                self.checkpoint(store, CheckpointKind::Running)?;
            }
            goal.class = relocation_class(store, index, Effort::Idle)?;
            let mut may_go_on = || !many_dirty(store) && go_on();
            match recompressor.segment(store, goal, index, &mut may_go_on) {
                Ok(Ended::Done) => self.again.next = index + 1,
                Ok(Ended::Interrupted) if go_on() => {}
                Ok(Ended::Interrupted) => break false,
                // Once what was replaced is free there may be space again.
                Err(Error::NoSpace) if recompressor.appended() > appended => break false,
                Err(error) => return Err(error),
            }
            if recompressor.appended() - appended >= most {
                break false;
            }
        };
        Ok(Step {
            content: recompressor.content() - content,
            appended: recompressor.appended() - appended,
            finished,
        })
    }

    /// Changes how data is compressed again that has become cold, in the image and from now on.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] if the compression compresses nothing, and those of [`checkpoint`](Self::checkpoint).
    pub(crate) fn set_recompression(
        &mut self,
        store: &Store<P>,
        recompression: Recompression,
    ) -> Result {
        recompression.check()?;
        if recompression.compression != store.codecs.recompression().compression {
            // The marks tell of the compression before.
            clear_marks(store);
        }
        let stored = self.store_recompression(store, recompression);
        if stored.is_ok() {
            store.codecs.set_recompression(recompression);
        }
        let told = store.codecs.recompression().compression;
        store.map.lock().mark_for(told);
        self.again.next = 0;
        stored
    }

    fn store_recompression(&mut self, store: &Store<P>, recompression: Recompression) -> Result {
        // Neither superblock leads to a mark of the compression before. And each change takes space of the log that only
        // checkpoints give back.
        self.checkpoint(store, CheckpointKind::Running)?;
        self.checkpoint.rewrite(store, |superblock| {
            superblock.recompression = recompression;
            superblock.marks |= recompression.compression.is_some();
        })
    }
}

/// Takes the marks off all segments. None is set from then on, until it is said again what they are for.
fn clear_marks<P: Platform>(store: &Store<P>) {
    let mut first = 0;
    loop {
        let mut map = store.map.lock();
        map.mark_for(None);
        let end = map.segment_count();
        let next = end.min(first + UNMARKED_AT_ONCE);
        map.clear_marks(first..next);
        if next == end {
            break;
        }
        first = next;
    }
}

/// The first segment from `from` on in which some cold data may be worth compressing again. The log has written it.
fn next_cold<P: Platform>(store: &Store<P>, from: u64, cold_before: u64) -> Option<u64> {
    let log = store.log.lock();
    let map = store.map.lock();
    let size = u64::from(store.layout.segment_size);
    let mut from = from;
    while let Some(index) = map.next_unmarked(from..map.segment_count()) {
        let cold = map.segment(index).is_some_and(|s| s.seq() < cold_before);
        if cold && !log.holds(index) && !log.pending(store.layout.segment_offset(index), size) {
            return Some(index);
        }
        from = index + 1;
    }
    None
}

/// If users have written to the current segment of the log, has the log go on in another one: its data is compressed again
/// with all else, and what comes of it lies apart from it.
fn leave_written_segment<P: Platform>(store: &Store<P>) -> Result {
    let written = {
        let log = store.log.lock();
        let map = store.map.lock();
        log.current_segment()
            .is_some_and(|index| map.next_unmarked(index..index + 1).is_some())
    };
    if !written {
        return Ok(());
    }
    match store.log.leave_segment(&store.file) {
        Err(Error::NoSpace) => Ok(()),
        left => left,
    }
}
