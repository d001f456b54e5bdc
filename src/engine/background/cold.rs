// SPDX-License-Identifier: GPL-2.0
//! When data is cold, and when it is compressed again.

use super::{Moment, Time};
use crate::engine::codec::Recompression;

/// Samples in the time after which data is cold.
const SAMPLES: u64 = 8;
/// Milliseconds without any request after which recompression may go on.
const PAUSE_MS: u64 = 1000;
/// Milliseconds after which a step that has failed is tried again.
const RETRY_MS: u64 = 60_000;
/// Milliseconds between two samples at least.
const LEAST_MS: u64 = 1000;

/// What there is to know about the device when recompression is planned.
#[derive(Clone, Copy)]
pub(super) struct Now {
    pub(super) time: Time,
    /// Users or reclaim have written nothing between two equal ones.
    pub(super) moment: Moment,
    /// When the last write of users was noticed.
    pub(super) last_write: Time,
    /// The highest sequence number of a segment.
    pub(super) newest: u64,
    /// How often the recompression of the image was chosen.
    pub(super) choices: u64,
}

/// The sequence number that the log had reached at some time.
#[derive(Clone, Copy, Default)]
struct Sample {
    time: Time,
    seq: u64,
}

/// A pass over all that was cold.
#[derive(Clone, Copy)]
struct Pass {
    /// Everything in segments below this sequence number was looked at.
    before: u64,
    /// All was cold, at this moment.
    all_at: Option<Moment>,
    choices: u64,
}

/// The plan of recompression.
#[derive(Default)]
pub(super) struct ColdPlan {
    /// The oldest first.
    samples: [Sample; SAMPLES as usize + 2],
    count: usize,
    /// The last pass that has ended.
    last: Option<Pass>,
    /// What the pass under way can say of itself at most.
    under_way: Option<Pass>,
    /// Requests of users so far, in whatever unit, and when they changed last.
    requests: u64,
    last_request: Time,
    /// The next step must not begin before: that bounds the rate.
    not_before: Time,
}

impl ColdPlan {
    fn after(recompression: &Recompression) -> u64 {
        u64::from(recompression.after) * 1000
    }

    /// Takes note of the time, and of the requests so far.
    pub(super) fn look(&mut self, recompression: &Recompression, now: &Now, requests: u64) {
        if requests != self.requests {
            (self.requests, self.last_request) = (requests, now.time);
        }
        let interval = (Self::after(recompression) / SAMPLES).max(LEAST_MS);
        let sample = Sample {
            time: now.time,
            seq: now.newest,
        };
        match self.samples[..self.count].last() {
            Some(last) if last.seq == sample.seq || now.time < last.time + interval => return,
            _ => {}
        }
        if self.count == self.samples.len() {
            // The oldest one, which is older than need be.
            self.samples.copy_within(1.., 0);
            self.count -= 1;
        }
        self.samples[self.count] = sample;
        self.count += 1;
    }

    /// The requests when it looked last.
    pub(super) fn requests(&self) -> u64 {
        self.requests
    }

    /// Segments with lower sequence numbers are cold; `u64::MAX` if all is.
    fn cold_before(&self, recompression: &Recompression, now: &Now) -> u64 {
        let after = Self::after(recompression);
        if now.last_write + after <= now.time {
            return u64::MAX;
        }
        let samples = self.samples[..self.count].iter().rev();
        let mut old = samples.filter(|sample| sample.time + after <= now.time);
        old.next().map_or(0, |sample| sample.seq)
    }

    /// Whether a pass over what is cold now would find more than the last one.
    fn wants(&self, before: u64, now: &Now) -> bool {
        let Some(last) = self.last.filter(|last| last.choices == now.choices) else {
            return before > 0;
        };
        match before {
            u64::MAX => last.all_at != Some(now.moment),
            before => before > last.before,
        }
    }

    /// What is cold, if it is to be compressed again now.
    pub(super) fn due(&self, recompression: &Recompression, now: &Now) -> Option<u64> {
        let before = self.cold_before(recompression, now);
        let due = self.wants(before, now) && now.time >= self.pause_until();
        due.then_some(before)
    }

    fn pause_until(&self) -> Time {
        self.not_before.max(self.last_request + PAUSE_MS)
    }

    /// When something is due next, if nothing happens before: soon, if something is due.
    pub(super) fn next(&self, recompression: &Recompression, now: &Now) -> Option<Time> {
        let after = Self::after(recompression);
        let all = self.wants(u64::MAX, now).then_some(now.last_write + after);
        let samples = self.samples[..self.count].iter();
        let mut more = samples.filter(|sample| self.wants(sample.seq, now));
        let part = more.next().map(|sample| sample.time + after);
        let next = all.into_iter().chain(part).min()?;
        Some(next.max(self.pause_until()))
    }

    /// A step has failed at this time: there may be space or memory later.
    pub(super) fn put_off(&mut self, now: Time) {
        self.not_before = now + RETRY_MS;
    }

    /// A step over what is cold `before` has compressed `content` bytes again, and has `finished` the pass or not.
    pub(super) fn note(
        &mut self,
        recompression: &Recompression,
        now: &Now,
        before: u64,
        content: u64,
        finished: bool,
    ) {
        let step = Pass {
            before: before.min(now.newest),
            all_at: (before == u64::MAX).then_some(now.moment),
            choices: now.choices,
        };
        // What was written since it began may lie where it has been already.
        let pass = match self.under_way {
            Some(first) if first.choices == step.choices => Pass {
                before: first.before.min(step.before),
                all_at: first.all_at.filter(|_| first.all_at == step.all_at),
                choices: step.choices,
            },
            _ => step,
        };
        match finished {
            true => (self.last, self.under_way) = (Some(pass), None),
            false => self.under_way = Some(pass),
        }
        let rate = u64::from(recompression.rate) << 10;
        // The product does not overflow: a step is a few hundred segments at most.
        let wait = (content * 1000).checked_div(rate).unwrap_or(0);
        // One that was disturbed before it did anything waits for its turn.
        let disturbed = !finished && content == 0;
        self.not_before = now.time + wait.max(if disturbed { PAUSE_MS } else { 0 });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::codec::Compression;

    fn recompression() -> Recompression {
        Recompression {
            after: 80,
            rate: 1024,
            ..Recompression::with(Compression::parse("zstd:9").unwrap())
        }
    }

    fn now(time: Time, moment: Moment, last_write: Time, newest: u64) -> Now {
        Now {
            time,
            moment,
            last_write,
            newest,
            choices: 1,
        }
    }

    /// While users write now and then, what they wrote long ago is cold.
    #[test]
    fn what_was_written_long_ago_is_cold_beside_writes() {
        let (mut plan, what) = (ColdPlan::default(), recompression());
        for second in 0..200 {
            let now = now(second * 1000, second, second * 1000, 100 + second);
            plan.look(&what, &now, 7);
            let due = plan.due(&what, &now);
            match second {
                0..80 => assert_eq!(due, None, "{second}"),
                // Samples are 10 seconds apart.
                _ => assert_eq!(due, Some(100 + (second - 80) / 10 * 10), "{second}"),
            }
        }
        let end = now(200_000, 200, 200_000, 300);
        assert_eq!(plan.due(&what, &end), Some(220));
        plan.note(&what, &end, 220, 0, true);
        assert_eq!(plan.due(&what, &end), None);
        // The sample of second 130.
        assert_eq!(plan.next(&what, &end), Some(210_000));
    }

    #[test]
    fn a_device_at_rest_is_looked_at_once() {
        let (mut plan, what) = (ColdPlan::default(), recompression());
        let at = |time| now(time, 5, 1000, 9);
        plan.look(&what, &at(1000), 1);
        assert_eq!(plan.due(&what, &at(80_999)), None);
        assert_eq!(plan.next(&what, &at(1000)), Some(81_000));
        assert_eq!(plan.due(&what, &at(81_000)), Some(u64::MAX));
        // A request comes between.
        plan.look(&what, &at(90_000), 2);
        assert_eq!(plan.due(&what, &at(90_999)), None);
        assert_eq!(plan.due(&what, &at(91_000)), Some(u64::MAX));
        // At most a MiB of content a second.
        plan.note(&what, &at(91_000), u64::MAX, 3 << 20, false);
        assert_eq!(plan.due(&what, &at(93_999)), None);
        assert_eq!(plan.due(&what, &at(94_000)), Some(u64::MAX));
        plan.note(&what, &at(94_000), u64::MAX, 0, true);
        assert_eq!(plan.due(&what, &at(1 << 40)), None);
        assert_eq!(plan.next(&what, &at(1 << 40)), None);
        // Another choice begins anew, and so does a write, after its time.
        let chosen = Now {
            choices: 2,
            ..at(200_000)
        };
        assert_eq!(plan.due(&what, &chosen), Some(u64::MAX));
        let written = now(200_000, 6, 199_000, 10);
        assert_eq!(plan.due(&what, &written), None);
        assert_eq!(plan.next(&what, &written), Some(279_000));
    }
}
