// SPDX-License-Identifier: GPL-2.0
/*
 * The flags of a thread that serves a block device.
 */
#include <linux/sched.h>

#include "platform.h"

/*
 * A thread that serves a block device must not wait for writeback to that
 * device. Therefore its allocations do not start I/O (PF_MEMALLOC_NOIO), and
 * only the backing device throttles it when it dirties the page cache of the
 * backing file (PF_LOCAL_THROTTLE). The workers of loop have the same flags.
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
