// SPDX-License-Identifier: GPL-2.0
//! The block layer, wrapped.
//!
//! A [`Disk`] has a tag set, whose [`Request`]s it is given; a [`Workqueue`] serves them.

mod disk;
pub(crate) mod request;
mod tag_set;
mod workqueue;

pub(crate) use self::disk::Disk;
pub(crate) use self::request::{Operation, Request};
pub(crate) use self::workqueue::Workqueue;
