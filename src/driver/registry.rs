// SPDX-License-Identifier: GPL-2.0
//! The registry of devices. One exists.
//!
//! The registry has a slot for each index. A slot is in one of these states:
//!
//! 1. Free: no device has the index.
//! 2. Reserved: a [`Reservation`] exists, and its owner attaches or detaches the device. Meanwhile the slot
//!    keeps the index and the backing file from everyone else.
//! 3. Attached: the slot owns the device.
//! 4. Held: the slot owns the device, and a [`Hold`] uses it. The device is neither detached nor held
//!    again meanwhile.
//!
//! An attach takes a slot from 1 to 2 ([`Reservation::new`]) to 3 ([`Reservation::attach`]). Compacting,
//! resizing and detaching take it from 3 to 4 ([`Hold::new`]), and back by dropping the hold. A detach goes on
//! from 4 to 2 ([`Hold::take`]) to 1 (dropping the reservation).
//!
//! The lock of the registry protects the slots only. Nothing that a device does happens under it, because a
//! backing file can hang: on a network, or behind a server in user space. Such a device must not block
//! others. Who asks for the state of a device gets a reference to its [`Server`], which may live a little longer
//! than the device.

use crate::detach;
use crate::device::Device;
use crate::platform::kernel::Identity;
use crate::server::Server;
use core::ops::Deref;
use core::pin::Pin;
use core::ptr::NonNull;
use kernel::prelude::*;
use kernel::sync::Arc;

/// Number of slots, and so the largest number of devices.
pub(crate) const MAX_DEVICES: usize = 1024;

/// What belongs to one index. The [module](self) describes the states. Every state but the first knows
/// the backing file.
enum Slot {
    Free,
    Reserved(Identity),
    Attached(Identity, KBox<Device>),
    Held(Identity, KBox<Device>, Purpose),
}

/// Whether two images with one UUID may be attached for writing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Twins {
    /// They may not.
    Refuse,
    /// The user says that the second is a copy.
    Allow,
}

/// What a device is held for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// It is compacted or resized.
    Work,
    /// It is detached, if it is not in use.
    Detach,
}

/// The slots, and what concerns all devices.
struct Registry {
    slots: [Slot; MAX_DEVICES],
    /// The UUIDs of the images that are attached for writing, or are about to be.
    uuids: [Option<[u8; 16]>; MAX_DEVICES],
    /// The machine is about to sleep.
    sleeping: bool,
}

kernel::sync::global_lock! {
    // SAFETY: `init` initialises the lock when the module is loaded, before anything uses it.
    unsafe(uninit) static REGISTRY: Mutex<Registry> = Registry {
        slots: [const { Slot::Free }; MAX_DEVICES],
        uuids: [None; MAX_DEVICES],
        sleeping: false,
    };
}

/// Makes the registry ready for use.
///
/// # Safety
///
/// The caller calls this function once, before any other function of this module.
pub(crate) unsafe fn init() {
    // SAFETY: By the safety requirement of this function, the lock is initialised once.
    unsafe { REGISTRY.init() };
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
        let slots = &mut REGISTRY.lock().slots;
        if slots.iter().any(|slot| match slot {
            Slot::Free => false,
            Slot::Reserved(other) | Slot::Attached(other, _) | Slot::Held(other, ..) => {
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

    /// Notes that the slot's image has this UUID and is about to be written to. With [`Twins::Refuse`] no other slot
    /// may have it: the image may be the same one behind another device, and two writers destroy it.
    ///
    /// # Errors
    ///
    /// ENOTUNIQ if another slot has the UUID.
    pub(crate) fn claim(&self, uuid: [u8; 16], twins: Twins) -> Result {
        /// The kernel crate has no name for it.
        const ENOTUNIQ: i32 = 76;
        let uuids = &mut REGISTRY.lock().uuids;
        if twins == Twins::Refuse && uuids.contains(&Some(uuid)) {
            return Err(Error::from_errno(-ENOTUNIQ));
        }
        uuids[self.index] = Some(uuid);
        Ok(())
    }

    /// The number of the device.
    pub(crate) fn index(&self) -> usize {
        self.index
    }

    /// Puts the attached device into the slot (state 2 to 3).
    pub(crate) fn attach(self, device: KBox<Device>) {
        let mut registry = REGISTRY.lock();
        if registry.sleeping {
            device.server().volume().keep_quiet();
        }
        registry.slots[self.index] = Slot::Attached(self.identity, device);
        core::mem::forget(self);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut registry = REGISTRY.lock();
        registry.slots[self.index] = Slot::Free;
        registry.uuids[self.index] = None;
    }
}

/// The server of the device in a slot in state 3 or 4.
///
/// # Errors
///
/// ENXIO if there is no such device, EBUSY if the slot is reserved.
pub(crate) fn server(index: usize) -> Result<Arc<Server>> {
    match REGISTRY.lock().slots.get(index) {
        Some(Slot::Attached(_, device) | Slot::Held(_, device, _)) => Ok(device.server().into()),
        Some(Slot::Reserved(_)) => Err(EBUSY),
        Some(Slot::Free) | None => Err(ENXIO),
    }
}

/// The servers of all devices in state 3 or 4.
fn servers() -> impl Iterator<Item = Arc<Server>> {
    (0..MAX_DEVICES).filter_map(|index| server(index).ok())
}

/// The machine is about to sleep: devices that are attached from here on keep quiet. Returns the servers of
/// those that are attached now.
pub(crate) fn begin_sleep() -> impl Iterator<Item = Arc<Server>> {
    REGISTRY.lock().sleeping = true;
    servers()
}

/// The machine is awake again. Returns the servers of the devices that are attached now.
pub(crate) fn end_sleep() -> impl Iterator<Item = Arc<Server>> {
    REGISTRY.lock().sleeping = false;
    servers()
}

/// The user of a held device. The registry is not locked meanwhile.
///
/// # Invariants
///
/// Slot `index` is `Slot::Held` with the device that `device` points to. Only this value changes the slot.
pub(crate) struct Hold {
    index: usize,
    device: NonNull<Device>,
}

impl Hold {
    /// Holds the device of slot `index` (state 3 to 4).
    ///
    /// # Errors
    ///
    /// ENXIO if there is no such device; EALREADY if it is held for work and is to be held for work; EBUSY if it is
    /// held otherwise, or the slot is reserved.
    pub(crate) fn new(index: usize, purpose: Purpose) -> Result<Self> {
        let mut registry = REGISTRY.lock();
        let slot = registry.slots.get_mut(index).ok_or(ENXIO)?;
        match slot {
            Slot::Free => return Err(ENXIO),
            Slot::Held(_, _, Purpose::Work) if purpose == Purpose::Work => return Err(EALREADY),
            Slot::Reserved(_) | Slot::Held(..) => return Err(EBUSY),
            Slot::Attached(..) => {}
        }
        *slot = match core::mem::replace(slot, Slot::Free) {
            Slot::Attached(identity, device) => Slot::Held(identity, device, purpose),
            other => other,
        };
        match slot {
            // INVARIANT: The slot has just become held.
            Slot::Held(_, device, _) => Ok(Self {
                index,
                device: NonNull::from(&**device),
            }),
            // Excluded by the matches above.
            _ => Err(ENXIO),
        }
    }

    /// Takes the device out of its slot (state 4 to 2).
    ///
    /// # Errors
    ///
    /// None: the slot is held, by the type invariant.
    pub(crate) fn take(self) -> Result<(KBox<Device>, Reservation)> {
        let index = self.index;
        core::mem::forget(self);
        let mut registry = REGISTRY.lock();
        let slot = registry.slots.get_mut(index).ok_or(ENXIO)?;
        match core::mem::replace(slot, Slot::Free) {
            Slot::Held(identity, device, _) => {
                *slot = Slot::Reserved(identity);
                // INVARIANT: The slot has just been reserved; it was held.
                Ok((device, Reservation { index, identity }))
            }
            // Excluded by the type invariant.
            other => {
                *slot = other;
                Err(ENXIO)
            }
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
        if let Some(slot) = REGISTRY.lock().slots.get_mut(self.index) {
            *slot = match core::mem::replace(slot, Slot::Free) {
                Slot::Held(identity, device, _) => {
                    detach::released(&device);
                    Slot::Attached(identity, device)
                }
                other => other,
            };
        }
    }
}
