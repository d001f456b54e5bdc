// SPDX-License-Identifier: GPL-2.0
//! Freeing: which segments no superblock needs any more, and how their space goes back to the log or to the
//! backing file.
//!
//! It uses the log and the map, and knows nothing of checkpoints and reclaim, which call it.

mod dead;
mod extent;
mod unneeded;

pub(crate) use self::dead::{find_dead, free, free_at_once, free_superseded, punch, punch_dead};
pub(crate) use self::extent::{
    deallocate_unused, extent, image_length, shrink_to_fit, truncate_free_end, Length,
};
pub(crate) use self::unneeded::Superseded;
