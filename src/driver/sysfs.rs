// SPDX-License-Identifier: GPL-2.0
//! The sysfs files of a device, and what `sysfs.c` calls to fill them.

use crate::block::AttributeGroups;
use crate::c;
use crate::engine::{Codec, Compression};
use crate::info;
use crate::queue::Queue;
use kernel::prelude::*;

/// The files of a disk whose `queuedata` points to a [`Queue`].
pub(crate) fn groups() -> AttributeGroups {
    // SAFETY: `cloop_sysfs_groups` is a static array of the module with a null pointer at its end.
    unsafe { AttributeGroups::from_raw(c::cloop_sysfs_groups()) }
}

// bindgen reads the declarations in driver.h. The arrays have a type only if those are the same.
const _: () = {
    let _ = [c::cloop_queue_info, cloop_queue_info];
    let _ = [c::cloop_queue_algorithm, cloop_queue_algorithm];
    let _ = [c::cloop_queue_set_compression, cloop_queue_set_compression];
    let _ = [c::cloop_queue_file, cloop_queue_file];
    let _ = [c::cloop_queue_set_table_limit, cloop_queue_set_table_limit];
    let _ = [c::cloop_queue_warn_percent, cloop_queue_warn_percent];
    let _ = [
        c::cloop_queue_set_warn_percent,
        cloop_queue_set_warn_percent,
    ];
};

/// # Safety
///
/// For sysfs.c only: `queue` is the `queuedata` of a disk with [`groups`], and `'a` ends before the file
/// is closed. Removing the disk waits for that.
unsafe fn queue_of<'a>(queue: *const c::cloop_queue) -> &'a Queue {
    // SAFETY: By the safety requirement of this function, `queue` points to a `Queue` that lives for `'a`.
    unsafe { &*queue.cast::<Queue>() }
}

/// Writes the state of the device into `info`; returns 0 or a negative errno.
///
/// # Safety
///
/// As [`queue_of`], and `info` points to an initialised structure that only the caller uses.
#[no_mangle]
unsafe extern "C" fn cloop_queue_info(
    queue: *const c::cloop_queue,
    info: *mut c::cloop_info,
) -> c_int {
    // SAFETY: By the safety requirement of this function.
    let (queue, info) = unsafe { (queue_of(queue), &mut *info) };
    info::describe(queue.server(), info).map_or_else(|e| e.to_errno(), |()| 0)
}

/// The name of the algorithm that compresses new records: `*len` bytes, without a NUL, which are never freed.
///
/// # Safety
///
/// As [`queue_of`], and `len` points to an integer that only the caller uses.
#[no_mangle]
unsafe extern "C" fn cloop_queue_algorithm(
    queue: *const c::cloop_queue,
    len: *mut c_int,
) -> *const c_char {
    // SAFETY: By the safety requirement of this function.
    let volume = unsafe { queue_of(queue) }.server().volume();
    let name = Codec::of(volume.compression().algorithm()).name;
    // SAFETY: As above. The integer need not be initialised.
    unsafe { len.write(name.len() as c_int) };
    name.as_ptr().cast()
}

/// Changes the compression of new records to what `len` bytes at `text` say, a newline perhaps behind it; returns 0 or a
/// negative errno.
///
/// # Safety
///
/// As [`queue_of`], and `text` points to `len` bytes that do not change.
#[no_mangle]
unsafe extern "C" fn cloop_queue_set_compression(
    queue: *const c::cloop_queue,
    text: *const c_char,
    len: usize,
) -> c_int {
    // SAFETY: By the safety requirement of this function.
    let (queue, text) = unsafe {
        (
            queue_of(queue),
            core::slice::from_raw_parts(text.cast::<u8>(), len),
        )
    };
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    let compression = core::str::from_utf8(text).ok().and_then(Compression::parse);
    let set = match compression {
        Some(compression) => queue.server().set_compression(compression),
        None => Err(EINVAL),
    };
    set.map_or_else(|e| e.to_errno(), |()| 0)
}

/// The backing file, valid as long as the device.
///
/// # Safety
///
/// As [`queue_of`].
#[no_mangle]
unsafe extern "C" fn cloop_queue_file(queue: *const c::cloop_queue) -> *mut c::file {
    // SAFETY: By the safety requirement of this function.
    unsafe { queue_of(queue) }.server().volume().file().as_ptr()
}

/// Bounds the memory of the sector table to `bytes`.
///
/// # Safety
///
/// As [`queue_of`].
#[no_mangle]
unsafe extern "C" fn cloop_queue_set_table_limit(queue: *const c::cloop_queue, bytes: u64) {
    // SAFETY: By the safety requirement of this function.
    unsafe { queue_of(queue) }
        .server()
        .volume()
        .set_table_limit(bytes);
}

/// Percent of the device's size below which space counts as low.
///
/// # Safety
///
/// As [`queue_of`].
#[no_mangle]
unsafe extern "C" fn cloop_queue_warn_percent(queue: *const c::cloop_queue) -> u64 {
    // SAFETY: By the safety requirement of this function.
    unsafe { queue_of(queue) }.server().volume().warn_percent()
}

/// Sets the percent of the device's size below which space counts as low.
///
/// # Safety
///
/// As [`queue_of`].
#[no_mangle]
unsafe extern "C" fn cloop_queue_set_warn_percent(queue: *const c::cloop_queue, percent: u64) {
    // SAFETY: By the safety requirement of this function.
    unsafe { queue_of(queue) }
        .server()
        .volume()
        .set_warn_percent(percent);
}
