// SPDX-License-Identifier: GPL-2.0
/*
 * The workqueues that serve the requests of a disk.
 */
#include <linux/cpumask.h>
#include <linux/workqueue.h>

#include "block.h"

/*
 * WQ_MEM_RECLAIM: a write may be what frees memory, so the workqueue keeps a
 * thread for the time when no new one can be made. WQ_UNBOUND: compression takes
 * long, so the scheduler chooses the CPU.
 */
struct workqueue_struct *cloop_workqueue_alloc(int index, const char *lane,
					       int lane_len, int max_active)
{
	return alloc_workqueue("cloop%d-%.*s", WQ_MEM_RECLAIM | WQ_UNBOUND,
			       max_active, index, lane_len, lane);
}

void cloop_work_init(struct work_struct *work, work_func_t func)
{
	INIT_WORK(work, func);
}

void cloop_work_queue(struct workqueue_struct *wq, struct work_struct *work)
{
	queue_work(wq, work);
}

unsigned int cloop_num_cpus(void)
{
	return num_online_cpus();
}
