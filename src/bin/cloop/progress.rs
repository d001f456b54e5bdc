// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The progress bar: on standard error, and only if that is a terminal.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar over `bytes` bytes, labelled `what`.
pub(crate) fn bar(what: &'static str, bytes: u64) -> ProgressBar {
    // A target that is no terminal draws nothing.
    let bar = ProgressBar::with_draw_target(Some(bytes), ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template(
        "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} eta {eta}",
    ) {
        bar.set_style(style);
    }
    bar.set_message(what);
    bar
}
