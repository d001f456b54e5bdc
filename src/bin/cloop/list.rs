// SPDX-License-Identifier: GPL-2.0 OR MIT
//! `cloop list`: the attached devices.

use crate::control::Control;
use crate::device::{self, Device};
use crate::info::{hundredths, ratio};
use crate::output;
use crate::size;
use anyhow::Result;
use cloop::engine::BLOCK_SIZE;
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;

/// List attached devices.
///
/// DATA is what the device holds, without zeros, LIVE what the records take that hold it, and RATIO the quotient of the two.
/// ALLOCATED is the space that the image takes on its file system, and RESERVE the part of it that waits for the next
/// writes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Print JSON, sizes in bytes
    #[arg(short = 'J', long)]
    json: bool,
}

#[derive(Serialize)]
struct Listing {
    cloopdevices: Vec<Entry>,
}

#[derive(Serialize)]
struct Entry {
    name: PathBuf,
    size: u64,
    mapped_bytes: u64,
    live_bytes: u64,
    ratio: Option<f64>,
    allocated_bytes: u64,
    reserved_bytes: u64,
    ro: bool,
    #[serde(rename = "back-file", serialize_with = "output::as_text")]
    back_file: PathBuf,
    /// The bytes of a name that is no text.
    #[serde(rename = "back-file-hex", skip_serializing_if = "Option::is_none")]
    back_file_hex: Option<String>,
}

impl Entry {
    fn new(device: &Device) -> Self {
        let info = &device.info;
        let mapped_bytes = info.mapped_blocks * BLOCK_SIZE as u64;
        Self {
            name: device::node(device.index),
            size: info.size,
            mapped_bytes,
            live_bytes: info.live_bytes,
            ratio: ratio(mapped_bytes, info.live_bytes),
            allocated_bytes: info.allocated_bytes,
            reserved_bytes: info.reserved_bytes,
            ro: info.read_only(),
            back_file: info.backing_file().to_owned(),
            back_file_hex: output::hex_of(info.backing_file()),
        }
    }

    /// The columns of the table.
    fn cells(&self) -> [String; COLUMNS.len()] {
        [
            self.name.display().to_string(),
            size::human(self.size),
            size::human(self.mapped_bytes),
            size::human(self.live_bytes),
            hundredths(self.ratio),
            size::human(self.allocated_bytes),
            size::human(self.reserved_bytes),
            u8::from(self.ro).to_string(),
            output::shown(&self.back_file),
        ]
    }
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let devices = if Control::present() {
        device::all(&Control::open()?)?
    } else {
        Vec::new()
    };
    let entries: Vec<Entry> = devices.iter().map(Entry::new).collect();
    if args.json {
        output::print_json(&Listing {
            cloopdevices: entries,
        })?;
    } else if !entries.is_empty() {
        output::print(&table(&entries))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The heads of the columns.
const COLUMNS: [&str; 9] = [
    "NAME",
    "SIZE",
    "DATA",
    "LIVE",
    "RATIO",
    "ALLOCATED",
    "RESERVE",
    "RO",
    "BACK-FILE",
];

/// Columns are as wide as their widest cell; numbers are aligned to the right, and names to the left.
fn table(entries: &[Entry]) -> String {
    let rows: Vec<_> = std::iter::once(COLUMNS.map(str::to_owned))
        .chain(entries.iter().map(Entry::cells))
        .collect();
    let width = |column: usize| rows.iter().map(|r| r[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..COLUMNS.len()).map(width).collect();
    let mut text = String::new();
    for [name, numbers @ .., file] in &rows {
        text += &format!("{name:<0$}", widths[0]);
        for (number, width) in numbers.iter().zip(&widths[1..]) {
            text += &format!(" {number:>width$}");
        }
        text += &format!(" {file}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;

    fn entry(name: &str, size: u64, file: &[u8]) -> Entry {
        let file = Path::new(OsStr::from_bytes(file));
        Entry {
            name: PathBuf::from(name),
            size,
            mapped_bytes: 8192,
            live_bytes: 4096,
            ratio: ratio(8192, 4096),
            allocated_bytes: 12 << 20,
            reserved_bytes: 11 << 20,
            ro: false,
            back_file: file.to_owned(),
            back_file_hex: output::hex_of(file),
        }
    }

    #[test]
    fn odd_names() {
        let entry = entry("/dev/cloop0", 1 << 40, b"/a\n\x1b\xff");
        let text = table(std::slice::from_ref(&entry));
        assert!(text.ends_with(" /a\\n\\u{1b}\\xff\n"), "{text}");
        let json = serde_json::to_value(&entry).unwrap();
        assert_eq!(json["back-file"], "/a\n\x1b\u{fffd}");
        assert_eq!(json["back-file-hex"], "2f610a1bff");
    }

    #[test]
    fn columns_line_up() {
        let text = table(&[
            entry("/dev/cloop0", 1 << 40, b"/tmp/a b"),
            entry("/dev/cloop10", 1 << 20, b"/tmp/a b"),
        ]);
        assert_eq!(
            text,
            "NAME         SIZE DATA LIVE RATIO ALLOCATED RESERVE RO BACK-FILE\n\
             /dev/cloop0    1T   8K   4K  2.00       12M     11M  0 /tmp/a b\n\
             /dev/cloop10   1M   8K   4K  2.00       12M     11M  0 /tmp/a b\n"
        );
    }

    /// The reserve is no loss of an empty device, and its ratio is none instead of nearly 0.
    #[test]
    fn an_empty_device_has_no_ratio() {
        let empty = Entry {
            mapped_bytes: 0,
            live_bytes: 0,
            ratio: ratio(0, 0),
            ..entry("/dev/cloop0", 1 << 30, b"/tmp/a")
        };
        let text = table(std::slice::from_ref(&empty));
        let row = "/dev/cloop0   1G   0B   0B     -       12M     11M  0 /tmp/a";
        assert!(text.lines().any(|line| line == row), "{text}");
        assert!(serde_json::to_value(&empty).unwrap()["ratio"].is_null());
    }
}
