// SPDX-License-Identifier: GPL-2.0
//! cloop: a read-write compressed loop device.
//!
//! The driver turns block requests into calls of the engine and holds no storage logic. From the top:
//!
//! - [`control`]: the ioctls of `/dev/cloop-control`,
//! - [`registry`]: the devices that exist,
//! - [`device`]: one attached device,
//! - [`detach`]: how it goes, now or when its last user has gone,
//! - [`power`]: what devices do when the machine sleeps,
//! - [`sysfs`], [`info`]: what user space is told of a device,
//! - [`queue`]: what the block layer calls,
//! - [`lane`]: which requests do not wait for each other,
//! - [`shrinker`]: memory that a device gives back,
//! - [`server`]: the part of a device that serves requests,
//! - [`pool`]: the memory that it serves them with,
//! - [`error`]: the engine's errors as the kernel's,
//! - [`block`]: the block layer, wrapped,
//! - [`capability`], [`module_reference`], [`parameter`], [`ratelimit`], [`uapi`]: smaller parts of the
//!   kernel, wrapped.

mod block;
#[path = "bindings.rs"]
mod c;
mod capability;
mod control;
mod detach;
mod device;
// The engine and the platform are a library as well; the module uses a part of it.
#[allow(dead_code, unreachable_pub, unused_imports)]
#[path = "../engine/mod.rs"]
mod engine;
mod error;
mod info;
mod lane;
mod module_reference;
mod parameter;
#[allow(dead_code, unreachable_pub)]
#[path = "../platform/mod.rs"]
mod platform;
mod pool;
mod power;
mod queue;
mod ratelimit;
mod registry;
mod server;
mod shrinker;
mod sysfs;
mod uapi;

use kernel::miscdevice::MiscDeviceRegistration;
use kernel::prelude::*;

module! {
    type: CloopModule,
    name: "cloop",
    authors: ["The cloop developers"],
    description: "Read-write compressed loop device",
    license: "GPL",
}

/// The module. It owns the control device and the notifier of sleep only: attached devices hold references to the module, so none
/// is left when it is unloaded.
#[pin_data]
struct CloopModule {
    #[pin]
    _control: MiscDeviceRegistration<control::Control>,
    _power: power::Power,
    // The last field: without the control device there is no device to be attached or closed.
    _detach: detach::Work,
}

impl kernel::InPlaceModule for CloopModule {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        // SAFETY: A module is initialised once, and nothing uses the registry before the control
        // device is registered.
        unsafe { registry::init() };

        try_pin_init!(Self {
            _power: power::Power::new()?,
            _control <- control::register(),
            // SAFETY: The module drops it after the control device. It is unloaded only without devices.
            _detach: unsafe { detach::Work::new() },
        })
    }
}
