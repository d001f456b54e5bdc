/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the driver needs from the block layer's headers and bindgen cannot
 * read: inline functions and macros.
 */
#ifndef CLOOP_DRIVER_HELPERS_H
#define CLOOP_DRIVER_HELPERS_H

#include <linux/blk_types.h>
#include <linux/workqueue_types.h>

struct gendisk;
struct request;

/**
 * struct cloop_cursor - place in the data of a request
 * @bio: the bio that has the next byte
 * @iter: where in @bio it is
 */
struct cloop_cursor {
	struct bio *bio;
	struct bvec_iter iter;
};

void cloop_cursor_init(struct cloop_cursor *cursor, struct request *rq);
bool cloop_cursor_copy(struct cloop_cursor *cursor, void *buf, size_t len,
		       bool to_request);

void cloop_init_work(struct work_struct *work, work_func_t func);
void cloop_queue_work(struct workqueue_struct *wq, struct work_struct *work);
struct workqueue_struct *cloop_alloc_workqueue(int index, int max_active);

void cloop_disk_no_partscan(struct gendisk *disk);
int cloop_disk_retire(struct gendisk *disk);
unsigned int cloop_num_cpus(void);
bool cloop_may_log(void);

#endif /* CLOOP_DRIVER_HELPERS_H */
