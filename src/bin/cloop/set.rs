// SPDX-License-Identifier: GPL-2.0 OR MIT
//! `cloop set`: change settings of an image.

use crate::control::Control;
use crate::create::parse_compression;
use crate::device;
use crate::fail::{self, fail};
use crate::image;
use crate::output;
use crate::resize::refused;
use anyhow::Result;
use cloop::engine::{Access, Compression, Volume};
use cloop::platform::std::Std;
use std::path::PathBuf;
use std::process::ExitCode;

/// Change the compression of an image, attached or not.
///
/// The new compression applies to what is written from now on. What is stored already stays as it is.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Compression of new data: lz4 (fast), zstd or zstd:1 to zstd:19 (smaller), or none
    #[arg(short, long, value_name = "ALGORITHM[:LEVEL]", value_parser = parse_compression)]
    compress: Compression,
    /// Change an image although one with its UUID is attached
    #[arg(short, long)]
    force: bool,
    /// Device such as /dev/cloop0, or an image that is not attached
    #[arg(value_name = "IMAGE|DEVICE")]
    image: PathBuf,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    match device::index_of(&args.image) {
        Some(index) => of_device(args, index)?,
        None => of_image(args)?,
    }
    output::print(&format!(
        "{}: new data is compressed with {}\n",
        output::shown(&args.image),
        args.compress
    ))?;
    Ok(ExitCode::SUCCESS)
}

fn of_device(args: &Args, index: u32) -> Result<()> {
    let (control, node) = (Control::open()?, device::node(index));
    if control.info(index)?.is_none() {
        return Err(fail(&node, "nothing is attached; see `cloop list`"));
    }
    let set = control.set_compression(index, args.compress);
    set.map_err(|errno| refused(&node, errno))
}

fn of_image(args: &Args) -> Result<()> {
    let path = &args.image;
    let file = image::open_to_change(path, args.force.into())?;
    let error = |e| fail::engine(path, e);
    let volume = Volume::<Std>::open(image::backing(path, file)?, Access::Write).map_err(error)?;
    let set = volume.set_compression(args.compress).map_err(error);
    // Close the image also after a failure, so that it is left clean.
    let closed = volume.close().map_err(error);
    set.and(closed)
}
