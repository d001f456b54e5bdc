// SPDX-License-Identifier: GPL-2.0
//! Background work of an open volume: one thread writes sealed chunks and reserves segments ahead, another
//! writes checkpoints, reclaims space and compresses cold data again.

mod cold;

use self::cold::{ColdPlan, Now};
use crate::engine::checkpoint::{due, CheckpointKind};
use crate::engine::codec::Recompression;
use crate::engine::log::{Due, LogState};
use crate::engine::map::reaper::Progress;
use crate::engine::reclaim::{busy_garbage, idle_garbage, Effort, Maintenance, SharedMaintenance};
use crate::engine::space::{Demand, SpaceClass, Surplus, Verdict};
use crate::engine::store::Store;
use crate::engine::{Error, Result};
use crate::platform::{Monitor, MonitorGuard, Platform, Sabotage};
use core::sync::atomic::Ordering;

/// Time without a write after which the device counts as idle, in milliseconds.
const IDLE_MS: u64 = 5000;
/// Time without a read of the backing file after which what holds up reads may begin, in milliseconds.
const READS_MS: u64 = 50;
/// Time for which unneeded space stays where it is because there are reads, in milliseconds.
const SURPLUS_MS: u64 = 30_000;
/// Time between two calls that give back such space beside reads, in milliseconds.
const BESIDE_READS_MS: u64 = 1000;
/// Time after which failed work is tried again, in milliseconds.
const RETRY_MS: u64 = 1000;
/// The longest wait, in milliseconds: after it there is nothing to do yet.
const MOST_MS: u64 = 1 << 30;
/// Bytes that users write before reclaim looks again at segments that it has set aside.
const RETRY_STUCK: u64 = 1 << 30;
/// The part of a segment that must be owed to users before reclaim works beside their writes.
const OWED: u64 = 4;
/// Segments emptied beside users' writes before the maintenance thread looks for more urgent work.
const STEP: usize = 1;
/// Segments emptied between two checkpoints while users do not write.
const IDLE_BATCH: usize = 8;

/// Writes sealed chunks, reserves segments ahead and warms up the next one, so that writers and flushes find less to do.
pub(crate) fn write_behind<P: Platform>(store: &Store<P>) {
    // The state of the space when a reservation failed: the thread tries again when it has changed. Writers try for
    // themselves.
    let mut refused = None;
    loop {
        let (space, wanted) = {
            let mut state = store.log.lock();
            loop {
                if state.stopping() {
                    return;
                }
                let space = (state.space.free(), state.user_bytes());
                let wanted = store.log.wants_segment(&state) && refused != Some(space);
                match state.due::<P>(u64::MAX) {
                    Due::Now => break (space, wanted),
                    _ if wanted || store.log.wants_warm_up(&store.file, &state) => {
                        break (space, wanted)
                    }
                    Due::In(ms) => state.wait_idle(ms),
                    Due::Never => state.wait_idle(0),
                };
            }
        };
        store.log.write_one(&store.file);
        if refused != Some(space) {
            let reserved = store.log.reserve_if_wanted(&store.file);
            refused = reserved.err().map(|_| space);
        }
        store.log.warm_up(&store.file);
        if wanted {
            store.watch_space();
        }
    }
}

/// Writes a checkpoint whenever the log has grown enough, and reclaims space.
pub(crate) fn maintain<P: Platform>(store: &Store<P>, maintenance: &SharedMaintenance<P>) {
    refill(store, maintenance);
    let mut plan = Plan::new(P::now_ms());
    loop {
        let task = plan.next(store);
        if task == Task::Stop {
            return;
        }
        plan.work(store, &mut maintenance.lock(), task);
        plan.tell_stuck(store);
    }
}

/// Reserves again the segments of the reserve that the open has used, so that the next open finds them. Reclaim finds
/// the space if need be.
fn refill<P: Platform>(store: &Store<P>, maintenance: &SharedMaintenance<P>) {
    loop {
        let mut state = store.log.lock();
        while state.space.file_end_held() {
            state.wait();
        }
        if state.stopping() || !store.log.wants_segment(&state) {
            return;
        }
        drop(state);
        match store.log.reserve_ahead(&store.file, SpaceClass::User) {
            Ok(()) => {}
            Err(Error::NoSpace) if maintenance.lock().make_space(store) == Ok(true) => {}
            Err(_) => return,
        }
    }
}

/// One piece of work of the maintenance thread, the most urgent first.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Task {
    /// The volume is being closed.
    Stop,
    /// Find space for writers that wait for it.
    MakeSpace,
    /// Write a checkpoint: the log has grown enough.
    Checkpoint,
    /// Gain what is owed to users, before they have to wait.
    GainAhead,
    /// Give back space that free segments hold: others need it, or nothing is read.
    Deallocate(Demand),
    /// Empty a segment beside users' writes: there is much garbage.
    Step,
    /// Take detached subtrees off the counts.
    Reap,
    /// Put everything in order: users have not written since this moment.
    Tidy(Moment),
    /// Compress data again that lies in segments with sequence numbers below this one.
    Recompress(u64),
}

/// A moment in the life of a device, counted in bytes that users have appended since the open. Two equal moments have no
/// write between them.
type Moment = u64;

/// A point in time, by [`Platform::now_ms`]. A wait for it goes on after a notification, and does not begin anew.
type Time = u64;

/// Whether checkpoints are written when they are due.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Checkpoints {
    /// They are.
    Work,
    /// The last one failed when the log ended at `at`. The next one waits until a segment was appended, or for `retry`.
    Failed {
        /// Log position.
        at: u64,
        /// The time of the next try.
        retry: Time,
    },
}

/// Whether detached subtrees can be read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reaping {
    Works,
    /// It failed, and is tried again at this time.
    Failed(Time),
}

/// Whether segments are emptied beside users' writes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stepping {
    /// There is little garbage.
    Off,
    /// There is so much garbage that each segment users fill is followed by a step.
    On,
}

/// The last write of users, as far as it matters to work that is for idle times.
#[derive(Clone, Copy, PartialEq, Eq)]
struct LastWrite {
    moment: Moment,
    /// When it was noticed.
    noticed: Time,
}

/// The last read of the backing file, as far as it matters to what holds up reads.
#[derive(Clone, Copy, PartialEq, Eq)]
struct LastRead {
    /// The reads so far; none while one is under way.
    reads: Option<u64>,
    /// When that was noticed.
    noticed: Time,
}

/// What the maintenance thread remembers.
struct Plan {
    checkpoints: Checkpoints,
    reaping: Reaping,
    stepping: Stepping,
    /// The last step.
    stepped: Moment,
    /// The log of the system was told that segments are set aside.
    told_stuck: bool,
    /// There was nothing to gain before users have to wait, and the next checkpoint has not come.
    spent: bool,
    last_write: LastWrite,
    last_read: LastRead,
    /// The space that free segments hold and must not, and since when.
    surplus: Option<(Surplus, Time)>,
    /// Everything is in order since this moment.
    tidy: Option<Moment>,
    /// Reclaim looked again at the segments that it had set aside.
    retried: Moment,
    /// A search for space that began at this moment found nothing. Before something is written or discarded the next one
    /// would find nothing either.
    exhausted: Option<Moment>,
    /// When data is compressed again.
    cold: ColdPlan,
}

/// Requests of users so far, in bytes and flushes: another number tells that there was one.
fn requests<P: Platform>(store: &Store<P>, log: &LogState) -> u64 {
    let counters = &store.counters;
    let read = counters.bytes_read.load(Ordering::Relaxed);
    log.user_bytes() + read + counters.flushes.load(Ordering::Relaxed)
}

impl Plan {
    /// The plan for a device that was opened at this time.
    fn new(now: Time) -> Self {
        Self {
            checkpoints: Checkpoints::Work,
            reaping: Reaping::Works,
            stepping: Stepping::Off,
            stepped: 0,
            told_stuck: false,
            spent: false,
            last_write: LastWrite {
                moment: 0,
                noticed: now,
            },
            last_read: LastRead {
                reads: None,
                noticed: now,
            },
            surplus: None,
            tidy: None,
            retried: 0,
            exhausted: None,
            cold: ColdPlan::default(),
        }
    }

    /// What there is to know for recompression, if there is to be any.
    fn cold_now<P: Platform>(
        &self,
        store: &Store<P>,
        state: &LogState,
        time: Time,
    ) -> Option<(Recompression, Now)> {
        let recompression = store.codecs.recompression();
        recompression.compression?;
        let now = Now {
            time,
            // What reclaim has moved may be worth compressing again, as what users have written.
            moment: state.user_bytes() + store.counters.moved.load(Ordering::Relaxed),
            last_write: self.last_write.noticed,
            newest: store.map.lock().newest_seq(),
            choices: store.codecs.recompression_choices(),
        };
        Some((recompression, now))
    }

    /// Waits for something to do.
    fn next<P: Platform>(&mut self, store: &Store<P>) -> Task {
        let mut state = store.log.lock();
        loop {
            let now = P::now_ms();
            self.look(store, now, &state);
            if let Some(task) = self.choose(store, &state, now) {
                return task;
            }
            let timeout = self.timeout(store, now, &state);
            // Before a short wait is over it looks again in any case.
            state.resting = timeout == 0 || u64::from(timeout) > IDLE_MS;
            state.wait_idle(timeout);
        }
    }

    /// The most urgent task, if there is any.
    fn choose<P: Platform>(
        &mut self,
        store: &Store<P>,
        state: &LogState,
        now: Time,
    ) -> Option<Task> {
        let segment = u64::from(store.layout.segment_size);
        let moment = state.user_bytes();
        if state.stopping() {
            return Some(Task::Stop);
        }
        if let Checkpoints::Failed { at, .. } = self.checkpoints {
            if state.appended() >= at + segment {
                self.checkpoints = Checkpoints::Work;
            }
        }
        if state.error().is_some() {
            return None;
        }
        // Also while writers wait for space: with few nodes to store the next checkpoints need less of it.
        if self.checkpoints == Checkpoints::Work && due(store, state) {
            return Some(Task::Checkpoint);
        }
        if state.space.waits(u64::MAX) {
            return Some(Task::MakeSpace);
        }
        if store.quiet() {
            return None;
        }
        if !self.spent && state.space.owed() >= segment / OWED {
            return Some(Task::GainAhead);
        }
        if self.deallocate_at().is_some_and(|at| now >= at) {
            return Some(Task::Deallocate(self.demand(state)));
        }
        if self.stepping == Stepping::On && moment - self.stepped >= segment {
            self.stepped = moment;
            return Some(Task::Step);
        }
        if self.reaping == Reaping::Works && store.map.may_have_detached() {
            return Some(Task::Reap);
        }
        let idle = now >= self.idle_at();
        if !idle {
            return None;
        }
        if self.tidy != Some(moment) {
            return Some(Task::Tidy(moment));
        }
        let (recompression, now) = self.cold_now(store, state, now)?;
        self.cold.due(&recompression, &now).map(Task::Recompress)
    }

    /// Whether users are going to use what free segments hold.
    fn demand(&self, state: &LogState) -> Demand {
        match self.tidy == Some(state.user_bytes()) {
            true => Demand::Idle,
            false => Demand::Writes,
        }
    }

    /// The time from which on the surplus is given back, if there is any: at once if others need it, and otherwise when there
    /// was no read for a moment, or when it has been there for long.
    fn deallocate_at(&self) -> Option<Time> {
        let (surplus, since) = self.surplus?;
        if surplus == Surplus::Needed {
            return Some(since);
        }
        let old = since + SURPLUS_MS;
        Some(match self.last_read.reads {
            Some(_) => old.min(self.last_read.noticed + READS_MS),
            None => old,
        })
    }

    /// The time from which on users count as idle, unless they write before.
    fn idle_at(&self) -> Time {
        self.last_write.noticed + IDLE_MS
    }

    /// Milliseconds after which there may be something to do although nothing has happened; 0 for never. A volume that
    /// is to be `quiet` only tries a failed checkpoint again, for which users may wait; for everything else it is woken.
    fn timeout<P: Platform>(&self, store: &Store<P>, now: Time, state: &LogState) -> u32 {
        let quiet = store.quiet();
        if state.error().is_some() {
            return 0;
        }
        let checkpoint = match self.checkpoints {
            Checkpoints::Work => None,
            Checkpoints::Failed { retry, .. } => Some(retry),
        };
        let reaping = match self.reaping {
            Reaping::Works => None,
            Reaping::Failed(retry) => Some(retry),
        };
        let untidy = self.tidy != Some(state.user_bytes());
        // While there are reads it looks again.
        let surplus = self.deallocate_at().map(|at| at.min(now + READS_MS));
        let cold = self.cold_now(store, state, now);
        let cold = cold.and_then(|(recompression, now)| self.cold.next(&recompression, &now));
        let cold = cold.map(|at| at.max(self.idle_at()));
        let others = [reaping, surplus, untidy.then(|| self.idle_at()), cold];
        let others = others.into_iter().flatten().filter(|_| !quiet);
        let next = checkpoint.into_iter().chain(others).min();
        next.map_or(0, |time| time.saturating_sub(now).clamp(1, MOST_MS) as u32)
    }

    /// Takes the time into account, and what users have written.
    fn look<P: Platform>(&mut self, store: &Store<P>, now: Time, state: &LogState) {
        let reads = store.reads.at_rest();
        if reads.is_none() || reads != self.last_read.reads {
            let noticed = now;
            self.last_read = LastRead { reads, noticed };
        }
        self.surplus = match state.space.surplus(self.demand(state)) {
            Surplus::Nothing => None,
            surplus => Some((surplus, self.surplus.map_or(now, |(_, since)| since))),
        };
        let moment = state.user_bytes();
        if moment != self.last_write.moment {
            self.last_write = LastWrite {
                moment,
                noticed: now,
            };
        }
        if let Some((recompression, now)) = self.cold_now(store, state, now) {
            self.cold.look(&recompression, &now, requests(store, state));
        }
        if matches!(self.checkpoints, Checkpoints::Failed { retry, .. } if now >= retry) {
            self.checkpoints = Checkpoints::Work;
        }
        if matches!(self.reaping, Reaping::Failed(retry) if now >= retry) {
            self.reaping = Reaping::Works;
        }
    }

    /// Does a task.
    fn work<P: Platform>(
        &mut self,
        store: &Store<P>,
        maintenance: &mut Maintenance<P>,
        task: Task,
    ) {
        match task {
            Task::Stop => {}
            Task::MakeSpace => self.make_space(store, maintenance),
            Task::Checkpoint => self.checkpoint(store, maintenance),
            // Once there is nothing to gain, the next checkpoint looks again.
            Task::GainAhead => self.spent = maintenance.gain_ahead(store) != Ok(true),
            Task::Deallocate(demand) => {
                // Beside reads the next call waits for some time.
                let wait = (P::now_ms() + BESIDE_READS_MS).saturating_sub(SURPLUS_MS);
                if let Some((_, since)) = &mut self.surplus {
                    *since = wait.max(*since);
                }
                maintenance.deallocate(store, demand);
            }
            Task::Step => {
                let mut go_on = || !store.log.lock().stopping();
                let emptied = maintenance.empty_segments(store, Effort::Busy, STEP, &mut go_on);
                self.stepping = match emptied {
                    Ok(emptied) if emptied > 0 => Stepping::On,
                    _ => Stepping::Off,
                };
            }
            Task::Reap => match maintenance.reap(store) {
                Ok(Progress::More) => {}
                // The records below the subtrees are dead now, and their segments can be freed.
                Ok(Progress::Done) => (self.tidy, self.exhausted) = (None, None),
                Err(_) => self.reaping = Reaping::Failed(P::now_ms() + RETRY_MS),
            },
            Task::Tidy(moment) => {
                if moment >= self.retried + RETRY_STUCK {
                    self.retried = moment;
                    store.map.lock().retry_stuck();
                }
                // Failed work is not tried again before something has changed.
                if !tidy(store, maintenance, moment).unwrap_or(false) {
                    self.tidy = Some(moment);
                    maintenance.give_back_memory();
                }
            }
            Task::Recompress(cold_before) => self.recompress(store, maintenance, cold_before),
        }
    }

    /// Compresses some cold data again, until a request comes.
    // A stack frame of its own: the other work of this thread does not need the space.
    #[inline(never)]
    fn recompress<P: Platform>(
        &mut self,
        store: &Store<P>,
        maintenance: &mut Maintenance<P>,
        cold_before: u64,
    ) {
        let start = self.cold_now(store, &store.log.lock(), P::now_ms());
        let before = self.cold.requests();
        let mut undisturbed = || {
            let state = store.log.lock();
            !state.stopping()
                && !store.codecs.announcement_awaited()
                && !state.space.waits(u64::MAX)
                && !store.quiet()
                && requests(store, &state) == before
        };
        P::stand_back(true);
        let step = maintenance.recompress(store, cold_before, &mut undisturbed);
        P::stand_back(false);
        let Ok(step) = step else {
            return self.cold.put_off(P::now_ms());
        };
        if step.appended > 0 {
            // What it replaced is to be freed.
            self.tidy = None;
        } else if step.finished {
            maintenance.give_back_memory();
        }
        if let Some((recompression, start)) = start {
            let now = Now {
                time: P::now_ms(),
                ..start
            };
            let (content, finished) = (step.content, step.finished);
            self.cold
                .note(&recompression, &now, cold_before, content, finished);
        }
    }

    /// Tells the log of the system when reclaim begins to set segments aside, and when none is set aside any more. They are
    /// looked at again now and then, so only a device in order has none.
    fn tell_stuck<P: Platform>(&mut self, store: &Store<P>) {
        let stuck = store.total().stuck_segments;
        let changed = match self.told_stuck {
            false => stuck > 0,
            true => stuck == 0 && self.tidy.is_some(),
        };
        if changed {
            self.told_stuck = stuck > 0;
            P::segments_stuck(&store.file, stuck);
        }
    }

    /// Looks for space, and answers those who wait for it. Only those who waited when it began are refused, and only if
    /// it found nothing, also nothing that others took meanwhile.
    fn make_space<P: Platform>(&mut self, store: &Store<P>, maintenance: &mut Maintenance<P>) {
        let (asked, moment, again) = {
            let state = store.log.lock();
            let moment = state.user_bytes();
            // A search uses what is left to discards, and leaves it in the end. So they are worth another one.
            let again = self.exhausted != Some(moment) || state.space.discard_waits();
            (state.space.next_ticket(), moment, again)
        };
        let found = match again && !P::sabotaged(Sabotage::HastyVerdict) {
            true => maintenance.make_space(store),
            false => Ok(false),
        };
        self.exhausted = (found == Ok(false)).then_some(moment);
        let error = match found {
            Ok(true) => None,
            Ok(false) => Some(Error::NoSpace),
            Err(error) => Some(error),
        };
        let verdict = error.map(|error| Verdict { asked, error });
        store.log.answer(&store.file, verdict);
    }

    /// Writes a checkpoint, and looks how much garbage there is.
    fn checkpoint<P: Platform>(&mut self, store: &Store<P>, maintenance: &mut Maintenance<P>) {
        let written = maintenance.checkpoint(store, CheckpointKind::Running);
        let state = store.log.lock();
        self.checkpoints = match written {
            Ok(_) => Checkpoints::Work,
            Err(_) => Checkpoints::Failed {
                at: state.appended(),
                retry: P::now_ms() + RETRY_MS,
            },
        };
        let total = store.map.lock().total(state.held());
        self.stepping = match total.garbage > busy_garbage(&total) {
            true => Stepping::On,
            false => Stepping::Off,
        };
        drop(state);
        self.spent = false;
        store.watch_space();
    }
}

/// A step of the work for idle times: makes recovery short, frees dead segments, moves live records together. True when
/// there is more to do. `moment` is when the device was found idle.
fn tidy<P: Platform>(
    store: &Store<P>,
    maintenance: &mut Maintenance<P>,
    moment: Moment,
) -> Result<bool> {
    if store.log.lock().unsettled() || store.total().dead > 0 {
        maintenance.free_dead(store)?;
    }
    let left = store.total();
    if left.garbage <= idle_garbage(&left) {
        store.log.shrink_reserve();
        return Ok(false);
    }
    let mut still_idle = || {
        let state = store.log.lock();
        !state.stopping()
            && !store.codecs.announcement_awaited()
            && !state.space.waits(u64::MAX)
            && !store.quiet()
            && state.user_bytes() == moment
    };
    let emptied = maintenance.empty_segments(store, Effort::Idle, IDLE_BATCH, &mut still_idle)?;
    if store.total().dead > 0 {
        maintenance.free_dead(store)?;
    }
    if emptied == 0 {
        store.log.shrink_reserve();
    }
    Ok(emptied > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unneeded_space_waits_for_a_break_in_the_reads_but_not_for_ever() {
        let mut plan = Plan::new(0);
        assert_eq!(plan.deallocate_at(), None);
        plan.surplus = Some((Surplus::Unneeded, 100));
        // Something is being read.
        assert_eq!(plan.deallocate_at(), Some(100 + SURPLUS_MS));
        plan.last_read = LastRead {
            reads: Some(7),
            noticed: 1000,
        };
        assert_eq!(plan.deallocate_at(), Some(1000 + READS_MS));
        plan.surplus = Some((Surplus::Needed, 100));
        assert_eq!(plan.deallocate_at(), Some(100));
    }
}
