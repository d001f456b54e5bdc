// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The order in which the engine's log took the changes, with their contents.
//!
//! Each thread says what it is [`working_on`]; the engine says, under the log's lock, which blocks have
//! just taken their place.

use core::cell::RefCell;
use shuttle::thread::ThreadId;
use std::collections::HashMap;
use std::vec::Vec;

/// One change of the device: neighbouring blocks and the tags of their new contents (0: zeros).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// First block.
    pub block: u64,
    /// One tag for each block.
    pub tags: Vec<u32>,
}

#[derive(Default)]
struct History {
    working: HashMap<ThreadId, Placed>,
    /// Index behind the last change of each thread's present operation.
    order: Vec<Placed>,
    last: HashMap<ThreadId, usize>,
}

std::thread_local! {
    static HISTORY: RefCell<History> = RefCell::default();
}

/// The calling thread begins to write these tags from `block` on. Returns a function for the end of the
/// operation: how long the order was just behind its last change, 0 if it made none.
pub fn working_on(block: u64, tags: Vec<u32>) -> impl FnOnce() -> usize {
    let id = shuttle::thread::current().id();
    HISTORY.with_borrow_mut(|h| {
        h.last.insert(id, 0);
        h.working.insert(id, Placed { block, tags });
    });
    move || {
        HISTORY.with_borrow_mut(|h| {
            h.working.remove(&id);
            h.last.remove(&id).unwrap_or(0)
        })
    }
}

pub(super) fn placed(block: u64, count: u64) {
    HISTORY.with_borrow_mut(|h| {
        let id = shuttle::thread::current().id();
        if let Some(work) = h.working.get(&id) {
            let from = (block - work.block) as usize;
            let tags = work.tags[from..from + count as usize].to_vec();
            h.order.push(Placed { block, tags });
            h.last.insert(id, h.order.len());
        }
    });
}

/// The changes so far, from the last call on. Forgets them.
pub fn take_history() -> Vec<Placed> {
    HISTORY.with_borrow_mut(|h| core::mem::take(&mut h.order))
}

/// Looks at the changes since `from`.
pub(crate) fn since<R>(from: usize, look: impl FnOnce(&[Placed]) -> R) -> R {
    HISTORY.with_borrow(|h| look(&h.order[from.min(h.order.len())..]))
}
