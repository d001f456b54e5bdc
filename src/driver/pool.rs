// SPDX-License-Identifier: GPL-2.0
//! The memory that requests are served with, allocated when a device is attached.

use crate::engine::{self, Volume, Workspace};
use crate::platform::kernel::Kernel;
use crate::platform::mem::{Buf, Vec};
use crate::platform::{Monitor, MonitorGuard, Platform, Rank};

/// What one request at a time needs.
pub(crate) struct Worker {
    /// A record's worth of a request's data. The pages of a request may change while it is being
    /// served, the data the engine gets must not.
    pub(crate) bounce: Buf,
    pub(crate) workspace: Workspace<Kernel>,
}

/// The idle workers of a device.
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

    /// Calls `f` with a worker, after waiting for one if need be.
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
        // There is room for all workers, so this does not allocate.
        let _ = idle.push(worker);
        idle.notify_all();
        result
    }
}
