// SPDX-License-Identifier: GPL-2.0
//! [`Pace`]: how much reclaim owes to writers, so that it gains space before they have to wait for it.

/// Most bytes that are owed. A reclaim that does not keep up is helped by writers that wait, and not by a debt.
const MOST_OWED: u64 = 64 << 20;

/// The debt of reclaim. When less than a *mark* is left for users, each byte that they append is owed in part, the more, the
/// less is left, and from a fifth of the mark on all of it and more. So what is left comes to rest between the mark and
/// nothing, and no write pays for many others.
#[derive(Default)]
pub(super) struct Pace {
    /// Bytes that users could use when it was looked at last.
    left: u64,
    /// Bytes left below which users' writes are owed.
    mark: u64,
    /// Bytes that reclaim has to gain.
    owed: u64,
}

impl Pace {
    /// Notes that `left` bytes are left for users, and that reclaim can gain `garbage` bytes. The mark is a quarter of both
    /// together, because the less garbage there is, the more must be relocated to gain some; but it is `most` at most, and
    /// nothing is owed where there is less to gain than `least`.
    pub(super) fn look(&mut self, left: u64, garbage: u64, least: u64, most: u64) {
        self.left = left;
        self.mark = match garbage < least {
            true => 0,
            false => (left.saturating_add(garbage) / 4).min(most),
        };
        if left >= self.mark {
            self.owed = 0;
        }
    }

    /// Users have appended `bytes`.
    pub(super) fn owe(&mut self, bytes: u64) {
        let below = self.mark.saturating_sub(self.left);
        if below > 0 {
            // Records and marks are far below 2^32 bytes.
            self.owed = (self.owed + bytes * below / self.mark * 5 / 4).min(MOST_OWED);
        }
    }

    /// Reclaim has gained `bytes`.
    pub(super) fn pay(&mut self, bytes: u64) {
        self.owed = self.owed.saturating_sub(bytes);
    }

    /// Bytes that reclaim has to gain.
    pub(super) fn owed(&self) -> u64 {
        self.owed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn owed(left: u64, garbage: u64) -> u64 {
        let mut pace = Pace::default();
        pace.look(left, garbage, MIB, 16 * MIB);
        pace.owe(MIB);
        pace.owed()
    }

    #[test]
    fn the_less_is_left_the_more_is_owed() {
        assert_eq!(owed(20 * MIB, 200 * MIB), 0);
        assert_eq!(owed(16 * MIB, 200 * MIB), 0);
        assert_eq!(owed(8 * MIB, 200 * MIB), MIB * 5 / 8);
        assert_eq!(owed(0, 200 * MIB), MIB * 5 / 4);
        // The mark is at 3 MiB, and at nothing.
        assert_eq!(owed(3 * MIB, 9 * MIB), 0);
        assert!(owed(2 * MIB, 10 * MIB) > 0);
        assert_eq!(owed(0, MIB - 1), 0);
    }

    #[test]
    fn a_debt_is_paid_and_bounded() {
        let mut pace = Pace::default();
        pace.look(0, 100 * MIB, MIB, 16 * MIB);
        (0..1000).for_each(|_| pace.owe(MIB));
        assert_eq!(pace.owed(), MOST_OWED);
        pace.pay(MIB);
        assert_eq!(pace.owed(), MOST_OWED - MIB);
        pace.look(17 * MIB, 100 * MIB, MIB, 16 * MIB);
        assert_eq!(pace.owed(), 0);
    }
}
