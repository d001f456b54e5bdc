// SPDX-License-Identifier: GPL-2.0 OR MIT
//! `cloop import`: a new image with the content of a raw disk.

use crate::chunk::{is_zero, CHUNK};
use crate::create::Format;
use crate::fail::{self, fail, warn};
use crate::progress;
use crate::recognise::{recognise, Verdict, HEAD};
use crate::reorder::Reorder;
use crate::size;
use crate::target::Target;
use crate::workers::{self, Stop};
use anyhow::Result;
use cloop::engine::{Batch, Volume, BLOCK_SIZE};
use cloop::platform::std::Std;
use indicatif::ProgressBar;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

/// Make an image from a raw disk.
///
/// RAW is a disk image file, a block device, or - for standard input. Its holes and zero blocks cost
/// nothing in the image. What only contains a disk, such as a qcow2 image or a compressed file, is refused.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// File or block device to read, or - for standard input
    raw: PathBuf,
    /// Image to make
    image: PathBuf,
    /// Size of the device, at least that of RAW, which is the default; required for a pipe
    #[arg(short, long, value_parser = size::parse_device)]
    size: Option<u64>,
    /// Fail if RAW does not have exactly the size of the device, instead of filling up with zeros
    #[arg(short, long)]
    exact: bool,
    /// Take RAW for a raw disk, whatever it looks like
    #[arg(long = "raw")]
    as_it_is: bool,
    #[command(flatten)]
    format: Format,
    /// Overwrite an image, or a block device that is not empty
    #[arg(short, long)]
    force: bool,
}

/// Refuses what only contains a disk, and warns of a disk that cannot be used as it is.
fn look_at(path: &Path, head: &[u8]) -> Result<()> {
    match recognise(&head[..head.len().min(HEAD)]) {
        Verdict::Raw => Ok(()),
        Verdict::Container(what, way) => Err(fail(
            path,
            format_args!("is {what}; {way}, or give --raw to store the file itself"),
        )),
        Verdict::OtherSectors(what) => {
            warn(
                path,
                format_args!("has {what} cannot be used on a device with sectors of 4096 bytes"),
            );
            Ok(())
        }
    }
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let (source, file) = Source::open(&args.raw)?;
    let size = device_size(args, &source)?;
    refuse_same(&source, &args.image)?;
    if let (Some(len), false) = (source.len, args.as_it_is) {
        let mut head = vec![0; len.min(HEAD as u64) as usize];
        file.read_exact_at(&mut head, 0)
            .map_err(|e| fail::io(&args.raw, &e))?;
        look_at(&args.raw, &head)?;
    }
    let target = Target::claim(&args.image, args.force, 0)?;
    let volume = args.format.begin(&args.image, target.file()?, size)?;

    let batches = (0..workers::count() * BATCHES).map(|_| volume.batch(CHUNK));
    let batches = batches.collect::<Result<_, _>>();
    let batches = batches.map_err(|e| fail::engine(&args.image, e))?;
    let bar = progress::bar("importing", source.len.unwrap_or(size));
    let importer = Importer {
        seekable: source.len.is_some(),
        looks: source.len.is_none() && !args.as_it_is,
        raw: &args.raw,
        file: &file,
        image: &args.image,
        volume: &volume,
        record_size: args.format.record_size(),
        source: Mutex::new(source),
        device_size: size,
        bar: &bar,
        stop: Stop::default(),
        batches: Reorder::new(batches),
    };
    let wake = || importer.batches.wake();
    workers::run(&importer.stop, wake, || importer.work())?;
    let rest = importer.rest()?;
    if rest > 0 && args.exact {
        return Err(fail(
            &args.raw,
            format_args!(
                "ended after {} bytes, {size} are needed; give it whole, or omit --exact",
                size - rest
            ),
        ));
    }
    volume
        .complete()
        .map_err(|e| fail::engine(&args.image, e))?;
    target.keep()?;
    bar.finish_and_clear();
    if rest > 0 {
        warn(
            &args.raw,
            format_args!(
                "ended after {} bytes; the last {rest} bytes of the device are zeros",
                size - rest
            ),
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// The size of a device for the contents of `source`.
fn device_size(args: &Args, source: &Source) -> Result<u64> {
    let path = &args.raw;
    let Some(len) = source.len else {
        return match args.size {
            Some(size) => Ok(size),
            None => Err(fail(
                path,
                "a pipe does not tell its size; give the size of the device with --size",
            )),
        };
    };
    if let Some(size) = args.size {
        if size < len {
            return Err(fail(
                path,
                format_args!("has {len} bytes, more than --size; give --size at least that much"),
            ));
        }
        refuse_inexact(args, len, size)?;
        return Ok(size);
    }
    if len == 0 {
        return Err(fail(
            path,
            "empty; a device cannot be, give it a size with --size",
        ));
    }
    let size = len.next_multiple_of(BLOCK_SIZE as u64);
    // The limits of a device are the same as for `create`.
    size::parse_device(&size.to_string()).map_err(|e| fail(path, e))?;
    refuse_inexact(args, len, size)?;
    if size != len {
        warn(
            path,
            format_args!(
                "{len} bytes are not a multiple of 4096; the device gets {size} bytes, the last {} of them zeros",
                size - len
            ),
        );
    }
    Ok(size)
}

fn refuse_inexact(args: &Args, len: u64, size: u64) -> Result<()> {
    if args.exact && len != size {
        return Err(fail(
            &args.raw,
            format_args!(
                "has {len} bytes and the device {size}; make it that long, or omit --exact"
            ),
        ));
    }
    Ok(())
}

/// Importing a disk into an image on itself would destroy it.
fn refuse_same(source: &Source, image: &Path) -> Result<()> {
    let (Ok(raw), Ok(image_meta)) = (source.file.metadata(), std::fs::metadata(image)) else {
        return Ok(());
    };
    let device = |m: &std::fs::Metadata| m.file_type().is_block_device().then(|| m.rdev());
    let same_file = (raw.dev(), raw.ino()) == (image_meta.dev(), image_meta.ino());
    let same_device = device(&raw).is_some() && device(&raw) == device(&image_meta);
    if source.len.is_some() && (same_file || same_device) {
        return Err(fail(
            image,
            "is the disk to import; choose another path for the image",
        ));
    }
    Ok(())
}

/// The raw disk.
struct Source {
    /// The file; of a pipe or stream, its position is the place to read from.
    file: File,
    /// `None` for a pipe.
    len: Option<u64>,
    /// The file system tells holes from data.
    holes: bool,
    /// Everything before this offset was handed out.
    next: u64,
    /// Number of chunks that were handed out.
    chunks: u64,
}

/// A part of the disk that one worker imports.
struct Chunk {
    /// Its place in the order.
    number: u64,
    start: u64,
    len: usize,
}

impl Source {
    /// Opens `path`. The second handle reads at any offset while the first one is locked.
    fn open(path: &Path) -> Result<(Self, File)> {
        let error = |e: io::Error| fail::io(path, &e);
        let mut file = if path.as_os_str() == "-" {
            File::from(io::stdin().as_fd().try_clone_to_owned().map_err(error)?)
        } else {
            File::open(path).map_err(error)?
        };
        let kind = file.metadata().map_err(error)?.file_type();
        if kind.is_dir() {
            return Err(fail(path, "is a directory; give the path of a raw disk"));
        }
        // Standard input from which something has been read already is a stream: the rest of it is
        // imported.
        let seekable = (kind.is_file() || kind.is_block_device())
            && file.stream_position().map_err(error)? == 0;
        let len = if seekable {
            Some(file.seek(SeekFrom::End(0)).map_err(error)?)
        } else {
            None
        };
        let raw = file.try_clone().map_err(error)?;
        let source = Self {
            file,
            len,
            holes: len.is_some(),
            next: 0,
            chunks: 0,
        };
        Ok((source, raw))
    }

    /// The first byte at or after `from` that may not be zero; `None` if only zeros follow.
    fn data_from(&mut self, from: u64) -> io::Result<Option<u64>> {
        if !self.holes {
            return Ok(Some(from));
        }
        match rustix::fs::seek(&self.file, rustix::fs::SeekFrom::Data(from)) {
            Ok(data) => Ok(Some(data)),
            Err(rustix::io::Errno::NXIO) => Ok(None),
            // A block device, or a file system without holes.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => {
                self.holes = false;
                Ok(Some(from))
            }
            Err(errno) => Err(errno.into()),
        }
    }

    /// Hands out the next chunk. Of a pipe, it is read into `buf`; in a file, the worker reads it.
    fn next(&mut self, buf: &mut [u8]) -> io::Result<Option<Chunk>> {
        let place = self.next_place(buf)?;
        Ok(place.map(|(start, len)| {
            let number = self.chunks;
            self.chunks += 1;
            Chunk { number, start, len }
        }))
    }

    /// The offset and the length of the next chunk.
    fn next_place(&mut self, buf: &mut [u8]) -> io::Result<Option<(u64, usize)>> {
        let Some(len) = self.len else {
            let mut filled = 0;
            while filled < buf.len() {
                match self.file.read(&mut buf[filled..]) {
                    Ok(0) => break,
                    Ok(n) => filled += n,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(e),
                }
            }
            let start = self.next;
            self.next += filled as u64;
            return Ok((filled > 0).then_some((start, filled)));
        };
        if self.next >= len {
            return Ok(None);
        }
        let Some(data) = self.data_from(self.next)? else {
            self.next = len;
            return Ok(None);
        };
        let start = data - data % CHUNK as u64;
        self.next = (start + CHUNK as u64).min(len);
        Ok(Some((start, (self.next - start) as usize)))
    }
}

/// Batches for each worker: chunks that took little time wait for one that takes long.
const BATCHES: usize = 4;

struct Importer<'a> {
    raw: &'a Path,
    file: &'a File,
    image: &'a Path,
    volume: &'a Volume<Std>,
    record_size: usize,
    source: Mutex<Source>,
    device_size: u64,
    /// The workers read the disk themselves.
    seekable: bool,
    /// It was not looked at what the disk is.
    looks: bool,
    bar: &'a ProgressBar,
    stop: Stop,
    /// Of chunks, in which they are written.
    batches: Reorder,
}

impl Importer<'_> {
    /// Takes chunks of the disk, compresses them beside others, and writes them to the volume in the order of the disk, until
    /// none is left. So neighbours on the disk are neighbours in the image, and are read together.
    fn work(&self) -> Result<()> {
        let image_error = |e| fail::engine(self.image, e);
        let mut ws = self.volume.workspace().map_err(image_error)?;
        let mut buf = vec![0; CHUNK];
        while let Some(mut batch) = self.batches.take(&self.stop) {
            let Some(Chunk { number, start, len }) = self.next(&mut buf)? else {
                self.batches.give_back(batch);
                break;
            };
            let end = start + len as u64;
            if end > self.device_size {
                return Err(fail(
                    self.raw,
                    format_args!(
                        "has more than the {} bytes of --size; give a larger --size",
                        self.device_size
                    ),
                ));
            }
            if self.seekable {
                self.read(&mut buf[..len], start)?;
            }
            if self.looks && start == 0 {
                look_at(self.raw, &buf[..len])?;
            }
            let padded = len.next_multiple_of(BLOCK_SIZE);
            buf[len..padded].fill(0);
            let mut block = start / BLOCK_SIZE as u64;
            for piece in buf[..padded].chunks(self.record_size) {
                if !is_zero(piece) {
                    self.volume
                        .encode(&mut ws, block, piece, &mut batch)
                        .map_err(image_error)?;
                }
                block += (piece.len() / BLOCK_SIZE) as u64;
            }
            let write = |batch: &Batch| self.volume.write_batch(&mut ws, batch);
            self.batches
                .hand_in(number, batch, write)
                .map_err(image_error)?;
        }
        Ok(())
    }

    fn next(&self, buf: &mut [u8]) -> Result<Option<Chunk>> {
        let mut source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        if self.stop.requested() {
            return Ok(None);
        }
        let next = source.next(buf).map_err(|e| fail::io(self.raw, &e))?;
        self.bar.set_position(source.next);
        Ok(next)
    }

    fn read(&self, buf: &mut [u8], at: u64) -> Result<()> {
        match self.file.read_exact_at(buf, at) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                self.refuse_shorter()?;
                Err(fail(
                    self.raw,
                    "became shorter and longer again while it was read; import it when nothing writes to it",
                ))
            }
            result => result.map_err(|e| fail::io(self.raw, &e)),
        }
    }

    /// Bytes at the end of the device that no byte of the disk was read for.
    ///
    /// # Errors
    ///
    /// A file must still be as long as at the start: behind the new end of one that was cut there is nothing to read,
    /// as if it were a hole.
    fn rest(&self) -> Result<u64> {
        if self.seekable {
            self.refuse_shorter()?;
            return Ok(0);
        }
        let source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(self.device_size - source.next)
    }

    /// Fails if the disk is shorter than it was at the start.
    fn refuse_shorter(&self) -> Result<()> {
        let mut source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        let now = source
            .file
            .seek(SeekFrom::End(0))
            .map_err(|e| fail::io(self.raw, &e))?;
        match source.len {
            Some(before) if now < before => Err(fail(
                self.raw,
                format_args!(
                    "became shorter while it was read, from {before} to {now} bytes; import it when nothing writes to it"
                ),
            )),
            _ => Ok(()),
        }
    }
}
