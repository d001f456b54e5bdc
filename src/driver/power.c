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
 * 3. Freezable kernel threads are frozen: first cloop-sleep lets one device
 *    after the other, the newest first, end its requests, and serve no more;
 *    then the threads of the engine may be frozen, and then it is frozen itself.
 *
 * The workqueues of requests are not freezable, because a request may need the
 * threads, and a device may lie on another: the order matters. If something takes
 * longer than the freezer waits, the machine stays awake.
 */
#include <linux/err.h>
#include <linux/freezer.h>
#include <linux/kthread.h>
#include <linux/notifier.h>
#include <linux/sched.h>
#include <linux/suspend.h>

#include "block/block.h"
#include "driver.h"
#include "../platform/kernel/platform.h"

static struct task_struct *sleeper;

static void sleep_with_machine(void)
{
	if (cloop_disks_sleep())
		cloop_freezer_permit(true);
	try_to_freeze();
	cloop_freezer_permit(false);
	cloop_disks_wake();
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

static int notify(struct notifier_block *nb, unsigned long event, void *data)
{
	switch (event) {
	case PM_HIBERNATION_PREPARE:
	case PM_SUSPEND_PREPARE:
	case PM_RESTORE_PREPARE:
		cloop_devices_quiesce();
		break;
	case PM_POST_HIBERNATION:
	case PM_POST_SUSPEND:
	case PM_POST_RESTORE:
		cloop_devices_wake();
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
