// SPDX-License-Identifier: GPL-2.0
//! The bindings of the kernel crate, and those that it lacks: `bindings_helper.h` includes the headers,
//! and `bindgen_items` lists the items.

#![allow(
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    dead_code,
    improper_ctypes,
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unreachable_pub,
    unsafe_op_in_unsafe_fn
)]

// The generated code uses the types of the kernel crate, not types of its own.
pub(crate) use kernel::bindings::*;

// Kbuild sets the path of the generated file.
include!(env!("CLOOP_BINDINGS"));
