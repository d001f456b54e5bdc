// SPDX-License-Identifier: GPL-2.0 OR MIT
//! `cloop export`: the raw disk in an image.

use crate::chunk::{is_zero, CHUNK};
use crate::fail::{self, fail};
use crate::image::{self, Lock};
use crate::progress;
use crate::target::Target;
use crate::workers::{self, Stop};
use anyhow::Result;
use cloop::engine::{Volume, Workspace, BLOCK_SIZE};
use cloop::platform::std::Std;
use indicatif::ProgressBar;
use rustix::fs::FallocateFlags;
use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Condvar, Mutex, PoisonError};

/// Write the content of an image as a raw disk.
///
/// RAW is a file, a block device, or - for standard output. In a file, blocks that are zero become holes.
/// The image may need recovery; it is not changed.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Image to read
    image: PathBuf,
    /// File or block device to write, or - for standard output
    raw: PathBuf,
    /// Overwrite a file, or a block device that is not empty
    #[arg(short, long)]
    force: bool,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let file = image::open(&args.image, false, Lock::Shared)?;
    let volume = image::open_volume(&args.image, file)?;
    let size = volume.size().bytes();
    let (sink, target) = open_sink(&args.raw, args.force, size)?;

    let bar = progress::bar("exporting", size);
    let exporter = Exporter {
        image: &args.image,
        raw: &args.raw,
        volume: &volume,
        sink,
        cursor: Mutex::default(),
        turn: Mutex::default(),
        next_turn: Condvar::new(),
        bar: &bar,
        stop: Stop::default(),
    };
    workers::run(&exporter.stop, || exporter.wake(), || exporter.work())?;
    if let Some(target) = target {
        target.keep()?;
    }
    bar.finish_and_clear();
    Ok(ExitCode::SUCCESS)
}

/// The target of an export.
enum Sink {
    /// A regular file, which reads as zeros where nothing is written.
    Sparse(File),
    /// A block device, where zeros must be written.
    Device(File),
    /// A pipe, a redirected terminal or a character device: all bytes, in order.
    Stream(File),
}

fn open_sink(path: &Path, force: bool, size: u64) -> Result<(Sink, Option<Target>)> {
    let error = |e: io::Error| fail::io(path, &e);
    if path.as_os_str() == "-" {
        let out = io::stdout();
        if out.is_terminal() {
            return Err(fail(
                path,
                "is a terminal; redirect the output to a pipe or give a file",
            ));
        }
        let file = File::from(out.as_fd().try_clone_to_owned().map_err(error)?);
        return Ok((Sink::Stream(file), None));
    }
    let stream =
        fs::metadata(path).is_ok_and(|m| m.file_type().is_fifo() || m.file_type().is_char_device());
    if stream {
        let file = OpenOptions::new().write(true).open(path).map_err(error)?;
        return Ok((Sink::Stream(file), None));
    }
    let target = Target::claim(path, force, size)?;
    let file = target.file()?;
    if !target.is_device() {
        file.set_len(size).map_err(error)?;
        return Ok((Sink::Sparse(file), Some(target)));
    }
    Ok((Sink::Device(file), Some(target)))
}

/// A part of the device, in blocks, that one worker exports.
struct Job {
    /// Its place in the output order.
    number: u64,
    /// Blocks that are all zero.
    gap: Range<u64>,
    /// Number of blocks to read after the gap, at most a chunk.
    data: Range<u64>,
}

/// The progress of handing out jobs.
#[derive(Default)]
struct Cursor {
    jobs: u64,
    block: u64,
}

struct Exporter<'a> {
    image: &'a Path,
    raw: &'a Path,
    volume: &'a Volume<Std>,
    sink: Sink,
    cursor: Mutex<Cursor>,
    /// Number of the job whose turn it is to write to a stream.
    turn: Mutex<u64>,
    next_turn: Condvar,
    bar: &'a ProgressBar,
    stop: Stop,
}

impl Exporter<'_> {
    fn work(&self) -> Result<()> {
        let image_error = |e| fail::engine(self.image, e);
        let mut ws = self.volume.workspace().map_err(image_error)?;
        let mut buf = vec![0; CHUNK];
        while let Some(job) = self.next(&mut ws)? {
            let len = (job.data.end - job.data.start) as usize * BLOCK_SIZE;
            let data = &mut buf[..len];
            if len > 0 {
                self.volume
                    .read(&mut ws, job.data.start, data)
                    .map_err(image_error)?;
            }
            self.write(&job, data).map_err(|e| fail::io(self.raw, &e))?;
        }
        Ok(())
    }

    /// The next job: up to the end of the chunk that contains the next mapped block.
    fn next(&self, ws: &mut Workspace<Std>) -> Result<Option<Job>> {
        let mut cursor = self.cursor.lock().unwrap_or_else(PoisonError::into_inner);
        let blocks = self.volume.size().blocks();
        if self.stop.requested() || cursor.block >= blocks {
            return Ok(None);
        }
        let mapped = self
            .volume
            .next_mapped(ws, cursor.block)
            .map_err(|e| fail::engine(self.image, e))?;
        let per_chunk = (CHUNK / BLOCK_SIZE) as u64;
        let (start, end) = match mapped {
            Some((start, _)) => (start, (start - start % per_chunk + per_chunk).min(blocks)),
            None => (blocks, blocks),
        };
        let job = Job {
            number: cursor.jobs,
            gap: cursor.block..start,
            data: start..end,
        };
        cursor.jobs += 1;
        cursor.block = end;
        self.bar.set_position(end * BLOCK_SIZE as u64);
        Ok(Some(job))
    }

    fn write(&self, job: &Job, data: &[u8]) -> io::Result<()> {
        let byte = |block: u64| block * BLOCK_SIZE as u64;
        match &self.sink {
            Sink::Sparse(file) => write_sparse(file, data, byte(job.data.start)),
            Sink::Device(file) => {
                zero_range(file, byte(job.gap.start)..byte(job.gap.end))?;
                file.write_all_at(data, byte(job.data.start))
            }
            Sink::Stream(file) => self.write_in_turn(file, job, data),
        }
    }

    /// Waits until all earlier jobs are written; returns at once after a failure.
    fn write_in_turn(&self, mut file: &File, job: &Job, data: &[u8]) -> io::Result<()> {
        let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        while *turn != job.number {
            if self.stop.requested() {
                return Ok(());
            }
            turn = self
                .next_turn
                .wait(turn)
                .unwrap_or_else(PoisonError::into_inner);
        }
        for_zeros(
            (job.gap.end - job.gap.start) * BLOCK_SIZE as u64,
            |zeros, _| file.write_all(zeros),
        )?;
        file.write_all(data)?;
        *turn += 1;
        self.next_turn.notify_all();
        Ok(())
    }

    /// Wakes the workers that wait for their turn, so that they notice a failure.
    fn wake(&self) {
        // The lock is taken so that no worker is between its check of `stop` and its sleep.
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.next_turn.notify_all();
    }
}

/// Writes the blocks of `data` that are not zero; the others are holes already.
fn write_sparse(file: &File, data: &[u8], at: u64) -> io::Result<()> {
    let zero_at = |offset: usize| is_zero(&data[offset..offset + BLOCK_SIZE]);
    let mut start = 0;
    while start < data.len() {
        let zero = zero_at(start);
        let mut end = start + BLOCK_SIZE;
        while end < data.len() && zero_at(end) == zero {
            end += BLOCK_SIZE;
        }
        if !zero {
            file.write_all_at(&data[start..end], at + start as u64)?;
        }
        start = end;
    }
    Ok(())
}

/// Calls `write` with zeros and their offset until `len` bytes are written.
fn for_zeros(len: u64, mut write: impl FnMut(&[u8], u64) -> io::Result<()>) -> io::Result<()> {
    static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
    let mut done = 0;
    while done < len {
        let now = (len - done).min(ZEROS.len() as u64);
        write(&ZEROS[..now as usize], done)?;
        done += now;
    }
    Ok(())
}

/// Zeros a range of a block device by the cheapest means that the device has.
fn zero_range(device: &File, range: Range<u64>) -> io::Result<()> {
    let len = range.end - range.start;
    if len == 0 {
        return Ok(());
    }
    for flags in [
        FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
    ] {
        if rustix::fs::fallocate(device, flags, range.start, len).is_ok() {
            return Ok(());
        }
    }
    for_zeros(len, |zeros, at| {
        device.write_all_at(zeros, range.start + at)
    })
}
