// SPDX-License-Identifier: GPL-2.0 OR MIT
//! `cloop compact`: the smallest image with the same content.

use crate::control::{Control, Info};
use crate::create::parse_compression;
use crate::device;
use crate::fail::{self, fail};
use crate::image::{self, Twins};
use crate::output;
use crate::progress;
use crate::resize::refused;
use crate::signals;
use crate::size;
use crate::workers::{self, Stop};
use anyhow::Result;
use cloop::engine::{Access, Algorithm, Compression, Volume};
use cloop::platform::std::Std;
use indicatif::ProgressBar;
use rustix::io::Errno;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// Relocate live records and give the rest of the space back.
///
/// A device can be used meanwhile. Interrupting loses nothing, and the work so far is kept. With --recompress all data is
/// compressed again first, whatever the image does with it when it is idle.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Compress all data again, where that saves space: lz4, or zstd:1 to zstd:19
    #[arg(short, long, value_name = "ALGORITHM[:LEVEL]", value_parser = parse_strong)]
    recompress: Option<Compression>,
    /// Compact an image although one with its UUID is attached, because it is a copy of that one
    #[arg(short, long)]
    force: bool,
    /// Device such as /dev/cloop0, or an image that is not attached, which becomes as small as possible
    #[arg(value_name = "IMAGE|DEVICE")]
    image: PathBuf,
}

/// Reads an algorithm that compresses, and its level.
fn parse_strong(text: &str) -> Result<Compression, String> {
    match parse_compression(text)? {
        compression if compression.algorithm() == Algorithm::Raw => {
            Err("it must be an algorithm that compresses".to_string())
        }
        compression => Ok(compression),
    }
}

/// Interval at which the figures of a device are read.
const INTERVAL: Duration = Duration::from_millis(250);

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let (before, after) = match device::index_of(&args.image) {
        Some(index) => of_device(index, args.recompress)?,
        None => of_image(&args.image, args.force.into(), args.recompress)?,
    };
    output::print(&format!(
        "{}: {}, was {}\n",
        output::shown(&args.image),
        size::both(after),
        size::both(before)
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// The space that the image at `path` takes; on a block device, the space of the segments in use.
fn taken(path: &Path, stored: u64, allocated: u64) -> u64 {
    match fs::metadata(path) {
        Ok(meta) if meta.file_type().is_block_device() => stored,
        _ => allocated,
    }
}

/// A progress bar over the space that can be gained.
fn bar(garbage: u64) -> ProgressBar {
    progress::bar("compacting", garbage)
}

/// Shows how much is left to gain. Writers may add to it meanwhile.
fn show(bar: &ProgressBar, garbage: u64) {
    let total = bar.length().unwrap_or(0).max(garbage);
    bar.set_length(total);
    bar.set_position(total - garbage);
}

fn of_device(index: u32, recompress: Option<Compression>) -> Result<(u64, u64)> {
    let control = Control::open()?;
    let node = device::node(index);
    let ask = || -> Result<Info> {
        (control.info(index)?).ok_or_else(|| fail(&node, "nothing is attached; see `cloop list`"))
    };
    let taken = |info: &Info| taken(info.backing_file(), info.stored_bytes, info.allocated_bytes);
    let before = ask()?;
    let refused = |errno| match errno {
        Errno::BUSY => fail(&node, "is being attached or detached; try again after that"),
        errno => refused(&node, errno),
    };
    if let Some(compression) = recompress {
        let bar = progress::bar("compressing", before.live_bytes);
        let show = |info: &Info| {
            let done = info.recompressed_bytes - before.recompressed_bytes;
            bar.set_position(done.min(before.live_bytes));
        };
        let look = || ask().map(|info| show(&info));
        watched(look, || control.recompress(index, compression)).map_err(refused)?;
        bar.finish_and_clear();
    }
    let bar = bar(before.garbage_bytes);
    let look = || ask().map(|info| show(&bar, info.garbage_bytes));
    let result = watched(look, || control.compact(index));
    bar.finish_and_clear();
    result.map_err(refused)?;
    Ok((taken(&before), taken(&ask()?)))
}

/// Has the module do some work, while `look` shows now and then how far it has come.
fn watched(
    look: impl Fn() -> Result<()> + Send + Sync,
    work: impl Fn() -> Result<(), Errno>,
) -> Result<(), Errno> {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let watch = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                // The work itself meets what is wrong.
                let _ = look();
                thread::park_timeout(INTERVAL);
            }
        });
        let result = loop {
            match work() {
                // A signal that did not end the program: it was stopped, and continues.
                Err(Errno::INTR) => {}
                result => break result,
            }
        };
        done.store(true, Ordering::Relaxed);
        watch.thread().unpark();
        result
    })
}

/// Compresses all data of the open image at `path` again, on all CPUs, until `go_on` says no.
fn recompress(
    volume: &Volume<Std>,
    path: &Path,
    compression: Compression,
    go_on: impl Fn() -> bool + Sync,
) -> Result<()> {
    let error = |e| fail::engine(path, e);
    let pass = volume.begin_recompression(compression).map_err(error)?;
    let total = volume.stats().map_err(error)?.live_bytes;
    let bar = progress::bar("compressing", total);
    let stop = Stop::default();
    let done = workers::run(
        &stop,
        || (),
        || {
            let worked = volume.recompress(&pass, &mut || {
                bar.set_position(total / 1000 * u64::from(pass.progress()));
                !stop.requested() && go_on()
            });
            worked.map_err(error)
        },
    );
    bar.finish_and_clear();
    done
}

fn of_image(path: &Path, twins: Twins, again: Option<Compression>) -> Result<(u64, u64)> {
    let file = image::open_to_change(path, twins)?;
    let error = |e| fail::engine(path, e);
    let allocated = || -> Result<u64> {
        let meta = fs::metadata(path).map_err(|e| fail::io(path, &e))?;
        Ok(meta.blocks() * 512)
    };
    let signal = Arc::new(AtomicUsize::new(0));
    for number in signals::ending() {
        signal_hook::flag::register_usize(number, signal.clone(), number as usize)
            .map_err(|e| fail::io(path, &e))?;
    }
    let allocated_before = allocated()?;
    let volume = Volume::<Std>::open(image::backing(path, file)?, Access::Write).map_err(error)?;
    let before = volume.stats().map_err(error)?;
    let undisturbed = || signal.load(Ordering::Relaxed) == 0;
    let recompressed = again.map_or(Ok(()), |again| {
        recompress(&volume, path, again, undisturbed)
    });
    let bar = bar(volume.stats().map_err(error)?.garbage_bytes);
    let compacted = recompressed.and_then(|()| {
        let compact = volume.compact(&mut |garbage| {
            show(&bar, garbage);
            undisturbed()
        });
        compact.map_err(error)
    });
    let stored = volume.stats().map_err(error)?.stored_bytes;
    // Close the image also after a failure or an interruption, so that it is left clean.
    let closed = volume.close();
    bar.finish_and_clear();
    if let number @ 1.. = signal.load(Ordering::Relaxed) {
        let _ = signal_hook::low_level::emulate_default_handler(number as i32);
    }
    compacted.and(closed.map_err(error))?;
    Ok((
        taken(path, before.stored_bytes, allocated_before),
        taken(path, stored, allocated()?),
    ))
}
