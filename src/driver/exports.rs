// SPDX-License-Identifier: GPL-2.0
//! What the C files of the driver call. `helpers.h` declares it.

// bindgen has the declarations too; that is how they are compared.
#![allow(clippy::missing_safety_doc)]

use crate::c;
use crate::info;
use crate::server::Server;
use kernel::prelude::*;

const PAGE_SIZE: u64 = c::PAGE_SIZE as u64;

// The arrays have a type only if both functions have the same.
const _: () = {
    let _ = [c::cloop_server_info, cloop_server_info];
    let _ = [c::cloop_server_file, cloop_server_file];
    let _ = [c::cloop_server_space_changed, cloop_server_space_changed];
    let _ = [c::cloop_server_table_pages, cloop_server_table_pages];
    let _ = [c::cloop_server_shed_table, cloop_server_shed_table];
    let _ = [
        c::cloop_server_set_table_limit,
        cloop_server_set_table_limit,
    ];
};

/// # Safety
///
/// `server` points to a [`Server`] that outlives `'a`: C has it from a disk that exists meanwhile.
unsafe fn server_of<'a>(server: *const c_void) -> &'a Server {
    // SAFETY: By the safety requirement of this function.
    unsafe { &*server.cast::<Server>() }
}

/// # Safety
///
/// As [`server_of`], and `info` points to a structure that only this call uses meanwhile.
#[no_mangle]
unsafe extern "C" fn cloop_server_info(server: *const c_void, info: *mut c::cloop_info) -> c_int {
    // SAFETY: By the safety requirement of this function; any bytes make a valid `cloop_info`.
    let (server, info) = unsafe { (server_of(server), &mut *info) };
    info::describe(server, info).map_or_else(|e| e.to_errno(), |()| 0)
}

/// # Safety
///
/// As [`server_of`].
#[no_mangle]
unsafe extern "C" fn cloop_server_file(server: *const c_void) -> *mut c::file {
    // SAFETY: By the safety requirement of this function.
    unsafe { server_of(server) }.file().as_ptr()
}

/// # Safety
///
/// As [`server_of`], and `full` is writable.
#[no_mangle]
unsafe extern "C" fn cloop_server_space_changed(server: *const c_void, full: *mut bool) -> bool {
    // SAFETY: By the safety requirement of this function.
    match unsafe { server_of(server) }.space_changed() {
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
/// As [`server_of`].
#[no_mangle]
unsafe extern "C" fn cloop_server_table_pages(server: *const c_void) -> c_ulong {
    // SAFETY: By the safety requirement of this function.
    (unsafe { server_of(server) }.table_memory() / PAGE_SIZE) as c_ulong
}

/// # Safety
///
/// As [`server_of`].
#[no_mangle]
unsafe extern "C" fn cloop_server_shed_table(server: *const c_void, pages: c_ulong) {
    // SAFETY: By the safety requirement of this function.
    unsafe { server_of(server) }.shed_table((pages as u64).saturating_mul(PAGE_SIZE));
}

/// # Safety
///
/// As [`server_of`].
#[no_mangle]
unsafe extern "C" fn cloop_server_set_table_limit(server: *const c_void, bytes: u64) {
    // SAFETY: By the safety requirement of this function.
    unsafe { server_of(server) }.set_table_limit(bytes);
}
