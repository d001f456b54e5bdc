// SPDX-License-Identifier: GPL-2.0
//! What the C files of the driver call. `helpers.h` declares it.

// bindgen has the declarations too; that is how they are compared.
#![allow(clippy::missing_safety_doc)]

use crate::c;
use crate::device::Core;
use crate::info;
use kernel::prelude::*;

const PAGE_SIZE: u64 = c::PAGE_SIZE as u64;

// The arrays have a type only if both functions have the same.
const _: () = {
    let _ = [c::cloop_core_info, cloop_core_info];
    let _ = [c::cloop_core_file, cloop_core_file];
    let _ = [c::cloop_core_space_changed, cloop_core_space_changed];
    let _ = [c::cloop_core_table_pages, cloop_core_table_pages];
    let _ = [c::cloop_core_shed_table, cloop_core_shed_table];
    let _ = [c::cloop_core_set_table_limit, cloop_core_set_table_limit];
};

/// # Safety
///
/// `core` points to a [`Core`] that outlives `'a`: C has it from a disk that exists meanwhile.
unsafe fn core_of<'a>(core: *const c_void) -> &'a Core {
    // SAFETY: By the safety requirement of this function.
    unsafe { &*core.cast::<Core>() }
}

/// # Safety
///
/// As [`core_of`], and `info` points to a structure that only this call uses meanwhile.
#[no_mangle]
unsafe extern "C" fn cloop_core_info(core: *const c_void, info: *mut c::cloop_info) -> c_int {
    // SAFETY: By the safety requirement of this function; any bytes make a valid `cloop_info`.
    let (core, info) = unsafe { (core_of(core), &mut *info) };
    info::describe(core, info).map_or_else(|e| e.to_errno(), |()| 0)
}

/// # Safety
///
/// As [`core_of`].
#[no_mangle]
unsafe extern "C" fn cloop_core_file(core: *const c_void) -> *mut c::file {
    // SAFETY: By the safety requirement of this function.
    unsafe { core_of(core) }.file().as_ptr()
}

/// # Safety
///
/// As [`core_of`], and `full` is writable.
#[no_mangle]
unsafe extern "C" fn cloop_core_space_changed(core: *const c_void, full: *mut bool) -> bool {
    // SAFETY: By the safety requirement of this function.
    match unsafe { core_of(core) }.space_changed() {
        Some(now) => {
            // SAFETY: As above.
            unsafe { full.write(now) };
            true
        }
        None => false,
    }
}

/// # Safety
///
/// As [`core_of`].
#[no_mangle]
unsafe extern "C" fn cloop_core_table_pages(core: *const c_void) -> c_ulong {
    // SAFETY: By the safety requirement of this function.
    (unsafe { core_of(core) }.table_memory() / PAGE_SIZE) as c_ulong
}

/// # Safety
///
/// As [`core_of`].
#[no_mangle]
unsafe extern "C" fn cloop_core_shed_table(core: *const c_void, pages: c_ulong) {
    // SAFETY: By the safety requirement of this function.
    unsafe { core_of(core) }.shed_table((pages as u64).saturating_mul(PAGE_SIZE));
}

/// # Safety
///
/// As [`core_of`].
#[no_mangle]
unsafe extern "C" fn cloop_core_set_table_limit(core: *const c_void, bytes: u64) {
    // SAFETY: By the safety requirement of this function.
    unsafe { core_of(core) }.set_table_limit(bytes);
}
