// SPDX-License-Identifier: GPL-2.0
//! Which devices there are. One registry exists.
//!
//! A slot is reserved before an image is opened and freed after it is closed, both of which take time
//! without the lock; until then the slot keeps others from taking its index or its backing file.

use crate::device::Device;
use crate::platform::kernel::Identity;
use core::ops::Deref;
use core::pin::Pin;
use core::ptr::NonNull;
use kernel::prelude::*;

/// Highest number of devices.
pub(crate) const MAX_DEVICES: usize = 1024;

/// One index. Freed -> reserved -> attached (-> held -> attached) -> reserved -> freed.
enum Slot {
    Free,
    /// Being attached or detached.
    Reserved(Identity),
    Attached(Identity, KBox<Device>),
    /// Attached, and kept so by a [`Hold`].
    Held(Identity, KBox<Device>),
}

kernel::sync::global_lock! {
    // SAFETY: `init` initialises it when the module is loaded.
    unsafe(uninit) static SLOTS: Mutex<[Slot; MAX_DEVICES]> = [const { Slot::Free }; MAX_DEVICES];
}

/// Makes the registry ready for use.
///
/// # Safety
///
/// To be called once, before any other function here.
pub(crate) unsafe fn init() {
    // SAFETY: By the safety requirements of this function.
    unsafe { SLOTS.init() };
}

/// A slot in the reserved state; dropping it frees the slot.
pub(crate) struct Reservation {
    index: usize,
    identity: Identity,
}

impl Reservation {
    /// Reserves `wanted`, or the first free index, for the backing file `identity`.
    pub(crate) fn new(wanted: Option<usize>, identity: Identity) -> Result<Self> {
        let mut slots = SLOTS.lock();
        if slots.iter().any(|slot| match slot {
            Slot::Free => false,
            Slot::Reserved(other) | Slot::Attached(other, _) | Slot::Held(other, _) => {
                *other == identity
            }
        }) {
            return Err(EBUSY);
        }
        let index = match wanted {
            Some(index) => match slots.get(index) {
                None => return Err(EINVAL),
                Some(Slot::Free) => index,
                Some(_) => return Err(EEXIST),
            },
            None => slots
                .iter()
                .position(|slot| matches!(slot, Slot::Free))
                .ok_or(ENFILE)?,
        };
        slots[index] = Slot::Reserved(identity);
        Ok(Self { index, identity })
    }

    /// The number of the device.
    pub(crate) fn index(&self) -> usize {
        self.index
    }

    /// Puts the attached device into the slot.
    pub(crate) fn attach(self, device: KBox<Device>) {
        SLOTS.lock()[self.index] = Slot::Attached(self.identity, device);
        core::mem::forget(self);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        SLOTS.lock()[self.index] = Slot::Free;
    }
}

/// Takes a device that nobody has open out of its slot, and keeps it from being opened.
pub(crate) fn retire(index: usize) -> Result<(KBox<Device>, Reservation)> {
    let mut slots = SLOTS.lock();
    let slot = slots.get_mut(index).ok_or(ENXIO)?;
    let identity = match slot {
        Slot::Free => return Err(ENXIO),
        Slot::Reserved(_) | Slot::Held(..) => return Err(EBUSY),
        Slot::Attached(identity, device) => {
            device.retire()?;
            *identity
        }
    };
    match core::mem::replace(slot, Slot::Reserved(identity)) {
        Slot::Attached(_, device) => Ok((device, Reservation { index, identity })),
        // Excluded by the match above.
        Slot::Free | Slot::Reserved(_) | Slot::Held(..) => Err(ENXIO),
    }
}

/// Calls `f` with an attached device.
pub(crate) fn with<R>(index: usize, f: impl FnOnce(&Device) -> Result<R>) -> Result<R> {
    let slots = SLOTS.lock();
    match slots.get(index) {
        Some(Slot::Attached(_, device) | Slot::Held(_, device)) => f(device),
        Some(Slot::Reserved(_)) => Err(EBUSY),
        Some(Slot::Free) | None => Err(ENXIO),
    }
}

/// An attached device that is not detached, nor held by anybody else, until this value is dropped. The
/// registry can be used meanwhile.
///
/// # Invariants
///
/// The slot is in the held state, which only dropping this value ends; `device` points to its device.
pub(crate) struct Hold {
    index: usize,
    device: NonNull<Device>,
}

impl Hold {
    /// Holds a device.
    pub(crate) fn new(index: usize) -> Result<Self> {
        let mut slots = SLOTS.lock();
        let slot = slots.get_mut(index).ok_or(ENXIO)?;
        match slot {
            Slot::Free => return Err(ENXIO),
            Slot::Reserved(_) => return Err(EBUSY),
            Slot::Held(..) => return Err(EALREADY),
            Slot::Attached(..) => {}
        }
        *slot = match core::mem::replace(slot, Slot::Free) {
            Slot::Attached(identity, device) => Slot::Held(identity, device),
            other => other,
        };
        match slot {
            // INVARIANT: The slot has just become held.
            Slot::Held(_, device) => Ok(Self {
                index,
                device: NonNull::from(&**device),
            }),
            // Excluded by the matches above.
            _ => Err(ENXIO),
        }
    }
}

impl Deref for Hold {
    type Target = Device;
    fn deref(&self) -> &Device {
        // SAFETY: By the type invariant, the device is in its slot, and only shared references to it
        // are made meanwhile.
        unsafe { self.device.as_ref() }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(slot) = SLOTS.lock().get_mut(self.index) {
            *slot = match core::mem::replace(slot, Slot::Free) {
                Slot::Held(identity, device) => Slot::Attached(identity, device),
                other => other,
            };
        }
    }
}
