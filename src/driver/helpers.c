// SPDX-License-Identifier: GPL-2.0
/*
 * Inline functions and macros of the block layer, for the driver's wrappers.
 */
#include <linux/bio.h>
#include <linux/blk-mq.h>
#include <linux/blkdev.h>
#include <linux/cpumask.h>
#include <linux/moduleparam.h>
#include <linux/mutex.h>
#include <linux/ratelimit.h>
#include <linux/slab.h>
#include <linux/workqueue.h>

#include "helpers.h"

static unsigned long long table_limit = CLOOP_TABLE_LIMIT;
module_param(table_limit, ullong, 0644);
MODULE_PARM_DESC(table_limit,
		 "Bytes of memory for the sector table of a device that is attached from now on");

u64 cloop_table_limit(void)
{
	return READ_ONCE(table_limit);
}

void cloop_cursor_init(struct cloop_cursor *cursor, struct request *rq)
{
	cursor->bio = rq->bio;
	if (cursor->bio)
		cursor->iter = cursor->bio->bi_iter;
}

/*
 * Copies the next @len bytes of a request's data out of or into it. False when
 * there are fewer. In C because the pages may change meanwhile (another process
 * has them mapped), which Rust's slices do not allow.
 */
bool cloop_cursor_copy(struct cloop_cursor *cursor, void *buf, size_t len,
		       bool to_request)
{
	while (len) {
		struct bio_vec bv;

		while (cursor->bio && !cursor->iter.bi_size) {
			cursor->bio = cursor->bio->bi_next;
			if (cursor->bio)
				cursor->iter = cursor->bio->bi_iter;
		}
		if (!cursor->bio)
			return false;

		bv = bio_iter_iovec(cursor->bio, cursor->iter);
		bv.bv_len = min_t(size_t, bv.bv_len, len);
		if (to_request)
			memcpy_to_bvec(&bv, buf);
		else
			memcpy_from_bvec(buf, &bv);
		bio_advance_iter_single(cursor->bio, &cursor->iter, bv.bv_len);
		buf += bv.bv_len;
		len -= bv.bv_len;
	}
	return true;
}

void cloop_init_work(struct work_struct *work, work_func_t func)
{
	INIT_WORK(work, func);
}

void cloop_queue_work(struct workqueue_struct *wq, struct work_struct *work)
{
	queue_work(wq, work);
}

/*
 * WQ_MEM_RECLAIM: a write may be what frees memory, so there must be a thread
 * for it when no new one can be made. WQ_UNBOUND: compression is long work, let
 * the scheduler place it.
 */
struct workqueue_struct *cloop_alloc_workqueue(int index, int max_active)
{
	return alloc_workqueue("cloop%d", WQ_MEM_RECLAIM | WQ_UNBOUND,
			       max_active, index);
}

/* As loop: no scan by itself, but partx(8) may add partitions. */
void cloop_disk_no_partscan(struct gendisk *disk)
{
	set_bit(GD_SUPPRESS_PART_SCAN, &disk->state);
}

/*
 * Refuses further opens, unless the disk is open now. The block layer calls the
 * disk's open() with open_mutex held, so nobody can slip in between the two.
 */
int cloop_disk_retire(struct gendisk *disk)
{
	int ret = 0;

	mutex_lock(&disk->open_mutex);
	if (disk_openers(disk))
		ret = -EBUSY;
	else
		disk->private_data = NULL;
	mutex_unlock(&disk->open_mutex);
	return ret;
}

/*
 * Until cloop_disk_resume(), nothing is under way at the disk, and what its file
 * system held back is written. The queue is frozen only until it is empty:
 * meanwhile the image is written, and whoever holds the lock of an inode may be
 * waiting for memory, and so for this disk. As requests that wait for their
 * turn, later ones wait without that lockdep takes them for a lock.
 */
int cloop_disk_pause(struct gendisk *disk)
{
	unsigned int memflags;
	int ret = bdev_freeze(disk->part0);

	if (ret)
		return ret;
	memflags = blk_mq_freeze_queue(disk->queue);
	blk_mq_quiesce_queue(disk->queue);
	blk_mq_unfreeze_queue(disk->queue, memflags);
	return 0;
}

void cloop_disk_resume(struct gendisk *disk)
{
	blk_mq_unquiesce_queue(disk->queue);
	bdev_thaw(disk->part0);
}

unsigned int cloop_num_cpus(void)
{
	return num_online_cpus();
}

/**
 * struct cloop_ratelimit - limit of a device's messages
 * @state: how many there were lately
 * @name: whose they are, for the line that says how many were left out
 *
 * Each device has its own, so that one which repeats its errors endlessly does
 * not hide the first error of another.
 */
struct cloop_ratelimit {
	struct ratelimit_state state;
	char name[32];
};

struct cloop_ratelimit *cloop_ratelimit_alloc(int index)
{
	struct cloop_ratelimit *limit = kzalloc_obj(*limit);

	if (!limit)
		return NULL;
	ratelimit_default_init(&limit->state);
	snprintf(limit->name, sizeof(limit->name), "cloop: cloop%d", index);
	return limit;
}

void cloop_ratelimit_free(struct cloop_ratelimit *limit)
{
	kfree(limit);
}

bool cloop_ratelimit_allows(struct cloop_ratelimit *limit)
{
	return ___ratelimit(&limit->state, limit->name);
}
