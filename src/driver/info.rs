// SPDX-License-Identifier: GPL-2.0
//! The state of a device for user space: for `CLOOP_CTL_INFO` and for the files in sysfs.

use crate::c;
use crate::engine::Algorithm;
use crate::error::errno;
use crate::platform::kernel::KernelFile;
use crate::server::Server;
use kernel::prelude::*;

// `info.algorithm` is the tag of the algorithm on the disk.
const _: () = {
    assert!(c::CLOOP_ALGORITHM_NONE == Algorithm::Raw.tag() as u32);
    assert!(c::CLOOP_ALGORITHM_LZ4 == Algorithm::Lz4.tag() as u32);
    assert!(c::CLOOP_ALGORITHM_ZSTD == Algorithm::Zstd.tag() as u32);
};

/// Writes the state of a device into `info`.
///
/// The structure is the caller's, because it is too large to be returned through several stack frames.
///
/// # Errors
///
/// Those of asking the backing file; `info` is unchanged then.
pub(crate) fn describe(server: &Server, info: &mut c::cloop_info) -> Result {
    let volume = server.volume();
    let file = volume.file();
    let stat = file.stat()?;
    let layout = volume.layout();
    let state = volume.state();
    let stats = volume.stats().map_err(errno)?;

    // Field by field: a literal would be built on the stack and copied.
    *info = Default::default();
    info.index = server.index() as i32;
    info.size = volume.size().bytes();
    info.record_size = layout.record_size;
    let compression = volume.compression();
    info.algorithm = compression.algorithm().tag().into();
    info.level = compression.level().into();
    info.uuid = layout.uuid;
    info.segment_size = layout.segment_size;
    info.error = state.error.map_or(0, |error| error.errno() as u32);
    info.mapped_blocks = stats.mapped_blocks;
    info.live_bytes = stats.live_bytes;
    info.stored_bytes = stats.stored_bytes;
    info.allocated_bytes = stats.allocated_bytes;
    info.segments = stats.segments;
    info.free_segments = stats.free_segments;
    info.table_memory = stats.table_memory;
    info.bytes_written = stats.bytes_written;
    info.bytes_read = stats.bytes_read;
    info.log_bytes = stats.log_bytes;
    info.flushes = stats.flushes;
    info.syncs = stats.syncs;
    info.checkpoints = stats.checkpoints;
    info.damaged = stats.damaged;
    info.errors = stats.errors;
    info.replayed = stats.replayed;
    info.backing_dev = stat.dev;
    info.backing_ino = stat.ino;
    info.table_limit = stats.table_limit;
    info.garbage_bytes = stats.garbage_bytes;
    info.moved_bytes = stats.moved_bytes;
    info.freed_segments = stats.freed_segments;
    info.reserved_bytes = stats.reserved_bytes;
    info.stuck_segments = stats.stuck_segments;
    info.memory = server.memory();
    info.replaced = stats.replaced;
    let again = volume.recompression();
    if let Some(compression) = again.compression {
        info.recompress_algorithm = compression.algorithm().tag().into();
        info.recompress_level = compression.level().into();
    }
    info.recompress_after = again.after;
    info.recompress_rate = again.rate;
    info.recompressed_bytes = stats.recompressed_bytes;
    info.pending_bytes = stats.pending_bytes;
    for (flag, set) in [
        (c::CLOOP_FLAG_READ_ONLY, volume.read_only()),
        (c::CLOOP_FLAG_DIRECT_IO, file.direct()),
        (c::CLOOP_FLAG_RECOVERED, !state.clean_at_open),
        (c::CLOOP_FLAG_FAILED, state.error.is_some()),
        (c::CLOOP_FLAG_FULL, stats.full != 0),
        (c::CLOOP_FLAG_LOW, stats.low != 0),
        (c::CLOOP_FLAG_RETRYING, state.retrying.is_some()),
        (c::CLOOP_FLAG_AUTOCLEAR, server.autoclear()),
    ] {
        if set {
            info.flags |= flag;
        }
    }
    write_path(file, &mut info.backing_file);
    Ok(())
}

/// Writes the path of the backing file into `buf`, which is zero, if the path fits.
fn write_path(file: &KernelFile, buf: &mut [u8; c::CLOOP_PATH_LEN as usize]) {
    let mut scratch = [0; c::CLOOP_PATH_LEN as usize];
    let path = file.path(&mut scratch).unwrap_or(c"");
    for (to, from) in buf.iter_mut().zip(path.to_bytes()) {
        *to = *from;
    }
}
