/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the C and the Rust files of this folder know of each other.
 */
#ifndef CLOOP_DRIVER_H
#define CLOOP_DRIVER_H

#include <linux/types.h>

struct attribute_group;
struct cloop_info;
struct cloop_queue;
struct cloop_ratelimit;
struct cloop_server;
struct cloop_shrinker;
struct file;

/* detach.c */

void cloop_detach_schedule(void);
void cloop_detach_stop(void);

/* detach.rs */

void cloop_detach_unwanted(void);

/* parameter.c */

/* Bytes of memory for the sector table of a device: the engine's default. */
#define CLOOP_TABLE_LIMIT	33554432

u64 cloop_table_limit(void);

/* power.c */

int cloop_power_init(void);
void cloop_power_exit(void);

/* power.rs */

void cloop_devices_quiesce(void);
void cloop_devices_wake(void);

/* ratelimit.c */

struct cloop_ratelimit *cloop_ratelimit_alloc(int index);
void cloop_ratelimit_free(struct cloop_ratelimit *limit);
bool cloop_ratelimit_allows(struct cloop_ratelimit *limit);

/* shrinker.c */

struct cloop_shrinker *cloop_shrinker_alloc(int index,
					    const struct cloop_server *server);
void cloop_shrinker_free(struct cloop_shrinker *own);

/* shrinker.rs */

unsigned long cloop_server_pages(const struct cloop_server *server);
void cloop_server_shed(const struct cloop_server *server, unsigned long pages);
void cloop_server_trim(const struct cloop_server *server);

/* sysfs.c */

const struct attribute_group **cloop_sysfs_groups(void);

/* sysfs.rs; a cloop_queue is the queuedata of a disk */

int cloop_queue_info(const struct cloop_queue *queue, struct cloop_info *info);
const char *cloop_algorithm_name(u32 algorithm, int *len);
int cloop_queue_set_compression(const struct cloop_queue *queue,
				const char *text, size_t len);
int cloop_queue_set_recompression(const struct cloop_queue *queue,
				  const char *text, size_t len);
int cloop_queue_set_recompress_after(const struct cloop_queue *queue,
				     u32 seconds);
int cloop_queue_set_recompress_rate(const struct cloop_queue *queue, u32 kib);
struct file *cloop_queue_file(const struct cloop_queue *queue);
int cloop_queue_set_table_limit(const struct cloop_queue *queue, u64 bytes);
u64 cloop_queue_warn_percent(const struct cloop_queue *queue);
int cloop_queue_set_warn_percent(const struct cloop_queue *queue, u64 percent);

#endif /* CLOOP_DRIVER_H */
