// SPDX-License-Identifier: GPL-2.0
//! [`Recompression`]: how data is compressed again that has not been written for long.

use super::Compression;
use crate::engine::format::Algorithm;
use crate::engine::{Error, Result};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// How an idle image compresses data again that has not been written for long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recompression {
    /// The compression such data gets. None: it stays as it was written.
    pub compression: Option<Compression>,
    /// Data that was not written for as many seconds is cold.
    pub after: u32,
    /// Bound on the content that is compressed again, in KiB a second; 0 for none.
    pub rate: u32,
}

impl Recompression {
    /// The seconds of those who do not ask for another number.
    pub const AFTER: u32 = 600;

    /// Data stays as it was written.
    pub const OFF: Self = Self {
        compression: None,
        after: Self::AFTER,
        rate: 0,
    };

    /// Checks that this compresses, or is off.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`].
    pub(crate) fn check(&self) -> Result {
        match self.compression.map(Compression::algorithm) {
            Some(Algorithm::Raw) => Err(Error::Invalid(
                "recompression: it must be an algorithm that compresses",
            )),
            _ => Ok(()),
        }
    }

    /// Cold data gets `compression`.
    pub fn with(compression: Compression) -> Self {
        Self {
            compression: Some(compression),
            ..Self::OFF
        }
    }
}

/// A [`Recompression`] that threads share without a lock. One that looks while another thread changes it may find a part of
/// the old one: both are right at that moment.
pub(super) struct SharedRecompression {
    /// The algorithm's tag, 0 for none; its level in the upper byte.
    compression: AtomicU32,
    after: AtomicU32,
    rate: AtomicU32,
    choices: AtomicU64,
}

impl Default for SharedRecompression {
    fn default() -> Self {
        let Recompression { after, rate, .. } = Recompression::OFF;
        Self {
            compression: AtomicU32::new(0),
            after: AtomicU32::new(after),
            rate: AtomicU32::new(rate),
            choices: AtomicU64::new(0),
        }
    }
}

impl SharedRecompression {
    pub(super) fn get(&self) -> Recompression {
        let [tag, level, ..] = self.compression.load(Ordering::Relaxed).to_le_bytes();
        let algorithm = Algorithm::from_tag(tag).filter(|_| tag != 0);
        Recompression {
            compression: algorithm.and_then(|algorithm| Compression::new(algorithm, level)),
            after: self.after.load(Ordering::Relaxed),
            rate: self.rate.load(Ordering::Relaxed),
        }
    }

    pub(super) fn set(&self, recompression: Recompression) {
        let word = recompression.compression.map_or(0, |compression| {
            u32::from_le_bytes([compression.algorithm().tag(), compression.level(), 0, 0])
        });
        self.compression.store(word, Ordering::Relaxed);
        self.after.store(recompression.after, Ordering::Relaxed);
        self.rate.store(recompression.rate, Ordering::Relaxed);
        self.choices.fetch_add(1, Ordering::Release);
    }

    pub(super) fn choices(&self) -> u64 {
        self.choices.load(Ordering::Acquire)
    }
}
