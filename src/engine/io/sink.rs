// SPDX-License-Identifier: GPL-2.0
//! [`Sink`]: where a read puts the blocks that it returns.

use crate::engine::{Error, Result};

/// The receiver of a read. It gets the bytes in ascending order and without gaps.
pub trait Sink {
    /// The memory of the next `len` bytes, if they lie together and nothing else changes them. What is written there
    /// counts after [`advance`](Self::advance) only.
    fn space(&mut self, len: usize) -> Option<&mut [u8]>;

    /// Takes the next `len` bytes, which were written to [`space`](Self::space).
    fn advance(&mut self, len: usize);

    /// Takes the next bytes.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] if there is no room for them.
    fn put(&mut self, bytes: &[u8]) -> Result;

    /// Takes `len` bytes of zeros.
    ///
    /// # Errors
    ///
    /// As [`put`](Self::put).
    fn put_zeros(&mut self, len: usize) -> Result;
}

/// The memory of a caller that is filled from its beginning.
pub(crate) struct Filling<'a> {
    rest: &'a mut [u8],
}

impl<'a> Filling<'a> {
    pub(crate) fn new(memory: &'a mut [u8]) -> Self {
        Self { rest: memory }
    }

    fn next(&mut self, len: usize) -> Result<&'a mut [u8]> {
        let rest = core::mem::take(&mut self.rest);
        let Some((next, rest)) = rest.split_at_mut_checked(len) else {
            return Err(Error::Invalid("length: more was read than asked for"));
        };
        self.rest = rest;
        Ok(next)
    }
}

impl Sink for Filling<'_> {
    fn space(&mut self, len: usize) -> Option<&mut [u8]> {
        self.rest.get_mut(..len)
    }

    fn advance(&mut self, len: usize) {
        // It was there, or `space` would have returned nothing.
        let _ = self.next(len);
    }

    fn put(&mut self, bytes: &[u8]) -> Result {
        self.next(bytes.len())?.copy_from_slice(bytes);
        Ok(())
    }

    fn put_zeros(&mut self, len: usize) -> Result {
        self.next(len)?.fill(0);
        Ok(())
    }
}
