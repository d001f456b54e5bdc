// SPDX-License-Identifier: GPL-2.0
//! [`Spares`]: large objects that are made when they are needed, kept for the next user, and given up when they
//! were not needed for a while.

use crate::engine::Result;
use crate::platform::mem::Vec;

/// Calls `give_back` until it has given back `bytes` bytes, or has nothing more to give back. Each call returns how many
/// bytes it gave back. Returns the sum.
pub(crate) fn give_back_until(bytes: u64, mut give_back: impl FnMut() -> u64) -> u64 {
    let mut given = 0;
    while given < bytes {
        match give_back() {
            0 => break,
            more => given += more,
        }
    }
    given
}

/// Objects that exist, of which some are in use, and some wait to be used: the spares.
///
/// The one that was used last is used next, so those at the other end are the ones that are not needed.
pub(crate) struct Spares<T> {
    idle: Vec<T>,
    /// Objects that exist: those that wait, and those in use.
    made: usize,
    /// Objects that are being made.
    growing: usize,
    /// The fewest that waited at any moment since the last [`trim`](Self::trim): so many were not needed.
    unused: usize,
    /// Objects that exist at most.
    most: usize,
    /// Objects that are never given up: with them, work goes on when there is no memory for more.
    reserve: usize,
}

impl<T> Spares<T> {
    /// No objects, and room for `most`. The first `reserve` that are made are never given up.
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`](crate::engine::Error::NoMemory).
    pub(crate) fn new(most: usize, reserve: usize) -> Result<Self> {
        Ok(Self {
            idle: Vec::with_capacity(most)?,
            made: 0,
            growing: 0,
            unused: 0,
            most,
            reserve,
        })
    }

    /// Takes an object to use it.
    pub(crate) fn take(&mut self) -> Option<T> {
        let taken = self.idle.pop();
        self.unused = self.unused.min(self.idle.len());
        taken
    }

    /// Puts an object back that was taken.
    pub(crate) fn put(&mut self, object: T) {
        // Within the capacity.
        let _ = self.idle.push(object);
    }

    /// Allows one more object to be made, without a lock. [`grown`](Self::grown) must follow. False if there are as many
    /// as there may be.
    pub(crate) fn may_grow(&mut self) -> bool {
        let may = self.made + self.growing < self.most;
        self.growing += usize::from(may);
        may
    }

    /// An object was made, which is in use, or could not be made.
    pub(crate) fn grown(&mut self, made: bool) {
        self.growing -= 1;
        self.made += usize::from(made);
    }

    /// Adds an object that was made beforehand.
    pub(crate) fn add(&mut self, object: T) {
        self.made += 1;
        self.put(object);
    }

    /// Adds an object that was made beforehand, and is never given up.
    pub(crate) fn add_reserve(&mut self, object: T) {
        self.reserve += 1;
        self.add(object);
    }

    /// Gives up an object that was taken.
    pub(crate) fn give_up(&mut self) {
        self.made -= 1;
    }

    /// Whether no object waits to be used.
    pub(crate) fn is_empty(&self) -> bool {
        self.idle.is_empty()
    }

    /// Objects that exist.
    pub(crate) fn made(&self) -> usize {
        self.made
    }

    /// Gives up an object that was not needed since the last call that returned none. Called until it returns none, again
    /// and again after some time, it leaves as many as are used at the same time.
    pub(crate) fn trim(&mut self) -> Option<T> {
        let unused = self.unused.checked_sub(1);
        let object = unused.and_then(|_| self.shed());
        self.unused = match (&object, unused) {
            (Some(_), Some(unused)) => unused,
            _ => self.idle.len(),
        };
        object
    }

    /// Gives up an object that waits, if it does not belong to the reserve.
    pub(crate) fn shed(&mut self) -> Option<T> {
        if self.made <= self.reserve {
            return None;
        }
        let object = self.idle.remove(0)?;
        self.unused = self.unused.min(self.idle.len());
        self.made -= 1;
        Some(object)
    }
}
