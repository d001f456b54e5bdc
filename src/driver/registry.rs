// SPDX-License-Identifier: GPL-2.0
//! The registry of devices. One exists.
//!
//! The registry has a slot for each index. A slot is in one of these states:
//!
//! 1. Free: no device has the index.
//! 2. Reserved: a [`Reservation`] exists, and its owner attaches or detaches the device. That takes time
//!    and does not hold the registry's lock; meanwhile the slot keeps the index and the backing file
//!    from everyone else.
//! 3. Attached: the slot owns the device, and anyone can use it through [`with`].
//! 4. Held: the slot owns the device, and a [`Hold`] uses it for longer than the lock can be held. The
//!    device is neither detached nor held again meanwhile.
//!
//! An attach takes a slot from 1 to 2 ([`Reservation::new`]) to 3 ([`Reservation::attach`]). A detach
//! takes it from 3 to 2 ([`retire`]) to 1 (dropping the reservation). Compacting and resizing take it
//! from 3 to 4 ([`Hold::new`]) and back (dropping the hold).

use crate::device::Device;
use crate::platform::kernel::Identity;
use core::ops::Deref;
use core::pin::Pin;
use core::ptr::NonNull;
use kernel::prelude::*;

/// Number of slots, and so the largest number of devices.
pub(crate) const MAX_DEVICES: usize = 1024;

/// What belongs to one index. The [module](self) describes the states. Every state but the first knows
/// the backing file.
enum Slot {
    Free,
    Reserved(Identity),
    Attached(Identity, KBox<Device>),
    Held(Identity, KBox<Device>),
}

kernel::sync::global_lock! {
    // SAFETY: `init` initialises the lock when the module is loaded, before anything uses it.
    unsafe(uninit) static SLOTS: Mutex<[Slot; MAX_DEVICES]> = [const { Slot::Free }; MAX_DEVICES];
}

/// Makes the registry ready for use.
///
/// # Safety
///
/// The caller calls this function once, before any other function of this module.
pub(crate) unsafe fn init() {
    // SAFETY: By the safety requirement of this function, the lock is initialised once.
    unsafe { SLOTS.init() };
}

/// The owner of a reserved slot. Dropping it frees the slot.
///
/// # Invariants
///
/// Slot `index` is `Slot::Reserved(identity)`, and no other reservation of it exists.
pub(crate) struct Reservation {
    index: usize,
    identity: Identity,
}

impl Reservation {
    /// Reserves the slot `wanted`, or the first free one, for the backing file `identity` (state 1 to 2).
    ///
    /// # Errors
    ///
    /// EBUSY if another slot has the backing file, EEXIST if `wanted` is taken, EINVAL if it is out of
    /// range, ENFILE if no slot is free.
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
        // INVARIANT: The slot has just been reserved; it was free.
        Ok(Self { index, identity })
    }

    /// The number of the device.
    pub(crate) fn index(&self) -> usize {
        self.index
    }

    /// Puts the attached device into the slot (state 2 to 3).
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

/// Takes a device out of its slot and keeps it from being opened (state 3 to 2).
///
/// # Errors
///
/// ENXIO if there is no such device; EBUSY if its block device is open, or the slot is reserved or held.
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
        // INVARIANT: The slot has just been reserved; it was attached.
        Slot::Attached(_, device) => Ok((device, Reservation { index, identity })),
        // Excluded by the match above.
        Slot::Free | Slot::Reserved(_) | Slot::Held(..) => Err(ENXIO),
    }
}

/// Calls `f` with the device of a slot in state 3 or 4, with the registry locked.
///
/// # Errors
///
/// ENXIO if there is no such device, EBUSY if the slot is reserved, and the errors of `f`.
pub(crate) fn with<R>(index: usize, f: impl FnOnce(&Device) -> Result<R>) -> Result<R> {
    let slots = SLOTS.lock();
    match slots.get(index) {
        Some(Slot::Attached(_, device) | Slot::Held(_, device)) => f(device),
        Some(Slot::Reserved(_)) => Err(EBUSY),
        Some(Slot::Free) | None => Err(ENXIO),
    }
}

/// The user of a held device. The registry is not locked meanwhile.
///
/// # Invariants
///
/// Slot `index` is `Slot::Held` with the device that `device` points to. Only dropping this value changes
/// the slot.
pub(crate) struct Hold {
    index: usize,
    device: NonNull<Device>,
}

impl Hold {
    /// Holds the device of slot `index` (state 3 to 4).
    ///
    /// # Errors
    ///
    /// ENXIO if there is no such device, EBUSY if the slot is reserved, EALREADY if it is held.
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
        // SAFETY: By the type invariant, the slot owns the device as long as `self` exists, and the
        // functions of this module make only shared references to a device in its slot.
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
