// SPDX-License-Identifier: GPL-2.0
/*
 * The limit of a device's messages.
 */
#include <linux/ratelimit.h>
#include <linux/slab.h>

#include "driver.h"

/**
 * struct cloop_ratelimit - limit of a device's messages
 * @state: number of messages in the current interval
 * @name: the device, for the line that says how many messages were left out
 *
 * Each device has a limit of its own, so that a device which repeats its errors
 * endlessly does not hide the first error of another.
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
