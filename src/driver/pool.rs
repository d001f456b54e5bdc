// SPDX-License-Identifier: GPL-2.0
//! The memory that a device serves requests with, allocated when the device is attached.

use crate::engine::{self, Volume, Workspace};
use crate::platform::kernel::Kernel;
use crate::platform::mem::{Buf, Vec};
use crate::platform::{Monitor, MonitorGuard, Platform, Rank};

/// The memory that serving one write takes.
pub(crate) struct Writer {
    /// Data of the request, up to a record. The pages of a request may change while the request is
    /// served, but the data that the engine compresses and checksums must not.
    pub(crate) bounce: Buf,
    /// Memory of the engine for one operation.
    pub(crate) workspace: Workspace<Kernel>,
}

impl Writer {
    /// Allocates the memory to serve a write to `volume`.
    pub(crate) fn new(volume: &Volume<Kernel>) -> engine::Result<Self> {
        Ok(Self {
            bounce: Buf::zeroed(volume.layout().record_size as usize)?,
            workspace: volume.workspace()?,
        })
    }
}

/// What the idle workers of a lane of a device work with, a `T` for each.
pub(crate) struct Pool<T: Send + 'static> {
    idle: <Kernel as Platform>::Monitor<Vec<T>>,
}

impl<T: Send> Pool<T> {
    /// Allocates for `count` workers what `make` returns.
    pub(crate) fn new(count: usize, make: impl Fn() -> engine::Result<T>) -> engine::Result<Self> {
        let mut idle = Vec::with_capacity(count)?;
        for _ in 0..count {
            idle.push(make()?)?;
        }
        Ok(Self {
            idle: Monitor::new(idle, Rank::Pool)?,
        })
    }

    /// Calls `f` with what a worker works with. If nothing is idle, waits.
    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        let mut idle = self.idle.lock();
        let mut worker = loop {
            match idle.pop() {
                Some(worker) => break worker,
                None => idle.wait(),
            }
        };
        drop(idle);
        let result = f(&mut worker);
        let mut idle = self.idle.lock();
        // The vector has room for all workers, so this does not allocate.
        let _ = idle.push(worker);
        idle.notify_all();
        result
    }
}
