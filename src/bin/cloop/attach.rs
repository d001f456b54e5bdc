// SPDX-License-Identifier: GPL-2.0 OR MIT
//! `cloop attach` and `cloop detach`.

use crate::control::{Control, Lifetime};
use crate::device;
use crate::fail::{self, fail};
use crate::image::{self, Lock};
use crate::output;
use anyhow::Result;
use rustix::io::Errno;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

/// Make a block device of an image and print the name of the device.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Attach for reading only; the image is not changed, not even by recovery
    #[arg(short, long)]
    read_only: bool,
    /// Attach an image whose UUID is attached for writing already, because it is a copy of that one
    #[arg(short, long, conflicts_with = "read_only")]
    force: bool,
    /// Device to use, such as 3, cloop3 or /dev/cloop3; by default the first free one
    #[arg(short, long, value_name = "DEVICE", value_parser = parse_device)]
    device: Option<u32>,
    /// Detach the device when its last user closes it
    #[arg(long)]
    autoclear: bool,
    /// Use the first free device, as without --device; for scripts that were made for losetup
    #[arg(long, conflicts_with = "device")]
    find: bool,
    /// Print the name of the device, as in any case; for scripts that were made for losetup
    #[arg(long)]
    show: bool,
    /// Image to attach
    image: PathBuf,
}

/// The lifetime that an option asks for.
fn lifetime(until_closed: bool) -> Lifetime {
    match until_closed {
        true => Lifetime::UntilClosed,
        false => Lifetime::UntilDetached,
    }
}

/// Detach devices.
///
/// Data that was written to the devices is made durable first. A device that is mounted or open stays
/// attached.
#[derive(clap::Args)]
pub(crate) struct DetachArgs {
    /// Detach every cloop device
    #[arg(short, long)]
    all: bool,
    /// Do not refuse a device that is in use, but detach it when its last user closes it
    #[arg(short, long)]
    lazy: bool,
    /// Devices to detach, such as /dev/cloop0 or cloop0, or their images
    #[arg(
        value_name = "DEVICE|IMAGE",
        required_unless_present = "all",
        conflicts_with = "all"
    )]
    devices: Vec<PathBuf>,
}

/// How long udev or devtmpfs may take to create the node.
const NODE_PATIENCE: Duration = Duration::from_secs(10);

/// How long a device that is in use is asked again to go: after an attach, and after every program that had it open for
/// writing, udev opens it to see what is on it.
const BUSY_PATIENCE: Duration = Duration::from_secs(2);

fn parse_device(name: &str) -> Result<u32, String> {
    device::index_of_name(Path::new(name))
        .or_else(|| device::index_of_name(Path::new(&format!("cloop{name}"))))
        .ok_or_else(|| "not a cloop device, such as 3, cloop3 or /dev/cloop3".to_owned())
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let path = &args.image;
    let file = image::open_direct(path, !args.read_only, Lock::Exclusive).map_err(|error| {
        if args.read_only || !is_read_only(path) {
            return error;
        }
        fail(
            path,
            "its file system is read-only; attach it with --read-only",
        )
    })?;
    let control = Control::open_or_load()?;
    let index = control
        .attach(
            &file,
            args.read_only,
            args.force,
            lifetime(args.autoclear),
            args.device,
        )
        .map_err(|errno| match errno {
            // The errno says that the image is damaged or unknown; the engine says where.
            Errno::MEDIUMTYPE | Errno::UCLEAN | Errno::OPNOTSUPP | Errno::NODATA => {
                image::diagnose(path, &file).unwrap_or_else(|| refused(args, errno))
            }
            _ => refused(args, errno),
        })?;
    wait_for_node(index).inspect_err(|_| {
        // The command fails, so it leaves nothing attached. The first error is the one to report.
        let _ = control.detach(index, Lifetime::UntilDetached);
    })?;
    output::print(&format!("{}\n", device::node(index).display()))?;
    Ok(ExitCode::SUCCESS)
}

fn is_read_only(path: &Path) -> bool {
    rustix::fs::statvfs(path)
        .is_ok_and(|s| s.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY))
}

/// The sentence for an attach that the module refused.
fn refused(args: &Args, errno: Errno) -> anyhow::Error {
    let path = &args.image;
    let check = format!("cloop check {}", output::shown(path));
    match errno {
        Errno::MEDIUMTYPE => fail::engine(path, cloop::engine::Error::NotAnImage),
        Errno::UCLEAN => fail(
            path,
            format_args!(
                "damaged; `{check}` shows the extent of the damage, `cloop check --repair {}` saves the rest",
                output::shown(path)
            ),
        ),
        Errno::OPNOTSUPP => fail(
            path,
            "made by a newer cloop; install a newer cloop module to attach it",
        ),
        Errno::NODATA => fail(
            path,
            "incomplete: the `cloop import` that made it was interrupted; import again with --force",
        ),
        Errno::ROFS | Errno::BADF => fail(path, "cannot be written to; attach it with --read-only"),
        Errno::BUSY => fail(
            path,
            "in use by another device; see `cloop list` and `losetup`",
        ),
        Errno::NOTUNIQ => fail(
            path,
            "has the UUID of an attached image, see `cloop list`: it may be the same image behind another device, and \
             two writers would destroy it; attach a copy of it with --force",
        ),
        Errno::EXIST => fail(
            path,
            "the device asked for is taken; choose another one, see `cloop list`",
        ),
        Errno::NFILE => fail(
            path,
            "no device number is free; detach another device first",
        ),
        Errno::TXTBSY => fail(path, "in use as a swap file; choose another path"),
        Errno::LOOP => fail(path, "lies on the device itself; copy it elsewhere"),
        Errno::NOSPC => fail(
            path,
            "no space left on its file system; free some, or attach it with --read-only",
        ),
        Errno::NOMEM => fail(path, "out of memory; free some and try again"),
        Errno::ACCESS | Errno::PERM => fail(path, "permission denied; run as root"),
        Errno::IO => fail(
            path,
            "input/output error; look at the kernel log (dmesg) for its cause",
        ),
        Errno::INVAL => fail(
            path,
            "refused by the module; look at the kernel log (dmesg) for the reason",
        ),
        errno => fail(path, format_args!("cannot attach: {errno}")),
    }
}

fn wait_for_node(index: u32) -> Result<()> {
    let node = device::node(index);
    let start = Instant::now();
    while !fs::metadata(&node).is_ok_and(|m| m.file_type().is_block_device()) {
        if let Some(obstacle) = device::obstacle(&node) {
            return Err(fail(&node, obstacle));
        }
        if start.elapsed() > NODE_PATIENCE {
            return Err(fail(
                &node,
                "did not appear; see that devtmpfs is mounted on /dev",
            ));
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

pub(crate) fn run_detach(args: &DetachArgs) -> Result<ExitCode> {
    if args.all && !Control::present() {
        return Ok(ExitCode::SUCCESS);
    }
    let mut wanted = Vec::new();
    let mut failures = Vec::new();
    if args.all {
        // A device may lie on another one, which was attached before and mostly has the lower number.
        wanted = device::indices();
        wanted.reverse();
    }
    for path in &args.devices {
        match device::require_index(path) {
            Ok(index) => wanted.push(index),
            Err(error) => failures.push(error),
        }
    }
    if !wanted.is_empty() {
        let control = Control::open()?;
        let detach = |index| control.detach(index, lifetime(args.lazy));
        for (index, errno) in detach_patiently(wanted, detach) {
            match errno {
                // Another program has detached it first.
                Errno::NXIO | Errno::NODEV if args.all => {}
                errno => failures.push(detach_refused(index, errno)),
            }
        }
    }
    // Print all but the last failure; main prints that one.
    let last = failures.pop();
    for error in &failures {
        eprintln!("cloop: {error:#}");
    }
    match last {
        Some(error) => Err(error),
        None => Ok(ExitCode::SUCCESS),
    }
}

/// Calls `detach` with each number, and again with those of devices that are in use, for a while. Returns the numbers for
/// which it failed.
fn detach_patiently(
    mut indices: Vec<u32>,
    mut detach: impl FnMut(u32) -> Result<(), Errno>,
) -> Vec<(u32, Errno)> {
    let deadline = Instant::now() + BUSY_PATIENCE;
    let mut failed = Vec::new();
    loop {
        let last = Instant::now() >= deadline;
        indices.retain(|&index| match detach(index) {
            Err(Errno::BUSY) if !last => true,
            Err(errno) => {
                failed.push((index, errno));
                false
            }
            Ok(()) => false,
        });
        if indices.is_empty() {
            return failed;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn detach_refused(index: u32, errno: Errno) -> anyhow::Error {
    let node = device::node(index);
    match errno {
        Errno::BUSY => fail(&node, "in use (mounted?); unmount and close it first"),
        Errno::NXIO | Errno::NODEV | Errno::NOENT => {
            fail(&node, "nothing is attached; see `cloop list`")
        }
        Errno::ACCESS | Errno::PERM => fail(&node, "permission denied; run as root"),
        // The module promises that any other error means that the device is gone.
        errno => fail(
            &node,
            format_args!(
                "detached, but its image could not be closed cleanly ({errno}); the next attach \
                 recovers it, look at the kernel log (dmesg) for the cause"
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_device_is_asked_again() {
        let start = Instant::now();
        let mut calls = Vec::new();
        let failed = detach_patiently(vec![0, 1, 2, 3], |index| {
            calls.push(index);
            match index {
                // Busy for a moment, for ever, and gone.
                1 if calls.iter().filter(|&&i| i == 1).count() < 3 => Err(Errno::BUSY),
                2 => Err(Errno::BUSY),
                3 => Err(Errno::NXIO),
                _ => Ok(()),
            }
        });
        assert_eq!(failed, [(3, Errno::NXIO), (2, Errno::BUSY)]);
        let times = [0, 1, 3].map(|index| calls.iter().filter(|&&i| i == index).count());
        assert_eq!(times, [1, 3, 1]);
        assert!(start.elapsed() >= BUSY_PATIENCE);
    }

    #[test]
    fn every_refusal_names_the_image_and_a_way_out() {
        let args = Args {
            read_only: false,
            force: false,
            device: None,
            autoclear: false,
            find: false,
            show: false,
            image: PathBuf::from("disk.img"),
        };
        for errno in [
            Errno::MEDIUMTYPE,
            Errno::UCLEAN,
            Errno::OPNOTSUPP,
            Errno::NODATA,
            Errno::ROFS,
            Errno::BUSY,
            Errno::EXIST,
            Errno::NFILE,
            Errno::NOSPC,
            Errno::PERM,
        ] {
            let text = refused(&args, errno).to_string();
            assert!(
                text.starts_with("disk.img: ") && text.contains(';'),
                "{text}"
            );
        }
    }
}
