// SPDX-License-Identifier: GPL-2.0 OR MIT
//! [`Control`]: the control device of the kernel module.
//!
//! The structures and numbers are those of `include/uapi/linux/cloop.h`. All `unsafe` of the tool is here and in
//! signals.rs.

#![allow(unsafe_code)]

use crate::signals;
use anyhow::{bail, Result};
use cloop::engine::{Algorithm, Compression, Recompression};
use rustix::io::Errno;
use rustix::ioctl::{ioctl, opcode, Getter, Opcode, Setter, Updater};
use std::ffi::OsStr;
use std::fs::{File, Metadata, OpenOptions};
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};

const NODE: &str = "/dev/cloop-control";
const MODULE: &str = "/sys/module/cloop";
/// The interface version that this tool speaks.
const ABI: u32 = 1;
const GROUP: u8 = 0xc7;
const READ_ONLY: u32 = 1 << 0;
const FAILED: u32 = 1 << 3;
const FULL: u32 = 1 << 4;
const RETRYING: u32 = 1 << 8;
const LOW: u32 = 1 << 9;
const AUTOCLEAR: u32 = 1 << 10;
const DETACH_LAZY: u32 = 1 << 0;
const RESIZE_FORCE: u32 = 1 << 0;
const SET_COMPRESSION: u32 = 1 << 0;
const SET_RECOMPRESSION: u32 = 1 << 1;
const SET_RECOMPRESS_AFTER: u32 = 1 << 2;
const SET_RECOMPRESS_RATE: u32 = 1 << 3;
const ATTACH_FORCE: u32 = 1 << 16;

/// `struct cloop_version`.
#[repr(C)]
#[derive(Clone, Copy)]
struct RawVersion {
    abi: u32,
    reserved: u32,
    module_version: [u8; 24],
}

/// `struct cloop_attach`.
#[repr(C)]
#[derive(Clone, Copy)]
struct RawAttach {
    fd: i32,
    flags: u32,
    index: i32,
    reserved: u32,
}

/// `struct cloop_detach`.
#[repr(C)]
#[derive(Clone, Copy)]
struct RawDetach {
    index: i32,
    flags: u32,
}

/// `struct cloop_info`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Info {
    index: i32,
    flags: u32,
    pub(crate) size: u64,
    pub(crate) record_size: u32,
    algorithm: u32,
    pub(crate) uuid: [u8; 16],
    pub(crate) segment_size: u32,
    error: u32,
    pub(crate) mapped_blocks: u64,
    pub(crate) live_bytes: u64,
    pub(crate) stored_bytes: u64,
    pub(crate) allocated_bytes: u64,
    pub(crate) segments: u64,
    pub(crate) free_segments: u64,
    pub(crate) table_memory: u64,
    pub(crate) bytes_written: u64,
    pub(crate) bytes_read: u64,
    pub(crate) log_bytes: u64,
    pub(crate) flushes: u64,
    pub(crate) syncs: u64,
    pub(crate) checkpoints: u64,
    pub(crate) damaged: u64,
    pub(crate) errors: u64,
    pub(crate) replayed: u64,
    backing_dev: u64,
    backing_ino: u64,
    backing_file: [u8; 256],
    pub(crate) table_limit: u64,
    pub(crate) garbage_bytes: u64,
    pub(crate) moved_bytes: u64,
    pub(crate) freed_segments: u64,
    pub(crate) reserved_bytes: u64,
    pub(crate) stuck_segments: u64,
    pub(crate) memory: u64,
    level: u64,
    pub(crate) replaced: u64,
    recompress_algorithm: u32,
    recompress_level: u32,
    recompress_after: u32,
    recompress_rate: u32,
    pub(crate) recompressed_bytes: u64,
    pub(crate) pending_bytes: u64,
    reserved: [u64; 3],
}

/// `struct cloop_compact`.
#[repr(C)]
#[derive(Clone, Copy)]
struct RawCompact {
    index: i32,
    flags: u32,
}

/// `struct cloop_resize`.
#[repr(C)]
#[derive(Clone, Copy)]
struct RawResize {
    index: i32,
    flags: u32,
    size: u64,
}

/// `struct cloop_set`.
#[repr(C)]
#[derive(Clone, Copy)]
struct RawSet {
    index: i32,
    flags: u32,
    algorithm: u32,
    level: u32,
    recompress_algorithm: u32,
    recompress_level: u32,
    recompress_after: u32,
    recompress_rate: u32,
}

/// `struct cloop_recompress`.
#[repr(C)]
#[derive(Clone, Copy)]
struct RawRecompress {
    index: i32,
    flags: u32,
    algorithm: u32,
    level: u32,
}

const CTL_VERSION: Opcode = opcode::read::<RawVersion>(GROUP, 0);
const CTL_ATTACH: Opcode = opcode::read_write::<RawAttach>(GROUP, 1);
const CTL_DETACH: Opcode = opcode::write::<RawDetach>(GROUP, 2);
const CTL_INFO: Opcode = opcode::read_write::<Info>(GROUP, 3);
const CTL_COMPACT: Opcode = opcode::write::<RawCompact>(GROUP, 4);
const CTL_RESIZE: Opcode = opcode::write::<RawResize>(GROUP, 5);
const CTL_SET: Opcode = opcode::write::<RawSet>(GROUP, 6);
const CTL_RECOMPRESS: Opcode = opcode::write::<RawRecompress>(GROUP, 7);

// The numbers contain the sizes: these hold only while the structures are those of the header.
const _: () = assert!(CTL_VERSION == 0x8020_c700);
const _: () = assert!(CTL_ATTACH == 0xc010_c701);
const _: () = assert!(CTL_DETACH == 0x4008_c702);
const _: () = assert!(CTL_INFO == 0xc240_c703);
const _: () = assert!(CTL_COMPACT == 0x4008_c704);
const _: () = assert!(CTL_RESIZE == 0x4010_c705);
const _: () = assert!(CTL_SET == 0x4020_c706);
const _: () = assert!(CTL_RECOMPRESS == 0x4010_c707);

fn compression_of(algorithm: u32, level: u32) -> Option<Compression> {
    let algorithm = Algorithm::from_tag(u8::try_from(algorithm).ok()?)?;
    Compression::new(algorithm, u8::try_from(level).ok()?)
}

/// Settings of an image, those that are to change.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Settings {
    /// Compression of new data.
    pub(crate) compression: Option<Compression>,
    /// Compression of data that has become cold; `Raw` for none.
    pub(crate) recompression: Option<Compression>,
    /// Seconds without a write after which data is cold.
    pub(crate) after: Option<u32>,
    /// Most content that is compressed again, in KiB a second; 0 for no bound.
    pub(crate) rate: Option<u32>,
}

impl Settings {
    fn raw(&self, index: i32) -> RawSet {
        let (tag, level) = (
            |c: Option<Compression>| c.map_or(0, |c| c.algorithm().tag().into()),
            |c: Option<Compression>| c.map_or(0, |c| c.level().into()),
        );
        let flags = [
            (self.compression.is_some(), SET_COMPRESSION),
            (self.recompression.is_some(), SET_RECOMPRESSION),
            (self.after.is_some(), SET_RECOMPRESS_AFTER),
            (self.rate.is_some(), SET_RECOMPRESS_RATE),
        ];
        RawSet {
            index,
            flags: flags
                .iter()
                .filter(|flag| flag.0)
                .fold(0, |all, flag| all | flag.1),
            algorithm: tag(self.compression),
            level: level(self.compression),
            recompress_algorithm: tag(self.recompression),
            recompress_level: level(self.recompression),
            recompress_after: self.after.unwrap_or(0),
            recompress_rate: self.rate.unwrap_or(0),
        }
    }
}

impl Info {
    /// Attached for reading only.
    pub(crate) fn read_only(&self) -> bool {
        self.flags & READ_ONLY != 0
    }

    /// The last write that needed space found none.
    pub(crate) fn full(&self) -> bool {
        self.flags & FULL != 0
    }

    /// Space runs low.
    pub(crate) fn low(&self) -> bool {
        self.flags & LOW != 0
    }

    /// The backing file refuses writes, which are tried again.
    pub(crate) fn retrying(&self) -> bool {
        self.flags & RETRYING != 0
    }

    /// The device is detached when its last user closes it.
    pub(crate) fn autoclear(&self) -> bool {
        self.flags & AUTOCLEAR != 0
    }

    /// The errno that made the device read-only.
    pub(crate) fn failure(&self) -> Option<Errno> {
        (self.flags & FAILED != 0).then(|| Errno::from_raw_os_error(self.error as i32))
    }

    /// Compression of new records. None for one of a newer module.
    pub(crate) fn compression(&self) -> Option<Compression> {
        compression_of(self.algorithm, u32::try_from(self.level).ok()?)
    }

    /// How data is compressed again that has become cold. None for a compression of a newer module.
    pub(crate) fn recompression(&self) -> Option<Recompression> {
        let compression = match self.recompress_algorithm {
            0 => None,
            algorithm => Some(compression_of(algorithm, self.recompress_level)?),
        };
        Some(Recompression {
            compression,
            after: self.recompress_after,
            rate: self.recompress_rate,
        })
    }

    /// Path of the image at the time of attaching.
    pub(crate) fn backing_file(&self) -> &Path {
        let path = self.backing_file.split(|&b| b == 0).next().unwrap_or(&[]);
        Path::new(OsStr::from_bytes(path))
    }

    /// Whether the image is the file that `meta` describes.
    pub(crate) fn is_backed_by(&self, meta: &Metadata) -> bool {
        (self.backing_dev, self.backing_ino) == (meta.dev(), meta.ino())
    }
}

/// How long a device exists that is in use.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lifetime {
    /// Until somebody detaches it.
    UntilDetached,
    /// Until its last user closes it.
    UntilClosed,
}

/// The open control device of a module that speaks our version of the interface.
pub(crate) struct Control(File);

impl Control {
    /// Opens `/dev/cloop-control`, and loads the module first if the node does not exist. Where the node exists
    /// before the module is loaded, as kmod makes it when a machine starts, the kernel loads the module.
    pub(crate) fn open_or_load() -> Result<Self> {
        if !Self::present() && !Path::new(NODE).exists() {
            // If that fails, `open` says what is missing, and how to load it.
            let _ = Command::new("/sbin/modprobe")
                .arg("cloop")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
        }
        Self::open()
    }

    /// Opens `/dev/cloop-control`.
    pub(crate) fn open() -> Result<Self> {
        let file = match OpenOptions::new().read(true).write(true).open(NODE) {
            Ok(file) => file,
            Err(error) => match (error.kind(), Self::present()) {
                (ErrorKind::PermissionDenied, _) => {
                    bail!("{NODE}: permission denied; run as root")
                }
                (ErrorKind::NotFound, true) => bail!(
                    "{NODE}: missing though the cloop module is loaded; mount devtmpfs on /dev"
                ),
                // ENXIO, ENODEV: the node exists, but its driver does not.
                _ if error.kind() == ErrorKind::NotFound
                    || matches!(error.raw_os_error(), Some(6 | 19)) =>
                {
                    bail!(
                        "{NODE}: the cloop module is not loaded; load it with `modprobe cloop` \
                         or `insmod cloop.ko`"
                    )
                }
                _ => bail!("{NODE}: cannot open: {error}"),
            },
        };
        let control = Self(file);
        // SAFETY: CTL_VERSION fills one `RawVersion`, and any bytes make a valid one.
        let version = unsafe { ioctl(&control.0, Getter::<CTL_VERSION, RawVersion>::new()) };
        match version {
            Ok(version) if version.abi == ABI => Ok(control),
            Ok(version) => bail!(
                "{NODE}: the loaded module speaks interface version {}, this tool version {ABI}; \
                 install the same release of both",
                version.abi
            ),
            Err(Errno::ACCESS | Errno::PERM) => bail!("{NODE}: permission denied; run as root"),
            Err(_) if Path::new(NODE).is_file() => bail!(
                "{NODE}: a regular file is in the place of the control device; remove it and reload the module"
            ),
            Err(_) => bail!("{NODE}: not the control device of cloop; reload the module"),
        }
    }

    /// Whether the module is loaded. The node says nothing about that: it may exist before.
    pub(crate) fn present() -> bool {
        Path::new(MODULE).exists()
    }

    /// Attaches the image in `file`, as device `index` or as the first free one, and returns the
    /// device's number. `force` attaches a copy of an attached image.
    pub(crate) fn attach(
        &self,
        file: &File,
        read_only: bool,
        force: bool,
        lifetime: Lifetime,
        index: Option<u32>,
    ) -> Result<u32, Errno> {
        let autoclear = lifetime == Lifetime::UntilClosed;
        let mut arg = RawAttach {
            fd: file.as_raw_fd(),
            flags: if read_only { READ_ONLY } else { 0 }
                | if force { ATTACH_FORCE } else { 0 }
                | if autoclear { AUTOCLEAR } else { 0 },
            index: match index {
                Some(index) => i32::try_from(index).map_err(|_| Errno::INVAL)?,
                None => -1,
            },
            reserved: 0,
        };
        signals::lift_file_size_limit();
        // SAFETY: CTL_ATTACH reads and writes one `RawAttach`, any bytes make a valid one, and
        // `file` keeps the descriptor open during the call.
        unsafe { ioctl(&self.0, Updater::<CTL_ATTACH, RawAttach>::new(&mut arg)) }?;
        u32::try_from(arg.index).map_err(|_| Errno::IO)
    }

    /// Detaches device `index`. One that is in use is refused, or with `Lifetime::UntilClosed` detached later.
    pub(crate) fn detach(&self, index: u32, lifetime: Lifetime) -> Result<(), Errno> {
        let index = i32::try_from(index).map_err(|_| Errno::INVAL)?;
        let flags = match lifetime {
            Lifetime::UntilDetached => 0,
            Lifetime::UntilClosed => DETACH_LAZY,
        };
        let arg = RawDetach { index, flags };
        signals::lift_file_size_limit();
        // SAFETY: CTL_DETACH only reads one `RawDetach`.
        unsafe { ioctl(&self.0, Setter::<CTL_DETACH, RawDetach>::new(arg)) }
    }

    /// Lets the module compact device `index`, until it has finished or a signal arrives.
    pub(crate) fn compact(&self, index: u32) -> Result<(), Errno> {
        let index = i32::try_from(index).map_err(|_| Errno::INVAL)?;
        let arg = RawCompact { index, flags: 0 };
        signals::lift_file_size_limit();
        // SAFETY: CTL_COMPACT only reads one `RawCompact`.
        unsafe { ioctl(&self.0, Setter::<CTL_COMPACT, RawCompact>::new(arg)) }
    }

    /// Changes the size of device `index` to `size` bytes; with `force` even if that discards data.
    pub(crate) fn resize(&self, index: u32, size: u64, force: bool) -> Result<(), Errno> {
        let arg = RawResize {
            index: i32::try_from(index).map_err(|_| Errno::INVAL)?,
            flags: if force { RESIZE_FORCE } else { 0 },
            size,
        };
        signals::lift_file_size_limit();
        // SAFETY: CTL_RESIZE only reads one `RawResize`.
        unsafe { ioctl(&self.0, Setter::<CTL_RESIZE, RawResize>::new(arg)) }
    }

    /// Compresses all data of device `index` again, until that is done or a signal arrives.
    pub(crate) fn recompress(&self, index: u32, compression: Compression) -> Result<(), Errno> {
        let arg = RawRecompress {
            index: i32::try_from(index).map_err(|_| Errno::INVAL)?,
            flags: 0,
            algorithm: compression.algorithm().tag().into(),
            level: compression.level().into(),
        };
        signals::lift_file_size_limit();
        // SAFETY: CTL_RECOMPRESS only reads one `RawRecompress`.
        unsafe { ioctl(&self.0, Setter::<CTL_RECOMPRESS, RawRecompress>::new(arg)) }
    }

    /// Changes settings of an attached device, and of its image.
    pub(crate) fn set(&self, index: u32, settings: &Settings) -> Result<(), Errno> {
        let arg = settings.raw(i32::try_from(index).map_err(|_| Errno::INVAL)?);
        signals::lift_file_size_limit();
        // SAFETY: CTL_SET only reads one `RawSet`.
        unsafe { ioctl(&self.0, Setter::<CTL_SET, RawSet>::new(arg)) }
    }

    /// The module's information about device `index`; `None` if nothing is attached there, or if the
    /// device is just being attached or detached.
    pub(crate) fn info(&self, index: u32) -> Result<Option<Info>> {
        let mut info = Info::asking_for(index);
        // SAFETY: CTL_INFO reads and writes one `Info`, and any bytes make a valid one.
        match unsafe { ioctl(&self.0, Updater::<CTL_INFO, Info>::new(&mut info)) } {
            Ok(()) => Ok(Some(info)),
            Err(Errno::NXIO | Errno::NODEV | Errno::BUSY) => Ok(None),
            Err(Errno::ACCESS | Errno::PERM) => bail!("{NODE}: permission denied; run as root"),
            Err(errno) => bail!("/dev/cloop{index}: cannot ask its state: {errno}"),
        }
    }
}

impl Info {
    /// The argument that asks about device `index`.
    fn asking_for(index: u32) -> Self {
        Self {
            index: i32::try_from(index).unwrap_or(-1),
            flags: 0,
            size: 0,
            record_size: 0,
            algorithm: 0,
            uuid: [0; 16],
            segment_size: 0,
            error: 0,
            mapped_blocks: 0,
            live_bytes: 0,
            stored_bytes: 0,
            allocated_bytes: 0,
            segments: 0,
            free_segments: 0,
            table_memory: 0,
            bytes_written: 0,
            bytes_read: 0,
            log_bytes: 0,
            flushes: 0,
            syncs: 0,
            checkpoints: 0,
            damaged: 0,
            errors: 0,
            replayed: 0,
            backing_dev: 0,
            backing_ino: 0,
            backing_file: [0; 256],
            table_limit: 0,
            garbage_bytes: 0,
            moved_bytes: 0,
            freed_segments: 0,
            reserved_bytes: 0,
            stuck_segments: 0,
            memory: 0,
            level: 0,
            replaced: 0,
            recompress_algorithm: 0,
            recompress_level: 0,
            recompress_after: 0,
            recompress_rate: 0,
            recompressed_bytes: 0,
            pending_bytes: 0,
            reserved: [0; 3],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::{offset_of, size_of};
    use std::process::Command;

    /// The C compiler, which exists because Rust links with it, computes the values of the header.
    #[test]
    fn structures_are_those_of_the_header() {
        let mut program = String::from(
            "#include <stdio.h>\n#include <stddef.h>\n#include <linux/cloop.h>\nint main(void) {\n",
        );
        let mut expected = String::new();
        let mut compare = |c: &str, value: usize| {
            program += &format!("printf(\"%s %zu\\n\", \"{c}\", (size_t)({c}));\n");
            expected += &format!("{c} {value}\n");
        };
        compare("CLOOP_ABI_VERSION", ABI as usize);
        compare("CLOOP_FLAG_READ_ONLY", READ_ONLY as usize);
        compare("CLOOP_FLAG_FAILED", FAILED as usize);
        compare("CLOOP_FLAG_FULL", FULL as usize);
        compare("CLOOP_FLAG_LOW", LOW as usize);
        compare("CLOOP_FLAG_RETRYING", RETRYING as usize);
        compare("CLOOP_FLAG_AUTOCLEAR", AUTOCLEAR as usize);
        compare("CLOOP_DETACH_LAZY", DETACH_LAZY as usize);
        compare("CLOOP_RESIZE_FORCE", RESIZE_FORCE as usize);
        compare("CLOOP_SET_COMPRESSION", SET_COMPRESSION as usize);
        compare("CLOOP_SET_RECOMPRESSION", SET_RECOMPRESSION as usize);
        compare("CLOOP_SET_RECOMPRESS_AFTER", SET_RECOMPRESS_AFTER as usize);
        compare("CLOOP_SET_RECOMPRESS_RATE", SET_RECOMPRESS_RATE as usize);
        compare("CLOOP_ATTACH_FORCE", ATTACH_FORCE as usize);
        compare("CLOOP_CTL_VERSION", CTL_VERSION as usize);
        compare("CLOOP_CTL_ATTACH", CTL_ATTACH as usize);
        compare("CLOOP_CTL_DETACH", CTL_DETACH as usize);
        compare("CLOOP_CTL_INFO", CTL_INFO as usize);
        compare("CLOOP_CTL_COMPACT", CTL_COMPACT as usize);
        compare("CLOOP_CTL_RESIZE", CTL_RESIZE as usize);
        compare("CLOOP_CTL_SET", CTL_SET as usize);
        compare("CLOOP_CTL_RECOMPRESS", CTL_RECOMPRESS as usize);
        compare("CLOOP_ALGORITHM_NONE", Algorithm::Raw.tag().into());
        compare("CLOOP_ALGORITHM_LZ4", Algorithm::Lz4.tag().into());
        compare("CLOOP_ALGORITHM_ZSTD", Algorithm::Zstd.tag().into());
        macro_rules! same {
            ($c:ident, $rust:ty: $($field:ident)*) => {
                compare(concat!("sizeof(struct ", stringify!($c), ")"), size_of::<$rust>());
                $(compare(
                    concat!("offsetof(struct ", stringify!($c), ", ", stringify!($field), ")"),
                    offset_of!($rust, $field),
                );)*
            };
        }
        same!(cloop_version, RawVersion: abi reserved module_version);
        same!(cloop_attach, RawAttach: fd flags index reserved);
        same!(cloop_detach, RawDetach: index flags);
        same!(cloop_info, Info: index flags size record_size algorithm uuid segment_size error
            mapped_blocks live_bytes stored_bytes allocated_bytes segments free_segments
            table_memory bytes_written bytes_read log_bytes flushes syncs checkpoints damaged
            errors replayed backing_dev backing_ino backing_file table_limit garbage_bytes
            moved_bytes freed_segments reserved_bytes stuck_segments memory level replaced
            recompress_algorithm recompress_level recompress_after recompress_rate
            recompressed_bytes pending_bytes reserved);
        same!(cloop_compact, RawCompact: index flags);
        same!(cloop_resize, RawResize: index flags size);
        same!(cloop_set, RawSet: index flags algorithm level recompress_algorithm recompress_level
            recompress_after recompress_rate);
        same!(cloop_recompress, RawRecompress: index flags algorithm level);
        program += "return 0; }\n";

        let dir = tempfile::tempdir().unwrap();
        let (source, binary) = (dir.path().join("abi.c"), dir.path().join("abi"));
        std::fs::write(&source, program).unwrap();
        let include = concat!(env!("CARGO_MANIFEST_DIR"), "/include/uapi");
        let built = Command::new("cc")
            .args(["-I", include, "-o"])
            .args([&binary, &source])
            .status();
        assert!(built.unwrap().success());
        let output = Command::new(&binary).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
    }
}
