// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Images of arbitrary bytes, in a home where every checksum is 0 and so never in the way.
#![no_main]

use cloop::hostile;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| hostile::exercise_compact(input));
