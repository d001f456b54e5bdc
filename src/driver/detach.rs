// SPDX-License-Identifier: GPL-2.0
//! Detaching a device: now, or as soon as it is not in use.
//!
//! A device with [`Server::autoclear`] becomes unwanted when its last user closes it, and a lazy detach makes a
//! device unwanted at once. Unwanted devices are detached by a work item, because the one who closes a device
//! holds locks of the block layer. If a device cannot be detached because it is used, the next one who closes it
//! or ceases to hold it schedules the work again. While the machine sleeps, nothing is detached.

use crate::c;
use crate::device::Device;
use crate::registry::{self, Hold, Purpose};
use crate::server::Server;
use kernel::prelude::*;

// bindgen reads the declaration in driver.h. The array has a type only if both are the same.
const _: () = {
    let _ = [c::cloop_detach_unwanted, cloop_detach_unwanted];
};

/// Detaches device `index`.
///
/// # Errors
///
/// ENXIO if there is no such device, EBUSY if it is used. Any other error means that the device is gone, but its
/// image was not closed cleanly.
pub(crate) fn now(index: usize) -> Result {
    let hold = Hold::new(index, Purpose::Detach)?;
    hold.retire()?;
    let (device, _reservation) = hold.take()?;
    KBox::into_inner(device).close()
}

/// Detaches device `index` as soon as it is not in use.
///
/// # Errors
///
/// ENXIO if there is no such device. If the device is not in use now, also those of closing it, as [`now`].
pub(crate) fn lazily(index: usize) -> Result {
    registry::server(index)?.give_up();
    match now(index) {
        // It is used, or the work is detaching it.
        Err(e) if e == EBUSY || e == ENXIO => Ok(()),
        result => result,
    }
}

/// Notes that the last user of the device of `server` has closed it. Does not sleep.
pub(crate) fn closed(server: &Server) {
    if server.autoclear() {
        server.give_up();
        schedule();
    }
}

/// Notes that `device` is not held any more. Does not sleep. The caller has the registry locked, so the work does not
/// find the device held.
pub(crate) fn released(device: &Device) {
    // If it is open, it is closed later. Perhaps it was closed while it was held, and the work could do nothing.
    if device.server().given_up() && !device.is_open() {
        schedule();
    }
}

fn schedule() {
    // SAFETY: The function has no preconditions.
    unsafe { c::cloop_detach_schedule() };
}

/// Detaches the devices that are to be detached and are not in use.
///
/// # Safety
///
/// For detach.c only.
#[no_mangle]
unsafe extern "C" fn cloop_detach_unwanted() {
    for index in 0..registry::MAX_DEVICES {
        if registry::server(index).is_ok_and(|server| server.given_up()) {
            // An error of closing the image is in the log. A device that is used is not detached yet.
            let _ = now(index);
        }
    }
}

/// The owner of the work. It is dropped when the module is unloaded.
pub(crate) struct Work(());

impl Work {
    /// # Safety
    ///
    /// The caller drops the value when no device exists, and as the last thing before the module is unloaded that
    /// could schedule the work.
    pub(crate) unsafe fn new() -> Self {
        Self(())
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // SAFETY: Nothing schedules the work any more, by the safety requirement of `new`.
        unsafe { c::cloop_detach_stop() };
    }
}
