// SPDX-License-Identifier: GPL-2.0
//! Sleep of the machine: what the devices do before and after it. power.c describes the steps.

use crate::c;
use crate::platform::kernel::call;
use crate::registry;
use kernel::error::to_result;
use kernel::prelude::*;

/// The part of the module that takes notice of hibernation and suspend. Dropping it waits for calls that are
/// under way.
pub(crate) struct Power(());

impl Power {
    /// Registers the notifier. The registry is ready for use.
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: The caller is the initialisation of the module, so the function is called once.
        to_result(unsafe { c::cloop_power_init() })?;
        Ok(Self(()))
    }
}

impl Drop for Power {
    fn drop(&mut self) {
        // SAFETY: `new` has called `cloop_power_init`.
        unsafe { c::cloop_power_exit() };
    }
}

// bindgen reads the declarations in driver.h. The arrays have a type only if those are the same.
const _: () = {
    let _ = [c::cloop_devices_quiesce, cloop_devices_quiesce];
    let _ = [c::cloop_devices_wake, cloop_devices_wake];
};

/// Brings all devices to rest.
///
/// # Safety
///
/// For power.c only.
#[no_mangle]
unsafe extern "C" fn cloop_devices_quiesce() {
    for server in registry::begin_sleep() {
        let index = server.index();
        if let Err(error) = call(|| server.volume().quiesce()) {
            // The machine may sleep all the same: recovery replays what is not in a checkpoint.
            pr_warn!("cloop{index}: no checkpoint before sleep: {error}\n");
        }
    }
}

/// Lets background work begin again.
///
/// # Safety
///
/// For power.c only.
#[no_mangle]
unsafe extern "C" fn cloop_devices_wake() {
    for server in registry::end_sleep() {
        server.volume().wake();
    }
}
