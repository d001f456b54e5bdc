// SPDX-License-Identifier: GPL-2.0
/*
 * Calls of a function on another thread.
 */
#include <linux/completion.h>
#include <linux/workqueue.h>

#include "platform.h"

/**
 * struct cloop_call - a call of a function on another thread
 * @work: makes the call
 * @done: completed when @fn has returned
 * @fn: the function
 * @data: argument of @fn
 */
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
 * Calls @fn on another thread, so that the signals, resource limits and
 * credentials of the caller do not affect it: killing a process that detaches a
 * device must not make the last writes to the image fail. If @stop is not NULL,
 * a signal sets *@stop, and @fn returns soon when it sees that. In any case this
 * function returns after @fn.
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
