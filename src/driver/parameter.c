// SPDX-License-Identifier: GPL-2.0
/*
 * The module parameters.
 */
#include <linux/compiler.h>
#include <linux/moduleparam.h>

#include "driver.h"

static unsigned long long table_limit = CLOOP_TABLE_LIMIT;
module_param(table_limit, ullong, 0644);
MODULE_PARM_DESC(table_limit,
		 "Bytes of memory for the sector table of a device that is attached from now on");

u64 cloop_table_limit(void)
{
	return READ_ONCE(table_limit);
}
