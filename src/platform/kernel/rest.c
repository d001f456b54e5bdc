// SPDX-License-Identifier: GPL-2.0
/*
 * Threads of the engine that wait for something to do, and the sleep of the
 * machine. Nothing may be written to an image from the moment at which
 * hibernation copies the memory: the copy knows nothing of it. So threads that
 * rest are held until the machine is awake.
 *
 * The threads are not freezable. Those must be frozen in any order, but a request
 * that is under way may need a thread.
 */
#include <linux/sched.h>
#include <linux/spinlock.h>
#include <linux/wait.h>

#include "platform.h"

static DEFINE_SPINLOCK(lock);
static DECLARE_WAIT_QUEUE_HEAD(released);
static unsigned int working;	/* threads that do not rest */
static bool held;		/* threads that rest must go on resting */

/* A thread of the engine has started, and works. */
void cloop_work_begin(void)
{
	spin_lock(&lock);
	working++;
	spin_unlock(&lock);
}

/* A thread of the engine ends. */
void cloop_work_end(void)
{
	spin_lock(&lock);
	working--;
	spin_unlock(&lock);
}

/* The current thread waits for something to do. */
void cloop_rest_begin(void)
{
	if (cloop_thread_is_current())
		cloop_work_end();
}

/*
 * The current thread has found something to do. If this returns false, it must
 * not do it before it has called cloop_rest_on() and then this function again.
 */
bool cloop_rest_end(void)
{
	bool may_work;

	if (!cloop_thread_is_current())
		return true;
	spin_lock(&lock);
	may_work = !held;
	working += may_work;
	spin_unlock(&lock);
	return may_work;
}

/* Returns when the machine is awake. The caller holds no lock. */
void cloop_rest_on(void)
{
	wait_event_idle(released, !READ_ONCE(held));
}

/* If all threads rest, keeps them from working until cloop_threads_release(). */
bool cloop_threads_hold(void)
{
	bool resting;

	spin_lock(&lock);
	resting = !working;
	WRITE_ONCE(held, resting);
	spin_unlock(&lock);
	return resting;
}

void cloop_threads_release(void)
{
	spin_lock(&lock);
	WRITE_ONCE(held, false);
	spin_unlock(&lock);
	wake_up_all(&released);
}
