// SPDX-License-Identifier: GPL-2.0
//! [`SpaceClass`]: for whom space is taken, and how much of the reserve each class leaves to the others.

use crate::engine::format::DeviceSize;

/// The class of an append: what it is for decides how far into the reserve it may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SpaceClass {
    /// A write of data.
    User,
    /// A write of a file system's own structures: without it there will be no discard.
    Metadata,
    /// A write shortly after an open. The file system may have used up the reserve for its metadata before the power
    /// failed, and must still be able to replay its journal: it may use the segment that is reserved for an open.
    PostMountWrite,
    /// A discard: takes little and gives much.
    Discard,
    /// Reclaim on a full backing file, relocating a live record when the emptied segment may not come back: a part of
    /// its space was punched, so other files may take it. Also relocation that no writer waits for. It leaves discards
    /// a segment of theirs.
    ReclaimUnbacked,
    /// Reclaim, relocating a live record.
    Reclaim,
    /// A checkpoint. It goes on while the volume is being closed.
    Checkpoint,
}

impl SpaceClass {
    /// Number of classes.
    pub(super) const COUNT: usize = 7;

    /// The class under which an append really counts. The first writes since the open are `early`: until a file system
    /// has replayed its journal it writes its metadata without saying so.
    pub(crate) fn effective(self, early: bool) -> Self {
        match self {
            Self::User if early => Self::Metadata,
            other => other,
        }
    }

    /// The table of who leaves what: the segments of the reserve that are still there when a class has appended, by the
    /// purpose they are left for.
    ///
    /// - checkpoints: 1 for all that the next two checkpoints need, after which a dead segment is free.
    /// - open: the power may fail while the records that reclaim relocates lie in two places.
    /// - reclaim: relocation itself.
    /// - discards: reclaim uses them as well, and may lose one to checkpoints before it notices that there is nothing
    ///   to gain.
    /// - metadata: 1 for all of [`for_metadata`].
    const fn leaves_to(self) -> [u64; 5] {
        match self {
            // checkpoints, open, reclaim, discards, metadata
            Self::User => [1, 1, 1, 2, 1],
            Self::Metadata => [1, 1, 1, 2, 0],
            Self::PostMountWrite => [1, 0, 1, 2, 0],
            Self::ReclaimUnbacked => [1, 1, 1, 1, 0],
            Self::Discard => [1, 1, 1, 0, 0],
            Self::Reclaim => [1, 1, 0, 0, 0],
            Self::Checkpoint => [0, 0, 0, 0, 0],
        }
    }

    /// Reserved segments that it leaves when two checkpoints need `for_checkpoints` segments, and `for_metadata` are for
    /// metadata.
    pub(crate) fn leaves(self, for_checkpoints: u64, for_metadata: u64) -> u64 {
        let [checkpoints, open, reclaim, discards, metadata] = self.leaves_to();
        checkpoints * for_checkpoints + open + reclaim + discards + metadata * for_metadata
    }

    /// True for a write or a discard by a user. It can wait for reclaim to find space, and what reclaim itself does cannot.
    pub(crate) fn is_of_user(self) -> bool {
        self.is_write() || self == Self::Discard
    }

    /// True for a write by a user, whatever is written.
    pub(crate) fn is_write(self) -> bool {
        matches!(self, Self::User | Self::Metadata | Self::PostMountWrite)
    }
}

/// Segments that are for metadata: a file system must write before it can delete anything, and takes a failure of that
/// write for the end. Its structures and its journal grow with the device, and so does what the bound on the image's
/// size leaves for all this.
pub(crate) fn for_metadata(size: DeviceSize) -> u64 {
    (size.bytes() >> 28).clamp(2, 4)
}

#[cfg(test)]
mod tests {
    use super::SpaceClass::*;

    #[test]
    fn classes_leave_what_others_need() {
        let order = [User, Metadata, PostMountWrite, Discard, Reclaim, Checkpoint];
        for pair in order.windows(2) {
            assert!(pair[0].leaves(3, 2) > pair[1].leaves(3, 2), "{pair:?}");
        }
        assert!(ReclaimUnbacked.leaves(3, 2) > Discard.leaves(3, 2));
        assert!(ReclaimUnbacked.leaves(3, 2) < Metadata.leaves(3, 2));
    }

    #[test]
    fn the_table_adds_up() {
        let classes = [
            User,
            Metadata,
            PostMountWrite,
            ReclaimUnbacked,
            Discard,
            Reclaim,
            Checkpoint,
        ];
        let left = classes.map(|class| class.leaves(10, 4));
        assert_eq!(left, [18, 14, 13, 13, 12, 11, 0]);
    }
}
