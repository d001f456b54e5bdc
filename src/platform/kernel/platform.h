/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The kernel for the wrappers in this folder: functions around inline functions
 * and macros, which bindgen cannot read.
 */
#ifndef CLOOP_PLATFORM_HELPERS_H
#define CLOOP_PLATFORM_HELPERS_H

#include <linux/types.h>

struct file;
struct cloop_thread;

/* io_scope.c */

unsigned int cloop_io_begin(void);
void cloop_io_end(unsigned int saved);

/* file.c */

int cloop_file_check(struct file *file, bool write);
bool cloop_file_can_direct(struct file *file);
gfp_t cloop_file_restrict_gfp(struct file *file);
void cloop_file_restore_gfp(struct file *file, gfp_t gfp);
int cloop_file_io(struct file *file, void *buf, size_t len, loff_t pos,
		  bool write, bool direct);
loff_t cloop_file_size(struct file *file);
bool cloop_file_is_bdev(struct file *file);
bool cloop_file_is_rotational(struct file *file);
int cloop_file_allocate(struct file *file, loff_t pos, loff_t len);
int cloop_file_punch(struct file *file, loff_t pos, loff_t len);
int cloop_file_truncate(struct file *file, loff_t len);
int cloop_file_sync(struct file *file);
int cloop_file_free_space(struct file *file, u64 *bytes);
int cloop_file_stat(struct file *file, u64 *allocated, u64 *dev, u64 *ino);
void cloop_file_report_retry(struct file *file, int error);
void cloop_file_report_stuck(struct file *file, u64 segments);

/* rest.c */

void cloop_work_begin(void);
void cloop_work_end(void);
void cloop_rest_begin(void);
bool cloop_rest_end(void);
void cloop_rest_on(void);
bool cloop_threads_hold(void);
void cloop_threads_release(void);

/* thread.c */

u64 cloop_now_ms(void);
void cloop_stand_back(bool back);
struct cloop_thread *cloop_thread_spawn(const char *name, int name_len,
					void (*fn)(void *data), void *data);
bool cloop_thread_is_current(void);
void cloop_thread_join(struct cloop_thread *thread);
void cloop_thread_put(struct cloop_thread *thread);

/* call.c */

void cloop_call(void (*fn)(void *data), void *data);
int cloop_call_interruptible(void (*fn)(void *data), void *data, bool *stop);

#endif /* CLOOP_PLATFORM_HELPERS_H */
