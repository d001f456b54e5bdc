/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Headers with items that the `kernel` crate does not bind. bindgen_items lists
 * the items.
 */
#include <linux/blkdev.h>
#include <linux/blk-mq.h>
#include <linux/crc32.h>
#include <linux/lz4.h>
#include <linux/zstd.h>
#include <linux/cloop.h>

#include "driver.h"
#include "block/block.h"
#include "../platform/kernel/platform.h"

/* bindgen cannot evaluate these macros. Kbuild removes the prefix. */
const size_t RUST_CONST_HELPER_LZ4_MEM_COMPRESS = LZ4_MEM_COMPRESS;

const blk_features_t RUST_CONST_HELPER_BLK_FEAT_WRITE_CACHE = BLK_FEAT_WRITE_CACHE;
const blk_features_t RUST_CONST_HELPER_BLK_FEAT_FUA = BLK_FEAT_FUA;
const blk_features_t RUST_CONST_HELPER_BLK_FEAT_ATOMIC_WRITES = BLK_FEAT_ATOMIC_WRITES;
const blk_features_t RUST_CONST_HELPER_BLK_FEAT_IO_STAT = BLK_FEAT_IO_STAT;

const blk_status_t RUST_CONST_HELPER_BLK_STS_NOTSUPP = BLK_STS_NOTSUPP;
const blk_status_t RUST_CONST_HELPER_BLK_STS_NOSPC = BLK_STS_NOSPC;
const blk_status_t RUST_CONST_HELPER_BLK_STS_PROTECTION = BLK_STS_PROTECTION;
const blk_status_t RUST_CONST_HELPER_BLK_STS_RESOURCE = BLK_STS_RESOURCE;
const blk_status_t RUST_CONST_HELPER_BLK_STS_IOERR = BLK_STS_IOERR;

const __u32 RUST_CONST_HELPER_REQ_FUA = REQ_FUA;
const __u32 RUST_CONST_HELPER_REQ_META = REQ_META;
const __u32 RUST_CONST_HELPER_REQ_ATOMIC = REQ_ATOMIC;
const __u32 RUST_CONST_HELPER_REQ_OP_MASK = REQ_OP_MASK;

const __u32 RUST_CONST_HELPER_CLOOP_CTL_VERSION = CLOOP_CTL_VERSION;
const __u32 RUST_CONST_HELPER_CLOOP_CTL_ATTACH = CLOOP_CTL_ATTACH;
const __u32 RUST_CONST_HELPER_CLOOP_CTL_DETACH = CLOOP_CTL_DETACH;
const __u32 RUST_CONST_HELPER_CLOOP_CTL_INFO = CLOOP_CTL_INFO;
const __u32 RUST_CONST_HELPER_CLOOP_CTL_COMPACT = CLOOP_CTL_COMPACT;
const __u32 RUST_CONST_HELPER_CLOOP_CTL_RESIZE = CLOOP_CTL_RESIZE;
const __u32 RUST_CONST_HELPER_CLOOP_CTL_SET = CLOOP_CTL_SET;
const __u32 RUST_CONST_HELPER_CLOOP_CTL_RECOMPRESS = CLOOP_CTL_RECOMPRESS;
