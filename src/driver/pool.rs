// SPDX-License-Identifier: GPL-2.0
//! The memory that a device serves requests with, allocated when the device is attached.

use crate::engine::{self, Volume, Workspace};
use crate::platform::kernel::Kernel;
use crate::platform::mem::{Buf, Vec};
use crate::platform::{Monitor, MonitorGuard, Platform, Rank};

/// The memory that serving one request takes.
pub(crate) struct Worker {
    /// Data of the request, up to a record. The pages of a request may change while the request is
    /// served, but the data that the engine compresses and checksums must not.
    pub(crate) bounce: Buf,
    /// Memory of the engine for one operation.
    pub(crate) workspace: Workspace<Kernel>,
}

/// The idle workers of a lane of a device.
pub(crate) struct Pool {
    idle: <Kernel as Platform>::Monitor<Vec<Worker>>,
}

impl Pool {
    /// Allocates `count` workers.
    pub(crate) fn new(volume: &Volume<Kernel>, count: usize) -> engine::Result<Self> {
        let mut idle = Vec::with_capacity(count)?;
        for _ in 0..count {
            idle.push(Worker {
                bounce: Buf::zeroed(volume.layout().record_size as usize)?,
                workspace: volume.workspace()?,
            })?;
        }
        Ok(Self {
            idle: Monitor::new(idle, Rank::Pool)?,
        })
    }

    /// Calls `f` with a worker. If none is idle, waits for one.
    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut Worker) -> R) -> R {
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
