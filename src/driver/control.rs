// SPDX-License-Identifier: GPL-2.0
//! `/dev/cloop-control`: the ioctls that attach, detach, describe, compact, resize and set up devices.
//! `include/uapi/linux/cloop.h` documents them. `control.c` names the device to the programs that load modules.

use crate::c;
use crate::capability::sys_admin;
use crate::detach;
use crate::device::Device;
use crate::engine::{Access, Algorithm, Compression, Volume};
use crate::error::errno;
use crate::info::describe;
use crate::platform::kernel::{file_of, identity, Kernel, KernelFile};
use crate::registry::{self, Hold, Purpose, Reservation, Twins};
use kernel::error::to_result;
use kernel::fs::File;
use kernel::ioctl::_IOC_SIZE;
use kernel::miscdevice::{MiscDevice, MiscDeviceOptions, MiscDeviceRegistration};
use kernel::prelude::*;
use kernel::transmute::AsBytes;
use kernel::uaccess::{UserPtr, UserSlice};

/// The version that the module reports: Kbuild takes it from Cargo.toml.
const VERSION: &str = env!("CLOOP_VERSION");

const _: () = assert!(VERSION.len() < c::CLOOP_VERSION_LEN as usize);

/// An open control device. It has no state.
pub(crate) struct Control;

/// Registers the control device. [`MiscDeviceRegistration::register`] cannot, because it knows no fixed minor number.
///
/// # Errors
///
/// EBUSY if another driver has the minor number; the error is logged.
pub(crate) fn register() -> impl PinInit<MiscDeviceRegistration<Control>, Error> {
    let register = |slot: *mut MiscDeviceRegistration<Control>| {
        let raw = slot.cast::<c::miscdevice>();
        let device = c::miscdevice {
            minor: c::CLOOP_CONTROL_MINOR as c_int,
            ..MiscDeviceOptions {
                name: c"cloop-control",
            }
            .into_raw::<Control>()
        };
        // SAFETY: `slot` is valid for writes and pinned. A registration has the layout of a `struct miscdevice`,
        // and what unregisters it is its destructor, which runs before the memory is freed.
        // INVARIANT: The device comes from `into_raw`, and without an error it is registered.
        let result = to_result(unsafe {
            raw.write(device);
            c::misc_register(raw)
        });
        result.inspect_err(|error| {
            let minor = c::CLOOP_CONTROL_MINOR;
            let errno = error.to_errno();
            pr_err!("cannot make the control device, minor number {minor}: error {errno}\n");
        })
    };
    // SAFETY: The closure initialises the slot and returns `Ok`, or returns an error and leaves nothing that would
    // have to be dropped. The slot is not moved.
    unsafe { pin_init::pin_init_from_closure(register) }
}

#[vtable]
impl MiscDevice for Control {
    type Ptr = KBox<Self>;

    fn open(_file: &File, _misc: &MiscDeviceRegistration<Self>) -> Result<KBox<Self>> {
        Ok(KBox::new(Self, GFP_KERNEL)?)
    }

    fn ioctl(_control: &Self, _file: &File, cmd: u32, arg: usize) -> Result<isize> {
        let user = UserSlice::new(UserPtr::from_addr(arg), _IOC_SIZE(cmd));
        // The number of a command contains the size of its structure.
        match cmd {
            c::CLOOP_CTL_VERSION => version(user)?,
            c::CLOOP_CTL_ATTACH => attach(user)?,
            c::CLOOP_CTL_DETACH => detach_device(user)?,
            c::CLOOP_CTL_INFO => info(user)?,
            c::CLOOP_CTL_COMPACT => compact(user)?,
            c::CLOOP_CTL_RESIZE => resize(user)?,
            c::CLOOP_CTL_SET => set(user)?,
            c::CLOOP_CTL_RECOMPRESS => recompress(user)?,
            _ => return Err(ENOTTY),
        }
        Ok(0)
    }
}

// A function for each command, so that only one command's structures are on the stack at a time.

#[inline(never)]
fn version(user: UserSlice) -> Result {
    let mut version = c::cloop_version {
        abi: c::CLOOP_ABI_VERSION,
        ..Default::default()
    };
    for (to, from) in version.module_version.iter_mut().zip(VERSION.as_bytes()) {
        *to = *from;
    }
    user.writer().write(&version)
}

#[inline(never)]
fn attach(user: UserSlice) -> Result {
    sys_admin()?;
    let (mut reader, mut writer) = user.reader_writer();
    let mut args = reader.read::<c::cloop_attach>()?;
    let known = c::CLOOP_FLAG_READ_ONLY | c::CLOOP_FLAG_AUTOCLEAR | c::CLOOP_ATTACH_FORCE;
    if args.flags & !known != 0 || args.reserved != 0 {
        return Err(EINVAL);
    }
    let wanted = match args.index {
        -1 => None,
        index => Some(usize::try_from(index).map_err(|_| EINVAL)?),
    };
    let access = match args.flags & c::CLOOP_FLAG_READ_ONLY {
        0 => Access::Write,
        _ => Access::Read,
    };
    let file = file_of(args.fd, access)?;
    let reservation = Reservation::new(wanted, identity(&file))?;
    let index = reservation.index();
    let file = KernelFile::new(file, access)?;
    if access == Access::Write {
        let twins = match args.flags & c::CLOOP_ATTACH_FORCE {
            0 => Twins::Refuse,
            _ => Twins::Allow,
        };
        let uuid = Volume::<Kernel>::uuid_of(&file).map_err(errno)?;
        reservation.claim(uuid, twins)?;
    }
    let device = Device::attach(index, file, access)?;
    if args.flags & c::CLOOP_FLAG_AUTOCLEAR != 0 {
        device.server().set_autoclear();
    }
    reservation.attach(device);
    args.index = index as i32;
    // If this fails, the caller does not learn the index; the device stays attached.
    writer.write(&args)
}

#[inline(never)]
fn detach_device(user: UserSlice) -> Result {
    sys_admin()?;
    let args = user.reader().read::<c::cloop_detach>()?;
    let index = index_of(args.index)?;
    match args.flags {
        0 => detach::now(index),
        c::CLOOP_DETACH_LAZY => detach::lazily(index),
        _ => Err(EINVAL),
    }
}

#[inline(never)]
fn info(user: UserSlice) -> Result {
    sys_admin()?;
    let (mut reader, mut writer) = user.reader_writer();
    let mut args = reader.read::<c::cloop_info>()?;
    let index = index_of(args.index)?;
    args.index = 0;
    if args.as_bytes().iter().any(|&byte| byte != 0) {
        return Err(EINVAL);
    }
    describe(&*registry::server(index)?, &mut args)?;
    writer.write(&args)
}

#[inline(never)]
fn compact(user: UserSlice) -> Result {
    sys_admin()?;
    let args = user.reader().read::<c::cloop_compact>()?;
    if args.flags != 0 {
        return Err(EINVAL);
    }
    Hold::new(index_of(args.index)?, Purpose::Work)?.compact()
}

#[inline(never)]
fn resize(user: UserSlice) -> Result {
    sys_admin()?;
    let args = user.reader().read::<c::cloop_resize>()?;
    if args.flags & !c::CLOOP_RESIZE_FORCE != 0 {
        return Err(EINVAL);
    }
    let force = args.flags & c::CLOOP_RESIZE_FORCE != 0;
    Hold::new(index_of(args.index)?, Purpose::Work)?.resize(args.size, force)
}

#[inline(never)]
fn set(user: UserSlice) -> Result {
    sys_admin()?;
    let args = user.reader().read::<c::cloop_set>()?;
    let given = |flag, values: &[u32]| match args.flags & flag {
        // What is not given is zero.
        0 if values.iter().any(|&value| value != 0) => Err(EINVAL),
        0 => Ok(false),
        _ => Ok(true),
    };
    let compression = given(c::CLOOP_SET_COMPRESSION, &[args.algorithm, args.level])?;
    let again = [args.recompress_algorithm, args.recompress_level];
    let recompression = given(c::CLOOP_SET_RECOMPRESSION, &again)?;
    let after = given(c::CLOOP_SET_RECOMPRESS_AFTER, &[args.recompress_after])?;
    let rate = given(c::CLOOP_SET_RECOMPRESS_RATE, &[args.recompress_rate])?;
    let known = c::CLOOP_SET_COMPRESSION
        | c::CLOOP_SET_RECOMPRESSION
        | c::CLOOP_SET_RECOMPRESS_AFTER
        | c::CLOOP_SET_RECOMPRESS_RATE;
    if args.flags & !known != 0 || args.flags == 0 {
        return Err(EINVAL);
    }
    // All of it is looked at before any of it is changed.
    let compression = match compression {
        true => Some(compression_of(args.algorithm, args.level)?),
        false => None,
    };
    let again = compression_of(args.recompress_algorithm, args.recompress_level)?;
    let server = registry::server(index_of(args.index)?)?;
    if let Some(compression) = compression {
        server.set_compression(compression)?;
    }
    if !(recompression || after || rate) {
        return Ok(());
    }
    server.change_recompression(|now| {
        if recompression {
            now.compression = Some(again).filter(|again| again.algorithm() != Algorithm::Raw);
        }
        if after {
            now.after = args.recompress_after;
        }
        if rate {
            now.rate = args.recompress_rate;
        }
    })
}

#[inline(never)]
fn recompress(user: UserSlice) -> Result {
    sys_admin()?;
    let args = user.reader().read::<c::cloop_recompress>()?;
    if args.flags != 0 {
        return Err(EINVAL);
    }
    let compression = compression_of(args.algorithm, args.level)?;
    Hold::new(index_of(args.index)?, Purpose::Work)?.recompress(compression)
}

fn compression_of(algorithm: u32, level: u32) -> Result<Compression> {
    let level = u8::try_from(level).map_err(|_| EINVAL)?;
    u8::try_from(algorithm)
        .ok()
        .and_then(Algorithm::from_tag)
        .and_then(|algorithm| Compression::new(algorithm, level))
        .ok_or(EINVAL)
}

fn index_of(index: i32) -> Result<usize> {
    usize::try_from(index).map_err(|_| ENXIO)
}
