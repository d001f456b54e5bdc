// SPDX-License-Identifier: GPL-2.0
//! One attached device.

use crate::block::{Disk, Shape};
use crate::c;
use crate::engine::{Access, Compression, Error, Volume};
use crate::error::errno;
use crate::module_reference::ModuleReference;
use crate::parameter::table_limit;
use crate::platform::kernel::{call, call_interruptible, Kernel, KernelFile};
use crate::queue::Queue;
use crate::server::Server;
use crate::shrinker::Shrinker;
use crate::sysfs;
use core::sync::atomic::{AtomicBool, Ordering};
use kernel::prelude::*;
use kernel::sync::{Arc, ArcBorrow};

/// Opens the image in `file` for device `index`.
///
/// The function is not inlined, so that its stack frame is gone when the device is made.
#[inline(never)]
fn open_volume(index: usize, file: KernelFile, access: Access) -> Result<Volume<Kernel>> {
    let mut opened = None;
    call(|| {
        opened = Some(Volume::open(file, access)?);
        Ok(())
    })
    .map_err(|error| {
        pr_err!("cloop{index}: cannot attach the image: {error}\n");
        errno(error)
    })?;
    let volume = opened.ok_or(EIO)?;
    volume.set_table_limit(table_limit());
    // Users of the device hold data that only the memory of the log has. A detach ends the waiting.
    volume.wait_for_backing_file();
    Ok(volume)
}

/// Runs `work`, which takes long, until it ends or a signal comes: then it sees the flag.
fn until_signal(work: impl FnOnce(&AtomicBool) -> Result<(), Error> + Send) -> Result {
    let stop = AtomicBool::new(false);
    let undisturbed = call_interruptible(&stop, || work(&stop));
    undisturbed
        .map_err(errno)?
        .then_some(())
        .ok_or(ERESTARTNOHAND)
}

/// An attached device. Dropping it without [`close`](Self::close) leaves the image as a power cut does.
pub(crate) struct Device {
    // In this order: the shrinker and the disk are removed before the server that they use.
    shrinker: Shrinker,
    disk: Disk<Queue>,
    server: Arc<Server>,
    _module: ModuleReference,
}

impl Device {
    /// Opens the image in `file` and makes the block device `/dev/cloopN` for it, N being `index`.
    ///
    /// # Errors
    ///
    /// Those of opening the image and of making the block device; each is logged.
    pub(crate) fn attach(index: usize, file: KernelFile, access: Access) -> Result<KBox<Self>> {
        let module = ModuleReference::new();
        let volume = open_volume(index, file, access)?;
        let result = Self::new(index, volume, module);
        if let Err(e) = &result {
            let errno = e.to_errno();
            pr_err!("cloop{index}: cannot make the device: error {errno}\n");
        }
        result
    }

    #[inline(never)]
    fn new(index: usize, volume: Volume<Kernel>, module: ModuleReference) -> Result<KBox<Self>> {
        let server = Arc::new(Server::new(index, volume)?, GFP_KERNEL)?;
        let queue = Arc::new(Queue::new(server.clone())?, GFP_KERNEL)?;
        let shape = Shape {
            size: server.volume().size().bytes(),
            record_size: server.volume().layout().record_size,
            rotational: server.volume().file().is_rotational(),
            read_only: server.volume().read_only(),
        };
        let device = KBox::new(
            Self {
                shrinker: Shrinker::new(server.clone())?,
                disk: Disk::new(index, &shape, sysfs::groups(), queue)?,
                server,
                _module: module,
            },
            GFP_KERNEL,
        )?;
        device.log_attached();
        Ok(device)
    }

    fn log_attached(&self) {
        let index = self.server.index();
        let volume = self.server.volume();
        let kib = volume.size().bytes() >> 10;
        let mode = if volume.read_only() {
            "read-only"
        } else {
            "read-write"
        };
        let mut buf = [0; c::CLOOP_PATH_LEN as usize];
        let path = volume.file().path(&mut buf).unwrap_or(c"(long path)");
        match volume.state().clean_at_open {
            true => pr_info!("cloop{index}: attached {path}, {kib} KiB, {mode}\n"),
            false => pr_info!("cloop{index}: attached {path}, {kib} KiB, {mode}, recovered\n"),
        }
    }

    /// The part that serves requests.
    pub(crate) fn server(&self) -> ArcBorrow<'_, Server> {
        self.server.as_arc_borrow()
    }

    /// Relocates live records to shrink the image, until the remaining gain is not worth the I/O.
    ///
    /// # Errors
    ///
    /// ERESTARTNOHAND if a signal arrives first, and those of the engine. The system call ends with EINTR if
    /// the signal has a handler; if the machine has slept, it begins anew.
    pub(crate) fn compact(&self) -> Result {
        let volume = self.server.volume();
        until_signal(|stop| volume.compact(&mut |_| !stop.load(Ordering::Relaxed)))
    }

    /// Compresses all data again with `compression`. It takes long, and the device can be used meanwhile.
    ///
    /// # Errors
    ///
    /// As [`compact`](Self::compact).
    pub(crate) fn recompress(&self, compression: Compression) -> Result {
        let volume = self.server.volume();
        until_signal(|stop| {
            let pass = volume.begin_recompression(compression)?;
            volume.recompress(&pass, &mut || !stop.load(Ordering::Relaxed))
        })
    }

    /// Changes the size of the device to `size` bytes. With `force`, data beyond the new end is discarded.
    ///
    /// # Errors
    ///
    /// EBUSY if data is stored beyond the new end and `force` is false, and those of the engine.
    pub(crate) fn resize(&self, size: u64, force: bool) -> Result {
        let volume = self.server.volume();
        let resize = || {
            let mut ws = volume.workspace()?;
            volume.resize(&mut ws, size, force)
        };
        let old = volume.size().bytes();
        if size >= old || volume.read_only() {
            call(resize).map_err(errno)?;
        } else {
            self.disk.paused(|| call(resize).map_err(errno))?;
        }
        // After the pause, because this sends a uevent: a holder of the locks of uevents may wait for
        // memory, and so for a paused disk. Until then the engine refuses requests beyond the new end.
        self.disk.set_size(size);
        let index = self.server.index();
        pr_info!(
            "cloop{index}: resized from {} to {} KiB\n",
            old >> 10,
            size >> 10
        );
        Ok(())
    }

    /// Returns true if the block device is open.
    pub(crate) fn is_open(&self) -> bool {
        self.disk.is_open()
    }

    /// Keeps the block device from being opened.
    ///
    /// # Errors
    ///
    /// EBUSY if it is open.
    pub(crate) fn retire(&self) -> Result {
        self.disk.retire()
    }

    /// Removes the block device and closes the image, in this order. Someone who asks for the state of the device
    /// may have the image open a little longer.
    ///
    /// # Errors
    ///
    /// Those of writing to the image, which is not closed cleanly then. The device is gone in any case.
    pub(crate) fn close(self) -> Result {
        let Self {
            shrinker,
            disk,
            server,
            _module,
        } = self;
        let index = server.index();
        // Removing the disk waits for its requests, so the engine has everything that was written.
        drop(shrinker);
        drop(disk);
        match call(|| server.volume().close()) {
            Ok(()) => {
                pr_info!("cloop{index}: detached\n");
                Ok(())
            }
            Err(error) => {
                pr_err!("cloop{index}: detached, but the image was not closed: {error}\n");
                Err(errno(error))
            }
        }
    }
}
