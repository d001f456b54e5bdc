// SPDX-License-Identifier: GPL-2.0 OR MIT
//! `cloop list`: the attached devices.

use crate::device::{self, Figures};
use crate::fail;
use crate::info::{hundredths, ratio};
use crate::output;
use crate::size;
use anyhow::Result;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// List attached devices.
///
/// DATA is what the device holds, without zeros, LIVE what the records take that hold it, and RATIO the quotient of the two.
/// ALLOCATED is the space that the image takes on its file system, and RESERVE the part of it that waits for the next
/// writes. Needs no privileges.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Print JSON, sizes in bytes
    #[arg(short = 'J', long)]
    json: bool,
    /// List only the device of this image
    #[arg(short = 'j', long, value_name = "IMAGE")]
    associated: Option<PathBuf>,
    /// Do not print the heads of the columns
    #[arg(short, long)]
    noheadings: bool,
    /// Columns to print, separated by commas
    #[arg(
        short = 'O',
        long,
        value_name = "COLUMNS",
        value_delimiter = ',',
        ignore_case = true,
        default_value = "NAME,SIZE,DATA,LIVE,RATIO,ALLOCATED,RESERVE,RO,BACK-FILE"
    )]
    output: Vec<Column>,
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
    uuid: String,
    compress: String,
    recompress: String,
    #[serde(rename = "back-file", serialize_with = "output::as_text")]
    back_file: PathBuf,
    /// The bytes of a name that is no text.
    #[serde(rename = "back-file-hex", skip_serializing_if = "Option::is_none")]
    back_file_hex: Option<String>,
}

impl Entry {
    /// Device `index`, if it is attached and stays so.
    fn new(index: u32) -> Option<Self> {
        let figures = Figures::of(index);
        let number = |name| figures.number(name);
        let (mapped_bytes, live_bytes) = (number("mapped_bytes")?, number("live_bytes")?);
        let back_file = figures.backing_file()?;
        Some(Self {
            name: device::node(index),
            size: figures.size()?,
            mapped_bytes,
            live_bytes,
            ratio: ratio(mapped_bytes, live_bytes),
            allocated_bytes: number("allocated_bytes")?,
            reserved_bytes: number("reserved_bytes")?,
            ro: number("read_only")? != 0,
            uuid: figures.text("uuid")?,
            compress: figures.text("compress")?,
            recompress: figures.text("recompress")?,
            back_file_hex: output::hex_of(&back_file),
            back_file,
        })
    }

    fn cell(&self, column: Column) -> String {
        match column {
            Column::Name => self.name.display().to_string(),
            Column::Size => size::human(self.size),
            Column::Data => size::human(self.mapped_bytes),
            Column::Live => size::human(self.live_bytes),
            Column::Ratio => hundredths(self.ratio),
            Column::Allocated => size::human(self.allocated_bytes),
            Column::Reserve => size::human(self.reserved_bytes),
            Column::Ro => u8::from(self.ro).to_string(),
            Column::Uuid => self.uuid.clone(),
            Column::Compress => self.compress.clone(),
            Column::Recompress => self.recompress.clone(),
            Column::BackFile => output::shown(&self.back_file),
        }
    }
}

/// A column of the table.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Column {
    /// Device
    Name,
    /// Size of the device
    Size,
    /// Data on the device, without zeros
    Data,
    /// Live records, which hold it
    Live,
    /// Data for each byte of live records
    Ratio,
    /// Space of the image on its file system
    Allocated,
    /// The part of it that waits for writes
    Reserve,
    /// Attached read-only
    Ro,
    /// UUID of the image
    Uuid,
    /// Compression of new data
    Compress,
    /// Compression that cold data gets
    Recompress,
    /// The image
    BackFile,
}

impl Column {
    fn head(self) -> String {
        let value = clap::ValueEnum::to_possible_value(&self);
        value.map_or_else(String::new, |value| value.get_name().to_uppercase())
    }

    /// Numbers are aligned to the right, and names to the left.
    fn is_number(self) -> bool {
        use Column::{Allocated, Data, Live, Ratio, Reserve, Ro, Size};
        [Size, Data, Live, Ratio, Allocated, Reserve, Ro].contains(&self)
    }
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let mut entries: Vec<Entry> = device::indices()
        .into_iter()
        .filter_map(Entry::new)
        .collect();
    if let Some(image) = &args.associated {
        let meta = std::fs::metadata(image).map_err(|e| fail::io(image, &e))?;
        entries.retain(|entry| is_same(&entry.back_file, image, &meta));
    }
    if args.json {
        output::print_json(&Listing {
            cloopdevices: entries,
        })?;
    } else if !entries.is_empty() {
        output::print(&table(&entries, &args.output, !args.noheadings))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether the image at `path`, which has `meta`, is the one that was attached as `back_file`.
fn is_same(back_file: &Path, path: &Path, meta: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    let identity = |meta: &std::fs::Metadata| (meta.dev(), meta.ino());
    let here = std::fs::metadata(back_file);
    here.is_ok_and(|here| identity(&here) == identity(meta))
        || std::fs::canonicalize(path).is_ok_and(|path| path == back_file)
}

/// Columns are as wide as their widest cell, but for the last one.
fn table(entries: &[Entry], columns: &[Column], heads: bool) -> String {
    let head = columns.iter().map(|column| column.head()).collect();
    let cells = |entry: &Entry| columns.iter().map(|&column| entry.cell(column)).collect();
    let rows: Vec<Vec<String>> = (heads.then_some(head).into_iter())
        .chain(entries.iter().map(cells))
        .collect();
    let width = |at: usize| rows.iter().map(|row| row[at].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for ((cell, column), &width) in row.iter().zip(columns).zip(&widths) {
            match column.is_number() {
                true => line += &format!("{cell:>width$} "),
                false => line += &format!("{cell:<width$} "),
            }
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;
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
            uuid: "0a".to_owned(),
            compress: "lz4".to_owned(),
            recompress: "zstd:9".to_owned(),
            back_file: file.to_owned(),
            back_file_hex: output::hex_of(file),
        }
    }

    /// The table with the columns that are printed by default.
    fn table(entries: &[Entry]) -> String {
        let columns: Vec<_> = Column::value_variants().to_vec();
        let others = [Column::Uuid, Column::Compress, Column::Recompress];
        let columns: Vec<_> = columns
            .into_iter()
            .filter(|c| !others.contains(c))
            .collect();
        super::table(entries, &columns, true)
    }

    #[test]
    fn columns_are_chosen() {
        let entry = entry("/dev/cloop0", 1 << 40, b"/tmp/a b");
        let columns = [Column::BackFile, Column::Ratio, Column::Recompress];
        let text = super::table(std::slice::from_ref(&entry), &columns, true);
        assert_eq!(text, "BACK-FILE RATIO RECOMPRESS\n/tmp/a b   2.00 zstd:9\n");
        let text = super::table(&[entry], &columns[..1], false);
        assert_eq!(text, "/tmp/a b\n");
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
