// SPDX-License-Identifier: GPL-2.0
//! The request queue of a device: its operations, as the block layer calls them.

use crate::block::{Operations, Request, Workqueue};
use crate::detach;
use crate::lane::Lane;
use crate::platform::kernel::io_scope;
use crate::server::Server;
use kernel::prelude::*;
use kernel::sync::Arc;

/// The data of a request queue. One exists for each disk.
pub(crate) struct Queue {
    server: Arc<Server>,
    /// A workqueue for each lane, in the order of [`Lane::ALL`].
    workqueues: [Workqueue<Self>; Lane::ALL.len()],
}

impl Queue {
    /// Makes the queue of `server`.
    pub(crate) fn new(server: Arc<Server>) -> Result<Self> {
        let make = |lane: Lane| Workqueue::new(server.index(), lane.name(), lane.width());
        let [read, write, metadata, discard, flush] = Lane::ALL;
        Ok(Self {
            workqueues: [
                make(read)?,
                make(write)?,
                make(metadata)?,
                make(discard)?,
                make(flush)?,
            ],
            server,
        })
    }

    /// The server that the requests go to.
    pub(crate) fn server(&self) -> &Server {
        &self.server
    }
}

impl Operations for Queue {
    fn queue_rq(&self, request: Request) {
        let lane = Lane::of(request.operation());
        request.queue(&self.workqueues[lane as usize]);
    }

    fn serve(&self, request: Request) {
        let _scope = io_scope();
        self.server.serve(request);
    }

    fn closed(&self) {
        detach::closed(&self.server);
    }

    fn change_event(&self) -> Option<&'static CStr> {
        let full = self.server.space_changed().map(|full| match full {
            true => c"CLOOP_FULL=1",
            false => c"CLOOP_FULL=0",
        });
        full.or_else(|| {
            self.server.warning_changed().map(|low| match low {
                true => c"CLOOP_LOW=1",
                false => c"CLOOP_LOW=0",
            })
        })
    }
}
