// SPDX-License-Identifier: GPL-2.0 OR MIT
//! `cloop set`: change settings of an image.

use crate::control::{Control, Settings};
use crate::create::parse_compression;
use crate::device;
use crate::fail::{self, fail};
use crate::image;
use crate::output;
use crate::resize::refused;
use crate::size;
use anyhow::Result;
use cloop::engine::{Access, Algorithm, Compression, Volume};
use cloop::platform::std::Std;
use std::path::PathBuf;
use std::process::ExitCode;

/// Change the compression of an image, attached or not.
///
/// A new compression applies to what is written from now on; what is stored already stays as it is. Recompression is the work of a device
/// that is idle: it compresses data again that was not written for some time, and joins what was written in small pieces.
#[derive(clap::Args)]
#[command(group(clap::ArgGroup::new("settings").required(true).multiple(true)))]
pub(crate) struct Args {
    /// Compression of new data: lz4 (fast), zstd or zstd:1 to zstd:19 (smaller), or none
    #[arg(short, long, value_name = "ALGORITHM[:LEVEL]", value_parser = parse_compression, group = "settings")]
    compress: Option<Compression>,
    /// Compression that data gets when it has not been written for some time and the device is idle; none: it stays as it was written
    #[arg(short, long, value_name = "ALGORITHM[:LEVEL]", value_parser = parse_compression, group = "settings")]
    recompress: Option<Compression>,
    /// Seconds without a write after which data is compressed again
    #[arg(long, value_name = "SECONDS", group = "settings")]
    recompress_after: Option<u32>,
    /// Most data that is compressed again in a second, such as 20M; 0 for no bound
    #[arg(long, value_name = "SIZE", value_parser = parse_rate, group = "settings")]
    recompress_rate: Option<u32>,
    /// Change an image although one with its UUID is attached
    #[arg(short, long)]
    force: bool,
    /// Device such as /dev/cloop0, or an image that is not attached
    #[arg(value_name = "IMAGE|DEVICE")]
    image: PathBuf,
}

/// Reads a number of bytes a second, and returns KiB.
fn parse_rate(text: &str) -> Result<u32, String> {
    let bytes = size::parse(text)?;
    u32::try_from(bytes.div_ceil(1024)).map_err(|_| "it is too large".to_string())
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let settings = Settings {
        compression: args.compress,
        recompression: args.recompress,
        after: args.recompress_after,
        rate: args.recompress_rate,
    };
    match device::index_of(&args.image) {
        Some(index) => of_device(&settings, index)?,
        None => of_image(args, &settings)?,
    }
    let image = output::shown(&args.image);
    if let Some(compression) = args.compress {
        output::print(&format!(
            "{image}: new data is compressed with {compression}\n"
        ))?;
    }
    match args
        .recompress
        .map(|compression| (compression, compression.algorithm()))
    {
        None => {}
        Some((_, Algorithm::Raw)) => {
            output::print(&format!(
                "{image}: data stays compressed as it was written\n"
            ))?;
        }
        Some((compression, _)) => {
            output::print(&format!(
                "{image}: data is compressed again with {compression} when the device is idle\n"
            ))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn of_device(settings: &Settings, index: u32) -> Result<()> {
    let (control, node) = (Control::open()?, device::node(index));
    if control.info(index)?.is_none() {
        return Err(fail(&node, "nothing is attached; see `cloop list`"));
    }
    let set = control.set(index, settings);
    set.map_err(|errno| refused(&node, errno))
}

fn of_image(args: &Args, settings: &Settings) -> Result<()> {
    let path = &args.image;
    let file = image::open_to_change(path, args.force.into())?;
    let error = |e| fail::engine(path, e);
    let volume = Volume::<Std>::open(image::backing(path, file)?, Access::Write).map_err(error)?;
    let compression = settings.compression;
    let set = compression.map_or(Ok(()), |compression| volume.set_compression(compression));
    let set = set.and_then(|()| {
        volume.change_recompression(|now| {
            if let Some(again) = settings.recompression {
                now.compression = Some(again).filter(|again| again.algorithm() != Algorithm::Raw);
            }
            now.after = settings.after.unwrap_or(now.after);
            now.rate = settings.rate.unwrap_or(now.rate);
        })
    });
    // Close the image also after a failure, so that it is left clean.
    let closed = volume.close().map_err(error);
    set.map_err(error).and(closed)
}
