// SPDX-License-Identifier: GPL-2.0
//! The operations of the request queues.
//!
//! Serving a request sleeps, and `queue_rq` must not, so requests go through a workqueue. There is no
//! `timeout` operation: a slow backing file is not an error, and without one the block layer just
//! keeps waiting.

use crate::block::request;
use crate::block::Request;
use crate::c;
use crate::platform::kernel::io_scope;
use crate::server::Server;
use kernel::prelude::*;

/// What the block layer calls. The `queuedata` of a queue that uses it points to a [`Server`] that
/// outlives the queue's requests.
pub(crate) const OPERATIONS: &c::blk_mq_ops = &c::blk_mq_ops {
    queue_rq: Some(queue_rq),
    init_request: Some(init_request),
    ..pin_init::zeroed()
};

/// The device of a queue.
///
/// # Safety
///
/// `queue_data` is the `queuedata` of a queue with [`OPERATIONS`], and `'a` ends before the device
/// does: a request of the queue is alive meanwhile.
unsafe fn server_of<'a>(queue_data: *mut c_void) -> &'a Server {
    // SAFETY: By the safety requirement of this function.
    unsafe { &*queue_data.cast::<Server>() }
}

/// # Safety
///
/// Only for the block layer, which upholds what it promises of `queue_rq`.
unsafe extern "C" fn queue_rq(
    _hctx: *mut c::blk_mq_hw_ctx,
    data: *const c::blk_mq_queue_data,
) -> c::blk_status_t {
    // SAFETY: `data` has the request to be queued.
    let request = unsafe { Request::start((*data).rq) };
    // SAFETY: The device lives as long as its requests.
    let server = unsafe { server_of(request.queue_data()) };
    request.queue(server.workqueue());
    c::BLK_STS_OK as c::blk_status_t
}

/// # Safety
///
/// Only for the block layer, which calls it with a request that has just been allocated.
unsafe extern "C" fn init_request(
    _set: *mut c::blk_mq_tag_set,
    raw: *mut c::request,
    _hctx: c_uint,
    _node: c_int,
) -> c_int {
    // SAFETY: All tag sets with these operations have the private data that `request` needs.
    unsafe { request::init(raw, Some(serve)) };
    0
}

/// # Safety
///
/// Only for the workqueue, which calls it with a work item that a request was queued with.
unsafe extern "C" fn serve(work: *mut c::work_struct) {
    // SAFETY: The work item belongs to a queued request.
    let request = unsafe { Request::from_work(work) };
    // SAFETY: The device lives as long as its requests.
    let server = unsafe { server_of(request.queue_data()) };
    let _scope = io_scope();
    server.serve(request);
}
