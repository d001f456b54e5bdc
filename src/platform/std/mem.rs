// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Fallible memory for the user-space home. Same names and signatures as the kernel's `mem`.

use crate::engine::Error;
use std::ops::{Deref, DerefMut};

pub use std::sync::Arc;

#[cfg(feature = "sim")]
std::thread_local! {
    static FAILING: core::cell::Cell<Option<u64>> = const { core::cell::Cell::new(None) };
}

/// Lets the `n`th allocation of this thread from now on fail, or none.
#[cfg(feature = "sim")]
pub(crate) fn set_failing_allocation(n: Option<u64>) {
    FAILING.set(n);
}

/// How much depends on an allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// The caller cannot go on without the memory.
    Required,
    /// The caller goes on without the memory.
    Optional,
}

#[cfg(feature = "sim")]
std::thread_local! {
    static SCARCITY: core::cell::Cell<u64> = const { core::cell::Cell::new(1) };
    static OPTIONAL: core::cell::Cell<u64> = const { core::cell::Cell::new(0) };
}

/// Of the optional allocations of this thread from now on, only each `n`th succeeds; with 0 none does.
#[cfg(feature = "sim")]
pub(crate) fn set_scarcity(n: u64) {
    SCARCITY.set(n);
    OPTIONAL.set(0);
}

/// Every allocation that is needed this much asks here first.
pub(super) fn allocate_if(need: Need) -> Result<(), Error> {
    #[cfg(feature = "sim")]
    if need == Need::Optional {
        OPTIONAL.set(OPTIONAL.get() + 1);
        if OPTIONAL.get().checked_rem(SCARCITY.get()) != Some(0) {
            return Err(Error::NoMemory);
        }
    }
    #[cfg(not(feature = "sim"))]
    let _ = need;
    allocate()
}

/// Every allocation asks here first.
fn allocate() -> Result<(), Error> {
    #[cfg(feature = "sim")]
    if let Some(n) = FAILING.get() {
        FAILING.set(n.checked_sub(1));
        if n == 0 {
            return Err(Error::NoMemory);
        }
    }
    Ok(())
}

/// Puts `value` behind a shared pointer.
pub fn arc<T>(value: T) -> Result<Arc<T>, Error> {
    allocate()?;
    Ok(Arc::new(value))
}

/// An owned heap value.
pub type Box<T> = std::boxed::Box<T>;

/// Moves `value` to the heap.
pub fn boxed<T>(value: T) -> Result<Box<T>, Error> {
    allocate()?;
    Ok(Box::new(value))
}

/// A growable array whose growth can fail.
#[derive(Debug)]
pub struct Vec<T>(std::vec::Vec<T>);

impl<T> Vec<T> {
    /// An empty array; does not allocate.
    pub const fn new() -> Self {
        Self(std::vec::Vec::new())
    }

    /// An empty array with room for `n` items.
    pub fn with_capacity(n: usize) -> Result<Self, Error> {
        Self::with_capacity_if(Need::Required, n)
    }

    /// As [`with_capacity`](Self::with_capacity), for memory that is needed this much.
    pub fn with_capacity_if(need: Need, n: usize) -> Result<Self, Error> {
        allocate_if(need)?;
        let mut v = std::vec::Vec::new();
        v.try_reserve_exact(n).map_err(|_| Error::NoMemory)?;
        Ok(Self(v))
    }

    /// `n` copies of `value`.
    pub fn filled(value: T, n: usize) -> Result<Self, Error>
    where
        T: Clone,
    {
        Self::filled_if(Need::Required, value, n)
    }

    /// As [`filled`](Self::filled), for memory that is needed this much.
    pub fn filled_if(need: Need, value: T, n: usize) -> Result<Self, Error>
    where
        T: Clone,
    {
        let mut v = Self::with_capacity_if(need, n)?;
        v.0.resize(n, value);
        Ok(v)
    }

    /// Makes room for one more item.
    fn grow(&mut self) -> Result<(), Error> {
        if self.0.len() == self.0.capacity() {
            allocate()?;
        }
        self.0.try_reserve(1).map_err(|_| Error::NoMemory)
    }

    /// Appends one item.
    pub fn push(&mut self, value: T) -> Result<(), Error> {
        self.grow()?;
        self.0.push(value);
        Ok(())
    }

    /// Takes the last item.
    pub fn pop(&mut self) -> Option<T> {
        self.0.pop()
    }

    /// Puts an item at `index` (at most the length), moving the later ones up.
    pub fn insert(&mut self, index: usize, value: T) -> Result<(), Error> {
        self.grow()?;
        self.0.insert(index, value);
        Ok(())
    }

    /// Takes the item at `index`, moving the later ones down; `None` when there is none.
    pub fn remove(&mut self, index: usize) -> Option<T> {
        (index < self.0.len()).then(|| self.0.remove(index))
    }

    /// Drops all items, keeping the memory.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

impl<T> Deref for Vec<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T> DerefMut for Vec<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.0
    }
}

impl<T> Default for Vec<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// Bytes for I/O: the length is a multiple of 4096 and the start lies on a page boundary.
#[derive(Debug)]
pub struct Buf {
    bytes: std::vec::Vec<u8>,
    start: usize,
    len: usize,
}

const PAGE: usize = 4096;

impl Buf {
    /// A zeroed buffer of `len` bytes, rounded up to a multiple of 4096.
    pub fn zeroed(len: usize) -> Result<Self, Error> {
        Self::zeroed_if(Need::Required, len)
    }

    /// As [`zeroed`](Self::zeroed), for memory that is needed this much.
    pub fn zeroed_if(need: Need, len: usize) -> Result<Self, Error> {
        allocate_if(need)?;
        let len = len.next_multiple_of(PAGE);
        let mut bytes = std::vec::Vec::new();
        bytes
            .try_reserve_exact(len + PAGE)
            .map_err(|_| Error::NoMemory)?;
        bytes.resize(len + PAGE, 0);
        let start = bytes.as_ptr().align_offset(PAGE);
        Ok(Self { bytes, start, len })
    }
}

impl Deref for Buf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }
}

impl DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

/// The only pointer to a shared-to-be value: mutable until [`share`](Self::share)d.
#[derive(Debug)]
pub struct Unique<T>(Arc<T>);

impl<T> Unique<T> {
    /// Moves `value` to the heap.
    pub fn new(value: T) -> Result<Self, Error> {
        Self::new_if(Need::Required, value)
    }

    /// As [`new`](Self::new), for memory that is needed this much.
    pub fn new_if(need: Need, value: T) -> Result<Self, Error> {
        allocate_if(need)?;
        Ok(Self(Arc::new(value)))
    }

    /// Gives up mutability; does not allocate.
    pub fn share(self) -> Arc<T> {
        self.0
    }

    /// Takes mutability back; drops this reference and returns `None` when it is not the last one.
    pub fn reclaim(shared: Arc<T>) -> Option<Self> {
        (Arc::strong_count(&shared) == 1).then_some(Self(shared))
    }
}

impl<T> Deref for Unique<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for Unique<T> {
    fn deref_mut(&mut self) -> &mut T {
        Arc::get_mut(&mut self.0).expect("a Unique is never cloned")
    }
}
