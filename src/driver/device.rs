// SPDX-License-Identifier: GPL-2.0
//! One attached device.

use crate::background::Background;
use crate::c;
use crate::disk::{Disk, Workqueue};
use crate::engine::{self, Access, Algorithm, Layout, State, Stats, Volume, BLOCK_SIZE};
use crate::platform::kernel::{call, call_interruptible, io_scope, Kernel, KernelFile};
use crate::pool::{Pool, Worker};
use crate::ratelimit::RateLimit;
use crate::request::{Operation, Request};
use core::sync::atomic::{AtomicBool, Ordering};
use kernel::module::this_module;
use kernel::prelude::*;
use kernel::sync::Arc;

/// Requests of a device that are served at the same time: more than there are CPUs, because some of
/// them wait for the backing file.
fn worker_count() -> usize {
    // SAFETY: It has no preconditions.
    let cpus = unsafe { c::cloop_num_cpus() } as usize;
    (4 * cpus).clamp(8, 64)
}

/// An engine error as the kernel crate's.
fn errno(error: engine::Error) -> Error {
    Error::from_errno(-error.errno())
}

/// What a request that failed with `error` is ended with.
fn status(error: engine::Error) -> c::blk_status_t {
    match error {
        engine::Error::NoSpace => c::BLK_STS_NOSPC,
        engine::Error::NoMemory => c::BLK_STS_RESOURCE,
        engine::Error::Corrupt { .. } => c::BLK_STS_PROTECTION,
        _ => c::BLK_STS_IOERR,
    }
}

// The kernel crate has a `Display` of its own, so that it can hash pointers.
impl kernel::fmt::Display for engine::Error {
    fn fmt(&self, f: &mut kernel::fmt::Formatter<'_>) -> kernel::fmt::Result {
        core::fmt::Display::fmt(self, f)
    }
}

/// The part of a device that serves requests. It exists once per device and lives longer than the
/// device's disk.
pub(crate) struct Core {
    index: usize,
    volume: Volume<Kernel>,
    pool: Pool,
    workqueue: Workqueue,
    background: Background,
    /// A damaged image or a full disk would repeat them endlessly.
    messages: RateLimit,
    /// What user space was told last: there is no space.
    full: AtomicBool,
}

// What the module parameter says unless somebody changes it.
const _: () = assert!(engine::DEFAULT_TABLE_LIMIT == c::CLOOP_TABLE_LIMIT as u64);

impl Core {
    /// Where requests are served.
    pub(crate) fn workqueue(&self) -> &Workqueue {
        &self.workqueue
    }

    /// What is done away from requests.
    pub(crate) fn background(&self) -> &Background {
        &self.background
    }

    /// Number of the device.
    pub(crate) fn index(&self) -> usize {
        self.index
    }

    /// What is fixed about the image.
    pub(crate) fn layout(&self) -> Layout {
        self.volume.layout()
    }

    /// Compression of new records.
    pub(crate) fn algorithm(&self) -> Algorithm {
        self.volume.algorithm()
    }

    /// Size of the device in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.volume.size().bytes()
    }

    /// Whether writes are refused.
    pub(crate) fn read_only(&self) -> bool {
        self.volume.read_only()
    }

    /// How the volume is doing.
    pub(crate) fn state(&self) -> State {
        self.volume.state()
    }

    /// Its figures.
    pub(crate) fn stats(&self) -> Result<Stats> {
        self.volume.stats().map_err(errno)
    }

    /// The backing file.
    pub(crate) fn file(&self) -> &KernelFile {
        self.volume.file()
    }

    /// Memory of the sector table. Takes no lock.
    pub(crate) fn table_memory(&self) -> u64 {
        self.volume.table_memory()
    }

    /// Bounds the memory of the sector table.
    pub(crate) fn set_table_limit(&self, bytes: u64) {
        self.volume.set_table_limit(bytes);
    }

    /// Gives memory of the sector table back.
    pub(crate) fn shed_table(&self, bytes: u64) {
        self.volume.shed_table(bytes);
    }

    /// Whether there is no space, if that is news; it is logged then.
    pub(crate) fn space_changed(&self) -> Option<bool> {
        let full = self.volume.full();
        if self.full.swap(full, Ordering::Relaxed) == full {
            return None;
        }
        if self.messages.allows() {
            let index = self.index;
            let mut buf = [0; c::CLOOP_PATH_LEN as usize];
            let path = self.file().path(&mut buf).unwrap_or(c"(long path)");
            match full {
                true => pr_warn!("cloop{index}: no space left for {path}, writes fail\n"),
                false => pr_info!("cloop{index}: there is space for {path} again\n"),
            }
        }
        Some(full)
    }

    /// Serves a request and ends it.
    pub(crate) fn serve(&self, mut request: Request) {
        let operation = request.operation();
        let result = match operation {
            Operation::Read => self.pool.with(|worker| self.read(worker, &mut request)),
            Operation::Write { fua, metadata } => self
                .pool
                .with(|worker| self.write(worker, &mut request, metadata))
                .and_then(|()| match fua {
                    true => self.volume.force_unit_access(),
                    false => Ok(()),
                }),
            Operation::Flush => self.volume.flush(),
            Operation::Zero => self.pool.with(|worker| {
                let (block, count) = request.range();
                self.volume.zero(&mut worker.workspace, block, count)
            }),
            Operation::Unknown => return request.end(c::BLK_STS_NOTSUPP),
        };
        if matches!(operation, Operation::Write { .. } | Operation::Zero) {
            let refused = result == Err(engine::Error::NoSpace);
            if refused != self.full.load(Ordering::Relaxed) {
                self.background.announce();
            }
        }
        match result {
            Ok(()) => request.end(c::BLK_STS_OK as c::blk_status_t),
            Err(error) => {
                self.log(operation, request.range().0, error);
                request.end(status(error));
            }
        }
    }

    /// Calls `f` with the first block and the length in bytes of each part of a request that lies in
    /// one record.
    fn for_each_record(
        &self,
        (mut block, mut count): (u64, u64),
        mut f: impl FnMut(u64, usize) -> engine::Result,
    ) -> engine::Result {
        let record = u64::from(self.layout().record_size) / BLOCK_SIZE as u64;
        while count > 0 {
            let n = count.min(record - block % record);
            f(block, n as usize * BLOCK_SIZE)?;
            block += n;
            count -= n;
        }
        Ok(())
    }

    fn read(&self, worker: &mut Worker, request: &mut Request) -> engine::Result {
        let Worker { bounce, workspace } = worker;
        self.for_each_record(request.range(), |block, len| {
            let buf = &mut bounce[..len];
            self.volume.read(workspace, block, buf)?;
            covered(request.copy_in(buf))
        })
    }

    fn write(&self, worker: &mut Worker, request: &mut Request, metadata: bool) -> engine::Result {
        let Worker { bounce, workspace } = worker;
        self.for_each_record(request.range(), |block, len| {
            let buf = &mut bounce[..len];
            covered(request.copy_out(buf))?;
            match metadata {
                true => self.volume.write_metadata(workspace, block, buf),
                false => self.volume.write(workspace, block, buf),
            }
        })
    }

    fn log(&self, operation: Operation, block: u64, error: engine::Error) {
        // Said once, not of every write.
        if error == engine::Error::NoSpace {
            return;
        }
        if self.messages.allows() {
            let index = self.index;
            let what = match operation {
                Operation::Read => "read",
                Operation::Write { .. } => "write",
                Operation::Flush => {
                    pr_err!("cloop{index}: flush failed: {error}\n");
                    return;
                }
                Operation::Zero | Operation::Unknown => "discard",
            };
            pr_err!("cloop{index}: {what} at block {block} failed: {error}\n");
        }
    }
}

/// A request whose data is shorter than its range cannot be served.
fn covered(copied: bool) -> engine::Result {
    copied
        .then_some(())
        .ok_or(engine::Error::Invalid("request"))
}

/// A reference to this module, which cannot be unloaded meanwhile.
struct ModuleReference;

impl ModuleReference {
    /// To be called from code that keeps the module loaded: an ioctl of the control device.
    fn new() -> Self {
        // SAFETY: Our own module is valid, and in use by the caller.
        unsafe { c::__module_get(this_module::<crate::LocalModule>().as_ptr()) };
        Self
    }
}

impl Drop for ModuleReference {
    fn drop(&mut self) {
        // SAFETY: `new` took a reference.
        unsafe { c::module_put(this_module::<crate::LocalModule>().as_ptr()) };
    }
}

/// Opens the image of device `index`.
///
/// The function is not inlined, so that its stack frame is gone when the device is made.
#[inline(never)]
fn open_volume(index: usize, file: KernelFile, read_only: bool) -> Result<Volume<Kernel>> {
    // The engine's locks are taken here as they are later, when memory may come from writing to the
    // very device: lockdep cannot know that there is none yet.
    let _scope = io_scope();
    let access = match read_only {
        true => Access::Read,
        false => Access::Write,
    };
    let volume = Volume::open(file, access).map_err(|error| {
        pr_err!("cloop{index}: cannot attach the image: {error}\n");
        errno(error)
    })?;
    // SAFETY: It has no preconditions.
    volume.set_table_limit(unsafe { c::cloop_table_limit() });
    Ok(volume)
}

/// An attached device. Dropping it without [`close`](Self::close) is what a power cut is to a disk.
pub(crate) struct Device {
    // In this order: the disk goes before what serves it.
    disk: Disk,
    core: Arc<Core>,
    _module: ModuleReference,
}

impl Device {
    /// Opens the image in `file` and makes `/dev/cloopN` of it.
    pub(crate) fn attach(index: usize, file: KernelFile, read_only: bool) -> Result<KBox<Self>> {
        let module = ModuleReference::new();
        let volume = open_volume(index, file, read_only)?;
        let result = Self::new(index, volume, module);
        if let Err(e) = &result {
            let errno = e.to_errno();
            pr_err!("cloop{index}: cannot make the device: error {errno}\n");
        }
        result
    }

    #[inline(never)]
    fn new(index: usize, volume: Volume<Kernel>, module: ModuleReference) -> Result<KBox<Self>> {
        let workers = worker_count();
        let core = Arc::new(
            Core {
                index,
                pool: Pool::new(&volume, workers).map_err(errno)?,
                volume,
                workqueue: Workqueue::new(index, workers)?,
                background: Background::new()?,
                messages: RateLimit::new(index)?,
                full: AtomicBool::new(false),
            },
            GFP_KERNEL,
        )?;
        let device = KBox::new(
            Self {
                disk: Disk::new(index, core.clone())?,
                core,
                _module: module,
            },
            GFP_KERNEL,
        )?;
        device.log_attached();
        Ok(device)
    }

    fn log_attached(&self) {
        let index = self.core.index;
        let kib = self.core.size() >> 10;
        let mode = if self.core.read_only() {
            "read-only"
        } else {
            "read-write"
        };
        let mut buf = [0; c::CLOOP_PATH_LEN as usize];
        let path = self.core.file().path(&mut buf).unwrap_or(c"(long path)");
        match self.core.state().clean_at_open {
            true => pr_info!("cloop{index}: attached {path}, {kib} KiB, {mode}\n"),
            false => pr_info!("cloop{index}: attached {path}, {kib} KiB, {mode}, recovered\n"),
        }
    }

    /// The part that serves requests.
    pub(crate) fn core(&self) -> &Core {
        &self.core
    }

    /// Moves what is stored together, until there is nothing left to gain or a signal arrives.
    pub(crate) fn compact(&self) -> Result {
        let volume = &self.core.volume;
        let stop = AtomicBool::new(false);
        let undisturbed = call_interruptible(&stop, || {
            volume.compact(&mut |_| !stop.load(Ordering::Relaxed))
        });
        undisturbed.map_err(errno)?.then_some(()).ok_or(EINTR)
    }

    /// Changes the size of the device.
    pub(crate) fn resize(&self, size: u64, force: bool) -> Result {
        let volume = &self.core.volume;
        let resize = || {
            let mut ws = volume.workspace()?;
            volume.resize(&mut ws, size, force)
        };
        let old = self.core.size();
        if size >= old || self.core.read_only() {
            call(resize).map_err(errno)?;
        } else {
            self.disk.paused(|| call(resize).map_err(errno))?;
        }
        // Only now: whoever holds the locks of uevents may wait for memory, and so for a paused disk.
        // Until then the engine refuses what lies beyond the end.
        self.disk.set_size(size);
        let index = self.core.index;
        pr_info!(
            "cloop{index}: resized from {} to {} KiB\n",
            old >> 10,
            size >> 10
        );
        Ok(())
    }

    /// Keeps the block device from being opened; EBUSY if it is open.
    pub(crate) fn retire(&self) -> Result {
        self.disk.retire()
    }

    /// Removes the block device and closes the image, in this order.
    ///
    /// # Errors
    ///
    /// When the image could not be closed cleanly. The device is gone all the same.
    pub(crate) fn close(self) -> Result {
        let Self {
            disk,
            core,
            _module,
        } = self;
        let index = core.index;
        // Waits for the requests, and so for everything that was written to the device.
        drop(disk);
        match call(|| core.volume.close()) {
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
