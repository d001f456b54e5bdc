/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the driver needs from the block layer's headers and bindgen cannot
 * read: inline functions and macros.
 */
#ifndef CLOOP_DRIVER_HELPERS_H
#define CLOOP_DRIVER_HELPERS_H

#include <linux/blk_types.h>
#include <linux/workqueue_types.h>

struct cloop_background;
struct cloop_info;
struct cloop_ratelimit;
struct file;
struct gendisk;
struct request;

/* Bytes of memory for the table of a device: what the engine starts with. */
#define CLOOP_TABLE_LIMIT	33554432

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
int cloop_disk_add(struct gendisk *disk);
int cloop_disk_retire(struct gendisk *disk);
int cloop_disk_pause(struct gendisk *disk);
void cloop_disk_resume(struct gendisk *disk);
u64 cloop_table_limit(void);
unsigned int cloop_num_cpus(void);

struct cloop_ratelimit *cloop_ratelimit_alloc(int index);
void cloop_ratelimit_free(struct cloop_ratelimit *limit);
bool cloop_ratelimit_allows(struct cloop_ratelimit *limit);

struct cloop_background *cloop_background_alloc(void);
void cloop_background_free(struct cloop_background *bg);
int cloop_background_start(struct cloop_background *bg, int index,
			   struct gendisk *disk, const void *server);
void cloop_background_stop(struct cloop_background *bg);
void cloop_background_announce(struct cloop_background *bg);

/* In exports.rs. A server is the queuedata of a disk's queue. */
int cloop_server_info(const void *server, struct cloop_info *info);
struct file *cloop_server_file(const void *server);
bool cloop_server_space_changed(const void *server, bool *full);
unsigned long cloop_server_table_pages(const void *server);
void cloop_server_shed_table(const void *server, unsigned long pages);
void cloop_server_set_table_limit(const void *server, u64 bytes);

#endif /* CLOOP_DRIVER_HELPERS_H */
