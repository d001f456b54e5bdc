// SPDX-License-Identifier: GPL-2.0
/*
 * The data of a request.
 */
#include <linux/bio.h>
#include <linux/blk-mq.h>

#include "block.h"

/* The cursor is at the beginning of @bio and those that follow it, if any. */
void cloop_cursor_init(struct cloop_cursor *cursor, struct bio *bio)
{
	cursor->bio = bio;
	if (cursor->bio)
		cursor->iter = cursor->bio->bi_iter;
}

/*
 * Copies the next @len bytes of a request's data out of or into it. Returns
 * false if fewer are left. The copy is in C because the pages may change
 * meanwhile (another process has them mapped), which the slices of Rust do not
 * allow.
 */
bool cloop_cursor_copy(struct cloop_cursor *cursor, void *buf, size_t len,
		       bool to_request)
{
	while (len) {
		struct bio_vec bv;

		while (cursor->bio && !cursor->iter.bi_size) {
			cursor->bio = cursor->bio->bi_next;
			if (cursor->bio)
				cursor->iter = cursor->bio->bi_iter;
		}
		if (!cursor->bio)
			return false;

		bv = bio_iter_iovec(cursor->bio, cursor->iter);
		bv.bv_len = min_t(size_t, bv.bv_len, len);
		if (to_request)
			memcpy_to_bvec(&bv, buf);
		else
			memcpy_from_bvec(buf, &bv);
		bio_advance_iter_single(cursor->bio, &cursor->iter, bv.bv_len);
		buf += bv.bv_len;
		len -= bv.bv_len;
	}
	return true;
}
