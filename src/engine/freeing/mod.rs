// SPDX-License-Identifier: GPL-2.0
//! Freeing: finds the segments that neither superblock needs, and returns their space to the log or to the backing file.
//!
//! It uses the log and the map. Checkpoints, reclaim and recovery call it.
//!
//! - unneeded.rs: the proofs that make freeing safe;
//! - dead.rs: segments without live records;
//! - extent.rs: the end of the image, and deallocation behind it.

mod dead;
mod extent;
mod unneeded;

pub(crate) use self::dead::{
    deallocate_needed, find_dead, free, free_at_once, free_superseded, punch, punch_dead,
};
pub(crate) use self::extent::{
    deallocate_unused, extent, image_length, shrink_to_fit, truncate_free_end, Length,
};
pub(crate) use self::unneeded::{Superseded, Unneeded};
