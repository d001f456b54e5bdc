// SPDX-License-Identifier: GPL-2.0 OR MIT
//! `cloop info`: what an image holds and costs.

use crate::control::Control;
use crate::device::{self, Device};
use crate::fail::{self, fail};
use crate::image::{self, Lock};
use crate::output;
use crate::size;
use anyhow::Result;
use cloop::engine::BLOCK_SIZE;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use uuid::Uuid;

/// Show what an image holds and what it costs.
///
/// Of an attached image the numbers come from the kernel. An image that needs recovery is shown as it
/// will be after it; it is not changed.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Print JSON, sizes in bytes
    #[arg(short = 'J', long)]
    json: bool,
    /// Image, or device such as /dev/cloop0
    #[arg(value_name = "IMAGE|DEVICE")]
    image: PathBuf,
}

/// `whole / part`, if that means something.
pub(crate) fn ratio(whole: u64, part: u64) -> Option<f64> {
    (whole > 0 && part > 0).then(|| whole as f64 / part as f64)
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    /// Closed in an orderly way.
    Clean,
    /// The log is longer than the checkpoint knows.
    NeedsRecovery,
    /// In use as a device.
    Attached,
}

#[derive(Serialize)]
struct Report {
    image: String,
    device: Option<PathBuf>,
    state: State,
    read_only: bool,
    uuid: Uuid,
    algorithm: &'static str,
    record_size: u32,
    segment_size: u32,
    size: u64,
    mapped_blocks: u64,
    zero_blocks: u64,
    live_bytes: u64,
    stored_bytes: u64,
    allocated_bytes: u64,
    /// Data on the device per byte of live records.
    ratio: Option<f64>,
    /// Data on the device per byte that the image occupies.
    allocated_ratio: Option<f64>,
    /// Records of the log that were (attached) or have to be replayed after an unclean detach.
    replayed_records: u64,
    /// Reads that found a damaged record since the image was attached.
    damaged_reads: u64,
    /// Errors of the backing file since then.
    errors: u64,
    /// What made an attached device read-only.
    failure: Option<String>,
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
            // In use: perhaps by a device, which can tell.
            return match device::backed_by(path) {
                Some(device) => Ok(Report::of_device(&device)),
                None => Err(error),
            };
        }
    };
    let volume = image::open_volume(path, file)?;
    let geometry = volume.geometry();
    let stats = volume.stats().map_err(|e| fail::engine(path, e))?;
    let data = stats.mapped_blocks * BLOCK_SIZE as u64;
    Ok(Report {
        image: path.display().to_string(),
        device: None,
        state: if volume.state().clean_at_open {
            State::Clean
        } else {
            State::NeedsRecovery
        },
        read_only: false,
        uuid: Uuid::from_bytes(geometry.uuid),
        algorithm: geometry.algorithm.name(),
        record_size: geometry.record_size,
        segment_size: geometry.segment_size,
        size: geometry.size,
        mapped_blocks: stats.mapped_blocks,
        zero_blocks: geometry.blocks - stats.mapped_blocks,
        live_bytes: stats.live_bytes,
        stored_bytes: stats.stored_bytes,
        allocated_bytes: stats.allocated_bytes,
        ratio: ratio(data, stats.live_bytes),
        allocated_ratio: ratio(data, stats.allocated_bytes),
        replayed_records: stats.replayed,
        damaged_reads: stats.damaged,
        errors: stats.errors,
        failure: None,
    })
}

impl Report {
    fn of_device(device: &Device) -> Self {
        let info = &device.info;
        let blocks = info.size / BLOCK_SIZE as u64;
        let data = info.mapped_blocks * BLOCK_SIZE as u64;
        Self {
            image: info.backing_file().display().to_string(),
            device: Some(device::node(device.index)),
            state: State::Attached,
            read_only: info.read_only(),
            uuid: Uuid::from_bytes(info.uuid),
            algorithm: info.algorithm(),
            record_size: info.record_size,
            segment_size: info.segment_size,
            size: info.size,
            mapped_blocks: info.mapped_blocks,
            zero_blocks: blocks.saturating_sub(info.mapped_blocks),
            live_bytes: info.live_bytes,
            stored_bytes: info.stored_bytes,
            allocated_bytes: info.allocated_bytes,
            ratio: ratio(data, info.live_bytes),
            allocated_ratio: ratio(data, info.allocated_bytes),
            replayed_records: info.replayed,
            damaged_reads: info.damaged,
            errors: info.errors,
            failure: info.failure().map(|errno| errno.to_string()),
        }
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
        let ratio = |r: Option<f64>| r.map_or("-".to_owned(), |r| format!("{r:.2}"));
        let mut rows = vec![
            ("Image", self.image.clone()),
            ("State", state),
            ("UUID", self.uuid.to_string()),
            (
                "Compression",
                format!(
                    "{}, records of up to {}",
                    self.algorithm,
                    size::human(self.record_size.into())
                ),
            ),
            ("Segment size", size::human(self.segment_size.into())),
            ("Logical size", size::both(self.size)),
            ("Mapped blocks", blocks(self.mapped_blocks)),
            ("Zero blocks", blocks(self.zero_blocks)),
            ("Live data", size::both(self.live_bytes)),
            ("Stored", size::both(self.stored_bytes)),
            ("Allocated", size::both(self.allocated_bytes)),
            (
                "Ratio",
                format!(
                    "{} of live data, {} of allocated space",
                    ratio(self.ratio),
                    ratio(self.allocated_ratio)
                ),
            ),
        ];
        if self.damaged_reads > 0 || self.errors > 0 {
            rows.push((
                "Errors",
                format!(
                    "{} reads of damaged records, {} errors of the backing file; see dmesg",
                    self.damaged_reads, self.errors
                ),
            ));
        }
        if let Some(failure) = &self.failure {
            rows.push(("Failed", format!("{failure}; the device is read-only")));
        }
        rows.iter().fold(String::new(), |text, (name, value)| {
            text + &format!("{:<15}{value}\n", format!("{name}:"))
        })
    }
}
