// SPDX-License-Identifier: GPL-2.0
/*
 * Which hardware queue the requests of a CPU go to.
 */
#include <linux/blk-mq.h>

#include "block.h"

/*
 * Each kind of queue has the same number of them. A kernel that dumps a crash
 * has one kind only.
 */
void cloop_map_queues(struct blk_mq_tag_set *set)
{
	unsigned int each = set->nr_hw_queues / set->nr_maps;
	unsigned int type;

	for (type = 0; type < set->nr_maps; type++) {
		set->map[type].nr_queues = each;
		set->map[type].queue_offset = type * each;
		blk_mq_map_queues(&set->map[type]);
	}
}
