// SPDX-License-Identifier: GPL-2.0
//! Background work of an open volume: one thread writes what is full and reserves segments ahead, another
//! writes checkpoints and reclaims space.

use crate::engine::checkpoint::{due, CheckpointKind};
use crate::engine::map::reaper::Progress;
use crate::engine::reclaim::{busy_garbage, idle_garbage, Effort, Maintenance, SharedMaintenance};
use crate::engine::space::SpaceClass;
use crate::engine::store::Store;
use crate::engine::{Error, Result};
use crate::platform::{Monitor, MonitorGuard, Platform};

/// Time without a write after which the device counts as idle, in milliseconds.
const IDLE_MS: u32 = 5000;
/// Time after which what failed is tried again, in milliseconds.
const RETRY_MS: u32 = 1000;
/// Segments emptied before users' writes are looked at again.
const STEP: usize = 1;
/// Segments emptied between two checkpoints while nobody writes.
const IDLE_BATCH: usize = 8;

/// Writes full chunks and reserves segments ahead, so that writers and flushes find less to do.
pub(crate) fn write_behind<P: Platform>(store: &Store<P>) {
    // After a failed reservation: wait until something has changed. Writers try for themselves.
    let mut refused = None;
    loop {
        let state = {
            let mut tail = store.log.lock();
            loop {
                if tail.stopping() {
                    return;
                }
                let state = (tail.space.free(), tail.user_bytes());
                let wanted = store.log.wants_segment(&tail) && refused != Some(state);
                if tail.wants_writing() || wanted {
                    break state;
                }
                tail.wait_idle(0);
            }
        };
        store.log.write_one(&store.file);
        if refused != Some(state) {
            refused = store
                .log
                .reserve_if_wanted(&store.file)
                .err()
                .map(|_| state);
        }
    }
}

enum Task {
    Stop,
    Checkpoint,
    /// Somebody waits for space.
    Space,
    /// Some garbage is to go beside users' writes.
    Step,
    /// Discards have detached subtrees.
    Reap,
    /// Nobody writes: put everything in order.
    Tidy,
}

/// What the maintenance thread remembers. Moments are counted in bytes appended by users.
struct Plan {
    /// End of the log when a checkpoint failed.
    failed: Option<u64>,
    /// There is so much garbage that users' writes are accompanied by reclaim.
    busy: bool,
    /// Moment of the last step beside users' writes.
    stepped: u64,
    /// Moment at which the device was found idle.
    quiet: Option<u64>,
    /// Moment since which everything is in order.
    tidied: Option<u64>,
    /// Detached subtrees could not be read: not now.
    later: bool,
}

/// Reserves again what the opening has used of the reserve, lest there is none left for the next one. Reclaim
/// finds the space if need be.
fn refill<P: Platform>(store: &Store<P>, maintenance: &SharedMaintenance<P>) {
    loop {
        let mut tail = store.log.lock();
        while tail.space.file_end_held() {
            tail.wait();
        }
        if tail.stopping() || !store.log.wants_segment(&tail) {
            return;
        }
        drop(tail);
        match store.log.reserve_ahead(&store.file, SpaceClass::User) {
            Ok(()) => {}
            Err(Error::NoSpace) if maintenance.lock().make_space(store) == Ok(true) => {}
            Err(_) => return,
        }
    }
}

/// Writes a checkpoint whenever the log has grown enough, and reclaims space.
pub(crate) fn maintain<P: Platform>(store: &Store<P>, maintenance: &SharedMaintenance<P>) {
    refill(store, maintenance);
    let mut plan = Plan {
        failed: None,
        busy: false,
        stepped: 0,
        quiet: None,
        tidied: None,
        later: false,
    };
    loop {
        let task = plan.next(store);
        let mut state = match task {
            Task::Stop => return,
            _ => maintenance.lock(),
        };
        match task {
            Task::Stop => return,
            Task::Checkpoint => {
                let failed = state.checkpoint(store, CheckpointKind::Running).is_err();
                let tail = store.log.lock();
                plan.failed = failed.then(|| tail.appended());
                let total = store.map.lock().total(tail.held());
                plan.busy = total.garbage > busy_garbage(&total);
            }
            Task::Space => {
                let gained = state.make_space(store).unwrap_or(false);
                let mut tail = store.log.lock();
                tail.space.answer_requests(gained);
                tail.notify_all();
            }
            Task::Step => {
                let mut going = || !store.log.lock().stopping();
                let emptied = state.empty_segments(store, Effort::Busy, STEP, &mut going);
                // Until the next checkpoint looks again.
                plan.busy = matches!(emptied, Ok(1..));
            }
            Task::Reap => match state.reap(store) {
                Ok(Progress::More) => {}
                // What they referred to can be freed.
                Ok(Progress::Done) => plan.tidied = None,
                Err(_) => plan.later = true,
            },
            Task::Tidy => {
                let moment = plan.quiet.unwrap_or(0);
                // What cannot be done now is not tried again before something has changed.
                if !tidy(store, &mut state, moment).unwrap_or(false) {
                    plan.tidied = plan.quiet;
                }
            }
        }
    }
}

impl Plan {
    /// Waits for something to do.
    fn next<P: Platform>(&mut self, store: &Store<P>) -> Task {
        let segment = u64::from(store.layout.segment_size);
        let mut tail = store.log.lock();
        loop {
            if tail.stopping() {
                return Task::Stop;
            }
            let works = tail.error().is_none();
            if works && tail.space.reclaim_wanted() {
                return Task::Space;
            }
            self.failed = self.failed.filter(|at| tail.appended() < at + segment);
            if works && self.failed.is_none() && due(store, &tail) {
                return Task::Checkpoint;
            }
            let moment = tail.user_bytes();
            if works && self.busy && moment - self.stepped >= segment {
                self.stepped = moment;
                return Task::Step;
            }
            if works && !self.later && store.map.may_have_detached() {
                return Task::Reap;
            }
            let untidy = works && self.tidied != Some(moment);
            if untidy && self.quiet == Some(moment) {
                return Task::Tidy;
            }
            let timeout = match self.failed {
                Some(_) => RETRY_MS,
                None if self.later => RETRY_MS,
                None if untidy => IDLE_MS,
                None => 0,
            };
            let passed = tail.wait_idle(timeout);
            if passed && core::mem::take(&mut self.later) {
                continue;
            }
            if passed && self.failed.take().is_none() && tail.user_bytes() == moment {
                self.quiet = Some(moment);
            }
        }
    }
}

/// A step of what is done while nobody writes: makes recovery short, frees what is dead, moves what
/// lies scattered. True when there is more to do. `moment` is when the device was found idle.
fn tidy<P: Platform>(
    store: &Store<P>,
    maintenance: &mut Maintenance<P>,
    moment: u64,
) -> Result<bool> {
    let look = || {
        let tail = store.log.lock();
        let total = store.map.lock().total(tail.held());
        (tail.unsettled(), total)
    };
    let (unsettled, mut total) = look();
    if unsettled || total.dead > 0 {
        maintenance.free_dead(store)?;
        total = look().1;
    }
    if total.garbage <= idle_garbage(&total) {
        store.log.shrink_reserve(&store.file)?;
        return Ok(false);
    }
    let mut idle = || {
        let tail = store.log.lock();
        !tail.stopping() && !tail.space.reclaim_wanted() && tail.user_bytes() == moment
    };
    let emptied = maintenance.empty_segments(store, Effort::Idle, IDLE_BATCH, &mut idle)?;
    if look().1.dead > 0 {
        maintenance.free_dead(store)?;
    }
    Ok(emptied > 0)
}
