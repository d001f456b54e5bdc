// SPDX-License-Identifier: GPL-2.0
//! Memory of the kernel, allocated fallibly. The names and signatures are those of `mem` for `std`.

use crate::engine::Error;
use core::ops::{Deref, DerefMut};
use core::pin::Pin;
use kernel::alloc::flags::{GFP_KERNEL, GFP_NOWAIT, __GFP_NOWARN};
use kernel::alloc::{Flags, KVBox, KVVec};
use kernel::sync::UniqueArc;

pub(crate) use kernel::sync::Arc;

/// How much depends on an allocation.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// The caller cannot go on without the memory. The allocation may wait until the kernel has freed some.
    Required,
    /// The caller goes on without the memory. The allocation fails rather than wait: what frees memory may be the very
    /// writes that the caller serves.
    Optional,
}

impl Need {
    fn flags(self) -> Flags {
        match self {
            Self::Required => GFP_KERNEL,
            Self::Optional => GFP_NOWAIT | __GFP_NOWARN,
        }
    }
}

/// Moves `value` behind a shared pointer.
///
/// # Errors
///
/// [`Error::NoMemory`].
pub(crate) fn arc<T>(value: T) -> Result<Arc<T>, Error> {
    Arc::new(value, GFP_KERNEL).map_err(|_| Error::NoMemory)
}

/// An owned heap value.
pub(crate) type Box<T> = KVBox<T>;

/// Moves `value` to the heap.
///
/// # Errors
///
/// [`Error::NoMemory`].
pub(crate) fn boxed<T>(value: T) -> Result<Box<T>, Error> {
    KVBox::new(value, GFP_KERNEL).map_err(|_| Error::NoMemory)
}

/// A growable array whose growth can fail.
pub(crate) struct Vec<T>(KVVec<T>);

impl<T> Vec<T> {
    /// An empty array; does not allocate.
    pub(crate) const fn new() -> Self {
        Self(KVVec::new())
    }

    /// An empty array with room for `n` items.
    pub(crate) fn with_capacity(n: usize) -> Result<Self, Error> {
        Self::with_capacity_if(Need::Required, n)
    }

    /// As [`with_capacity`](Self::with_capacity), for memory that is needed this much.
    pub(crate) fn with_capacity_if(need: Need, n: usize) -> Result<Self, Error> {
        KVVec::with_capacity(n, need.flags())
            .map(Self)
            .map_err(|_| Error::NoMemory)
    }

    /// `n` copies of `value`.
    pub(crate) fn filled(value: T, n: usize) -> Result<Self, Error>
    where
        T: Clone,
    {
        Self::filled_if(Need::Required, value, n)
    }

    /// As [`filled`](Self::filled), for memory that is needed this much.
    pub(crate) fn filled_if(need: Need, value: T, n: usize) -> Result<Self, Error>
    where
        T: Clone,
    {
        KVVec::from_elem(value, n, need.flags())
            .map(Self)
            .map_err(|_| Error::NoMemory)
    }

    /// Appends one item.
    pub(crate) fn push(&mut self, value: T) -> Result<(), Error> {
        self.0.push(value, GFP_KERNEL).map_err(|_| Error::NoMemory)
    }

    /// Inserts one item at `index`, moving the later ones up.
    ///
    /// # Panics
    ///
    /// If `index > len`.
    pub(crate) fn insert(&mut self, index: usize, value: T) -> Result<(), Error> {
        self.push(value)?;
        self.0[index..].rotate_right(1);
        Ok(())
    }

    /// Removes and returns the last item.
    pub(crate) fn pop(&mut self) -> Option<T> {
        self.0.pop()
    }

    /// Removes and returns the item at `index`, moving the later ones down. `None` if there is no item.
    pub(crate) fn remove(&mut self, index: usize) -> Option<T> {
        self.0.remove(index).ok()
    }

    /// Drops all items and keeps the memory.
    pub(crate) fn clear(&mut self) {
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

const PAGE: usize = 4096;

/// A page of a [`Buf`]. Its alignment makes the allocator return page-aligned memory.
#[derive(pin_init::Zeroable)]
#[repr(C, align(4096))]
struct Page([u8; PAGE]);

/// A buffer for I/O: its length is a multiple of 4096, and it starts on a page boundary.
pub(crate) struct Buf(KVVec<Page>);

impl Buf {
    /// A zeroed buffer of `len` bytes, rounded up to a multiple of 4096.
    pub(crate) fn zeroed(len: usize) -> Result<Self, Error> {
        Self::zeroed_if(Need::Required, len)
    }

    /// As [`zeroed`](Self::zeroed), for memory that is needed this much.
    pub(crate) fn zeroed_if(need: Need, len: usize) -> Result<Self, Error> {
        KVVec::zeroed(len.div_ceil(PAGE), need.flags())
            .map(Self)
            .map_err(|_| Error::NoMemory)
    }
}

impl Deref for Buf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: The vector holds `len()` contiguous initialised pages, each of `PAGE` bytes without
        // padding, and it is borrowed as long as the slice lives.
        unsafe { core::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() * PAGE) }
    }
}

impl DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut [u8] {
        let len = self.0.len() * PAGE;
        // SAFETY: As in `deref`. The borrow is exclusive, and any bytes are a valid page.
        unsafe { core::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), len) }
    }
}

/// The only pointer to a value that will be shared. The value is mutable until [`share`](Self::share).
pub(crate) struct Unique<T>(UniqueArc<T>);

impl<T> Unique<T> {
    /// Moves `value` to the heap.
    pub(crate) fn new(value: T) -> Result<Self, Error> {
        Self::new_if(Need::Required, value)
    }

    /// As [`new`](Self::new), for memory that is needed this much.
    pub(crate) fn new_if(need: Need, value: T) -> Result<Self, Error> {
        UniqueArc::new(value, need.flags())
            .map(Self)
            .map_err(|_| Error::NoMemory)
    }

    /// Makes the value shared and immutable. Does not allocate.
    pub(crate) fn share(self) -> Arc<T> {
        self.0.into()
    }
}

impl<T: Unpin> Unique<T> {
    /// Makes the value mutable again. Drops the reference and returns `None` if it is not the last one.
    pub(crate) fn reclaim(shared: Arc<T>) -> Option<Self> {
        Arc::into_unique_or_drop(shared).map(|unique| Self(Pin::into_inner(unique)))
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
        &mut self.0
    }
}
