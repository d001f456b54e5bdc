// SPDX-License-Identifier: GPL-2.0
//! The request queue of a device: its operations, as the block layer calls them.

use crate::block::{Operations, Request, Workqueue};
use crate::platform::kernel::io_scope;
use crate::server::Server;
use kernel::prelude::*;
use kernel::sync::Arc;

/// The data of a request queue. One exists for each disk.
pub(crate) struct Queue {
    server: Arc<Server>,
    workqueue: Workqueue,
}

impl Queue {
    /// Makes the queue of `server`, which serves at most `workers` requests at a time.
    pub(crate) fn new(server: Arc<Server>, workers: usize) -> Result<Self> {
        Ok(Self {
            workqueue: Workqueue::new(server.index(), workers)?,
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
        request.queue(&self.workqueue);
    }

    fn serve(&self, request: Request) {
        let _scope = io_scope();
        self.server.serve(request);
    }

    fn change_event(&self) -> Option<&'static CStr> {
        self.server.space_changed().map(|full| match full {
            true => c"CLOOP_FULL=1",
            false => c"CLOOP_FULL=0",
        })
    }
}
