// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Measures the engine by itself: fixed amounts of work on a volume, by one or more threads, and the I/O that the
//! backing file sees of it.
//!
//! [`Path`] names the paths through the engine that are measured, and [`Bench`] drives a volume along them. [`Counted`]
//! is a backing file that counts, and that can be slow. [`exact`] does the same in a home without background threads,
//! where every count follows from the work alone.

mod counted;
pub mod exact;
mod paths;

pub use self::counted::{Counted, Counts};
pub use self::paths::{Bench, Path};
