// SPDX-License-Identifier: GPL-2.0
//! The part of a device that serves requests. One exists for each device.

use crate::block::{Operation, Request};
use crate::c;
use crate::engine::{self, Compression, Recompression, Volume, BLOCK_SIZE};
use crate::error::{errno, status};
use crate::platform::kernel::{call, Kernel};
use crate::pool::{Pools, Writer};
use crate::ratelimit::RateLimit;
use core::sync::atomic::{AtomicBool, Ordering};
use kernel::prelude::*;

/// The part of a device that serves requests. It lives longer than the disk of the device.
pub(crate) struct Server {
    index: usize,
    volume: Volume<Kernel>,
    /// The memory that requests are served with.
    pools: Pools,
    /// Limit of the messages: a damaged image or a full backing file would repeat them endlessly.
    messages: RateLimit,
    /// True if user space was told last that there is no space.
    full: AtomicBool,
    /// True if user space was told last that space runs low.
    low: AtomicBool,
    /// True if the device is detached when its last user closes it.
    autoclear: AtomicBool,
    /// True if the device is detached as soon as it is not in use.
    given_up: AtomicBool,
}

impl Server {
    /// Makes the server of device `index`.
    pub(crate) fn new(index: usize, volume: Volume<Kernel>) -> Result<Self> {
        Ok(Self {
            index,
            pools: Pools::new(&volume).map_err(errno)?,
            volume,
            messages: RateLimit::new(index)?,
            full: AtomicBool::new(false),
            low: AtomicBool::new(false),
            autoclear: AtomicBool::new(false),
            given_up: AtomicBool::new(false),
        })
    }

    /// Has the device detached when its last user closes it.
    pub(crate) fn set_autoclear(&self) {
        self.autoclear.store(true, Ordering::Relaxed);
    }

    /// Returns true if the device is detached when its last user closes it.
    pub(crate) fn autoclear(&self) -> bool {
        self.autoclear.load(Ordering::Relaxed)
    }

    /// Has the device detached as soon as it is not in use. A user who closes it after a failed attempt sees
    /// that, because both take the lock of the disk.
    pub(crate) fn give_up(&self) {
        self.set_autoclear();
        self.given_up.store(true, Ordering::Relaxed);
    }

    /// Returns true if the device is to be detached as soon as it is not in use.
    pub(crate) fn given_up(&self) -> bool {
        self.given_up.load(Ordering::Relaxed)
    }

    /// The volume that the device stores its data in.
    pub(crate) fn volume(&self) -> &Volume<Kernel> {
        &self.volume
    }

    /// Changes the compression of new records, in the image and from the next write on.
    ///
    /// # Errors
    ///
    /// Those of the engine.
    pub(crate) fn set_compression(&self, compression: Compression) -> Result {
        if self.volume.compression() == compression {
            return Ok(());
        }
        call(|| self.volume.set_compression(compression)).map_err(errno)?;
        let index = self.index;
        pr_info!("cloop{index}: new data is compressed with {compression}\n");
        Ok(())
    }

    /// Changes how data is compressed again that has become cold, in the image and from now on.
    ///
    /// # Errors
    ///
    /// Those of the engine.
    pub(crate) fn change_recompression(
        &self,
        change: impl FnOnce(&mut Recompression) + Send,
    ) -> Result {
        let before = self.volume.recompression();
        call(|| self.volume.change_recompression(change)).map_err(errno)?;
        let (index, now) = (self.index, self.volume.recompression());
        match now.compression {
            _ if now == before => {}
            Some(compression) => pr_info!(
                "cloop{index}: data is compressed again with {compression}, {} s after it was written\n",
                now.after
            ),
            None => pr_info!("cloop{index}: data stays compressed as it was written\n"),
        }
        Ok(())
    }

    /// Bytes of memory of the device, near enough. Takes no lock.
    pub(crate) fn memory(&self) -> u64 {
        self.pools.memory() + self.volume.memory()
    }

    /// Bytes of memory that [`shed`](Self::shed) may give back. Takes no lock.
    pub(crate) fn sheddable(&self) -> u64 {
        self.pools.sheddable() + self.volume.sheddable()
    }

    /// Gives back about `bytes` bytes of memory for a system that is short of it. That of requests that are not under way
    /// comes first.
    pub(crate) fn shed(&self, bytes: u64) {
        let given = self.pools.shed(bytes);
        if given < bytes {
            self.volume.shed(bytes - given);
        }
    }

    /// Gives back memory that was not needed since the last call.
    pub(crate) fn trim(&self) {
        self.pools.trim();
        self.volume.trim();
    }

    /// Index of the device: the N of `/dev/cloopN`.
    pub(crate) fn index(&self) -> usize {
        self.index
    }

    /// Returns whether there is no space, and logs that, or `None` if nothing has changed since the last call.
    pub(crate) fn space_changed(&self) -> Option<bool> {
        let full = self.volume.full();
        self.announce(&self.full, full, |index, path| match full {
            true => pr_warn!("cloop{index}: no space left for {path}, writes fail\n"),
            false => pr_info!("cloop{index}: there is space for {path} again\n"),
        })
    }

    /// Returns whether space runs low, and logs that, or `None` if nothing has changed since the last call.
    pub(crate) fn warning_changed(&self) -> Option<bool> {
        let low = self.volume.low();
        self.announce(&self.low, low, |index, path| match low {
            true => pr_warn!("cloop{index}: space for {path} runs low\n"),
            false => pr_info!("cloop{index}: space for {path} is not low any more\n"),
        })
    }

    /// Returns `now`, and logs it for this device and the path of its backing file, or `None` if it is what was
    /// `announced` last.
    fn announce(
        &self,
        announced: &AtomicBool,
        now: bool,
        log: impl FnOnce(usize, &CStr),
    ) -> Option<bool> {
        if announced.swap(now, Ordering::Relaxed) == now {
            return None;
        }
        if self.messages.allows() {
            let mut buf = [0; c::CLOOP_PATH_LEN as usize];
            log(
                self.index,
                self.volume.file().path(&mut buf).unwrap_or(c"(long path)"),
            );
        }
        Some(now)
    }

    /// Serves a request and ends it. If the request finds that space has run out or is there again, or begins or ceases
    /// to be low, a change uevent is raised, for which the disk asks [`space_changed`](Self::space_changed) and
    /// [`warning_changed`](Self::warning_changed).
    pub(crate) fn serve(&self, mut request: Request) {
        let operation = request.operation();
        let result = match operation {
            Operation::Read => self.pools.read(&self.volume, |buffers| {
                let (block, count) = request.range();
                self.volume.read_to(buffers, block, count, &mut request)
            }),
            Operation::Write {
                fua,
                metadata,
                atomic,
            } => self
                .pools
                .write(&self.volume, metadata, |writer| match atomic {
                    true => self.write_atomic(writer, &mut request),
                    false => self.write(writer, &mut request, metadata),
                })
                .and_then(|()| match fua {
                    true => self.volume.force_unit_access(),
                    false => Ok(()),
                }),
            Operation::Flush => self.volume.flush(),
            Operation::Zero => self.pools.discard(&self.volume, |buffers| {
                let (block, count) = request.range();
                self.volume.zero(buffers, block, count)
            }),
            Operation::Unknown => return request.end(c::BLK_STS_NOTSUPP),
        };
        if matches!(operation, Operation::Write { .. } | Operation::Zero) {
            let refused = result == Err(engine::Error::NoSpace);
            let warned = self.low.load(Ordering::Relaxed);
            if refused != self.full.load(Ordering::Relaxed) || self.volume.low() != warned {
                request.raise_change_event();
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

    /// Calls `f` for each part of a range that lies in one record, with the first block of the part and
    /// its length in bytes.
    fn for_each_record(
        &self,
        (mut block, mut count): (u64, u64),
        mut f: impl FnMut(u64, usize) -> engine::Result,
    ) -> engine::Result {
        let layout = self.volume.layout();
        while count > 0 {
            let n = count.min(layout.left_in_natural_unit(block));
            f(block, n as usize * BLOCK_SIZE)?;
            block += n;
            count -= n;
        }
        Ok(())
    }

    fn write(&self, writer: &mut Writer, request: &mut Request, metadata: bool) -> engine::Result {
        let Writer { bounce, workspace } = writer;
        self.for_each_record(request.range(), |block, len| {
            let buf = &mut bounce[..len];
            covered(request.copy_out(buf))?;
            match metadata {
                true => self.volume.write_metadata(workspace, block, buf),
                false => self.volume.write(workspace, block, buf),
            }
        })
    }

    /// Writes a request that a crash must leave as a whole or not at all. The limits of the disk keep it within one
    /// record.
    fn write_atomic(&self, writer: &mut Writer, request: &mut Request) -> engine::Result {
        let Writer { bounce, workspace } = writer;
        let (block, count) = request.range();
        let buf = bounce
            .get_mut(..count as usize * BLOCK_SIZE)
            .ok_or(engine::Error::Invalid("request"))?;
        covered(request.copy_out(buf))?;
        self.volume.write_atomic(workspace, block, buf)
    }

    fn log(&self, operation: Operation, block: u64, error: engine::Error) {
        // `space_changed` logs it once, instead of once for each write.
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

// The kernel crate has its own `Display`.
impl kernel::fmt::Display for Compression {
    fn fmt(&self, f: &mut kernel::fmt::Formatter<'_>) -> kernel::fmt::Result {
        core::fmt::Display::fmt(self, f)
    }
}

/// Returns the error of a request whose data is shorter than its range, unless all data was `copied`.
fn covered(copied: bool) -> engine::Result {
    copied
        .then_some(())
        .ok_or(engine::Error::Invalid("request"))
}
