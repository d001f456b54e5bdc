// SPDX-License-Identifier: GPL-2.0
//! References to this module.

use crate::c;
use kernel::module::this_module;

/// A reference to this module, which cannot be unloaded as long as it exists.
pub(crate) struct ModuleReference(());

impl ModuleReference {
    /// Takes a reference. The caller is code that keeps the module loaded: an ioctl of the control device.
    pub(crate) fn new() -> Self {
        // SAFETY: `this_module` is valid, and the caller keeps the module loaded.
        unsafe { c::__module_get(this_module::<crate::LocalModule>().as_ptr()) };
        Self(())
    }
}

impl Drop for ModuleReference {
    fn drop(&mut self) {
        // SAFETY: `new` took a reference.
        unsafe { c::module_put(this_module::<crate::LocalModule>().as_ptr()) };
    }
}
