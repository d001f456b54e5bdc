// SPDX-License-Identifier: GPL-2.0
/*
 * Kernel threads that can be waited for.
 */
#include <linux/completion.h>
#include <linux/kthread.h>
#include <linux/ktime.h>
#include <linux/module.h>
#include <linux/refcount.h>
#include <linux/sched.h>
#include <linux/sched/prio.h>
#include <linux/sched/task.h>
#include <linux/slab.h>

#include "platform.h"

/**
 * struct cloop_thread - a thread, and the handle that can wait for its end
 * @refs: one reference of the thread, one of the handle
 * @done: completed when @fn has returned
 * @task: the thread; the handle has a reference to it
 * @fn: the function of the thread
 * @data: argument of @fn
 */
struct cloop_thread {
	refcount_t refs;
	struct completion done;
	struct task_struct *task;
	void (*fn)(void *data);
	void *data;
};

static void thread_unref(struct cloop_thread *thread)
{
	if (refcount_dec_and_test(&thread->refs))
		kfree(thread);
}

static int thread_main(void *data)
{
	struct cloop_thread *thread = data;

	cloop_io_begin();
	cloop_work_begin();
	thread->fn(thread->data);
	cloop_work_end();
	complete(&thread->done);
	thread_unref(thread);
	/* Nobody may wait for the thread, so it keeps its own code loaded. */
	module_put_and_kthread_exit(0);
	return 0;
}

/* True if the current thread is one of the engine. */
bool cloop_thread_is_current(void)
{
	return kthread_func(current) == thread_main;
}

/* Milliseconds since the boot, without the time that the system slept. */
u64 cloop_now_ms(void)
{
	return ktime_to_ms(ktime_get());
}

/*
 * Has the current thread run only when the CPU has nothing better to do, or not
 * any more. Only for threads of the engine, whose nice value is 0.
 */
void cloop_stand_back(bool back)
{
	set_user_nice(current, back ? MAX_NICE : 0);
}

struct cloop_thread *cloop_thread_spawn(const char *name, int name_len,
					void (*fn)(void *data), void *data)
{
	struct cloop_thread *thread;
	struct task_struct *task;

	thread = kzalloc_obj(*thread);
	if (!thread)
		return NULL;
	refcount_set(&thread->refs, 2);
	init_completion(&thread->done);
	thread->fn = fn;
	thread->data = data;

	task = kthread_create(thread_main, thread, "%.*s", name_len, name);
	if (IS_ERR(task)) {
		kfree(thread);
		return NULL;
	}
	__module_get(THIS_MODULE);
	thread->task = get_task_struct(task);
	wake_up_process(task);
	return thread;
}

/*
 * The first wait is for @fn to return. The second is for the exit of the thread,
 * so that its reference to the module is gone as well. The thread has started by
 * then, so kthread_stop() does not keep it from running.
 */
void cloop_thread_join(struct cloop_thread *thread)
{
	wait_for_completion(&thread->done);
	kthread_stop(thread->task);
}

void cloop_thread_put(struct cloop_thread *thread)
{
	put_task_struct(thread->task);
	thread_unref(thread);
}
