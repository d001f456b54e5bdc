// SPDX-License-Identifier: GPL-2.0 OR MIT
//! [`Device`]: an attached `/dev/cloopN`, and the ways to name one.

use crate::control::{Control, Info};
use crate::fail::{self, fail};
use anyhow::Result;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// An attached device, as the module describes it.
pub(crate) struct Device {
    pub(crate) index: u32,
    pub(crate) info: Info,
}

/// The node of device `index`.
pub(crate) fn node(index: u32) -> PathBuf {
    PathBuf::from(format!("/dev/cloop{index}"))
}

/// The number in a name like `cloop3` or `/dev/cloop3`.
pub(crate) fn index_of_name(name: &Path) -> Option<u32> {
    let name = match name.strip_prefix("/dev") {
        Ok(rest) => rest,
        Err(_) => name,
    };
    let digits = name.to_str()?.strip_prefix("cloop")?;
    let plain =
        digits.bytes().all(|b| b.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'));
    // The kernel uses a signed number for a device.
    digits
        .parse()
        .ok()
        .filter(|&n: &u32| plain && n <= i32::MAX as u32)
}

/// Whether `path` is the place of the node of a device, such as `/dev/cloop3`.
pub(crate) fn is_node(path: &Path) -> bool {
    path.starts_with("/dev") && index_of_name(path).is_some()
}

/// What is in the place of the node of a device, if it is no block device: dd(1) to a device that is not attached makes
/// a regular file, and the node cannot appear there.
pub(crate) fn obstacle(node: &Path) -> Option<&'static str> {
    let entry = fs::symlink_metadata(node).ok()?;
    match fs::metadata(node) {
        Ok(meta) if meta.file_type().is_block_device() => None,
        Ok(meta) if meta.is_file() => {
            Some("a regular file is in the place of the device's node; remove it")
        }
        Err(_) if entry.is_symlink() => {
            Some("a symbolic link to nothing is in the place of the device's node; remove it")
        }
        _ => Some("something else is in the place of the device's node; remove it"),
    }
}

/// The number of the device that `path` names, by its name or (a symbolic link, another node) by its
/// device number. `None` if the path is something else, such as an image.
pub(crate) fn index_of(path: &Path) -> Option<u32> {
    match fs::metadata(path) {
        Ok(meta) if meta.file_type().is_block_device() => {
            let number = meta.rdev();
            let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
            let entry = fs::read_link(format!("/sys/dev/block/{major}:{minor}")).ok()?;
            index_of_name(Path::new(entry.file_name()?))
        }
        Ok(_) => None,
        Err(_) => index_of_name(path),
    }
}

/// The number of the device that the user names by `path`, its own or that of its image; or the error that there is none.
pub(crate) fn require_index(path: &Path) -> Result<u32> {
    match index_of(path).or_else(|| backed_by(path).map(|device| device.index)) {
        Some(index) => Ok(index),
        None => match fs::metadata(path) {
            Ok(_) if is_node(path) => {
                Err(fail(path, obstacle(path).unwrap_or("not a cloop device")))
            }
            Ok(meta) if meta.is_file() => Err(fail(
                path,
                "neither a cloop device nor an attached image; see `cloop list`",
            )),
            Ok(_) => Err(fail(path, "not a cloop device; see `cloop list`")),
            Err(error) => Err(fail::io(path, &error)),
        },
    }
}

/// The numbers of the devices that exist now, in order.
pub(crate) fn indices() -> Vec<u32> {
    let mut found: Vec<u32> = fs::read_dir("/sys/block")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| index_of_name(Path::new(OsStr::new(&entry.file_name()))))
        .collect();
    found.sort_unstable();
    found
}

/// The attached devices, in order. A device that is detached meanwhile is left out.
pub(crate) fn all(control: &Control) -> Result<Vec<Device>> {
    let mut devices = Vec::new();
    for index in indices() {
        if let Some(info) = control.info(index)? {
            devices.push(Device { index, info });
        }
    }
    Ok(devices)
}

/// What sysfs tells of a device. It needs neither the module's control device nor a permission.
pub(crate) struct Figures {
    directory: PathBuf,
}

impl Figures {
    /// Those of device `index`. Each is none if the device is gone.
    pub(crate) fn of(index: u32) -> Self {
        Self {
            directory: PathBuf::from(format!("/sys/block/cloop{index}")),
        }
    }

    fn bytes(&self, name: &str) -> Option<Vec<u8>> {
        let bytes = fs::read(self.directory.join(name)).ok()?;
        Some(bytes.strip_suffix(b"\n").unwrap_or(&bytes).to_vec())
    }

    /// A figure by its name.
    pub(crate) fn text(&self, name: &str) -> Option<String> {
        String::from_utf8(self.bytes(&format!("cloop/{name}"))?).ok()
    }

    /// A figure that is a number.
    pub(crate) fn number(&self, name: &str) -> Option<u64> {
        self.text(name)?.parse().ok()
    }

    /// Bytes of the device.
    pub(crate) fn size(&self) -> Option<u64> {
        let sectors: u64 = String::from_utf8(self.bytes("size")?).ok()?.parse().ok()?;
        Some(sectors * 512)
    }

    /// Path of the image at the time of attaching, whatever its length.
    pub(crate) fn backing_file(&self) -> Option<PathBuf> {
        let bytes = self.bytes("cloop/backing_file")?;
        Some(PathBuf::from(OsString::from_vec(bytes)))
    }
}

/// The device whose image has this UUID, by any path. Asks sysfs, which needs neither the module nor a permission.
pub(crate) fn with_uuid(uuid: Uuid) -> Option<u32> {
    indices().into_iter().find(|index| {
        let attached = Figures::of(*index).text("uuid");
        attached.is_some_and(|text| Uuid::try_parse(&text) == Ok(uuid))
    })
}

/// The device whose image is at `path`; `None` also without the module, or without permission to ask it.
pub(crate) fn backed_by(path: &Path) -> Option<Device> {
    let meta = fs::metadata(path).ok()?;
    // A look at an image must not load the module.
    let control = Control::present().then(Control::open)?.ok()?;
    let real = fs::canonicalize(path).ok();
    all(&control).ok()?.into_iter().find(|device| {
        device.info.is_backed_by(&meta)
            // On some file systems (btrfs) stat(2) and the kernel's inode report different device
            // numbers.
            || real.as_deref().is_some_and(|p| p == device.info.backing_file())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_what_is_in_the_place_of_a_node() {
        let directory = tempfile::tempdir().unwrap();
        let node = directory.path().join("cloop0");
        assert_eq!(obstacle(&node), None);
        std::os::unix::fs::symlink("nothing", &node).unwrap();
        assert!(obstacle(&node).unwrap().starts_with("a symbolic link"));
        fs::write(directory.path().join("nothing"), "").unwrap();
        assert!(obstacle(&node).unwrap().starts_with("a regular file"));
        assert!(obstacle(Path::new("/dev/null"))
            .unwrap()
            .starts_with("something else"));
        for (path, expected) in [
            ("/dev/cloop0", true),
            ("cloop0", false),
            ("/dev/loop0", false),
        ] {
            assert_eq!(is_node(Path::new(path)), expected);
        }
    }

    #[test]
    fn knows_device_names() {
        for (name, index) in [
            ("cloop0", Some(0)),
            ("/dev/cloop12", Some(12)),
            ("cloop", None),
            ("cloop00", None),
            ("cloop-1", None),
            ("cloop+1", None),
            ("cloop1p1", None),
            ("cloop-control", None),
            ("/tmp/cloop1", None),
            ("loop1", None),
            ("cloop4294967295", None),
        ] {
            assert_eq!(index_of_name(Path::new(name)), index, "{name}");
        }
    }
}
