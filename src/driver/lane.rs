// SPDX-License-Identifier: GPL-2.0
//! Lanes: each kind of request has workers and memory of its own.
//!
//! A write on a full device waits until reclaim has found space. With common workers, a few such writes would
//! keep reads and flushes waiting, and also discards and the metadata of a file system, without which nothing can be
//! deleted.

use crate::block::{online_cpus, Operation};

/// The lane of a request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Reads. They wait for no other request.
    Read,
    /// Writes of data.
    Write,
    /// Writes of a file system's own structures. They find space longer than data does.
    Metadata,
    /// Discards and write-zeroes.
    Discard,
    /// Flushes, and what the driver does not know.
    Flush,
}

impl Lane {
    /// All of them, in the order of their numbers.
    pub(crate) const ALL: [Self; 5] = [
        Self::Read,
        Self::Write,
        Self::Metadata,
        Self::Discard,
        Self::Flush,
    ];

    /// The lane of requests with this operation.
    pub(crate) fn of(operation: Operation) -> Self {
        match operation {
            Operation::Read => Self::Read,
            Operation::Write { metadata: true, .. } => Self::Metadata,
            Operation::Write { .. } => Self::Write,
            Operation::Zero => Self::Discard,
            Operation::Flush | Operation::Unknown => Self::Flush,
        }
    }

    /// The last part of the name of its workqueue.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Metadata => "meta",
            Self::Discard => "discard",
            Self::Flush => "flush",
        }
    }

    /// Requests that are served at the same time. There are more than CPUs, because requests wait for the backing file.
    /// A read nearly always does, and a disk is at its best with many reads at a time.
    pub(crate) fn width(self) -> usize {
        let cpus = online_cpus();
        match self {
            Self::Read => 64,
            Self::Write => (2 * cpus).clamp(4, 32),
            Self::Metadata => cpus.clamp(2, 8),
            Self::Discard => 2,
            Self::Flush => cpus.clamp(2, 16),
        }
    }
}
