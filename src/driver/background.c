// SPDX-License-Identifier: GPL-2.0
/*
 * What a device does away from where it is caused: a uevent is not sent by a
 * thread that serves requests, because whoever holds the locks of uevents may
 * wait for memory and so for that thread. And memory is not given back by the
 * thread that is short of it, which may hold any lock of the engine.
 */
#include <linux/blkdev.h>
#include <linux/kobject.h>
#include <linux/shrinker.h>
#include <linux/slab.h>
#include <linux/workqueue.h>

#include "helpers.h"
#include "../platform/kernel/platform.h"

/* Below it there is nothing worth the work. */
#define CLOOP_SHRINK_FLOOR	16
/* Pages asked for at once: 4 MiB. */
#define CLOOP_SHRINK_BATCH	1024

/**
 * struct cloop_background - work of a device
 * @disk: the device's disk
 * @server: argument of the functions in exports.rs
 * @announce: tells user space whether there is space
 * @shed: gives memory back
 * @pages: how much of it, in pages
 * @shrinker: asks for it
 */
struct cloop_background {
	struct gendisk *disk;
	const void *server;
	struct work_struct announce;
	struct work_struct shed;
	atomic_long_t pages;
	struct shrinker *shrinker;
};

static void announce(struct work_struct *work)
{
	struct cloop_background *bg =
		container_of(work, struct cloop_background, announce);
	char *envp[2] = { "CLOOP_FULL=0" };
	bool full;

	if (!cloop_server_space_changed(bg->server, &full))
		return;
	if (full)
		envp[0] = "CLOOP_FULL=1";
	kobject_uevent_env(&disk_to_dev(bg->disk)->kobj, KOBJ_CHANGE, envp);
}

static void shed(struct work_struct *work)
{
	struct cloop_background *bg =
		container_of(work, struct cloop_background, shed);
	unsigned int saved = cloop_io_begin();

	cloop_server_shed_table(bg->server, atomic_long_xchg(&bg->pages, 0));
	cloop_io_end(saved);
}

static unsigned long count(struct shrinker *shrinker, struct shrink_control *sc)
{
	struct cloop_background *bg = shrinker->private_data;
	unsigned long pages = cloop_server_table_pages(bg->server);

	return pages > CLOOP_SHRINK_FLOOR ? pages : SHRINK_EMPTY;
}

static unsigned long scan(struct shrinker *shrinker, struct shrink_control *sc)
{
	struct cloop_background *bg = shrinker->private_data;

	atomic_long_add(sc->nr_to_scan, &bg->pages);
	queue_work(system_dfl_wq, &bg->shed);
	/* Nothing is free yet, and asking again would not help. */
	return SHRINK_STOP;
}

struct cloop_background *cloop_background_alloc(void)
{
	struct cloop_background *bg = kzalloc_obj(*bg);

	if (!bg)
		return NULL;
	INIT_WORK(&bg->announce, announce);
	INIT_WORK(&bg->shed, shed);
	return bg;
}

void cloop_background_free(struct cloop_background *bg)
{
	kfree(bg);
}

int cloop_background_start(struct cloop_background *bg, int index,
			   struct gendisk *disk, const void *server)
{
	struct shrinker *shrinker = shrinker_alloc(0, "cloop%d", index);

	if (!shrinker)
		return -ENOMEM;
	bg->disk = disk;
	bg->server = server;
	shrinker->count_objects = count;
	shrinker->scan_objects = scan;
	shrinker->batch = CLOOP_SHRINK_BATCH;
	shrinker->private_data = bg;
	bg->shrinker = shrinker;
	shrinker_register(shrinker);
	return 0;
}

/* Nothing runs afterwards, and cloop_background_announce() does nothing. */
void cloop_background_stop(struct cloop_background *bg)
{
	shrinker_free(bg->shrinker);
	disable_work_sync(&bg->shed);
	disable_work_sync(&bg->announce);
}

void cloop_background_announce(struct cloop_background *bg)
{
	queue_work(system_dfl_wq, &bg->announce);
}
