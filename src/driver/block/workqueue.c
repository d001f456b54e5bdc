// SPDX-License-Identifier: GPL-2.0
/*
 * The workqueues that serve the requests of a disk.
 *
 * A write may wait for space as long as it takes, and with the request it would
 * keep a tag of its hardware queue. A flush needs such a tag before the driver
 * knows of it. So when half of the tags are taken, the bios of further writes and
 * discards are parked here, without a request, in order. They keep the queue from
 * being frozen, as requests do.
 */
#include <linux/bio.h>
#include <linux/blk-mq.h>
#include <linux/cpumask.h>
#include <linux/part_stat.h>
#include <linux/sbitmap.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/workqueue.h>

#include "block.h"

/**
 * struct cloop_bay - a work item that serves parked bios, one each time it runs
 * @work: the item
 * @owner: the workqueue
 */
struct cloop_bay {
	struct work_struct work;
	struct cloop_workqueue *owner;
};

/**
 * struct cloop_workqueue - a workqueue for requests and parked bios
 * @wq: the workqueue
 * @serve_bio: serves a bio and ends it with cloop_bio_end()
 * @lock: protects @parked and @next
 * @parked: bios that wait to be served
 * @next: the bay that is queued next
 * @count: number of @bays, and the largest number of items served at a time
 * @bays: for parked bios
 */
struct cloop_workqueue {
	struct workqueue_struct *wq;
	void (*serve_bio)(struct bio *bio);
	spinlock_t lock;
	struct bio_list parked;
	unsigned int next;
	unsigned int count;
	struct cloop_bay bays[] __counted_by(count);
};

static bool is_parking(struct cloop_workqueue *own)
{
	bool parking;

	spin_lock(&own->lock);
	parking = !bio_list_empty(&own->parked);
	spin_unlock(&own->lock);
	return parking;
}

static void serve_parked(struct work_struct *work)
{
	struct cloop_bay *bay = container_of(work, struct cloop_bay, work);
	struct cloop_workqueue *owner = bay->owner;
	struct bio *bio;

	spin_lock(&owner->lock);
	bio = bio_list_pop(&owner->parked);
	spin_unlock(&owner->lock);
	if (!bio)
		return;
	owner->serve_bio(bio);
	/* Behind what the workqueue has, so that requests and bios take turns. */
	if (is_parking(owner))
		queue_work(owner->wq, work);
}

/*
 * WQ_MEM_RECLAIM: a write may be what frees memory, so the workqueue keeps a
 * thread for the time when no new one can be made. WQ_UNBOUND: compression takes
 * long, so the scheduler chooses the CPU.
 */
struct cloop_workqueue *cloop_workqueue_alloc(int index, const char *lane,
					      int lane_len, int max_active,
					      void (*serve_bio)(struct bio *bio))
{
	struct cloop_workqueue *own;
	int i;

	own = kzalloc_flex(*own, bays, max_active);
	if (!own)
		return NULL;
	own->count = max_active;
	own->wq = alloc_workqueue("cloop%d-%.*s", WQ_MEM_RECLAIM | WQ_UNBOUND,
				  max_active, index, lane_len, lane);
	if (!own->wq) {
		kfree(own);
		return NULL;
	}
	own->serve_bio = serve_bio;
	spin_lock_init(&own->lock);
	bio_list_init(&own->parked);
	for (i = 0; i < max_active; i++) {
		INIT_WORK(&own->bays[i].work, serve_parked);
		own->bays[i].owner = own;
	}
	return own;
}

/* Waits for the work that is queued. */
void cloop_workqueue_free(struct cloop_workqueue *own)
{
	destroy_workqueue(own->wq);
	kfree(own);
}

void cloop_work_init(struct work_struct *work, work_func_t func)
{
	INIT_WORK(work, func);
}

static bool is_crowded(struct request *rq)
{
	struct blk_mq_tags *tags = rq->mq_hctx->tags;

	return sbitmap_weight(&tags->bitmap_tags.sb) > tags->nr_tags / 2;
}

static void park(struct cloop_workqueue *own, struct request *rq)
{
	struct bio *bio;

	if (rq->rq_flags & RQF_IO_STAT) {
		part_stat_lock();
		part_stat_add(rq->part, sectors[op_stat_group(req_op(rq))],
			      blk_rq_sectors(rq));
		part_stat_unlock();
	}
	__rq_for_each_bio(bio, rq)
		percpu_ref_get(&rq->q->q_usage_counter);
	spin_lock(&own->lock);
	blk_steal_bios(&own->parked, rq);
	queue_work(own->wq, &own->bays[own->next].work);
	own->next = (own->next + 1) % own->count;
	spin_unlock(&own->lock);
	blk_mq_end_request(rq, BLK_STS_OK);
}

/*
 * Has a request that was started served: by @work, or its bios by themselves.
 * The block layer keeps the request of a write with a flush before it to the end.
 */
void cloop_workqueue_add(struct cloop_workqueue *own, struct request *rq,
			 struct work_struct *work)
{
	if (op_is_write(req_op(rq)) && rq->bio &&
	    !(rq->rq_flags & RQF_FLUSH_SEQ) &&
	    (is_parking(own) || is_crowded(rq)))
		park(own, rq);
	else
		queue_work(own->wq, work);
}

/* The bio belongs to its submitter again. */
void cloop_bio_end(struct bio *bio, blk_status_t status)
{
	struct request_queue *queue = bdev_get_queue(bio->bi_bdev);

	bio->bi_status = status;
	bio_endio(bio);
	percpu_ref_put(&queue->q_usage_counter);
}

struct gendisk *cloop_bio_disk(const struct bio *bio)
{
	return bio->bi_bdev->bd_disk;
}

unsigned int cloop_num_cpus(void)
{
	return num_online_cpus();
}
