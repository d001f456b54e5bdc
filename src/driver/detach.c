// SPDX-License-Identifier: GPL-2.0
/*
 * The work that detaches devices whose last user has gone. One exists: a work
 * item of a device could not wait for its own end when the device goes.
 */
#include <linux/workqueue.h>

#include "driver.h"

static void detach_unwanted(struct work_struct *work)
{
	cloop_detach_unwanted();
}

static DECLARE_WORK(unwanted_work, detach_unwanted);

/* The function does not sleep: the caller may be closing the device. */
void cloop_detach_schedule(void)
{
	queue_work(system_freezable_wq, &unwanted_work);
}

/* Waits for the end of the work, before its code is unloaded. */
void cloop_detach_stop(void)
{
	disable_work_sync(&unwanted_work);
}
