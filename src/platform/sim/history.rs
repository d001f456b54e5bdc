// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The order in which the engine's log took the changes, with their contents, and the part of it that was
//! promised.
//! Each thread declares what it is [`working_on`]. The engine reports, under the log's lock, which blocks
//! have just got their place.

use crate::platform::WaitEvent;
use core::cell::RefCell;
use shuttle::thread::ThreadId;
use std::collections::{BTreeMap, HashMap};
use std::format;
use std::string::String;
use std::vec::Vec;

/// One change of the device: neighbouring blocks and the tags of their new contents (0: zeros).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// First block.
    pub block: u64,
    /// Number of blocks.
    pub count: u64,
    /// One tag for each block; none if all of them become zeros.
    pub tags: Vec<u32>,
    /// Directly behind this change, some but not all changes of an atomic write have their place: a crash must not
    /// leave this state.
    pub tears: bool,
}

impl Placed {
    /// Blocks with these tags.
    pub fn write(block: u64, tags: Vec<u32>) -> Self {
        Self {
            block,
            count: tags.len() as u64,
            tags,
            tears: false,
        }
    }

    /// Blocks of zeros.
    pub fn zeros(block: u64, count: u64) -> Self {
        Self {
            block,
            count,
            tags: Vec::new(),
            tears: false,
        }
    }

    /// The new tag of a block, if this change covers it.
    pub fn tag(&self, block: u64) -> Option<u32> {
        let at = block
            .checked_sub(self.block)
            .filter(|&at| at < self.count)?;
        Some(self.tags.get(at as usize).copied().unwrap_or(0))
    }
}

/// How far a history has come. Lengths of the order, except for the last three fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// Changes that got their place.
    pub placed: usize,
    /// Changes of completed operations.
    pub completed: usize,
    /// Changes that must survive a crash.
    pub promised: usize,
    /// Changes that the last completed checkpoint holds, and the one before it.
    pub checkpoints: [usize; 2],
    /// The opening has completed: both superblocks lead to the state in which the history began.
    pub opened: bool,
    /// Sizes that the device may have after a crash, in blocks: before a change of the size, and after it.
    pub sizes: [u64; 2],
    /// The image was opened on so full a disk that segments which only the older superblock needs may have
    /// been used again.
    pub may_lose_older_superblock: bool,
}

/// The change that an operation makes.
struct Work {
    change: Placed,
    /// Number of blocks of an atomic write that have no place yet; `None` for other operations.
    missing: Option<u64>,
}

impl Work {
    /// True if some but not all blocks of an atomic write have their place.
    fn is_torn(&self) -> bool {
        self.missing
            .is_some_and(|missing| (1..self.change.count).contains(&missing))
    }
}

#[derive(Default)]
struct History {
    working: HashMap<ThreadId, Work>,
    /// An atomic write ended with an error after some of its blocks had their place.
    torn: bool,
    /// Index behind the last change of each thread's present operation.
    order: Vec<Placed>,
    last: HashMap<ThreadId, usize>,
    mark: Mark,
    /// Tickets that wait for space, and their classes.
    waiting: BTreeMap<u64, u8>,
    /// The first record that took space before an older one of its class that waited for it.
    overtaking: Option<String>,
}

std::thread_local! {
    static HISTORY: RefCell<History> = RefCell::default();
}

/// Declares that the calling thread begins to make this change. Returns a function to call at the end of
/// the operation, which returns the length of the order just behind its last change, 0 if it made none.
pub fn working_on(change: Placed) -> impl FnOnce() -> usize {
    begin_work(Work {
        change,
        missing: None,
    })
}

/// As [`working_on`], for an atomic write.
pub fn working_atomically_on(change: Placed) -> impl FnOnce() -> usize {
    begin_work(Work {
        missing: Some(change.count),
        change,
    })
}

fn begin_work(work: Work) -> impl FnOnce() -> usize {
    let id = shuttle::thread::current().id();
    HISTORY.with_borrow_mut(|h| {
        h.last.insert(id, 0);
        h.working.insert(id, work);
    });
    move || {
        HISTORY.with_borrow_mut(|h| {
            let work = h.working.remove(&id);
            h.torn |= work.is_some_and(|work| work.is_torn());
            h.last.remove(&id).unwrap_or(0)
        })
    }
}

pub(super) fn placed(block: u64, count: u64) {
    HISTORY.with_borrow_mut(|h| {
        let id = shuttle::thread::current().id();
        let Some(work) = h.working.get_mut(&id) else {
            return;
        };
        let change = &work.change;
        let from = (block - change.block) as usize;
        let tags = match change.tags.is_empty() {
            true => Vec::new(),
            false => change.tags[from..from + count as usize].to_vec(),
        };
        if let Some(missing) = &mut work.missing {
            *missing = missing.saturating_sub(count);
        }
        let tears = h.torn || h.working.values().any(Work::is_torn);
        h.order.push(Placed {
            block,
            count,
            tags,
            tears,
        });
        h.last.insert(id, h.order.len());
    });
}

/// Judges the order in which space is given to those who wait for it: a record must not overtake one of the same class.
pub(super) fn waited(event: WaitEvent) {
    HISTORY.with_borrow_mut(|h| match event {
        WaitEvent::Queued(class, ticket) => {
            h.waiting.insert(ticket, class);
        }
        WaitEvent::Answered(ticket) | WaitEvent::Left(ticket) => {
            h.waiting.remove(&ticket);
        }
        WaitEvent::Admitted(class, ticket) => {
            let older = ..ticket.unwrap_or(u64::MAX);
            let mut older = h.waiting.range(older).filter(|other| *other.1 == class);
            if let Some((other, _)) = older.next() {
                let text = format!("class {class}: ticket {ticket:?} is served before {other}");
                h.overtaking.get_or_insert(text);
            }
        }
    });
}

/// What [`waited`] found wrong since the last call.
pub(crate) fn overtaking() -> Option<String> {
    HISTORY.with_borrow_mut(|h| h.overtaking.take())
}

/// How far the history has come.
pub fn mark() -> Mark {
    HISTORY.with_borrow(|h| Mark {
        placed: h.order.len(),
        ..h.mark
    })
}

/// An operation whose last change is the `reached`th has completed.
pub fn completed(reached: usize) {
    HISTORY.with_borrow_mut(|h| h.mark.completed = h.mark.completed.max(reached));
}

/// The first `reached` changes must survive a crash from now on.
pub fn promised(reached: usize) {
    HISTORY.with_borrow_mut(|h| h.mark.promised = h.mark.promised.max(reached));
}

/// A checkpoint that holds the first `reached` changes has completed.
pub fn checkpointed(reached: usize) {
    HISTORY.with_borrow_mut(|h| {
        let [last, _] = h.mark.checkpoints;
        h.mark.checkpoints = [last.max(reached), last.min(reached)];
    });
}

/// The opening has completed.
pub fn opened() {
    HISTORY.with_borrow_mut(|h| h.mark.opened = true);
}

/// After a crash the device may have `before` or `after` blocks.
pub fn sized(before: u64, after: u64) {
    HISTORY.with_borrow_mut(|h| h.mark.sizes = [before, after]);
}

/// Sets whether segments that only the older superblock needs may have been used again.
pub fn may_lose_older_superblock(may_lose_older_superblock: bool) {
    HISTORY.with_borrow_mut(|h| h.mark.may_lose_older_superblock = may_lose_older_superblock);
}

/// Takes the changes since the last call, and how far they have come.
pub fn take_history() -> (Vec<Placed>, Mark) {
    let mark = mark();
    let history = HISTORY.take();
    (history.order, mark)
}

/// Calls `look` with the changes since `from`.
pub(crate) fn since<R>(from: usize, look: impl FnOnce(&[Placed]) -> R) -> R {
    HISTORY.with_borrow(|h| look(&h.order[from.min(h.order.len())..]))
}
