// SPDX-License-Identifier: GPL-2.0 OR MIT
//! `cloop create`: an empty image.

use crate::fail;
use crate::image;
use crate::size;
use crate::target::Target;
use anyhow::Result;
use cloop::engine::{
    Algorithm, Codec, Compression, CreateOptions, Recompression, Volume, DEFAULT_SEGMENT_SIZE,
};
use cloop::platform::std::Std;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Make an empty image.
///
/// The image takes almost no space until data is written to its device.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Size of the device, a multiple of 4K, up to 1P
    #[arg(short, long, value_parser = size::parse_device)]
    size: u64,
    #[command(flatten)]
    format: Format,
    /// Overwrite an image, or a block device that is not empty
    #[arg(short, long)]
    force: bool,
    /// File or block device to put the image into
    image: PathBuf,
}

/// Properties of a new image, chosen with `create` and `import`.
#[derive(clap::Args)]
pub(crate) struct Format {
    /// Bytes compressed together: 4K (fast random writes) to 128K (best ratio)
    #[arg(short, long, value_name = "SIZE", default_value = "64K", value_parser = size::parse_record)]
    record_size: u32,
    /// Compression of the data: lz4 (fast), zstd or zstd:1 to zstd:19 (smaller), or none
    #[arg(short, long, value_name = "ALGORITHM[:LEVEL]", default_value = Codec::ALL[0].name, value_parser = parse_compression)]
    compress: Compression,
    /// Compression that data gets later, when it has not been written for 10 minutes and the device is idle, or none [default: zstd:9, if --compress is lz4]
    #[arg(long, value_name = "ALGORITHM[:LEVEL]", value_parser = parse_compression)]
    recompress: Option<Compression>,
}

/// What data that was compressed with LZ4 gets later, if the user does not say anything else.
const STRONG: &str = "zstd:9";

/// Reads an algorithm and its level.
pub(crate) fn parse_compression(text: &str) -> Result<Compression, String> {
    Compression::parse(text).ok_or_else(|| {
        let names = Codec::ALL.iter().map(|codec| match codec.levels {
            levels if levels.min < levels.max => {
                format!(
                    "{0}, {0}:{1} to {0}:{2}",
                    codec.name, levels.min, levels.max
                )
            }
            _ => codec.name.into(),
        });
        format!("give one of: {}", names.collect::<Vec<_>>().join(", "))
    })
}

impl Format {
    /// A new image for a device of `size` bytes.
    fn options(&self, size: u64) -> CreateOptions {
        CreateOptions {
            size,
            record_size: self.record_size,
            segment_size: DEFAULT_SEGMENT_SIZE,
            compression: self.compress,
            recompression: self.recompression(),
            uuid: uuid::Uuid::new_v4().into_bytes(),
        }
    }

    fn recompression(&self) -> Recompression {
        let fast = self.compress.algorithm() == Algorithm::Lz4;
        let again = match self.recompress {
            None if fast => Compression::parse(STRONG),
            again => again.filter(|again| again.algorithm() != Algorithm::Raw),
        };
        again.map_or(Recompression::OFF, Recompression::with)
    }

    /// Writes an image for a device of `size` bytes into `file`, which is at `path`, and opens it to be filled. Nothing
    /// else opens it before it is [complete](Volume::complete).
    pub(crate) fn begin(&self, path: &Path, file: File, size: u64) -> Result<Volume<Std>> {
        let file = image::backing(path, file)?;
        Volume::create_incomplete(file, &self.options(size)).map_err(|e| fail::engine(path, e))
    }

    /// Bytes compressed together.
    pub(crate) fn record_size(&self) -> usize {
        self.record_size as usize
    }
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let path = &args.image;
    let target = Target::claim(path, args.force, 0)?;
    let file = image::backing(path, target.file()?)?;
    Volume::<Std>::create(&file, &args.format.options(args.size))
        .map_err(|e| fail::engine(path, e))?;
    target.keep()?;
    Ok(ExitCode::SUCCESS)
}
