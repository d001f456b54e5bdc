// SPDX-License-Identifier: GPL-2.0
//! [`Watermark`]: whether space runs low, so that somebody can do something before writes fail.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Percent of the device size below which space counts as low, unless the user says otherwise.
const DEFAULT_PERCENT: u64 = 5;

/// The warning of a device: space is *low* if what users can still write is less than a share of the device's size. A
/// device whose blocks all find space is not warned about.
pub(crate) struct Watermark {
    percent: AtomicU64,
    low: AtomicBool,
}

impl Default for Watermark {
    fn default() -> Self {
        Self {
            percent: AtomicU64::new(DEFAULT_PERCENT),
            low: AtomicBool::new(false),
        }
    }
}

impl Watermark {
    /// Percent of the device size below which space counts as low; 0 for never.
    pub(crate) fn percent(&self) -> u64 {
        self.percent.load(Ordering::Relaxed)
    }

    /// Sets that share.
    pub(crate) fn set_percent(&self, percent: u64) {
        self.percent.store(percent.min(100), Ordering::Relaxed);
    }

    /// True if space was low when it was looked at last.
    pub(crate) fn low(&self) -> bool {
        self.low.load(Ordering::Relaxed)
    }

    /// Notes what there is, in bytes: `free` on the backing file system or the block device, `garbage` that reclaim can
    /// gain, the size of the `device`, and the part of it that is `unmapped`, which may come to need space.
    pub(crate) fn note(&self, free: u64, garbage: u64, device: u64, unmapped: u64) {
        let room = free.saturating_add(garbage);
        let mark = (device / 100 * self.percent()).min(unmapped);
        // Once it is low it is so until there is a quarter more: a warning is not to come and go.
        let most = if self.low() { mark + mark / 4 } else { mark };
        self.low.store(room < most, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_is_low_below_the_mark_only() {
        let mark = Watermark::default();
        let low = |free, unmapped| {
            mark.note(free, 10, 1000, unmapped);
            mark.low()
        };
        assert!(!low(40, 500));
        assert!(low(39, 500));
        assert!(low(51, 500));
        assert!(!low(53, 500));
        // All that may be written finds space.
        assert!(!low(0, 10));
        mark.set_percent(0);
        assert!(!low(0, 500));
    }
}
