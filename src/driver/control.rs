// SPDX-License-Identifier: GPL-2.0
//! `/dev/cloop-control`: attaching, detaching and asking. See `include/uapi/linux/cloop.h`.

use crate::c;
use crate::device::Device;
use crate::engine::Algorithm;
use crate::platform::kernel::{file_of, identity, KernelFile};
use crate::registry::{self, Reservation};
use kernel::fs::File;
use kernel::ioctl::_IOC_SIZE;
use kernel::miscdevice::{MiscDevice, MiscDeviceRegistration};
use kernel::prelude::*;
use kernel::transmute::{AsBytes, FromBytes};
use kernel::uaccess::{UserPtr, UserSlice};

/// The version that the module reports: Kbuild takes it from Cargo.toml.
const VERSION: &str = env!("CLOOP_VERSION");

// SAFETY: Plain integers without padding: every byte is initialised.
unsafe impl AsBytes for c::cloop_version {}
// SAFETY: As above, and any bytes are valid.
unsafe impl AsBytes for c::cloop_attach {}
// SAFETY: As above.
unsafe impl FromBytes for c::cloop_attach {}
// SAFETY: As above.
unsafe impl FromBytes for c::cloop_detach {}
// SAFETY: As above.
unsafe impl AsBytes for c::cloop_info {}
// SAFETY: As above.
unsafe impl FromBytes for c::cloop_info {}

// What user space sees; padding would give away kernel memory.
const _: () = {
    assert!(VERSION.len() < c::CLOOP_VERSION_LEN as usize);
    assert!(size_of::<c::cloop_version>() == 32);
    assert!(size_of::<c::cloop_attach>() == 16);
    assert!(size_of::<c::cloop_detach>() == 8);
    assert!(size_of::<c::cloop_info>() == 576);
};

/// An open control device. It has no state.
pub(crate) struct Control;

#[vtable]
impl MiscDevice for Control {
    type Ptr = KBox<Self>;

    fn open(_file: &File, _misc: &MiscDeviceRegistration<Self>) -> Result<KBox<Self>> {
        Ok(KBox::new(Self, GFP_KERNEL)?)
    }

    fn ioctl(_control: &Self, _file: &File, cmd: u32, arg: usize) -> Result<isize> {
        let slice = UserSlice::new(UserPtr::from_addr(arg), _IOC_SIZE(cmd));
        // The numbers contain the sizes of the structures.
        match cmd {
            c::CLOOP_CTL_VERSION => slice.writer().write(&version())?,
            c::CLOOP_CTL_ATTACH => {
                check_permission()?;
                let (mut reader, mut writer) = slice.reader_writer();
                let mut args = reader.read::<c::cloop_attach>()?;
                args.index = attach(&args)? as i32;
                // Nobody can tell the caller about a device if this fails; it stays attached.
                writer.write(&args)?;
            }
            c::CLOOP_CTL_DETACH => {
                check_permission()?;
                detach(&slice.reader().read()?)?;
            }
            c::CLOOP_CTL_INFO => {
                check_permission()?;
                let (mut reader, mut writer) = slice.reader_writer();
                writer.write(&info(&reader.read()?)?)?;
            }
            _ => return Err(ENOTTY),
        }
        Ok(0)
    }
}

fn check_permission() -> Result {
    // SAFETY: It has no preconditions.
    if unsafe { c::capable(c::CAP_SYS_ADMIN as c_int) } {
        Ok(())
    } else {
        Err(EPERM)
    }
}

fn version() -> c::cloop_version {
    let mut version = c::cloop_version {
        abi: c::CLOOP_ABI_VERSION,
        ..Default::default()
    };
    for (to, from) in version.module_version.iter_mut().zip(VERSION.as_bytes()) {
        *to = *from;
    }
    version
}

fn attach(args: &c::cloop_attach) -> Result<usize> {
    if args.flags & !c::CLOOP_FLAG_READ_ONLY != 0 || args.reserved != 0 {
        return Err(EINVAL);
    }
    let wanted = match args.index {
        -1 => None,
        index => Some(usize::try_from(index).map_err(|_| EINVAL)?),
    };
    let read_only = args.flags & c::CLOOP_FLAG_READ_ONLY != 0;
    let file = file_of(args.fd, !read_only)?;
    let reservation = Reservation::new(wanted, identity(&file))?;
    let index = reservation.index();
    let device = Device::attach(index, KernelFile::new(file, !read_only)?, read_only)?;
    reservation.attach(device);
    Ok(index)
}

fn index_of(index: i32) -> Result<usize> {
    usize::try_from(index).map_err(|_| ENXIO)
}

fn detach(args: &c::cloop_detach) -> Result {
    if args.flags != 0 {
        return Err(EINVAL);
    }
    let (device, _reservation) = registry::retire(index_of(args.index)?)?;
    KBox::into_inner(device).close()
}

fn info(args: &c::cloop_info) -> Result<c::cloop_info> {
    let index = index_of(args.index)?;
    let asked = c::cloop_info {
        index: args.index,
        ..Default::default()
    };
    if args.as_bytes() != asked.as_bytes() {
        return Err(EINVAL);
    }
    registry::with(index, |device| describe(asked, device))
}

fn describe(mut info: c::cloop_info, device: &Device) -> Result<c::cloop_info> {
    let geometry = device.geometry();
    let state = device.state();
    let stats = device.stats()?;
    let file = device.file();
    let stat = file.stat()?;
    let mut path = [0; c::CLOOP_PATH_LEN as usize];
    let path = file.path(&mut path).unwrap_or(c"");

    for (flag, set) in [
        (c::CLOOP_FLAG_READ_ONLY, device.read_only()),
        (c::CLOOP_FLAG_DIRECT_IO, file.direct()),
        (c::CLOOP_FLAG_RECOVERED, !state.clean_at_open),
        (c::CLOOP_FLAG_FAILED, state.error.is_some()),
    ] {
        if set {
            info.flags |= flag;
        }
    }
    info.size = geometry.size;
    info.record_size = geometry.record_size;
    info.algorithm = match geometry.algorithm {
        Algorithm::Raw => c::CLOOP_ALGORITHM_NONE,
        Algorithm::Lz4 => c::CLOOP_ALGORITHM_LZ4,
    };
    info.uuid = geometry.uuid;
    info.segment_size = geometry.segment_size;
    info.error = state.error.map_or(0, |error| error.errno() as u32);
    info.mapped_blocks = stats.mapped_blocks;
    info.live_bytes = stats.live_bytes;
    info.stored_bytes = stats.stored_bytes;
    info.allocated_bytes = stats.allocated_bytes;
    info.segments = stats.segments;
    info.free_segments = stats.free_segments;
    info.table_memory = stats.table_memory;
    info.bytes_written = stats.bytes_written;
    info.bytes_read = stats.bytes_read;
    info.log_bytes = stats.log_bytes;
    info.flushes = stats.flushes;
    info.syncs = stats.syncs;
    info.checkpoints = stats.checkpoints;
    info.damaged = stats.damaged;
    info.errors = stats.errors;
    info.replayed = stats.replayed;
    info.backing_dev = stat.dev;
    info.backing_ino = stat.ino;
    for (to, from) in info.backing_file.iter_mut().zip(path.to_bytes()) {
        *to = *from;
    }
    Ok(info)
}
