/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The block layer for the wrappers in this folder: functions around inline
 * functions and macros, which bindgen cannot read.
 */
#ifndef CLOOP_DRIVER_BLOCK_H
#define CLOOP_DRIVER_BLOCK_H

#include <linux/blk_types.h>
#include <linux/workqueue_types.h>

struct blk_mq_tag_set;
struct gendisk;
struct request;

/* disk.c */

int cloop_disk_init(struct gendisk *disk,
		    const char *(*change_event)(const void *queue_data),
		    void (*closed)(const void *queue_data));
void cloop_disk_free(struct gendisk *disk);
void cloop_disk_remove(struct gendisk *disk);
void cloop_disk_raise_change_event(struct gendisk *disk);
bool cloop_disk_is_open(struct gendisk *disk);
int cloop_disk_retire(struct gendisk *disk);
int cloop_disk_pause(struct gendisk *disk);
void cloop_disk_resume(struct gendisk *disk);

/**
 * enum cloop_admission - what happens to a request
 * @CLOOP_SERVE: the driver serves it
 * @CLOOP_DEFER: the block layer has it again, and hands it over later
 * @CLOOP_REFUSE: it fails
 */
enum cloop_admission {
	CLOOP_SERVE,
	CLOOP_DEFER,
	CLOOP_REFUSE,
};

enum cloop_admission cloop_disk_admit(struct request *rq);

/* request.c */

/**
 * struct cloop_cursor - place in the data of a request
 * @bio: the bio that contains the next byte
 * @iter: position in @bio
 */
struct cloop_cursor {
	struct bio *bio;
	struct bvec_iter iter;
};

void cloop_cursor_init(struct cloop_cursor *cursor, struct bio *bio);
bool cloop_cursor_copy(struct cloop_cursor *cursor, void *buf, size_t len,
		       bool to_request);

/* sleep.c */

/*
 * The I/O priority of requests of the task that puts the machine to sleep: the
 * usual one, with a hint that nothing else uses.
 */
#define CLOOP_IOPRIO_SLEEP \
	IOPRIO_PRIO_VALUE_HINT(IOPRIO_CLASS_BE, IOPRIO_BE_NORM, 0x3c1)

bool cloop_disks_sleep(void);
bool cloop_disks_disturbed(void);
void cloop_disks_wake(void);

/* tag_set.c */

void cloop_map_queues(struct blk_mq_tag_set *set);

/* workqueue.c */

struct cloop_workqueue;

struct cloop_workqueue *cloop_workqueue_alloc(int index, const char *lane,
					      int lane_len, int max_active,
					      void (*serve_bio)(struct bio *bio));
void cloop_workqueue_free(struct cloop_workqueue *own);
void cloop_workqueue_add(struct cloop_workqueue *own, struct request *rq,
			 struct work_struct *work);
void cloop_work_init(struct work_struct *work, work_func_t func);
void cloop_bio_end(struct bio *bio, blk_status_t status);
struct gendisk *cloop_bio_disk(const struct bio *bio);
unsigned int cloop_num_cpus(void);

#endif /* CLOOP_DRIVER_BLOCK_H */
