// SPDX-License-Identifier: GPL-2.0
/*
 * The disk: opening, pausing, its change uevent, and its end. disk.rs lists the
 * states of a disk. sleep.c has what it does when the machine sleeps.
 */
#include <linux/blk-mq.h>
#include <linux/blkdev.h>
#include <linux/kobject.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/workqueue.h>

#include "block.h"
#include "sleep.h"

/**
 * struct cloop_disk - the private data of a disk
 * @disk: the disk
 * @event: sends a change uevent
 * @change_event: returns the variable of the event
 * @closed: told that the last user has closed the disk
 * @retired: the disk cannot be opened any more; protected by open_mutex
 * @sleep: what it does when the machine sleeps
 */
struct cloop_disk {
	struct gendisk *disk;
	struct work_struct event;
	const char *(*change_event)(const void *queue_data);
	void (*closed)(const void *queue_data);
	bool retired;
	struct cloop_sleep sleep;
};

/* The block layer holds open_mutex. */
static int disk_open(struct gendisk *disk, blk_mode_t mode)
{
	struct cloop_disk *own = disk->private_data;

	return own->retired ? -ENXIO : 0;
}

/* The block layer holds open_mutex, and has counted the opener out already. */
static void disk_release(struct gendisk *disk)
{
	struct cloop_disk *own = disk->private_data;

	if (!disk_openers(disk))
		own->closed(disk->queue->queuedata);
}

static const struct block_device_operations disk_fops = {
	.owner = THIS_MODULE,
	.open = disk_open,
	.release = disk_release,
};

static void send_change_event(struct work_struct *work)
{
	struct cloop_disk *own = container_of(work, struct cloop_disk, event);
	const char *text;

	/* Several things may have changed: an event for each. */
	while ((text = own->change_event(own->disk->queue->queuedata))) {
		char *envp[2] = { (char *)text };

		kobject_uevent_env(&disk_to_dev(own->disk)->kobj, KOBJ_CHANGE,
				   envp);
	}
}

/*
 * Prepares a disk that has been allocated and not added. @change_event returns
 * the variable of a change uevent, as NAME=value, or NULL if nothing has changed.
 * @closed is called when the last user has closed the disk, and must not sleep.
 */
int cloop_disk_init(struct gendisk *disk,
		    const char *(*change_event)(const void *queue_data),
		    void (*closed)(const void *queue_data))
{
	struct cloop_disk *own = kzalloc_obj(*own);

	if (!own)
		return -ENOMEM;
	own->disk = disk;
	own->change_event = change_event;
	own->closed = closed;
	INIT_WORK(&own->event, send_change_event);
	disk->private_data = own;
	disk->fops = &disk_fops;
	/* As loop: no scan by itself, but partx(8) may add partitions. */
	set_bit(GD_SUPPRESS_PART_SCAN, &disk->state);
	cloop_sleep_enlist(&own->sleep, disk->queue);
	return 0;
}

/* Frees a disk that was not added. */
void cloop_disk_free(struct gendisk *disk)
{
	struct cloop_disk *own = disk->private_data;

	if (own)
		cloop_sleep_delist(&own->sleep);
	put_disk(disk);
	kfree(own);
}

/*
 * Removes a disk that was added, after all its requests have ended. No event
 * is sent from the start of this function on; the disk is not opened after
 * del_gendisk(), so nothing uses the private data then.
 */
void cloop_disk_remove(struct gendisk *disk)
{
	struct cloop_disk *own = disk->private_data;

	disable_work_sync(&own->event);
	cloop_sleep_delist(&own->sleep);
	del_gendisk(disk);
	put_disk(disk);
	kfree(own);
}

/*
 * Has a change uevent sent. A thread that serves requests must not send it: a
 * holder of the locks of uevents may wait for memory, and so for that thread.
 */
void cloop_disk_raise_change_event(struct gendisk *disk)
{
	struct cloop_disk *own = disk->private_data;

	queue_work(system_dfl_wq, &own->event);
}

bool cloop_disk_is_open(struct gendisk *disk)
{
	return disk_openers(disk);
}

/*
 * Refuses further opens, unless the disk is open now. The block layer calls
 * disk_open() with open_mutex held, so no open comes between check and refusal.
 */
int cloop_disk_retire(struct gendisk *disk)
{
	struct cloop_disk *own = disk->private_data;
	int ret = 0;

	mutex_lock(&disk->open_mutex);
	if (disk_openers(disk))
		ret = -EBUSY;
	else
		own->retired = true;
	mutex_unlock(&disk->open_mutex);
	return ret;
}

/*
 * Until cloop_disk_resume(), no request is under way, and what the file system
 * on the disk held back is written. The queue is frozen only until it is empty:
 * the image is written during the pause, and the holder of an inode's lock may
 * be waiting for memory, and so for this disk. Requests that come meanwhile
 * wait in the quiesced queue, where lockdep does not take them for holders of
 * the frozen queue.
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

enum cloop_admission cloop_disk_admit(struct request *rq)
{
	struct cloop_disk *own = rq->q->disk->private_data;

	return cloop_sleep_admit(&own->sleep, rq);
}
