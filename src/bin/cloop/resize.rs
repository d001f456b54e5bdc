// SPDX-License-Identifier: GPL-2.0 OR MIT
//! `cloop resize`: change the size of a device.

use crate::control::Control;
use crate::device;
use crate::fail::{self, fail};
use crate::image;
use crate::output;
use crate::size::{self, Change};
use anyhow::Result;
use cloop::engine::Access;
use cloop::engine::Volume;
use cloop::platform::std::Std;
use rustix::io::Errno;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Change the size of a device, attached or not.
///
/// To grow, enlarge first the device and then its file system (resize2fs, xfs_growfs). To shrink, shrink
/// first the file system and then the device. A device with data beyond the new end is not changed unless
/// --force is given.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// New size, a multiple of 4K, up to 1P; +SIZE and -SIZE change the size by this amount
    #[arg(short, long, value_parser = size::parse_change, allow_hyphen_values = true)]
    size: Change,
    /// Discard data beyond the new end; resize an image although one with its UUID is attached
    #[arg(short, long)]
    force: bool,
    /// Device such as /dev/cloop0, or an image that is not attached
    #[arg(value_name = "IMAGE|DEVICE")]
    image: PathBuf,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let (old, new) = match device::index_of(&args.image) {
        Some(index) => of_device(args, index)?,
        None => of_image(args)?,
    };
    output::print(&format!(
        "{}: {}, was {}\n",
        output::shown(&args.image),
        size::both(new),
        size::both(old)
    ))?;
    Ok(ExitCode::SUCCESS)
}

fn wanted(args: &Args, old: u64) -> Result<u64> {
    (args.size.apply(old)).map_err(|sentence| fail(&args.image, sentence))
}

fn of_device(args: &Args, index: u32) -> Result<(u64, u64)> {
    let control = Control::open()?;
    let node = device::node(index);
    let Some(info) = control.info(index)? else {
        return Err(fail(&node, "nothing is attached; see `cloop list`"));
    };
    let (old, new) = (info.size, wanted(args, info.size)?);
    (control.resize(index, new, args.force)).map_err(|errno| refused(&node, errno))?;
    Ok((old, new))
}

/// The sentence for an attached image that the module refused to resize or compact.
pub(crate) fn refused(node: &Path, errno: Errno) -> anyhow::Error {
    match errno {
        Errno::BUSY => fail(
            node,
            "there is data beyond the new end of the device; shrink the file system first, or \
             discard it with --force",
        ),
        Errno::ALREADY => fail(
            node,
            "is being resized or compacted; wait until that has ended",
        ),
        Errno::ROFS => fail(
            node,
            "read-only; detach it and attach its image for writing",
        ),
        Errno::NXIO | Errno::NODEV => fail(node, "nothing is attached; see `cloop list`"),
        Errno::NOTTY => fail(
            node,
            "the loaded module is too old for this; load that of the same release as this tool",
        ),
        errno => fail::io(node, &errno.into()),
    }
}

fn of_image(args: &Args) -> Result<(u64, u64)> {
    let path = &args.image;
    let file = image::open_to_change(path, args.force.into())?;
    let error = |e| fail::engine(path, e);
    let volume = Volume::<Std>::open(image::backing(path, file)?, Access::Write).map_err(error)?;
    let old = volume.size().bytes();
    let resized = wanted(args, old).and_then(|new| {
        let mut workspace = volume.workspace().map_err(error)?;
        volume
            .resize(&mut workspace, new, args.force)
            .map_err(error)?;
        Ok(new)
    });
    // Close the image also after a failure, so that it is left clean.
    let closed = volume.close().map_err(error);
    let new = resized?;
    closed?;
    Ok((old, new))
}
