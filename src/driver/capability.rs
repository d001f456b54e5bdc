// SPDX-License-Identifier: GPL-2.0
//! The capability that the ioctls need.

use crate::c;
use kernel::prelude::*;

/// Checks that the current process has CAP_SYS_ADMIN.
///
/// # Errors
///
/// EPERM if it does not.
pub(crate) fn sys_admin() -> Result {
    // SAFETY: The function has no preconditions.
    if unsafe { c::capable(c::CAP_SYS_ADMIN as c_int) } {
        Ok(())
    } else {
        Err(EPERM)
    }
}
