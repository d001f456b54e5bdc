// SPDX-License-Identifier: GPL-2.0
//! From the bytes of a file to a volume: creating and opening an image, checking and repairing one.
//!
//! - [`create`]: a new image;
//! - [`superblocks`], [`usage`], [`replay`], [`open`]: the steps of an opening;
//! - [`check`]: verification of every structure and record, without writing anything;
//! - [`repair`]: putting a damaged image together again.

pub mod check;
pub(crate) mod create;
pub(crate) mod open;
pub mod repair;
mod replay;
mod superblocks;
mod usage;
