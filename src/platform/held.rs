// SPDX-License-Identifier: GPL-2.0 OR MIT
//! [`Hold`]: the lock order, checked at every lock that is taken, in the homes outside of the kernel.
//!
//! In the kernel lockdep does this. Here each thread has a set of the ranks it holds. A thread that takes a lock
//! panics unless the rank is higher than all of those, whether another thread happens to compete for the lock or not.

use super::Rank;
use std::cell::RefCell;
use std::vec::Vec;

/// A set of ranks, one bit for each.
#[derive(Clone, Copy, Default)]
struct Ranks(u8);

impl Ranks {
    const fn bit(rank: Rank) -> u8 {
        1 << rank as u8
    }

    fn highest(self) -> Option<Rank> {
        let held = |rank: &Rank| self.0 & Self::bit(*rank) != 0;
        Rank::ALL.into_iter().rev().find(held)
    }
}

std::thread_local! {
    /// The ranks that are held, by number of the coroutine; without coroutines everything is number 0.
    static HELD: RefCell<Vec<Ranks>> = const { RefCell::new(Vec::new()) };
}

/// A lock of some rank that is held, or about to be taken; it counts as held until this is dropped.
#[derive(Debug)]
pub(crate) struct Hold {
    coroutine: usize,
    rank: Rank,
}

impl Hold {
    /// Notes that `coroutine` of the calling thread takes a lock. Called before it waits for the lock, so that a
    /// wrong order is a panic and not a deadlock.
    ///
    /// # Panics
    ///
    /// When it holds a lock of the same rank or of a higher one.
    pub(crate) fn take(coroutine: usize, rank: Rank) -> Self {
        HELD.with_borrow_mut(|held| {
            if held.len() <= coroutine {
                held.resize(coroutine + 1, Ranks::default());
            }
            let ranks = &mut held[coroutine];
            if let Some(highest) = ranks.highest().filter(|&highest| highest >= rank) {
                panic!("lock order: {rank:?} is taken while {highest:?} is held");
            }
            ranks.0 |= Ranks::bit(rank);
        });
        Self { coroutine, rank }
    }

    /// Checks that the lock may be released and taken again while its holder sleeps.
    ///
    /// # Panics
    ///
    /// When a lock of a higher rank is held: the lock would then be taken after it.
    pub(crate) fn wait(&self) {
        let highest = HELD.with_borrow(|held| held[self.coroutine].highest());
        if let Some(highest) = highest.filter(|&highest| highest > self.rank) {
            panic!(
                "lock order: a wait takes {:?} again while {highest:?} is held",
                self.rank
            );
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        HELD.with_borrow_mut(|held| {
            if let Some(ranks) = held.get_mut(self.coroutine) {
                ranks.0 &= !Ranks::bit(self.rank);
            }
        });
    }
}

/// Forgets what the calling thread holds: a simulation that ended in a panic does not speak for the next one.
#[cfg(feature = "sim")]
pub(crate) fn forget() {
    HELD.with_borrow_mut(Vec::clear);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::fuzz::LoneMonitor;
    use crate::platform::sim::SimMonitor;
    use crate::platform::std::StdMonitor;
    use crate::platform::{Monitor, MonitorGuard};
    use std::format;
    use std::string::String;

    /// A lock of each rank.
    fn all<M: Monitor<()>>() -> [M; 5] {
        Rank::ALL.map(|rank| M::new((), rank).unwrap())
    }

    /// What is said against doing this; nothing when it is as it should be.
    fn objection(act: impl FnOnce()) -> String {
        match std::panic::catch_unwind(core::panic::AssertUnwindSafe(act)) {
            Ok(()) => String::new(),
            Err(panic) => panic.downcast_ref::<String>().cloned().unwrap_or_default(),
        }
    }

    /// Every order of two locks.
    fn try_orders<M: Monitor<()>>() {
        for first in Rank::ALL {
            for second in Rank::ALL {
                let locks = all::<M>();
                let said = objection(|| {
                    let _first = locks[first as usize].lock();
                    let _second = locks[second as usize].lock();
                });
                let wrong = format!("lock order: {second:?} is taken while {first:?} is held");
                assert_eq!(said, if first < second { "" } else { &wrong });
            }
        }
        let locks = all::<M>();
        // In any order they may be given back, and each is free again after that, as it is after a panic.
        let low = locks[Rank::Log as usize].lock();
        let high = locks[Rank::Map as usize].lock();
        drop(low);
        assert_ne!(objection(|| drop(locks[Rank::Log as usize].lock())), "");
        drop(high);
        assert_eq!(objection(|| drop(locks[Rank::Log as usize].lock())), "");
    }

    /// What is said against waiting with a lock of a higher rank in hand.
    fn wait_badly<M: Monitor<()>>() -> String {
        objection(|| {
            let locks = all::<M>();
            let mut low = locks[Rank::Log as usize].lock();
            let _high = locks[Rank::Map as usize].lock();
            low.wait_idle(1);
        })
    }

    const BAD_WAIT: &str = "lock order: a wait takes Log again while Map is held";

    #[test]
    fn std_checks_the_order() {
        try_orders::<StdMonitor<()>>();
        assert_eq!(wait_badly::<StdMonitor<()>>(), BAD_WAIT);
        let locks = all::<StdMonitor<()>>();
        let _low = locks[Rank::Checkpoint as usize].lock();
        // What a thread holds does not concern another one, and a lower rank may be held while it waits.
        std::thread::scope(|scope| {
            scope.spawn(|| drop(locks[Rank::Pool as usize].lock()));
        });
        assert!(locks[Rank::Log as usize].lock().wait_idle(1));
    }

    #[test]
    fn the_home_for_hostile_images_checks_the_order() {
        // It never waits.
        try_orders::<LoneMonitor<()>>();
    }

    #[test]
    fn the_simulation_checks_the_order() {
        shuttle::check_random(
            || {
                forget();
                let locks = all::<SimMonitor<()>>();
                let thread = shuttle::thread::spawn(|| {
                    let locks = all::<SimMonitor<()>>();
                    let _high = locks[Rank::Pool as usize].lock();
                    shuttle::thread::yield_now();
                });
                let mut low = locks[Rank::Checkpoint as usize].lock();
                low.wait_idle(1);
                drop(locks[Rank::Log as usize].lock());
                drop(low);
                thread.join().unwrap();
                assert_eq!(wait_badly::<SimMonitor<()>>(), BAD_WAIT);
            },
            20,
        );
        let wrong = || {
            shuttle::check_random(
                || {
                    let locks = all::<SimMonitor<()>>();
                    let _high = locks[Rank::Map as usize].lock();
                    let _low = locks[Rank::Log as usize].lock();
                },
                1,
            );
        };
        let said = objection(wrong);
        assert!(said.contains("Log is taken while Map is held"), "{said}");
    }
}
