// SPDX-License-Identifier: GPL-2.0
/*
 * Calls of a function on another thread.
 */
#include <linux/completion.h>
#include <linux/workqueue.h>

#include "platform.h"

struct cloop_call {
	struct work_struct work;
	struct completion done;
	void (*fn)(void *data);
	void *data;
};

static void call_work(struct work_struct *work)
{
	struct cloop_call *call = container_of(work, struct cloop_call, work);
	unsigned int saved = cloop_io_begin();

	call->fn(call->data);
	cloop_io_end(saved);
	complete(&call->done);
}

/*
 * Runs @fn away from the caller's signals, resource limits and credentials: a
 * process that is killed while it detaches a device must not make the last
 * writes to the image fail. When a signal arrives, *@stop (if there is one) is
 * set, which @fn should look at; in any case @fn has returned afterwards.
 */
int cloop_call_interruptible(void (*fn)(void *data), void *data, bool *stop)
{
	struct cloop_call call = { .fn = fn, .data = data };
	int ret = 0;

	INIT_WORK_ONSTACK(&call.work, call_work);
	init_completion(&call.done);
	queue_work(system_dfl_long_wq, &call.work);
	if (stop && wait_for_completion_interruptible(&call.done)) {
		WRITE_ONCE(*stop, true);
		ret = -EINTR;
	}
	flush_work(&call.work);
	destroy_work_on_stack(&call.work);
	return ret;
}

void cloop_call(void (*fn)(void *data), void *data)
{
	cloop_call_interruptible(fn, data, NULL);
}
