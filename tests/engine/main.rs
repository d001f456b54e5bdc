// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The engine against a trivial model: an array of blocks.

mod compression;
mod crash;
mod damage;
mod extents;
mod fixtures;
mod hostile;
mod identity;
mod load;
mod model;
mod ordinary;
mod reads;
mod recompress;
mod repair;
mod space;
mod warm;
