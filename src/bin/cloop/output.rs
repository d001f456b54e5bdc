// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Writing results to standard output.

use anyhow::{anyhow, Result};
use serde::Serialize;
use std::io::{self, ErrorKind, Write};

/// Writes `text` to standard output. A reader that has gone away is no error.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(anyhow!("standard output: {error}; redirect it elsewhere"))
        }
        _ => Ok(()),
    }
}

/// Writes `value` as JSON to standard output.
pub(crate) fn print_json(value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    print(&text)
}
