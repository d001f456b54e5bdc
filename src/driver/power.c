// SPDX-License-Identifier: GPL-2.0
/*
 * Sleep of the machine: hibernation and suspend.
 *
 * Nothing may be written to an image between the freezing and the thawing of
 * tasks. Above all hibernation copies the memory then and goes on writing to the
 * disks; what a device stored after the copy, the machine would not know of when
 * it wakes up, and it would take segments for what they no longer hold. The
 * steps are:
 *
 * 1. The notifier: background work that no user waits for ends, and everything
 *    is in a checkpoint. File systems are synced after that, so devices go on
 *    serving requests.
 * 2. Tasks of user space are frozen. A task in an ioctl is not, before the ioctl
 *    has ended.
 * 3. Freezable kernel threads are frozen. The last of them is cloop-sleep, because
 *    others may need a device until they are frozen. It lets one device after the
 *    other end its requests and serve no more, keeps the threads of the engine
 *    from beginning anything, and is frozen then.
 *
 * What is not freezable goes on: writeback, and device-mapper, which hands over
 * requests that it has had for a while. Their requests wait until the machine is
 * awake. But a freezable workqueue, such as those of loop and XFS, is only frozen
 * when the work has ended that it is doing, and one cannot see whether it has. So
 * if a request comes soon after all devices have fallen asleep, they wake up and
 * try again, for a while.
 *
 * The workqueues of requests are not freezable, because a request may need the
 * threads, and a device may lie on another: the order matters. If something takes
 * longer than the freezer waits, the machine stays awake.
 */
#include <linux/delay.h>
#include <linux/err.h>
#include <linux/freezer.h>
#include <linux/iocontext.h>
#include <linux/ioprio.h>
#include <linux/jiffies.h>
#include <linux/kthread.h>
#include <linux/notifier.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/suspend.h>

#include "block/block.h"
#include "driver.h"
#include "../platform/kernel/platform.h"

/* Milliseconds without a request after which nothing is taken to need one. */
#define QUIET_MS	500
/* Attempts to find such a time. Writeback may be busy for longer. */
#define QUIET_ATTEMPTS	20

static struct task_struct *sleeper;
static int ioprio;	/* of the task that puts the machine to sleep */

/* True if a task is still to be frozen. */
static bool others_are_awake(void)
{
	struct task_struct *group, *task;
	bool awake = false;

	rcu_read_lock();
	for_each_process_thread(group, task) {
		if (task != current && freezing(task) &&
		    !(READ_ONCE(task->__state) & TASK_FROZEN))
			awake = true;
	}
	rcu_read_unlock();
	return awake;
}

/* Returns false if a device or a thread of the engine does not come to rest. */
static bool devices_sleep(void)
{
	unsigned long end;

	if (!cloop_disks_sleep())
		return false;
	end = jiffies + HZ;
	while (!cloop_threads_hold()) {
		if (time_after(jiffies, end))
			return false;
		msleep(20);
	}
	return true;
}

static void devices_wake(void)
{
	cloop_threads_release();
	cloop_disks_wake();
}

static void sleep_with_machine(void)
{
	int attempts = 0;

	while (freezing(current)) {
		if (others_are_awake()) {
			msleep(20);
			continue;
		}
		if (devices_sleep()) {
			msleep(QUIET_MS);
			if (!cloop_disks_disturbed() ||
			    ++attempts == QUIET_ATTEMPTS)
				break;
		}
		devices_wake();
	}
	try_to_freeze();
	devices_wake();
}

static int sleeper_main(void *data)
{
	set_freezable();
	while (!kthread_should_stop()) {
		set_current_state(TASK_INTERRUPTIBLE);
		if (!kthread_should_stop() && !freezing(current))
			schedule();
		__set_current_state(TASK_RUNNING);
		if (freezing(current))
			sleep_with_machine();
	}
	return 0;
}

static int own_ioprio(void)
{
	return current->io_context ? current->io_context->ioprio : 0;
}

/*
 * The current task is about to put the machine to sleep. Its requests get a mark
 * that drivers in between, such as dm-crypt, pass on with the priority: a disk
 * that sleeps recognises them by it.
 */
static void mark_requests(void)
{
	ioprio = own_ioprio();
	if (set_task_ioprio(current, CLOOP_IOPRIO_SLEEP))
		pr_warn("cloop: out of memory, hibernation to a cloop device would hang\n");
}

static void unmark_requests(void)
{
	if (own_ioprio() == CLOOP_IOPRIO_SLEEP)
		set_task_ioprio(current, ioprio);
}

static int notify(struct notifier_block *nb, unsigned long event, void *data)
{
	switch (event) {
	case PM_HIBERNATION_PREPARE:
	case PM_SUSPEND_PREPARE:
	case PM_RESTORE_PREPARE:
		mark_requests();
		cloop_devices_quiesce();
		break;
	case PM_POST_HIBERNATION:
	case PM_POST_SUSPEND:
	case PM_POST_RESTORE:
		cloop_devices_wake();
		unmark_requests();
		break;
	}
	return NOTIFY_DONE;
}

static struct notifier_block notifier = { .notifier_call = notify };

int cloop_power_init(void)
{
	int ret;

	sleeper = kthread_run(sleeper_main, NULL, "cloop-sleep");
	if (IS_ERR(sleeper))
		return PTR_ERR(sleeper);
	ret = register_pm_notifier(&notifier);
	if (ret)
		kthread_stop(sleeper);
	return ret;
}

void cloop_power_exit(void)
{
	unregister_pm_notifier(&notifier);
	kthread_stop(sleeper);
}
