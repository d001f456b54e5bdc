// SPDX-License-Identifier: GPL-2.0
/*
 * The threads of the engine and the freezer, which stops all tasks before the
 * machine sleeps. Nothing may be written to an image from the moment at which
 * hibernation copies the memory: the copy knows nothing of it.
 *
 * A request that waits for space needs the threads. So they are frozen only
 * after no device has a request any more, see power.c.
 */
#include <linux/atomic.h>
#include <linux/freezer.h>
#include <linux/sched.h>

#include "platform.h"

/* Work under way that changes images and that no request waits for. */
static atomic_t working = ATOMIC_INIT(0);
static bool may_freeze;

/* A kernel thread without this flag is one that the freezer stops. */
static bool is_freezable(void)
{
	return (current->flags & PF_KTHREAD) && !(current->flags & PF_NOFREEZE);
}

/* Makes the current thread one that is frozen when it rests. */
void cloop_freezer_join(void)
{
	set_freezable();
	atomic_inc(&working);
}

void cloop_freezer_leave(void)
{
	atomic_dec(&working);
}

/* Until cloop_rest_end(), the current thread waits for something to do. */
void cloop_rest_begin(void)
{
	if (is_freezable())
		atomic_dec(&working);
}

void cloop_rest_end(void)
{
	if (is_freezable())
		atomic_inc(&working);
}

/* True if the current thread, which rests, must call cloop_freezer_enter(). */
bool cloop_freezer_wants(void)
{
	return is_freezable() && READ_ONCE(may_freeze) && freezing(current);
}

/* Returns when the machine is awake again. The caller holds no lock. */
void cloop_freezer_enter(void)
{
	try_to_freeze();
}

/* True if all threads rest. */
bool cloop_threads_rest(void)
{
	return !atomic_read(&working);
}

/* Tells if a thread that rests may be frozen. */
void cloop_freezer_permit(bool permit)
{
	WRITE_ONCE(may_freeze, permit);
}
