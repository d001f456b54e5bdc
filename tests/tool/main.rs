// SPDX-License-Identifier: GPL-2.0 OR MIT
//! End-to-end tests of the `cloop` command on the host, where no module is loaded.
//!
//! Each test runs the built program in a directory of its own and looks at exit status, output and files.

mod caller;
mod check;
mod create;
mod estimate;
mod names;
mod real;
mod refuse;
mod resize;
mod run;
mod set;
mod sysfs;
mod transfer;
