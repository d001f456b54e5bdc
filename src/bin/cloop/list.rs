// SPDX-License-Identifier: GPL-2.0 OR MIT
//! `cloop list`: the attached devices.

use crate::control::Control;
use crate::device::{self, Device};
use crate::info::ratio;
use crate::output;
use crate::size;
use anyhow::Result;
use cloop::engine::BLOCK_SIZE;
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;

/// List attached devices.
///
/// USED is the space that the image takes on its file system, RATIO the data on the device per allocated
/// space.
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
    used: u64,
    mapped: u64,
    ratio: Option<f64>,
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
        let mapped = info.mapped_blocks * BLOCK_SIZE as u64;
        Self {
            name: device::node(device.index),
            size: info.size,
            used: info.allocated_bytes,
            mapped,
            ratio: ratio(mapped, info.allocated_bytes),
            ro: info.read_only(),
            back_file: info.backing_file().to_owned(),
            back_file_hex: output::hex_of(info.backing_file()),
        }
    }

    /// The columns of the table.
    fn cells(&self) -> [String; 6] {
        [
            self.name.display().to_string(),
            size::human(self.size),
            size::human(self.used),
            self.ratio.map_or("-".to_owned(), |r| format!("{r:.2}")),
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

/// Columns are as wide as their widest cell; numbers are aligned to the right.
fn table(entries: &[Entry]) -> String {
    let head = ["NAME", "SIZE", "USED", "RATIO", "RO", "BACK-FILE"].map(str::to_owned);
    let rows: Vec<_> = std::iter::once(head)
        .chain(entries.iter().map(Entry::cells))
        .collect();
    let width = |column: usize| rows.iter().map(|r| r[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..5).map(width).collect();
    let mut text = String::new();
    for [name, size, used, ratio, ro, file] in &rows {
        text += &format!(
            "{name:<0$} {size:>1$} {used:>2$} {ratio:>3$} {ro:>4$} {file}\n",
            widths[0], widths[1], widths[2], widths[3], widths[4]
        );
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
            used: 4096,
            mapped: 8192,
            ratio: ratio(8192, 4096),
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
            "NAME         SIZE USED RATIO RO BACK-FILE\n\
             /dev/cloop0    1T   4K  2.00  0 /tmp/a b\n\
             /dev/cloop10   1M   4K  2.00  0 /tmp/a b\n"
        );
    }
}
