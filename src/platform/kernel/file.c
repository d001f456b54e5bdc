// SPDX-License-Identifier: GPL-2.0
/*
 * I/O on the backing file. It is in C because it consists of inline functions,
 * macros and iterators over pages, which Rust cannot call. It decides nothing
 * about storage.
 */
#include <linux/blkdev.h>
#include <linux/bvec.h>
#include <linux/cred.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/printk.h>
#include <linux/slab.h>
#include <linux/stat.h>
#include <linux/statfs.h>
#include <linux/uio.h>
#include <linux/vmalloc.h>

#include "platform.h"

/*
 * The inode that holds the data, independent of the path: that of the block
 * device behind a device node, the lower inode behind overlayfs.
 */
static struct inode *backing_inode(struct file *file)
{
	return file->f_mapping->host;
}

int cloop_file_check(struct file *file, bool write)
{
	struct inode *inode = backing_inode(file);

	if (S_ISDIR(inode->i_mode))
		return -EISDIR;
	if (!S_ISREG(inode->i_mode) && !S_ISBLK(inode->i_mode))
		return -EINVAL;
	if (IS_SWAPFILE(inode))
		return -ETXTBSY;
	if (!(file->f_mode & FMODE_READ))
		return -EBADF;
	if (!(file->f_mode & FMODE_CAN_READ) || !file->f_op->read_iter)
		return -EINVAL;
	if (!write)
		return 0;

	if (!(file->f_mode & FMODE_WRITE))
		return -EBADF;
	if (!(file->f_mode & FMODE_CAN_WRITE) || !file->f_op->write_iter)
		return -EINVAL;
	/* Without fsync, flushed data would not be durable. */
	if (!file->f_op->fsync)
		return -EINVAL;
	/* Writes would go to the end of the file. */
	if ((file->f_flags & O_APPEND) || IS_APPEND(inode))
		return -EINVAL;
	return 0;
}

/*
 * Everything is done to the file with the rights of the process that opened it,
 * as by a write to its descriptor. The threads that do it are the kernel's: on
 * NFS with root_squash these have no rights at all.
 */
static const struct cred *become_opener(struct file *file)
{
	return override_creds(file->f_cred);
}

/* The engine's I/O is aligned to 4096 bytes, in the file and in memory. */
bool cloop_file_can_direct(struct file *file)
{
	const struct cred *old;
	struct kstat st;
	int ret;

	if (!(file->f_flags & O_DIRECT) || !(file->f_mode & FMODE_CAN_ODIRECT))
		return false;
	old = become_opener(file);
	ret = vfs_getattr(&file->f_path, &st, STATX_DIOALIGN, 0);
	revert_creds(old);
	if (ret)
		return false;
	/*
	 * A file system that does not report the alignment takes the block
	 * size of its device.
	 */
	if (!(st.result_mask & STATX_DIOALIGN))
		return true;
	return st.dio_offset_align && st.dio_offset_align <= 4096 &&
	       st.dio_mem_align <= 4096;
}

/*
 * No thread may wait for I/O when it allocates page cache for the backing file.
 */
gfp_t cloop_file_restrict_gfp(struct file *file)
{
	gfp_t gfp = mapping_gfp_mask(file->f_mapping);

	mapping_set_gfp_mask(file->f_mapping, gfp & ~(__GFP_IO | __GFP_FS));
	return gfp;
}

void cloop_file_restore_gfp(struct file *file, gfp_t gfp)
{
	mapping_set_gfp_mask(file->f_mapping, gfp);
}

/* Sufficient for a kmalloc'ed buffer, and for a record when memory is short. */
#define CLOOP_STACK_BVECS	16

/*
 * Describes the start of a buffer, kmalloc'ed or vmalloc'ed, by at most @max
 * vectors, one for each physically contiguous part, and returns its length.
 */
static size_t map_buffer(void *buf, size_t len, struct bio_vec *bvecs,
			 unsigned int max, unsigned int *nr)
{
	size_t done = 0;

	*nr = 0;
	if (!is_vmalloc_addr(buf)) {
		bvec_set_virt(&bvecs[0], buf, len);
		*nr = 1;
		return len;
	}
	while (done < len && *nr < max) {
		void *p = buf + done;
		size_t n = min_t(size_t, len - done, PAGE_SIZE - offset_in_page(p));

		bvec_set_page(&bvecs[(*nr)++], vmalloc_to_page(p), n,
			      offset_in_page(p));
		done += n;
	}
	return done;
}

static ssize_t file_io_once(struct file *file, void *buf, size_t len,
			    loff_t pos, bool write, bool direct,
			    struct bio_vec *bvecs, unsigned int max)
{
	/*
	 * User space can change the flags of the open file description at any
	 * time, so none of them is used.
	 */
	struct kiocb iocb = {
		.ki_filp = file,
		.ki_pos = pos,
		.ki_flags = (direct ? IOCB_DIRECT : 0) |
			    (write ? IOCB_WRITE : 0),
	};
	const struct cred *old = become_opener(file);
	struct iov_iter iter;
	unsigned int nr;
	ssize_t ret;

	len = map_buffer(buf, len, bvecs, max, &nr);
	if (write) {
		iov_iter_bvec(&iter, ITER_SOURCE, bvecs, nr, len);
		ret = vfs_iocb_iter_write(file, &iocb, &iter);
	} else {
		iov_iter_bvec(&iter, ITER_DEST, bvecs, nr, len);
		ret = vfs_iocb_iter_read(file, &iocb, &iter);
	}
	revert_creds(old);
	return ret;
}

/* Transfers all bytes or fails. Bytes beyond the end of the file read as zeros. */
int cloop_file_io(struct file *file, void *buf, size_t len, loff_t pos,
		  bool write, bool direct)
{
	struct bio_vec stack[CLOOP_STACK_BVECS];
	struct bio_vec *bvecs = stack, *heap = NULL;
	unsigned int max = CLOOP_STACK_BVECS;
	int ret = 0;

	if (is_vmalloc_addr(buf) && len > CLOOP_STACK_BVECS * PAGE_SIZE) {
		/* One request instead of many, if the memory is available. */
		heap = kmalloc_array(DIV_ROUND_UP(len, PAGE_SIZE) + 1,
				     sizeof(*heap), GFP_NOIO | __GFP_NOWARN |
				     __GFP_NORETRY);
		if (heap) {
			bvecs = heap;
			max = DIV_ROUND_UP(len, PAGE_SIZE) + 1;
		}
	}

	while (len) {
		ssize_t n = file_io_once(file, buf, len, pos, write, direct,
					 bvecs, max);

		if (n < 0) {
			ret = n;
			break;
		}
		if (!n && write) {
			ret = -EIO;
			break;
		}
		buf += n;
		len -= n;
		pos += n;
		if (!write && len && (!n || pos >= cloop_file_size(file))) {
			memset(buf, 0, len);
			break;
		}
	}
	kfree(heap);
	return ret;
}

loff_t cloop_file_size(struct file *file)
{
	return i_size_read(backing_inode(file));
}

bool cloop_file_is_bdev(struct file *file)
{
	return S_ISBLK(backing_inode(file)->i_mode);
}

/* A file system without one block device of its own says nothing about seeks. */
bool cloop_file_is_rotational(struct file *file)
{
	struct inode *inode = backing_inode(file);
	struct block_device *bdev = S_ISBLK(inode->i_mode) ? I_BDEV(inode) :
							     inode->i_sb->s_bdev;

	return bdev && bdev_rot(bdev);
}

static int file_fallocate(struct file *file, int mode, loff_t pos, loff_t len)
{
	const struct cred *old = become_opener(file);
	int ret = vfs_fallocate(file, mode, pos, len);

	revert_creds(old);
	return ret;
}

int cloop_file_allocate(struct file *file, loff_t pos, loff_t len)
{
	return file_fallocate(file, 0, pos, len);
}

int cloop_file_punch(struct file *file, loff_t pos, loff_t len)
{
	return file_fallocate(file, FALLOC_FL_PUNCH_HOLE |
			      FALLOC_FL_KEEP_SIZE, pos, len);
}

int cloop_file_truncate(struct file *file, loff_t len)
{
	const struct cred *old = become_opener(file);
	int ret = vfs_truncate(&file->f_path, len);

	revert_creds(old);
	return ret;
}

int cloop_file_sync(struct file *file)
{
	const struct cred *old = become_opener(file);
	int ret = vfs_fsync_range(file, 0, LLONG_MAX, 1);

	revert_creds(old);
	return ret;
}

/* What the file system has left for those without privileges. */
int cloop_file_free_space(struct file *file, u64 *bytes)
{
	struct kstatfs st;
	int ret = vfs_statfs(&file->f_path, &st);

	if (ret)
		return ret;
	*bytes = st.f_bavail > 0 ? (u64)st.f_bavail * st.f_bsize : 0;
	return 0;
}

int cloop_file_stat(struct file *file, u64 *allocated, u64 *dev, u64 *ino)
{
	const struct cred *old = become_opener(file);
	struct kstat st;
	int ret;

	ret = vfs_getattr_nosec(&file->f_path, &st,
				STATX_BASIC_STATS | STATX_BLOCKS, 0);
	revert_creds(old);
	if (ret)
		return ret;
	*allocated = (u64)st.blocks << 9;
	*dev = huge_encode_dev(st.dev);
	*ino = st.ino;
	return 0;
}

/*
 * Logs that writes have begun to fail for a reason that passes, or, without an
 * error, that they succeed again.
 */
void cloop_file_report_retry(struct file *file, int error)
{
	if (error)
		pr_warn_ratelimited("cloop: writing to %pD failed with error %d, trying again\n",
				    file, error);
	else
		pr_info_ratelimited("cloop: writing to %pD succeeds again\n",
				    file);
}

/*
 * Logs that reclaim has set segments aside because of damage, or that it has
 * not any more.
 */
void cloop_file_report_stuck(struct file *file, u64 segments)
{
	if (segments)
		pr_warn_ratelimited("cloop: damage in %pD keeps %llu segments from being reclaimed\n",
				    file, segments);
	else
		pr_info_ratelimited("cloop: no damage in %pD keeps segments from being reclaimed any more\n",
				    file);
}
