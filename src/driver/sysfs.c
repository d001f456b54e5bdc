// SPDX-License-Identifier: GPL-2.0
/*
 * /sys/block/cloopN/cloop/: the values of CLOOP_CTL_INFO, one in each file. See
 * Documentation/ABI/testing/sysfs-block-cloop.
 *
 * Removing the disk waits for the readers and writers of these files, so the
 * device exists while a file is read or written. The functions take locks of the
 * engine only, and no thread holds one of those while it removes a disk. Writing
 * compress or one of recompress* also writes to the backing file.
 */
#include <linux/blkdev.h>
#include <linux/cloop.h>
#include <linux/device.h>
#include <linux/fs.h>
#include <linux/kstrtox.h>
#include <linux/math64.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/sysfs.h>

#include "driver.h"

#define CLOOP_BLOCK_SHIFT	12

static const struct cloop_queue *queue_of(struct device *dev)
{
	return dev_to_disk(dev)->queue->queuedata;
}

static int info_of(struct device *dev, struct cloop_info *info)
{
	memset(info, 0, sizeof(*info));
	return cloop_queue_info(queue_of(dev), info);
}

/* A file with the value of an expression over info. */
#define CLOOP_VALUE(_name, _mode, _value)				\
static ssize_t _name##_show(struct device *dev,				\
			    struct device_attribute *attr, char *buf)	\
{									\
	struct cloop_info info;						\
	int ret = info_of(dev, &info);					\
									\
	if (ret)							\
		return ret;						\
	return sysfs_emit(buf, "%llu\n", (unsigned long long)(_value));	\
}									\
static DEVICE_ATTR_##_mode(_name)

/* The writing half of a file with a number that may be as large as _most. */
#define CLOOP_NUMBER_STORE(_name, _most)				\
static ssize_t _name##_store(struct device *dev,			\
			     struct device_attribute *attr,		\
			     const char *buf, size_t count)		\
{									\
	u64 value;							\
	int ret = kstrtou64(buf, 0, &value);				\
									\
	if (ret)							\
		return ret;						\
	if (value > (_most))						\
		return -EINVAL;						\
	ret = cloop_queue_set_##_name(queue_of(dev), value);		\
	return ret ? ret : count;					\
}

CLOOP_NUMBER_STORE(table_limit, U64_MAX);
CLOOP_NUMBER_STORE(warn_percent, 100);
CLOOP_NUMBER_STORE(recompress_after, U32_MAX);
CLOOP_NUMBER_STORE(recompress_rate, U32_MAX);

static ssize_t warn_percent_show(struct device *dev,
				 struct device_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%llu\n", cloop_queue_warn_percent(queue_of(dev)));
}
static DEVICE_ATTR_RW(warn_percent);

CLOOP_VALUE(record_size, RO, info.record_size);
CLOOP_VALUE(segment_size, RO, info.segment_size);
CLOOP_VALUE(mapped_bytes, RO, info.mapped_blocks << CLOOP_BLOCK_SHIFT);
CLOOP_VALUE(zero_blocks, RO,
	       (info.size >> CLOOP_BLOCK_SHIFT) - info.mapped_blocks);
CLOOP_VALUE(live_bytes, RO, info.live_bytes);
CLOOP_VALUE(stored_bytes, RO, info.stored_bytes);
CLOOP_VALUE(allocated_bytes, RO, info.allocated_bytes);
CLOOP_VALUE(reserved_bytes, RO, info.reserved_bytes);
CLOOP_VALUE(garbage_bytes, RO, info.garbage_bytes);
CLOOP_VALUE(segments, RO, info.segments);
CLOOP_VALUE(free_segments, RO, info.free_segments);
CLOOP_VALUE(moved_bytes, RO, info.moved_bytes);
CLOOP_VALUE(freed_segments, RO, info.freed_segments);
CLOOP_VALUE(bytes_written, RO, info.bytes_written);
CLOOP_VALUE(bytes_read, RO, info.bytes_read);
CLOOP_VALUE(log_bytes, RO, info.log_bytes);
CLOOP_VALUE(flushes, RO, info.flushes);
CLOOP_VALUE(syncs, RO, info.syncs);
CLOOP_VALUE(checkpoints, RO, info.checkpoints);
CLOOP_VALUE(errors, RO, info.errors);
CLOOP_VALUE(damaged, RO, info.damaged);
CLOOP_VALUE(stuck_segments, RO, info.stuck_segments);
CLOOP_VALUE(memory_bytes, RO, info.memory);
CLOOP_VALUE(replaced, RO, info.replaced);
CLOOP_VALUE(table_bytes, RO, info.table_memory);
CLOOP_VALUE(full, RO, !!(info.flags & CLOOP_FLAG_FULL));
CLOOP_VALUE(low, RO, !!(info.flags & CLOOP_FLAG_LOW));
CLOOP_VALUE(retrying, RO, !!(info.flags & CLOOP_FLAG_RETRYING));
CLOOP_VALUE(failed, RO, !!(info.flags & CLOOP_FLAG_FAILED));
CLOOP_VALUE(read_only, RO, !!(info.flags & CLOOP_FLAG_READ_ONLY));
CLOOP_VALUE(table_limit, RW, info.table_limit);
CLOOP_VALUE(recompress_after, RW, info.recompress_after);
CLOOP_VALUE(recompress_rate, RW, info.recompress_rate);
CLOOP_VALUE(recompressed_bytes, RO, info.recompressed_bytes);
CLOOP_VALUE(pending_bytes, RO, info.pending_bytes);

static ssize_t write_amplification_show(struct device *dev,
					struct device_attribute *attr,
					char *buf)
{
	struct cloop_info info;
	int ret = info_of(dev, &info);
	u64 hundredths = 0;
	u32 rest;

	if (ret)
		return ret;
	if (info.bytes_written)
		hundredths = div64_u64(info.log_bytes * 100 +
				       info.bytes_written / 2,
				       info.bytes_written);
	hundredths = div_u64_rem(hundredths, 100, &rest);
	return sysfs_emit(buf, "%llu.%02u\n", hundredths, rest);
}
static DEVICE_ATTR_RO(write_amplification);

/* Writes the name of an algorithm and its level, if it has any. */
static ssize_t emit_compression(char *buf, u32 algorithm, u64 level)
{
	int len;
	const char *name = cloop_algorithm_name(algorithm, &len);

	if (!level)
		return sysfs_emit(buf, "%.*s\n", len, name);
	return sysfs_emit(buf, "%.*s:%llu\n", len, name, level);
}

/* A file with a compression. */
#define CLOOP_COMPRESSION_SHOW(_name, _algorithm, _level)		\
static ssize_t _name##_show(struct device *dev,				\
			    struct device_attribute *attr, char *buf)	\
{									\
	struct cloop_info info;						\
	int ret = info_of(dev, &info);					\
									\
	if (ret)							\
		return ret;						\
	return emit_compression(buf, _algorithm, _level);		\
}

CLOOP_COMPRESSION_SHOW(algorithm, info.algorithm, 0);
CLOOP_COMPRESSION_SHOW(compress, info.algorithm, info.level);
CLOOP_COMPRESSION_SHOW(recompress, info.recompress_algorithm,
		       info.recompress_level);
static DEVICE_ATTR_RO(algorithm);

static ssize_t compress_store(struct device *dev,
			      struct device_attribute *attr,
			      const char *buf, size_t count)
{
	int ret = cloop_queue_set_compression(queue_of(dev), buf, count);

	return ret ? ret : count;
}
static DEVICE_ATTR_RW(compress);

static ssize_t recompress_store(struct device *dev,
				struct device_attribute *attr,
				const char *buf, size_t count)
{
	int ret = cloop_queue_set_recompression(queue_of(dev), buf, count);

	return ret ? ret : count;
}
static DEVICE_ATTR_RW(recompress);

static ssize_t uuid_show(struct device *dev, struct device_attribute *attr,
			 char *buf)
{
	struct cloop_info info;
	int ret = info_of(dev, &info);

	if (ret)
		return ret;
	return sysfs_emit(buf, "%pUb\n", info.uuid);
}
static DEVICE_ATTR_RO(uuid);

static ssize_t backing_file_show(struct device *dev,
				 struct device_attribute *attr, char *buf)
{
	struct file *file = cloop_queue_file(queue_of(dev));
	char *path = file_path(file, buf, PAGE_SIZE - 1);
	size_t len;

	if (IS_ERR(path))
		return PTR_ERR(path);
	len = strlen(path);
	memmove(buf, path, len);
	buf[len++] = '\n';
	buf[len] = '\0';
	return len;
}
static DEVICE_ATTR_RO(backing_file);

static struct attribute *cloop_attrs[] = {
	&dev_attr_backing_file.attr,
	&dev_attr_uuid.attr,
	&dev_attr_algorithm.attr,
	&dev_attr_compress.attr,
	&dev_attr_recompress.attr,
	&dev_attr_recompress_after.attr,
	&dev_attr_recompress_rate.attr,
	&dev_attr_recompressed_bytes.attr,
	&dev_attr_pending_bytes.attr,
	&dev_attr_record_size.attr,
	&dev_attr_segment_size.attr,
	&dev_attr_mapped_bytes.attr,
	&dev_attr_zero_blocks.attr,
	&dev_attr_live_bytes.attr,
	&dev_attr_stored_bytes.attr,
	&dev_attr_allocated_bytes.attr,
	&dev_attr_reserved_bytes.attr,
	&dev_attr_garbage_bytes.attr,
	&dev_attr_segments.attr,
	&dev_attr_free_segments.attr,
	&dev_attr_moved_bytes.attr,
	&dev_attr_freed_segments.attr,
	&dev_attr_bytes_written.attr,
	&dev_attr_bytes_read.attr,
	&dev_attr_log_bytes.attr,
	&dev_attr_write_amplification.attr,
	&dev_attr_flushes.attr,
	&dev_attr_syncs.attr,
	&dev_attr_checkpoints.attr,
	&dev_attr_errors.attr,
	&dev_attr_damaged.attr,
	&dev_attr_stuck_segments.attr,
	&dev_attr_memory_bytes.attr,
	&dev_attr_replaced.attr,
	&dev_attr_table_bytes.attr,
	&dev_attr_table_limit.attr,
	&dev_attr_full.attr,
	&dev_attr_low.attr,
	&dev_attr_warn_percent.attr,
	&dev_attr_retrying.attr,
	&dev_attr_failed.attr,
	&dev_attr_read_only.attr,
	NULL
};

static const struct attribute_group cloop_group = {
	.name = "cloop",
	.attrs = cloop_attrs,
};

static const struct attribute_group *cloop_groups[] = {
	&cloop_group,
	NULL
};

const struct attribute_group **cloop_sysfs_groups(void)
{
	return cloop_groups;
}
