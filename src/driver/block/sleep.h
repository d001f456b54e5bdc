/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Sleep of the disks, for disk.c. block.h has what power.c needs.
 */
#ifndef CLOOP_DRIVER_BLOCK_SLEEP_H
#define CLOOP_DRIVER_BLOCK_SLEEP_H

#include <linux/types.h>

#include "block.h"

struct request_queue;

/**
 * struct cloop_sleep - the part of a disk that sleeps
 * @node: in the list of disks
 * @queue: the queue of the disk
 * @asleep: requests wait until the disk is awake; changes only while no request
 *	exists
 * @disturbed: a request has come while the disk was asleep
 */
struct cloop_sleep {
	struct list_head node;
	struct request_queue *queue;
	bool asleep;
	bool disturbed;
};

void cloop_sleep_enlist(struct cloop_sleep *own, struct request_queue *queue);
void cloop_sleep_delist(struct cloop_sleep *own);
enum cloop_admission cloop_sleep_admit(struct cloop_sleep *own,
				       struct request *rq);

#endif /* CLOOP_DRIVER_BLOCK_SLEEP_H */
