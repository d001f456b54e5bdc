// SPDX-License-Identifier: GPL-2.0
//! The paths of a request: read, write and zero, data records, and the cache of decompressed records.

pub(crate) mod cache;
pub(crate) mod data;
pub(crate) mod read;
pub(crate) mod write;
