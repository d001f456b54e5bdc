// SPDX-License-Identifier: GPL-2.0
/*
 * The flags of a thread that serves a block device.
 */
#include <linux/sched.h>

#include "platform.h"

/*
 * What serves a block device must not wait for writeback to that same device:
 * no allocation may start I/O (PF_MEMALLOC_NOIO), and dirtying the page cache
 * of the backing file is throttled by the backing device alone
 * (PF_LOCAL_THROTTLE), as in loop's workers.
 */
#define CLOOP_IO_FLAGS	(PF_MEMALLOC_NOIO | PF_LOCAL_THROTTLE)

unsigned int cloop_io_begin(void)
{
	unsigned int saved = current->flags & CLOOP_IO_FLAGS;

	current->flags |= CLOOP_IO_FLAGS;
	return saved;
}

void cloop_io_end(unsigned int saved)
{
	current->flags = (current->flags & ~CLOOP_IO_FLAGS) | saved;
}
