/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * The interface of /dev/cloop-control, the control device of the read-write
 * compressed loop device.
 *
 * Each structure has the same layout for 32-bit and 64-bit callers. A caller
 * sets reserved fields and unknown flags to zero, otherwise a command fails with
 * EINVAL. The module returns them as zero. All commands but CLOOP_CTL_VERSION
 * need CAP_SYS_ADMIN and fail with EPERM without it.
 */
#ifndef _UAPI_LINUX_CLOOP_H
#define _UAPI_LINUX_CLOOP_H

#include <linux/ioctl.h>
#include <linux/types.h>

/* Incremented when a structure or a command changes incompatibly. */
#define CLOOP_ABI_VERSION	1

#define CLOOP_VERSION_LEN	24
#define CLOOP_UUID_LEN		16
#define CLOOP_PATH_LEN		256

/*
 * Minor number of /dev/cloop-control, whose major number is 10. It is fixed so
 * that the node can exist before the module is loaded, and opening it loads the
 * module. It is one of those that the kernel's list of devices reserves for local
 * use: a driver outside the kernel has no other.
 */
#define CLOOP_CONTROL_MINOR	253

/* Flags of struct cloop_attach and struct cloop_info. */
#define CLOOP_FLAG_READ_ONLY	(1U << 0)
#define CLOOP_FLAG_AUTOCLEAR	(1U << 10)	/* detached when the last user closes it */
/* Flags of struct cloop_info only. */
#define CLOOP_FLAG_DIRECT_IO	(1U << 1)	/* the backing file bypasses the page cache */
#define CLOOP_FLAG_RECOVERED	(1U << 2)	/* the image was not detached cleanly before */
#define CLOOP_FLAG_FAILED	(1U << 3)	/* an error has made the device read-only */
#define CLOOP_FLAG_FULL		(1U << 4)	/* the last write that needed space found none */
#define CLOOP_FLAG_LOW		(1U << 9)	/* the space left is below the watermark */
#define CLOOP_FLAG_RETRYING	(1U << 8)	/* the backing file refuses writes, which are tried again */

/* Flag of struct cloop_attach only. */
#define CLOOP_ATTACH_FORCE	(1U << 16)	/* also if the UUID of the image is attached */

/* Flag of struct cloop_detach. */
#define CLOOP_DETACH_LAZY	(1U << 0)	/* as soon as the device is not in use */

/* Flag of struct cloop_resize. */
#define CLOOP_RESIZE_FORCE	(1U << 0)	/* discard what lies beyond the new end */

/* Flags of struct cloop_set: what is given. */
#define CLOOP_SET_COMPRESSION		(1U << 0)	/* algorithm and level */
#define CLOOP_SET_RECOMPRESSION		(1U << 1)	/* recompress_algorithm and its level */
#define CLOOP_SET_RECOMPRESS_AFTER	(1U << 2)	/* recompress_after */
#define CLOOP_SET_RECOMPRESS_RATE	(1U << 3)	/* recompress_rate */

/* Values of the fields that name an algorithm. */
#define CLOOP_ALGORITHM_NONE	0
#define CLOOP_ALGORITHM_LZ4	1
#define CLOOP_ALGORITHM_ZSTD	2

/**
 * struct cloop_version - version of the loaded module
 * @abi: CLOOP_ABI_VERSION of the module
 * @reserved: zero
 * @module_version: version of the module, a NUL-terminated string
 *
 * Argument of CLOOP_CTL_VERSION.
 */
struct cloop_version {
	__u32 abi;
	__u32 reserved;
	char module_version[CLOOP_VERSION_LEN];
};

/**
 * struct cloop_attach - make a block device from an image
 * @fd: the image: a regular file or a block device that is open for reading
 *	and, without CLOOP_FLAG_READ_ONLY, for writing. If it is open with
 *	O_DIRECT and supports that, I/O bypasses the page cache. The device
 *	keeps the open file description, and so its flock(2), until it is
 *	detached.
 * @flags: CLOOP_FLAG_READ_ONLY, CLOOP_FLAG_AUTOCLEAR, CLOOP_ATTACH_FORCE
 * @index: in: number of the device, or -1 for the first free number;
 *	out: the number N of /dev/cloopN
 * @reserved: zero
 *
 * Argument of CLOOP_CTL_ATTACH.
 *
 * An image whose UUID is attached for writing already is not attached for
 * writing once more: it may be the same one behind another device, and two
 * writers destroy it. CLOOP_ATTACH_FORCE is for a copy of an attached image.
 *
 * Errors: EBUSY (the image is attached already), ENOTUNIQ (one with its UUID
 * is), EEXIST (@index is taken),
 * EBADF (@fd is not open, or not for the access needed), ETXTBSY (a swap file),
 * EMEDIUMTYPE (not a cloop image), EOPNOTSUPP (written by a newer version),
 * ENODATA (the program that makes the image has not finished it),
 * EUCLEAN (damaged), ENFILE (no free number).
 */
struct cloop_attach {
	__s32 fd;
	__u32 flags;
	__s32 index;
	__u32 reserved;
};

/**
 * struct cloop_detach - write all data back and remove a block device
 * @index: number of the device
 * @flags: CLOOP_DETACH_LAZY or 0
 *
 * Argument of CLOOP_CTL_DETACH. With CLOOP_DETACH_LAZY, a device that is open,
 * mounted, compacted or resized is not refused: it can be used as before, and is
 * detached when its last user has gone.
 *
 * Errors: ENXIO (no such device), EBUSY (the device is open or mounted, or is
 * being attached, detached, compacted or resized; it stays). Any other error
 * means that the image was not closed cleanly: the device is gone, and the next
 * attach recovers from the log of the image.
 */
struct cloop_detach {
	__s32 index;
	__u32 flags;
};

/**
 * struct cloop_info - state of an attached device
 * @index: in: number of the device
 * @flags: CLOOP_FLAG_*
 * @size: size of the block device, in bytes
 * @record_size: unit of compression, in bytes
 * @algorithm: CLOOP_ALGORITHM_* of new records
 * @uuid: UUID of the image
 * @segment_size: unit of space in the image, in bytes
 * @error: positive errno of the error that made the device read-only, or 0
 * @mapped_blocks: 4096-byte blocks that hold data
 * @live_bytes: bytes of live records, headers included: those that hold data or
 *	the sector table
 * @stored_bytes: bytes of the segments in use, those of the reserve among them
 * @allocated_bytes: bytes that the image occupies on its file system
 * @segments: segments in use
 * @free_segments: segments that can be used again
 * @table_memory: bytes of memory of the loaded part of the sector table
 * @bytes_written: bytes written to the device since it was attached
 * @bytes_read: bytes read from the device since it was attached
 * @log_bytes: bytes appended to the image since it was attached
 * @flushes: flushes served
 * @syncs: fsync operations of the backing file
 * @checkpoints: checkpoints written
 * @damaged: reads that found a damaged record
 * @errors: errors of the backing file
 * @replayed: log records replayed when the image was attached
 * @backing_dev: st_dev of the image
 * @backing_ino: st_ino of the image
 * @backing_file: path of the image as the caller sees it, a NUL-terminated
 *	string; empty if it is longer than the field
 * @table_limit: limit of @table_memory, in bytes
 * @garbage_bytes: bytes without use in segments that hold live records, which
 *	reclaim can gain
 * @moved_bytes: live bytes that reclaim relocated since the image was attached
 * @freed_segments: segments that became free since the image was attached
 * @reserved_bytes: bytes of space that is allocated and waits for records of the
 *	log: that of its reserve, and that of free segments
 * @stuck_segments: segments that reclaim has set aside, because something in
 *	them is damaged or cannot be read
 * @memory: bytes of memory of the device: @table_memory, buffers of the log and
 *	of requests, contexts of compression, and records that were decompressed
 *	lately
 * @level: level of the compression of new records; 0 for an algorithm without
 *	levels
 * @replaced: records that were compressed with CLOOP_ALGORITHM_LZ4 since the
 *	image was attached, because there was no memory for the algorithm chosen
 * @recompress_algorithm: CLOOP_ALGORITHM_* of data that is compressed again when
 *	the device is idle; CLOOP_ALGORITHM_NONE if none is
 * @recompress_level: level of @recompress_algorithm
 * @recompress_after: seconds without a write after which data is compressed again
 * @recompress_rate: most content that is compressed again, in KiB a second; 0 for
 *	no bound
 * @recompressed_bytes: bytes of records that data was compressed to again since
 *	the image was attached
 * @pending_bytes: live bytes that may be worth compressing again
 * @reserved: zero
 *
 * Argument of CLOOP_CTL_INFO. All fields but @index are zero when the structure
 * is passed in.
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
	__u64 stuck_segments;
	__u64 memory;
	__u64 level;
	__u64 replaced;
	__u32 recompress_algorithm;
	__u32 recompress_level;
	__u32 recompress_after;
	__u32 recompress_rate;
	__u64 recompressed_bytes;
	__u64 pending_bytes;
	__u64 reserved[3];
};

/**
 * struct cloop_compact - relocate live records to shrink an image
 * @index: number of the device
 * @flags: zero
 *
 * Argument of CLOOP_CTL_COMPACT. The command returns when the remaining gain is
 * not worth the I/O. The device can be used meanwhile. A signal ends the command
 * early with EINTR, without loss of data.
 *
 * Errors: ENXIO (no such device), EBUSY (it is being attached or detached),
 * EALREADY (it is being compacted or resized), EROFS (read-only), ENOSPC
 * (reclaim finds no space to work with), EINTR.
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
 * Argument of CLOOP_CTL_RESIZE. The device can be used meanwhile. While a device
 * shrinks, its file system is frozen, as by FIFREEZE, and its I/O waits. A uevent
 * with RESIZE=1 tells user space about the new size.
 *
 * Errors: ENXIO (no such device), EBUSY (data is stored beyond @size and
 * CLOOP_RESIZE_FORCE is not set, or the device is being attached or detached),
 * EALREADY (it is being compacted or resized), EINVAL (not a valid size), EROFS
 * (read-only), ENOSPC (no space to store the new size).
 */
struct cloop_resize {
	__s32 index;
	__u32 flags;
	__u64 size;
};

/**
 * struct cloop_set - change settings of a device and of its image
 * @index: number of the device
 * @flags: CLOOP_SET_*: the settings to change
 * @algorithm: CLOOP_ALGORITHM_* of new records
 * @level: level of that algorithm: 1 to 19 for CLOOP_ALGORITHM_ZSTD, else 0
 * @recompress_algorithm: CLOOP_ALGORITHM_* of data that is compressed again when
 *	the device is idle; CLOOP_ALGORITHM_NONE: it stays as it was written
 * @recompress_level: level of @recompress_algorithm, as @level
 * @recompress_after: seconds without a write after which data is compressed again
 * @recompress_rate: most content that is compressed again, in KiB a second; 0 for
 *	no bound
 *
 * Argument of CLOOP_CTL_SET. Fields that @flags does not name are zero. The
 * settings apply to writes that begin when the command has returned, and the
 * image keeps them. The device can be used meanwhile.
 *
 * Errors: ENXIO (no such device), EBUSY (it is being attached or detached),
 * EINVAL (no setting, or not a valid one), EROFS (read-only), ENOSPC (no space to
 * store the settings).
 */
struct cloop_set {
	__s32 index;
	__u32 flags;
	__u32 algorithm;
	__u32 level;
	__u32 recompress_algorithm;
	__u32 recompress_level;
	__u32 recompress_after;
	__u32 recompress_rate;
};

/**
 * struct cloop_recompress - compress all data of a device again
 * @index: number of the device
 * @flags: zero
 * @algorithm: CLOOP_ALGORITHM_* of the data, but CLOOP_ALGORITHM_NONE
 * @level: level of that algorithm: 1 to 19 for CLOOP_ALGORITHM_ZSTD, else 0
 *
 * Argument of CLOOP_CTL_RECOMPRESS. The command returns when all data that gains
 * something by it is compressed like this, whatever the device does with it when
 * it is idle. What it replaces becomes free in the background, or at once with
 * CLOOP_CTL_COMPACT. The device can be used meanwhile. A signal ends the command
 * early with EINTR, without loss of data.
 *
 * Errors: as CLOOP_CTL_COMPACT, and EINVAL (not an algorithm that compresses).
 */
struct cloop_recompress {
	__s32 index;
	__u32 flags;
	__u32 algorithm;
	__u32 level;
};

/*
 * The table of ioctl numbers in the kernel has nothing in this block
 * (Documentation/userspace-api/ioctl/ioctl-number.rst, Linux 7.3).
 */
#define CLOOP_IOC_MAGIC		0xC7

#define CLOOP_CTL_VERSION	_IOR(CLOOP_IOC_MAGIC, 0x00, struct cloop_version)
#define CLOOP_CTL_ATTACH	_IOWR(CLOOP_IOC_MAGIC, 0x01, struct cloop_attach)
#define CLOOP_CTL_DETACH	_IOW(CLOOP_IOC_MAGIC, 0x02, struct cloop_detach)
#define CLOOP_CTL_INFO		_IOWR(CLOOP_IOC_MAGIC, 0x03, struct cloop_info)
#define CLOOP_CTL_COMPACT	_IOW(CLOOP_IOC_MAGIC, 0x04, struct cloop_compact)
#define CLOOP_CTL_RESIZE	_IOW(CLOOP_IOC_MAGIC, 0x05, struct cloop_resize)
#define CLOOP_CTL_SET		_IOW(CLOOP_IOC_MAGIC, 0x06, struct cloop_set)
#define CLOOP_CTL_RECOMPRESS	_IOW(CLOOP_IOC_MAGIC, 0x07, struct cloop_recompress)

#endif /* _UAPI_LINUX_CLOOP_H */
