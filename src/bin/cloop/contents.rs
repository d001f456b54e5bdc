// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The contents of disks, files and directory trees, laid out as on one device.

use crate::fail::{self, fail};
use crate::image;
use anyhow::{Error, Result};
use cloop::engine::{Volume, BLOCK_SIZE, MAX_RECORD_SIZE};
use cloop::platform::std::Std;
use indicatif::ProgressBar;
use rustix::fs::{Access, AtFlags};
use rustix::io::Errno;
use std::collections::HashSet;
use std::fs::{self, File, Metadata};
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

const BLOCK: u64 = BLOCK_SIZE as u64;

/// Neighbouring bytes of a file, and their place on the device.
struct Extent {
    /// First byte on the device.
    at: u64,
    len: u64,
    /// Index of the file.
    file: usize,
    /// First byte in the file.
    offset: u64,
}

/// Files that lie one behind the other on a device. Holes of a disk are holes of the device; those of a file in a directory
/// take no room on it.
pub(crate) struct Contents<'a> {
    files: Vec<PathBuf>,
    /// In the order of the device, without overlaps.
    extents: Vec<Extent>,
    end: u64,
    /// Number of files of directories that cannot be read, and the first of them with the reason.
    unreadable: Option<(u64, Error)>,
    /// Inodes with several names.
    linked: HashSet<(u64, u64)>,
    /// Shows what was found so far.
    bar: &'a ProgressBar,
}

impl<'a> Contents<'a> {
    /// Those of all `paths`.
    ///
    /// # Errors
    ///
    /// When one of them cannot be read. What cannot be read in a directory is [left out](Self::unreadable).
    pub(crate) fn of(paths: &[PathBuf], bar: &'a ProgressBar) -> Result<Self> {
        let mut contents = Self {
            files: Vec::new(),
            extents: Vec::new(),
            end: 0,
            unreadable: None,
            linked: HashSet::new(),
            bar,
        };
        for path in paths {
            let meta = fs::metadata(path).map_err(|e| fail::io(path, &e))?;
            let kind = meta.file_type();
            if kind.is_dir() {
                // Its own entries must be readable.
                fs::read_dir(path).map_err(|e| fail::io(path, &e))?;
                contents.add_tree(path, meta.dev());
            } else if kind.is_file() || kind.is_block_device() {
                contents.add_disk(path)?;
            } else {
                return Err(fail(
                    path,
                    "neither a disk, a file nor a directory; give one of these",
                ));
            }
        }
        Ok(contents)
    }

    /// What could not be read in directories, as one sentence.
    pub(crate) fn unreadable(&self) -> Option<String> {
        self.unreadable.as_ref().map(|(count, first)| {
            let first = format!("{first:#}");
            match count {
                1 => format!("{first}; it is not in the estimate"),
                _ => format!("{first}; {count} files or directories are not in the estimate"),
            }
        })
    }

    /// Number of files and bytes in them, holes excluded.
    pub(crate) fn total(&self) -> (u64, u64) {
        let bytes = self.extents.iter().map(|extent| extent.len).sum();
        (self.files.len() as u64, bytes)
    }

    /// Adds a raw disk, in a block device or a file, at a place where a record of any size begins.
    fn add_disk(&mut self, path: &Path) -> Result<()> {
        let error = |e: io::Error| fail::io(path, &e);
        let mut file = File::open(path).map_err(error)?;
        let again = file.try_clone().map_err(error)?;
        if Volume::<Std>::uuid_of(&image::backing(path, again)?).is_ok() {
            return Err(fail(
                path,
                "is an image of cloop; attach it with --read-only and give the device, or export it and give the raw disk",
            ));
        }
        let len = file.seek(SeekFrom::End(0)).map_err(error)?;
        let base = self.end.next_multiple_of(MAX_RECORD_SIZE as u64);
        for data in data_ranges(&file, len).map_err(error)? {
            self.push(base + data.start, data);
        }
        self.end = base + len.next_multiple_of(BLOCK);
        self.files.push(path.to_owned());
        Ok(())
    }

    /// Adds the files in `top` and in the directories below it, as far as they are on the file system `device`.
    fn add_tree(&mut self, top: &Path, device: u64) {
        let mut directories = vec![top.to_owned()];
        while let Some(directory) = directories.pop() {
            let entries = fs::read_dir(&directory).and_then(|entries| {
                entries
                    .map(|entry| entry.map(|e| e.path()))
                    .collect::<io::Result<Vec<_>>>()
            });
            let mut entries = match entries {
                Ok(entries) => entries,
                Err(error) => {
                    self.leave_out(&directory, &error);
                    continue;
                }
            };
            // The same estimate each time, whatever the order in the directory.
            entries.sort();
            let mut below = Vec::new();
            for path in entries {
                match fs::symlink_metadata(&path) {
                    Ok(meta) if meta.dev() != device => {}
                    Ok(meta) if meta.is_dir() => below.push(path),
                    Ok(meta) if meta.is_file() => self.add_file(path, &meta),
                    Ok(_) => {}
                    Err(error) => self.leave_out(&path, &error),
                }
            }
            directories.extend(below.into_iter().rev());
        }
    }

    /// Adds a file of a directory behind the last one, in whole blocks.
    fn add_file(&mut self, path: PathBuf, meta: &Metadata) {
        if meta.nlink() > 1 && !self.linked.insert((meta.dev(), meta.ino())) {
            return;
        }
        let ranges = if meta.blocks() * 512 < meta.len() {
            File::open(&path).and_then(|file| data_ranges(&file, meta.len()))
        } else {
            let cwd = rustix::fs::CWD;
            rustix::fs::accessat(cwd, &path, Access::READ_OK, AtFlags::EACCESS)
                .map_err(io::Error::from)
                .map(|()| std::iter::once(0..meta.len()).collect())
        };
        match ranges {
            Ok(ranges) => {
                for data in ranges {
                    let len = data.end - data.start;
                    self.push(self.end, data);
                    self.end += len.next_multiple_of(BLOCK);
                }
                self.files.push(path);
            }
            Err(error) => self.leave_out(&path, &error),
        }
    }

    /// Puts a part of the next file at byte `at` of the device, which is behind all others.
    fn push(&mut self, at: u64, part: Range<u64>) {
        let len = part.end - part.start;
        self.extents.push(Extent {
            at,
            len,
            file: self.files.len(),
            offset: part.start,
        });
        self.bar.inc_length(len);
        self.bar.inc(len);
    }

    fn leave_out(&mut self, path: &Path, error: &io::Error) {
        // Deleted meanwhile.
        if error.kind() == io::ErrorKind::NotFound {
            return;
        }
        let (count, _) = self
            .unreadable
            .get_or_insert_with(|| (0, fail::io(path, error)));
        *count += 1;
    }

    /// The pieces of `size` bytes of the device in which something lies.
    pub(crate) fn pieces(&self, size: u64) -> Pieces {
        let mut pieces = Pieces {
            runs: Vec::new(),
            count: 0,
        };
        let mut behind = 0;
        for extent in &self.extents {
            let first = (extent.at / size).max(behind);
            let end = (extent.at + extent.len).div_ceil(size);
            if first >= end {
                continue;
            }
            if first > behind || pieces.runs.is_empty() {
                pieces.runs.push((pieces.count, first));
            }
            pieces.count += end - first;
            behind = end;
        }
        pieces
    }

    /// A reader of the contents.
    pub(crate) fn reader(&'a self) -> Reader<'a> {
        Reader {
            contents: self,
            open: None,
        }
    }
}

/// The parts of `file`, whole blocks of its first `len` bytes, that are no holes.
fn data_ranges(file: &File, len: u64) -> io::Result<Vec<Range<u64>>> {
    use rustix::fs::{seek, SeekFrom::Data, SeekFrom::Hole};
    let mut ranges: Vec<Range<u64>> = Vec::new();
    let mut at = 0;
    while at < len {
        let start = match seek(file, Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            // A block device, or a file system without holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => {
                ranges.push(at..len);
                break;
            }
            Err(errno) => return Err(errno.into()),
        };
        let end = seek(file, Hole(start))?;
        let (start, end) = (start - start % BLOCK, end.next_multiple_of(BLOCK).min(len));
        match ranges.last_mut() {
            Some(last) if last.end >= start => last.end = end,
            _ if start < end => ranges.push(start..end),
            _ => {}
        }
        at = end;
    }
    Ok(ranges)
}

/// The pieces of a device in which something lies.
pub(crate) struct Pieces {
    /// Of each run of neighbouring pieces, how many are before it, and which one of the device is its first.
    runs: Vec<(u64, u64)>,
    /// Number of pieces.
    pub(crate) count: u64,
}

impl Pieces {
    /// Which piece of the device the `n`th is.
    pub(crate) fn nth(&self, n: u64) -> u64 {
        let behind = self.runs.partition_point(|&(before, _)| before <= n);
        let (before, first) = self.runs[behind - 1];
        first + n - before
    }
}

/// Reads [`Contents`], and keeps the last file open.
pub(crate) struct Reader<'a> {
    contents: &'a Contents<'a>,
    open: Option<(usize, File)>,
}

impl Reader<'_> {
    /// Reads the `n`th piece of the size of `buf` of the device, and returns the part of it, in whole blocks, that lies
    /// before the end of the device.
    pub(crate) fn read<'b>(&mut self, n: u64, buf: &'b mut [u8]) -> Result<&'b [u8]> {
        let contents = self.contents;
        let start = n * buf.len() as u64;
        let end = (start + buf.len() as u64).min(contents.end);
        buf.fill(0);
        let first = contents
            .extents
            .partition_point(|extent| extent.at + extent.len <= start);
        let inside = contents.extents[first..].iter().take_while(|e| e.at < end);
        for extent in inside {
            let from = extent.at.max(start);
            let to = (extent.at + extent.len).min(end);
            let part = &mut buf[(from - start) as usize..(to - start) as usize];
            self.read_file(extent.file, part, extent.offset + from - extent.at)?;
        }
        Ok(&buf[..(end - start) as usize])
    }

    /// Reads from byte `at` of a file. What is behind its end by now stays as it is, and all of it if the file was deleted.
    fn read_file(&mut self, index: usize, mut buf: &mut [u8], mut at: u64) -> Result<()> {
        let path = &self.contents.files[index];
        let error = |e: io::Error| fail::io(path, &e);
        let file = match &mut self.open {
            Some((open, file)) if *open == index => file,
            open => match File::open(path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
                file => &open.insert((index, file.map_err(error)?)).1,
            },
        };
        while !buf.is_empty() {
            match file.read_at(buf, at) {
                Ok(0) => break,
                Ok(n) => (buf, at) = (&mut buf[n..], at + n as u64),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(error(e)),
            }
        }
        Ok(())
    }
}
