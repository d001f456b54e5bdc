// SPDX-License-Identifier: GPL-2.0
//! From the bytes of a file to a volume: creating and opening an image, checking and repairing one.

pub mod check;
pub(crate) mod open;
pub mod repair;
