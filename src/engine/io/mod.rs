// SPDX-License-Identifier: GPL-2.0
//! The paths of a request.
//!
//! - batch.rs: records that are encoded before they are placed;
//! - data.rs: blocks of data as one record;
//! - estimate.rs: the space that a write would take;
//! - read.rs: reading;
//! - sink.rs: the receiver of a read;
//! - write.rs: writing;
//! - zero.rs: discarding, and zeroing.

pub(crate) mod batch;
pub(crate) mod data;
pub(crate) mod estimate;
pub(crate) mod read;
pub(crate) mod sink;
pub(crate) mod write;
pub(crate) mod zero;
