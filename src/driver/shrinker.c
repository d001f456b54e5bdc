// SPDX-License-Identifier: GPL-2.0
/*
 * The shrinker of a device: when the kernel is short of memory, the device
 * gives back that of requests, the log, decompressed records and parts of its
 * sector table. A work item does it, because the thread that is short of memory
 * may hold any lock of the engine.
 *
 * Another work item runs every two seconds, and gives back memory that was not
 * needed since it ran last, so that an idle device takes little. Its timer
 * wakes no idle CPU.
 */
#include <linux/atomic.h>
#include <linux/shrinker.h>
#include <linux/slab.h>
#include <linux/workqueue.h>

#include "driver.h"
#include "../platform/kernel/platform.h"

/* Pages that are too few to be worth shrinking. */
#define CLOOP_SHRINK_FLOOR	16
/* Pages that the kernel asks for at once: 4 MiB. */
#define CLOOP_SHRINK_BATCH	1024
/* Time between two looks for memory that was not needed. */
#define CLOOP_TRIM_DELAY	(2 * HZ)

/**
 * struct cloop_shrinker - shrinker of a device
 * @server: argument of the functions in shrinker.rs
 * @shed: gives memory back
 * @trim: gives back what is not needed
 * @pages: how much memory, in pages
 * @shrinker: asks for it
 */
struct cloop_shrinker {
	const struct cloop_server *server;
	struct work_struct shed;
	struct delayed_work trim;
	atomic_long_t pages;
	struct shrinker *shrinker;
};

static void shed(struct work_struct *work)
{
	struct cloop_shrinker *own =
		container_of(work, struct cloop_shrinker, shed);
	unsigned int saved = cloop_io_begin();

	cloop_server_shed(own->server, atomic_long_xchg(&own->pages, 0));
	cloop_io_end(saved);
}

static void trim(struct work_struct *work)
{
	struct cloop_shrinker *own =
		container_of(to_delayed_work(work), struct cloop_shrinker, trim);
	unsigned int saved = cloop_io_begin();

	cloop_server_trim(own->server);
	cloop_io_end(saved);
	queue_delayed_work(system_dfl_wq, &own->trim, CLOOP_TRIM_DELAY);
}

static unsigned long count(struct shrinker *shrinker, struct shrink_control *sc)
{
	struct cloop_shrinker *own = shrinker->private_data;
	unsigned long pages = cloop_server_pages(own->server);

	return pages > CLOOP_SHRINK_FLOOR ? pages : SHRINK_EMPTY;
}

static unsigned long scan(struct shrinker *shrinker, struct shrink_control *sc)
{
	struct cloop_shrinker *own = shrinker->private_data;

	atomic_long_add(sc->nr_to_scan, &own->pages);
	queue_work(system_dfl_wq, &own->shed);
	/* No memory is free yet, and asking again would not help. */
	return SHRINK_STOP;
}

struct cloop_shrinker *cloop_shrinker_alloc(int index,
					    const struct cloop_server *server)
{
	struct cloop_shrinker *own = kzalloc_obj(*own);

	if (!own)
		return NULL;
	own->server = server;
	INIT_WORK(&own->shed, shed);
	INIT_DEFERRABLE_WORK(&own->trim, trim);
	own->shrinker = shrinker_alloc(0, "cloop%d", index);
	if (!own->shrinker) {
		kfree(own);
		return NULL;
	}
	own->shrinker->count_objects = count;
	own->shrinker->scan_objects = scan;
	own->shrinker->batch = CLOOP_SHRINK_BATCH;
	own->shrinker->private_data = own;
	shrinker_register(own->shrinker);
	queue_delayed_work(system_dfl_wq, &own->trim, CLOOP_TRIM_DELAY);
	return own;
}

/* Nothing uses the server afterwards. */
void cloop_shrinker_free(struct cloop_shrinker *own)
{
	shrinker_free(own->shrinker);
	disable_work_sync(&own->shed);
	disable_delayed_work_sync(&own->trim);
	kfree(own);
}
