// SPDX-License-Identifier: GPL-2.0 OR MIT
//! `cloop info`: the content of an image, and the space it takes.

use crate::control::{Control, Info};
use crate::device::{self, Device};
use crate::fail::{self, fail};
use crate::image::{self, Lock};
use crate::output;
use crate::size;
use anyhow::Result;
use cloop::engine::{Codec, Compression, Recompression, BLOCK_SIZE};
use serde::Serialize;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use uuid::Uuid;

/// Show the content of an image and the space that it takes.
///
/// For an attached image the numbers come from the kernel. An image that needs recovery is shown as it
/// will be after recovery; it is not changed.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Print JSON, sizes in bytes
    #[arg(short = 'J', long)]
    json: bool,
    /// Image, or device such as /dev/cloop0
    #[arg(value_name = "IMAGE|DEVICE")]
    image: PathBuf,
}

/// `whole / part`; `None` if the quotient has no meaning.
fn quotient(whole: u64, part: u64) -> Option<f64> {
    (whole > 0 && part > 0).then(|| whole as f64 / part as f64)
}

/// The ratio, by its only definition: bytes of data on the device per byte of the live records that hold it. `None` if one of
/// them is 0.
pub(crate) fn ratio(mapped_bytes: u64, live_bytes: u64) -> Option<f64> {
    quotient(mapped_bytes, live_bytes)
}

/// A quotient for people.
pub(crate) fn hundredths(quotient: Option<f64>) -> String {
    quotient.map_or("-".to_owned(), |q| format!("{q:.2}"))
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    /// The image was closed in an orderly way.
    Clean,
    /// The log is longer than the checkpoint records.
    NeedsRecovery,
    /// The image is in use as a device.
    Attached,
}

#[derive(Serialize)]
struct Report {
    #[serde(serialize_with = "output::as_text")]
    image: PathBuf,
    /// The bytes of a name that is no text.
    #[serde(skip_serializing_if = "Option::is_none")]
    image_hex: Option<String>,
    device: Option<PathBuf>,
    state: State,
    read_only: bool,
    uuid: Uuid,
    algorithm: &'static str,
    /// Absent where the algorithm leaves nothing to choose.
    #[serde(skip_serializing_if = "Option::is_none")]
    level: Option<u8>,
    #[serde(flatten)]
    again: Again,
    record_size: u32,
    segment_size: u32,
    size: u64,
    mapped_blocks: u64,
    /// The data: that of the mapped blocks.
    mapped_bytes: u64,
    zero_blocks: u64,
    live_bytes: u64,
    stored_bytes: u64,
    allocated_bytes: u64,
    /// The reserve: the part of `allocated_bytes` that waits for records of the log.
    reserved_bytes: u64,
    /// Garbage in the segments, in bytes: the space that reclaim can gain.
    garbage_bytes: u64,
    /// Bytes by which the image can still grow.
    free_bytes: Option<u64>,
    /// The last write that needed space found none.
    full: bool,
    low: bool,
    /// See [`ratio`].
    ratio: Option<f64>,
    /// Records of the log that the last attach replayed (attached), or that the next one will replay.
    replayed_records: u64,
    /// Reads that found a damaged record since the image was attached.
    damaged_reads: u64,
    /// Errors of the backing file since then.
    errors: u64,
    /// Segments that reclaim has set aside, because something in them is damaged or cannot be read.
    stuck_segments: u64,
    /// The backing file refuses writes at the moment, and they are tried again.
    retrying: bool,
    /// The device is detached when its last user closes it.
    autoclear: bool,
    /// The error that made an attached device read-only.
    failure: Option<String>,
    #[serde(flatten)]
    activity: Option<Activity>,
}

/// How data is compressed again.
#[derive(Serialize)]
struct Again {
    /// The compression it gets, or null if it stays as it was written.
    recompress: Option<String>,
    /// Seconds without a write after which it is.
    recompress_after: u32,
    /// Most content that is, in bytes a second; 0 for no bound.
    recompress_rate: u64,
    /// Live bytes that may be worth it.
    pending_bytes: u64,
}

impl Again {
    fn new(again: &Recompression, pending_bytes: u64) -> Self {
        let compression = again.compression.map(|compression| compression.to_string());
        Self {
            pending_bytes: if compression.is_some() {
                pending_bytes
            } else {
                0
            },
            recompress: compression,
            recompress_after: again.after,
            recompress_rate: u64::from(again.rate) << 10,
        }
    }

    fn text(&self) -> String {
        let Some(compression) = &self.recompress else {
            return "off: data stays compressed as it was written".to_owned();
        };
        let rate = match self.recompress_rate {
            0 => String::new(),
            rate => format!(", up to {} a second", size::human(rate)),
        };
        format!(
            "{compression} when idle, {} s after it was written{rate}; {} to go",
            self.recompress_after,
            size::human(self.pending_bytes)
        )
    }
}

/// Figures of an attached device.
#[derive(Serialize)]
struct Activity {
    bytes_written: u64,
    bytes_read: u64,
    log_bytes: u64,
    /// Bytes written to the image per byte written to the device.
    write_amplification: Option<f64>,
    moved_bytes: u64,
    /// Bytes of records that data was compressed to again.
    recompressed_bytes: u64,
    /// Records that were compressed with LZ4 for lack of memory.
    replaced: u64,
    freed_segments: u64,
    segments: u64,
    free_segments: u64,
    memory_bytes: u64,
    table_bytes: u64,
    table_limit: u64,
    flushes: u64,
    syncs: u64,
    checkpoints: u64,
}

impl Activity {
    fn new(info: &Info) -> Self {
        Self {
            bytes_written: info.bytes_written,
            bytes_read: info.bytes_read,
            log_bytes: info.log_bytes,
            write_amplification: quotient(info.log_bytes, info.bytes_written),
            moved_bytes: info.moved_bytes,
            recompressed_bytes: info.recompressed_bytes,
            replaced: info.replaced,
            freed_segments: info.freed_segments,
            segments: info.segments,
            free_segments: info.free_segments,
            memory_bytes: info.memory,
            table_bytes: info.table_memory,
            table_limit: info.table_limit,
            flushes: info.flushes,
            syncs: info.syncs,
            checkpoints: info.checkpoints,
        }
    }
}

/// Bytes by which the image at `path` can still grow: the free space of its file system (including the
/// part that is reserved for root, which the module may use), or the part of a block device that no
/// segment uses.
fn free_space(path: &Path, allocated: u64, stored: u64) -> Option<u64> {
    if fs::metadata(path).ok()?.file_type().is_block_device() {
        return Some(allocated.saturating_sub(stored));
    }
    let stat = rustix::fs::statvfs(path).ok()?;
    Some(stat.f_bfree * stat.f_frsize)
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let report = match device::index_of(&args.image) {
        Some(index) => of_device(index)?,
        None => of_image(&args.image)?,
    };
    if args.json {
        output::print_json(&report)?;
    } else {
        output::print(&report.text())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn of_device(index: u32) -> Result<Report> {
    match Control::open()?.info(index)? {
        Some(info) => Ok(Report::of_device(&Device { index, info })),
        None => Err(fail(
            &device::node(index),
            "nothing is attached; see `cloop list`",
        )),
    }
}

fn of_image(path: &Path) -> Result<Report> {
    let file = match image::open(path, false, Lock::Shared) {
        Ok(file) => file,
        Err(error) => {
            // The image is in use: perhaps by a device, which can answer.
            return match device::backed_by(path) {
                Some(device) => Ok(Report::of_device(&device)),
                None => Err(error),
            };
        }
    };
    let volume = image::open_volume(path, file)?;
    let (layout, size) = (volume.layout(), volume.size());
    let compression = volume.compression();
    let stats = volume.stats().map_err(|e| fail::engine(path, e))?;
    let data = stats.mapped_blocks * BLOCK_SIZE as u64;
    Ok(Report {
        image: path.to_owned(),
        image_hex: output::hex_of(path),
        device: None,
        state: if volume.state().clean_at_open {
            State::Clean
        } else {
            State::NeedsRecovery
        },
        read_only: false,
        uuid: Uuid::from_bytes(layout.uuid),
        algorithm: Codec::of(compression.algorithm()).name,
        level: level(compression),
        again: Again::new(&volume.recompression(), stats.pending_bytes),
        record_size: layout.record_size,
        segment_size: layout.segment_size,
        size: size.bytes(),
        mapped_blocks: stats.mapped_blocks,
        mapped_bytes: data,
        zero_blocks: size.blocks() - stats.mapped_blocks,
        live_bytes: stats.live_bytes,
        stored_bytes: stats.stored_bytes,
        allocated_bytes: stats.allocated_bytes,
        reserved_bytes: stats.reserved_bytes,
        garbage_bytes: stats.garbage_bytes,
        free_bytes: free_space(path, stats.allocated_bytes, stats.stored_bytes),
        full: false,
        low: false,
        ratio: ratio(data, stats.live_bytes),
        replayed_records: stats.replayed,
        damaged_reads: stats.damaged,
        errors: stats.errors,
        stuck_segments: stats.stuck_segments,
        retrying: false,
        autoclear: false,
        failure: None,
        activity: None,
    })
}

/// The level, where there is one to choose.
pub(crate) fn level(compression: Compression) -> Option<u8> {
    let levels = Codec::of(compression.algorithm()).levels;
    (levels.min < levels.max).then(|| compression.level())
}

impl Report {
    fn of_device(device: &Device) -> Self {
        let info = &device.info;
        let compression = info.compression();
        let blocks = info.size / BLOCK_SIZE as u64;
        let data = info.mapped_blocks * BLOCK_SIZE as u64;
        Self {
            image: info.backing_file().to_owned(),
            image_hex: output::hex_of(info.backing_file()),
            device: Some(device::node(device.index)),
            state: State::Attached,
            read_only: info.read_only(),
            uuid: Uuid::from_bytes(info.uuid),
            algorithm: compression.map_or("unknown", |c| Codec::of(c.algorithm()).name),
            level: compression.and_then(level),
            again: Again::new(
                &info.recompression().unwrap_or(Recompression::OFF),
                info.pending_bytes,
            ),
            record_size: info.record_size,
            segment_size: info.segment_size,
            size: info.size,
            mapped_blocks: info.mapped_blocks,
            mapped_bytes: data,
            zero_blocks: blocks.saturating_sub(info.mapped_blocks),
            live_bytes: info.live_bytes,
            stored_bytes: info.stored_bytes,
            allocated_bytes: info.allocated_bytes,
            reserved_bytes: info.reserved_bytes,
            garbage_bytes: info.garbage_bytes,
            // The path may lead to another file by now.
            free_bytes: fs::metadata(info.backing_file())
                .ok()
                .filter(|meta| info.is_backed_by(meta))
                .and_then(|_| {
                    free_space(info.backing_file(), info.allocated_bytes, info.stored_bytes)
                }),
            full: info.full(),
            low: info.low(),
            ratio: ratio(data, info.live_bytes),
            replayed_records: info.replayed,
            damaged_reads: info.damaged,
            errors: info.errors,
            stuck_segments: info.stuck_segments,
            retrying: info.retrying(),
            autoclear: info.autoclear(),
            failure: info.failure().map(|errno| errno.to_string()),
            activity: Some(Activity::new(info)),
        }
    }

    /// The compression as users choose it.
    fn compression(&self) -> String {
        match self.level {
            Some(level) => format!("{}:{level}", self.algorithm),
            None => self.algorithm.to_owned(),
        }
    }

    /// The ratio and the saving that it means.
    fn saving(&self) -> String {
        let Some(ratio) = self.ratio else {
            return "-".to_owned();
        };
        let percent = 100. - 100. / ratio;
        let saving = match percent >= 0.05 {
            true => format!("saves {percent:.1} %"),
            false => "saves nothing".to_owned(),
        };
        format!("{ratio:.2} ({saving} of the data)")
    }

    fn text(&self) -> String {
        let state = match (&self.state, &self.device) {
            (State::Attached, Some(device)) => format!(
                "attached as {}{}",
                device.display(),
                if self.read_only { ", read-only" } else { "" }
            ),
            (State::NeedsRecovery, _) => format!(
                "needs recovery, which the next attach does ({} records to replay)",
                self.replayed_records
            ),
            _ => "clean".to_owned(),
        };
        let blocks = |count: u64| format!("{count} ({})", size::human(count * BLOCK_SIZE as u64));
        let mut rows = vec![
            ("Image", output::shown(&self.image)),
            ("State", state),
            ("UUID", self.uuid.to_string()),
            (
                "Compression",
                format!(
                    "{}, records of up to {}",
                    self.compression(),
                    size::human(self.record_size.into())
                ),
            ),
            ("Recompression", self.again.text()),
            ("Segment size", size::human(self.segment_size.into())),
            ("Logical size", size::both(self.size)),
            ("Zero blocks", blocks(self.zero_blocks)),
            ("Mapped blocks", blocks(self.mapped_blocks)),
            ("Data", size::both(self.mapped_bytes)),
            ("Live records", size::both(self.live_bytes)),
            ("Ratio", self.saving()),
            ("Garbage", size::both(self.garbage_bytes)),
            ("Reserve", size::both(self.reserved_bytes)),
            ("Segments", size::both(self.stored_bytes)),
            ("Allocated", size::both(self.allocated_bytes)),
            (
                "Free",
                match (self.free_bytes, self.full) {
                    (_, true) => "none: the last write found no space".to_owned(),
                    (Some(bytes), false) if self.low => format!("{}, low", size::both(bytes)),
                    (Some(bytes), false) => size::both(bytes),
                    (None, false) => "unknown".to_owned(),
                },
            ),
        ];
        if let Some(activity) = &self.activity {
            rows.push((
                "Written",
                format!(
                    "{}, {} to the image: amplification {}",
                    size::human(activity.bytes_written),
                    size::human(activity.log_bytes),
                    hundredths(activity.write_amplification)
                ),
            ));
            rows.push((
                "Reclaimed",
                format!(
                    "{} segments, {} moved, {} compressed again",
                    activity.freed_segments,
                    size::human(activity.moved_bytes),
                    size::human(activity.recompressed_bytes)
                ),
            ));
            rows.push(("Memory", size::human(activity.memory_bytes)));
            rows.push((
                "Sector table",
                format!(
                    "{} in memory, limit {}",
                    size::human(activity.table_bytes),
                    size::human(activity.table_limit)
                ),
            ));
        }
        if self.damaged_reads > 0 || self.errors > 0 {
            rows.push((
                "Errors",
                format!(
                    "{} reads of damaged records, {} errors of the backing file; see dmesg",
                    self.damaged_reads, self.errors
                ),
            ));
        }
        if self.stuck_segments > 0 {
            rows.push((
                "Stuck",
                format!(
                    "{} segments that damage keeps from being reclaimed",
                    self.stuck_segments
                ),
            ));
        }
        if self.autoclear {
            rows.push((
                "Autoclear",
                "detached when its last user closes it".to_owned(),
            ));
        }
        if self.retrying {
            let text = "the backing file refuses writes; they are tried again, and flushes wait";
            rows.push(("Retrying", text.to_owned()));
        }
        if let Some(failure) = &self.failure {
            rows.push(("Failed", format!("{failure}; the device is read-only")));
        }
        rows.iter().fold(String::new(), |text, (name, value)| {
            text + &format!("{:<15}{value}\n", format!("{name}:"))
        })
    }
}
