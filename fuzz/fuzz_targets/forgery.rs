// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Good images with some of their integers and bytes changed, and all checksums right.
#![no_main]

use cloop::hostile::{self, Image};
use cloop::platform::fuzz::Fuzz;
use libfuzzer_sys::fuzz_target;
use std::sync::OnceLock;

static BASES: OnceLock<Vec<Image<Fuzz<true>>>> = OnceLock::new();

fuzz_target!(|input: &[u8]| {
    hostile::exercise_forgery(BASES.get_or_init(hostile::forgery_bases), input);
});
