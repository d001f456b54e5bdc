// SPDX-License-Identifier: GPL-2.0
//! What user space is told of a device, by ioctl and in sysfs.

use crate::c;
use crate::device::Core;
use crate::engine::Algorithm;
use kernel::prelude::*;

/// All there is to tell.
pub(crate) fn describe(core: &Core) -> Result<c::cloop_info> {
    let geometry = core.geometry();
    let state = core.state();
    let stats = core.stats()?;
    let file = core.file();
    let stat = file.stat()?;
    let mut path = [0; c::CLOOP_PATH_LEN as usize];
    let path = file.path(&mut path).unwrap_or(c"");

    let mut info = c::cloop_info {
        index: core.index() as i32,
        size: geometry.size,
        record_size: geometry.record_size,
        algorithm: match geometry.algorithm {
            Algorithm::Raw => c::CLOOP_ALGORITHM_NONE,
            Algorithm::Lz4 => c::CLOOP_ALGORITHM_LZ4,
        },
        uuid: geometry.uuid,
        segment_size: geometry.segment_size,
        error: state.error.map_or(0, |error| error.errno() as u32),
        mapped_blocks: stats.mapped_blocks,
        live_bytes: stats.live_bytes,
        stored_bytes: stats.stored_bytes,
        allocated_bytes: stats.allocated_bytes,
        segments: stats.segments,
        free_segments: stats.free_segments,
        table_memory: stats.table_memory,
        bytes_written: stats.bytes_written,
        bytes_read: stats.bytes_read,
        log_bytes: stats.log_bytes,
        flushes: stats.flushes,
        syncs: stats.syncs,
        checkpoints: stats.checkpoints,
        damaged: stats.damaged,
        errors: stats.errors,
        replayed: stats.replayed,
        backing_dev: stat.dev,
        backing_ino: stat.ino,
        table_limit: stats.table_limit,
        garbage_bytes: stats.garbage_bytes,
        moved_bytes: stats.moved_bytes,
        freed_segments: stats.freed_segments,
        reserved_bytes: stats.reserved_bytes,
        ..Default::default()
    };
    for (flag, set) in [
        (c::CLOOP_FLAG_READ_ONLY, core.read_only()),
        (c::CLOOP_FLAG_DIRECT_IO, file.direct()),
        (c::CLOOP_FLAG_RECOVERED, !state.clean_at_open),
        (c::CLOOP_FLAG_FAILED, state.error.is_some()),
        (c::CLOOP_FLAG_FULL, stats.full != 0),
    ] {
        if set {
            info.flags |= flag;
        }
    }
    for (to, from) in info.backing_file.iter_mut().zip(path.to_bytes()) {
        *to = *from;
    }
    Ok(info)
}
