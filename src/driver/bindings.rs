// SPDX-License-Identifier: GPL-2.0
//! The kernel crate's bindings, and what they lack: see `bindings_helper.h` and `bindgen_items`.

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

// The generated code must use the kernel crate's types, not types of its own.
pub(crate) use kernel::bindings::*;

// Kbuild says where the generated file is.
include!(env!("CLOOP_BINDINGS"));
