// SPDX-License-Identifier: GPL-2.0
//! The sysfs files of a device, and what `sysfs.c` calls to fill them.

use crate::block::AttributeGroups;
use crate::c;
use crate::engine::{Algorithm, Codec, Compression};
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
    let _ = [c::cloop_algorithm_name, cloop_algorithm_name];
    let _ = [c::cloop_queue_set_compression, cloop_queue_set_compression];
    let _ = [
        c::cloop_queue_set_recompression,
        cloop_queue_set_recompression,
    ];
    let _ = [
        c::cloop_queue_set_recompress_after,
        cloop_queue_set_recompress_after,
    ];
    let _ = [
        c::cloop_queue_set_recompress_rate,
        cloop_queue_set_recompress_rate,
    ];
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

/// The name of an algorithm, by its `CLOOP_ALGORITHM_*`: `*len` bytes, without a NUL, which are never freed.
///
/// # Safety
///
/// For sysfs.c only: `len` points to an integer that only the caller uses.
#[no_mangle]
unsafe extern "C" fn cloop_algorithm_name(algorithm: u32, len: *mut c_int) -> *const c_char {
    let algorithm = u8::try_from(algorithm).ok().and_then(Algorithm::from_tag);
    let name = algorithm.map_or("unknown", |algorithm| Codec::of(algorithm).name);
    // SAFETY: By the safety requirement of this function. The integer need not be initialised.
    unsafe { len.write(name.len() as c_int) };
    name.as_ptr().cast()
}

/// The compression that `len` bytes at `text` name, a newline perhaps behind it.
///
/// # Safety
///
/// `text` points to `len` bytes that do not change.
unsafe fn compression_of(text: *const c_char, len: usize) -> Result<Compression> {
    // SAFETY: By the safety requirement of this function.
    let text = unsafe { core::slice::from_raw_parts(text.cast::<u8>(), len) };
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    let compression = core::str::from_utf8(text).ok().and_then(Compression::parse);
    compression.ok_or(EINVAL)
}

/// 0, or the negative errno of an error.
fn status(result: Result) -> c_int {
    result.map_or_else(|e| e.to_errno(), |()| 0)
}

/// Changes the compression of new records to what `len` bytes at `text` say; returns 0 or a negative errno.
///
/// # Safety
///
/// As [`queue_of`] and [`compression_of`].
#[no_mangle]
unsafe extern "C" fn cloop_queue_set_compression(
    queue: *const c::cloop_queue,
    text: *const c_char,
    len: usize,
) -> c_int {
    // SAFETY: By the safety requirement of this function.
    let (queue, compression) = unsafe { (queue_of(queue), compression_of(text, len)) };
    status(compression.and_then(|compression| queue.server().set_compression(compression)))
}

/// Changes the compression that cold data gets to what `len` bytes at `text` say, `none` for none; returns 0 or a negative
/// errno.
///
/// # Safety
///
/// As [`queue_of`] and [`compression_of`].
#[no_mangle]
unsafe extern "C" fn cloop_queue_set_recompression(
    queue: *const c::cloop_queue,
    text: *const c_char,
    len: usize,
) -> c_int {
    // SAFETY: By the safety requirement of this function.
    let (queue, compression) = unsafe { (queue_of(queue), compression_of(text, len)) };
    status(compression.and_then(|compression| {
        let again = Some(compression).filter(|again| again.algorithm() != Algorithm::Raw);
        let server = queue.server();
        server.change_recompression(|now| now.compression = again)
    }))
}

/// Sets the seconds without a write after which data is compressed again; returns 0 or a negative errno.
///
/// # Safety
///
/// As [`queue_of`].
#[no_mangle]
unsafe extern "C" fn cloop_queue_set_recompress_after(
    queue: *const c::cloop_queue,
    seconds: u32,
) -> c_int {
    // SAFETY: By the safety requirement of this function.
    let server = unsafe { queue_of(queue) }.server();
    status(server.change_recompression(|now| now.after = seconds))
}

/// Sets the most content that is compressed again, in KiB a second, 0 for no bound; returns 0 or a negative errno.
///
/// # Safety
///
/// As [`queue_of`].
#[no_mangle]
unsafe extern "C" fn cloop_queue_set_recompress_rate(
    queue: *const c::cloop_queue,
    kib: u32,
) -> c_int {
    // SAFETY: By the safety requirement of this function.
    let server = unsafe { queue_of(queue) }.server();
    status(server.change_recompression(|now| now.rate = kib))
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

/// Bounds the memory of the sector table to `bytes`; returns 0.
///
/// # Safety
///
/// As [`queue_of`].
#[no_mangle]
unsafe extern "C" fn cloop_queue_set_table_limit(
    queue: *const c::cloop_queue,
    bytes: u64,
) -> c_int {
    // SAFETY: By the safety requirement of this function.
    let volume = unsafe { queue_of(queue) }.server().volume();
    volume.set_table_limit(bytes);
    0
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

/// Sets the percent of the device's size below which space counts as low; returns 0.
///
/// # Safety
///
/// As [`queue_of`].
#[no_mangle]
unsafe extern "C" fn cloop_queue_set_warn_percent(
    queue: *const c::cloop_queue,
    percent: u64,
) -> c_int {
    // SAFETY: By the safety requirement of this function.
    let volume = unsafe { queue_of(queue) }.server().volume();
    volume.set_warn_percent(percent);
    0
}
