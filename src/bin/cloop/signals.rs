// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Signals and limits that the caller of the program chose.

#![allow(unsafe_code)]

use rustix::process::{getrlimit, setrlimit, Resource, Rlimit};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};

/// The signals that ask a program to end, without those that were ignored when it was started: nohup(1) and the
/// background jobs of a script without job control rely on it.
///
/// To be called before any handler is installed.
pub(crate) fn ending() -> Vec<i32> {
    [SIGHUP, SIGINT, SIGTERM]
        .into_iter()
        .filter(|&signal| !is_ignored(signal))
        .collect()
}

fn is_ignored(signal: i32) -> bool {
    // SAFETY: All bytes zero is a valid `sigaction`; it is plain data.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: The call changes nothing, and writes one `sigaction` to `action`.
    let result = unsafe { libc::sigaction(signal, std::ptr::null(), &mut action) };
    result == 0 && action.sa_sigaction == libc::SIG_IGN
}

/// Makes a limit on the size of files (`ulimit -f`) an ordinary error of write(2), EFBIG, instead of a signal that kills.
pub(crate) fn ignore_file_size_limit() {
    // SAFETY: No handler is installed, and this program relies on none.
    unsafe { libc::signal(SIGXFSZ, libc::SIG_IGN) };
}

/// Whether the caller has limited the size of files.
pub(crate) fn is_file_size_limited() -> bool {
    getrlimit(Resource::Fsize).current.is_some()
}

/// Takes the limit away, as far as this is permitted. What the module writes to an image in the course of a system call
/// of this process counts against the limit of this process, but a device has nothing to do with the shell from which
/// it was attached.
pub(crate) fn lift_file_size_limit() {
    let unlimited = Rlimit {
        current: None,
        maximum: None,
    };
    // A caller who may not raise the limit may not attach either. If raising fails all the same, the module reports
    // the limit.
    let _ = setrlimit(Resource::Fsize, unlimited);
}
