// SPDX-License-Identifier: GPL-2.0
//! The structures of `include/uapi/linux/cloop.h`, as bytes that come from user space and go there.

use crate::c;
use kernel::transmute::{AsBytes, FromBytes};

// SAFETY: The structure consists of integers without padding, so every byte is initialised.
unsafe impl AsBytes for c::cloop_version {}
// SAFETY: As above, and any bytes are valid.
unsafe impl AsBytes for c::cloop_attach {}
// SAFETY: As above.
unsafe impl FromBytes for c::cloop_attach {}
// SAFETY: As above.
unsafe impl FromBytes for c::cloop_detach {}
// SAFETY: As above.
unsafe impl AsBytes for c::cloop_info {}
// SAFETY: As above.
unsafe impl FromBytes for c::cloop_info {}
// SAFETY: As above.
unsafe impl FromBytes for c::cloop_compact {}
// SAFETY: As above.
unsafe impl FromBytes for c::cloop_recompress {}
// SAFETY: As above.
unsafe impl FromBytes for c::cloop_resize {}
// SAFETY: As above.
unsafe impl FromBytes for c::cloop_set {}

// The structures of user space have no padding: it would disclose kernel memory.
const _: () = {
    assert!(size_of::<c::cloop_version>() == 32);
    assert!(size_of::<c::cloop_attach>() == 16);
    assert!(size_of::<c::cloop_detach>() == 8);
    assert!(size_of::<c::cloop_info>() == 576);
    assert!(size_of::<c::cloop_compact>() == 8);
    assert!(size_of::<c::cloop_recompress>() == 16);
    assert!(size_of::<c::cloop_resize>() == 16);
    assert!(size_of::<c::cloop_set>() == 32);
};
