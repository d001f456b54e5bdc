// SPDX-License-Identifier: GPL-2.0
//! The block layer, wrapped.
//!
//! A [`Disk`] takes its requests from a tag set and calls the [`Operations`] of a driver with them. A
//! [`Request`] is served by a [`Workqueue`], because serving it sleeps. These types know neither an image
//! nor a device; all `unsafe` code about disks and requests is here.

mod disk;
mod operations;
mod request;
mod tag_set;
mod workqueue;

pub(crate) use self::disk::{AttributeGroups, Disk, Shape};
pub(crate) use self::operations::Operations;
pub(crate) use self::request::{Operation, Request};
pub(crate) use self::workqueue::{online_cpus, Workqueue};
