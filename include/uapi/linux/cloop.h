/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * Interface of /dev/cloop-control, the control device of the read-write
 * compressed loop device.
 *
 * All structures have the same layout for 32-bit and 64-bit callers. Reserved
 * fields and unknown flags must be zero when a structure is passed in, and are
 * zero when it is passed out.
 */
#ifndef _UAPI_LINUX_CLOOP_H
#define _UAPI_LINUX_CLOOP_H

#include <linux/ioctl.h>
#include <linux/types.h>

/* Goes up when a structure or command changes incompatibly. */
#define CLOOP_ABI_VERSION	1

#define CLOOP_VERSION_LEN	24
#define CLOOP_UUID_LEN		16
#define CLOOP_PATH_LEN		256

/* Flags of struct cloop_attach and struct cloop_info. */
#define CLOOP_FLAG_READ_ONLY	(1U << 0)
/* Flags of struct cloop_info only. */
#define CLOOP_FLAG_DIRECT_IO	(1U << 1)	/* the backing file bypasses the page cache */
#define CLOOP_FLAG_RECOVERED	(1U << 2)	/* the image had not been detached cleanly */
#define CLOOP_FLAG_FAILED	(1U << 3)	/* an error has made the device read-only */
#define CLOOP_FLAG_FULL		(1U << 4)	/* the last write that needed space found none */

/* Flag of struct cloop_resize. */
#define CLOOP_RESIZE_FORCE	(1U << 0)	/* discard what lies beyond the new end */

/* Values of cloop_info.algorithm. */
#define CLOOP_ALGORITHM_NONE	0
#define CLOOP_ALGORITHM_LZ4	1

/**
 * struct cloop_version - what the loaded module is
 * @abi: CLOOP_ABI_VERSION the module was built with
 * @reserved: zero
 * @module_version: version of the module, a NUL-terminated string
 */
struct cloop_version {
	__u32 abi;
	__u32 reserved;
	char module_version[CLOOP_VERSION_LEN];
};

/**
 * struct cloop_attach - make a block device of an image
 * @fd: the image: a regular file or a block device, open for reading and,
 *	without CLOOP_FLAG_READ_ONLY, for writing. With O_DIRECT the page cache
 *	is bypassed where the file allows it. The device keeps the open file
 *	description, and so its flock(2), until it is detached.
 * @flags: CLOOP_FLAG_READ_ONLY or 0
 * @index: in: number of the device wanted, -1 for the first free one;
 *	out: the number N of /dev/cloopN
 * @reserved: zero
 *
 * Errors: EBUSY (the image is attached already), EEXIST (@index is taken),
 * EBADF (@fd is not open in the way needed), ETXTBSY (a swap file),
 * EMEDIUMTYPE (not a cloop image), EOPNOTSUPP (written by a newer version),
 * EUCLEAN (damaged), ENFILE (no free index).
 */
struct cloop_attach {
	__s32 fd;
	__u32 flags;
	__s32 index;
	__u32 reserved;
};

/**
 * struct cloop_detach - write everything back and remove a block device
 * @index: number of the device
 * @flags: zero
 *
 * Errors: ENXIO (no such device), EBUSY (the device is open or mounted, or
 * being attached, detached, compacted or resized; it stays). Any other error
 * says that the image could not be closed cleanly: the device is gone, and the
 * next attach recovers from the image's log.
 */
struct cloop_detach {
	__s32 index;
	__u32 flags;
};

/**
 * struct cloop_info - state of an attached device
 * @index: in: number of the device
 * @flags: CLOOP_FLAG_*
 * @size: of the block device, in bytes
 * @record_size: unit of compression, in bytes
 * @algorithm: CLOOP_ALGORITHM_*
 * @uuid: of the image
 * @segment_size: unit of space in the image, in bytes
 * @error: positive errno that made the device read-only, 0 if none did
 * @mapped_blocks: 4096-byte blocks that hold data
 * @live_bytes: stored bytes that data or the sector table still refers to
 * @stored_bytes: bytes of the segments in use
 * @allocated_bytes: what the image occupies on its file system
 * @segments: segments in use
 * @free_segments: segments that can be used again
 * @table_memory: memory taken by the loaded part of the sector table
 * @bytes_written: bytes written to the device since it was attached
 * @bytes_read: bytes read from the device since it was attached
 * @log_bytes: bytes appended to the image since it was attached
 * @flushes: flushes served
 * @syncs: times the backing file was made durable
 * @checkpoints: checkpoints written
 * @damaged: reads that found a damaged record
 * @errors: errors of the backing file
 * @replayed: log records replayed when the image was attached
 * @backing_dev: st_dev of the image
 * @backing_ino: st_ino of the image
 * @backing_file: path of the image as the caller sees it, empty when it is
 *	longer than fits
 * @table_limit: what @table_memory should not exceed
 * @garbage_bytes: bytes without use in the segments: what reclaim can gain
 * @moved_bytes: live bytes that reclaim moved since the image was attached
 * @freed_segments: segments that became free since the image was attached
 * @reserved_bytes: space that is reserved for the log
 * @reserved: zero
 *
 * Errors: ENXIO (no such device), EBUSY (it is being attached or detached).
 */
struct cloop_info {
	__s32 index;
	__u32 flags;
	__u64 size;
	__u32 record_size;
	__u32 algorithm;
	__u8 uuid[CLOOP_UUID_LEN];
	__u32 segment_size;
	__u32 error;
	__u64 mapped_blocks;
	__u64 live_bytes;
	__u64 stored_bytes;
	__u64 allocated_bytes;
	__u64 segments;
	__u64 free_segments;
	__u64 table_memory;
	__u64 bytes_written;
	__u64 bytes_read;
	__u64 log_bytes;
	__u64 flushes;
	__u64 syncs;
	__u64 checkpoints;
	__u64 damaged;
	__u64 errors;
	__u64 replayed;
	__u64 backing_dev;
	__u64 backing_ino;
	char backing_file[CLOOP_PATH_LEN];
	__u64 table_limit;
	__u64 garbage_bytes;
	__u64 moved_bytes;
	__u64 freed_segments;
	__u64 reserved_bytes;
	__u64 reserved[11];
};

/**
 * struct cloop_compact - move what is stored together and give space back
 * @index: number of the device
 * @flags: zero
 *
 * Returns when nothing is left that is worth the work; the device is in use
 * meanwhile as always. A signal ends it early, without loss, with EINTR.
 *
 * Errors: ENXIO (no such device), EBUSY (it is being attached or detached),
 * EALREADY (it is being compacted or resized), EROFS (read-only), ENOSPC (not
 * even reclaim finds space), EINTR.
 */
struct cloop_compact {
	__s32 index;
	__u32 flags;
};

/**
 * struct cloop_resize - change the size of a device and of its image
 * @index: number of the device
 * @flags: CLOOP_RESIZE_FORCE or 0
 * @size: the new size in bytes, a multiple of 4096
 *
 * The device is in use meanwhile as always, but to become smaller its file
 * system is frozen, as by FIFREEZE, and its I/O waits. User space hears of the
 * new size by a uevent with RESIZE=1.
 *
 * Errors: ENXIO (no such device), EBUSY (something is stored beyond @size and
 * CLOOP_RESIZE_FORCE is not set, or the device is being attached or detached),
 * EALREADY (it is being compacted or resized), EINVAL (no valid size), EROFS
 * (read-only), ENOSPC (no room to store the new size).
 */
struct cloop_resize {
	__s32 index;
	__u32 flags;
	__u64 size;
};

#define CLOOP_IOC_MAGIC		0xCB

#define CLOOP_CTL_VERSION	_IOR(CLOOP_IOC_MAGIC, 0x00, struct cloop_version)
#define CLOOP_CTL_ATTACH	_IOWR(CLOOP_IOC_MAGIC, 0x01, struct cloop_attach)
#define CLOOP_CTL_DETACH	_IOW(CLOOP_IOC_MAGIC, 0x02, struct cloop_detach)
#define CLOOP_CTL_INFO		_IOWR(CLOOP_IOC_MAGIC, 0x03, struct cloop_info)
#define CLOOP_CTL_COMPACT	_IOW(CLOOP_IOC_MAGIC, 0x04, struct cloop_compact)
#define CLOOP_CTL_RESIZE	_IOW(CLOOP_IOC_MAGIC, 0x05, struct cloop_resize)

#endif /* _UAPI_LINUX_CLOOP_H */
