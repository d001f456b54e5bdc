// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The engine of cloop, the read-write compressed loop device, as a library for tools and tests.
//!
//! `engine` is the same source that is compiled into `cloop.ko`; it stands on a `platform`.

#![no_std]
#![deny(unsafe_code)]

extern crate std;

#[cfg(feature = "bench")]
pub mod bench;
pub mod engine;
#[cfg(feature = "fuzz")]
pub mod hostile;
pub mod platform;
#[cfg(feature = "sim")]
pub mod simulation;
