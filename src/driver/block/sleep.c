// SPDX-License-Identifier: GPL-2.0
/*
 * Disks that sleep: requests wait until the disk is awake. power.c says when.
 */
#include <linux/blk-mq.h>
#include <linux/ioprio.h>
#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/sched.h>
#include <linux/sched/mm.h>

#include "sleep.h"

/*
 * All disks, in the order in which they go to sleep: the newest first, because the
 * image of a disk lies on older ones. (A new table of device-mapper can make that
 * untrue; then it may take several attempts until no disk needs another.)
 */
static LIST_HEAD(disks);
static DEFINE_MUTEX(disks_lock);

void cloop_sleep_enlist(struct cloop_sleep *own, struct request_queue *queue)
{
	own->queue = queue;
	mutex_lock(&disks_lock);
	list_add(&own->node, &disks);
	mutex_unlock(&disks_lock);
}

void cloop_sleep_delist(struct cloop_sleep *own)
{
	mutex_lock(&disks_lock);
	list_del(&own->node);
	mutex_unlock(&disks_lock);
}

/*
 * Whether a request that the block layer has just handed over is served now.
 * A request that comes while the disk sleeps goes back to the block layer and
 * comes again afterwards. But the task that puts the machine to sleep must not
 * wait: it is about to store the copy of the memory on this disk, and the disk
 * wakes up only after that. The request may come from a driver in between.
 */
enum cloop_admission cloop_sleep_admit(struct cloop_sleep *own,
				       struct request *rq)
{
	if (likely(!READ_ONCE(own->asleep)))
		return CLOOP_SERVE;
	if ((current->flags & PF_SUSPEND_TASK) ||
	    req_get_ioprio(rq) == CLOOP_IOPRIO_SLEEP)
		return CLOOP_REFUSE;
	WRITE_ONCE(own->disturbed, true);
	blk_mq_requeue_request(rq, false);
	return CLOOP_DEFER;
}

/*
 * Waits for a second until the disk has no request, and keeps others from being
 * served.
 */
static bool fall_asleep(struct cloop_sleep *own)
{
	unsigned int memflags = memalloc_noio_save();
	bool empty;

	blk_freeze_queue_start(own->queue);
	empty = blk_mq_freeze_queue_wait_timeout(own->queue, HZ);
	if (empty)
		WRITE_ONCE(own->asleep, true);
	blk_mq_unfreeze_queue(own->queue, memflags);
	return empty;
}

/* Puts all disks to sleep. Returns false if one has requests that do not end. */
bool cloop_disks_sleep(void)
{
	struct cloop_sleep *own;
	bool asleep = true;

	mutex_lock(&disks_lock);
	list_for_each_entry(own, &disks, node) {
		asleep = fall_asleep(own);
		if (!asleep)
			break;
	}
	mutex_unlock(&disks_lock);
	return asleep;
}

/* True if a request has come since a disk fell asleep. */
bool cloop_disks_disturbed(void)
{
	struct cloop_sleep *own;
	bool disturbed = false;

	mutex_lock(&disks_lock);
	list_for_each_entry(own, &disks, node)
		disturbed |= READ_ONCE(own->disturbed);
	mutex_unlock(&disks_lock);
	return disturbed;
}

void cloop_disks_wake(void)
{
	struct cloop_sleep *own;

	mutex_lock(&disks_lock);
	list_for_each_entry_reverse(own, &disks, node) {
		WRITE_ONCE(own->disturbed, false);
		WRITE_ONCE(own->asleep, false);
		blk_mq_kick_requeue_list(own->queue);
	}
	mutex_unlock(&disks_lock);
}
