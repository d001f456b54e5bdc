// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Writing results to standard output, and names of files to wherever they are shown.

use anyhow::{anyhow, Result};
use serde::{Serialize, Serializer};
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::{self, ErrorKind, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

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

/// A name as text for people. What a terminal would obey, what begins a new line, what is invisible, and bytes that are
/// no text are escaped as in a string of Rust, and so is the backslash.
pub(crate) fn shown(name: impl AsRef<OsStr>) -> String {
    let mut text = String::new();
    for chunk in name.as_ref().as_bytes().utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                c if is_harmless(c) => text.push(c),
                c => text.extend(c.escape_debug()),
            }
        }
        for byte in chunk.invalid() {
            // Writing to a string cannot fail.
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

/// Neither a control character nor one that changes the direction or place of others, or is not seen.
fn is_harmless(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// `text` with the names in it that must not be shown as they are in the form of [`shown`].
pub(crate) fn without_raw(text: &str, names: impl Iterator<Item = impl AsRef<OsStr>>) -> String {
    let mut text = text.to_owned();
    for name in names {
        let name = name.as_ref();
        // Of `--option=name` both.
        let parts = name.as_bytes().splitn(2, |&b| b == b'=');
        for part in std::iter::once(name).chain(parts.map(OsStr::from_bytes)) {
            let raw = part.to_string_lossy();
            if !raw.trim().is_empty() && !raw.chars().all(is_harmless) {
                text = text.replace(&*raw, &shown(part));
            }
        }
    }
    text.chars()
        .map(|c| match c {
            '\n' => "\n".to_owned(),
            c if is_harmless(c) => c.to_string(),
            c => c.escape_debug().to_string(),
        })
        .collect()
}

/// Serialises a name as text; where it is none, with U+FFFD, and [`hex_of`] tells its bytes.
pub(crate) fn as_text<S: Serializer>(name: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&name.to_string_lossy())
}

/// The bytes of a name that is no text, in hexadecimal.
pub(crate) fn hex_of(name: &Path) -> Option<String> {
    if name.to_str().is_some() {
        return None;
    }
    let mut hex = String::new();
    for byte in name.as_os_str().as_bytes() {
        // Writing to a string cannot fail.
        let _ = write!(hex, "{byte:02x}");
    }
    Some(hex)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shown_without_loss_and_without_harm() {
        for (name, text) in [
            (&b"disk.img"[..], "disk.img"),
            (
                "Gr\u{f6}\u{df}e \"a\" 'b'".as_bytes(),
                "Gr\u{f6}\u{df}e \"a\" 'b'",
            ),
            (b"a\nb", "a\\nb"),
            (b"a\\nb", "a\\\\nb"),
            (b"\x1b[31m", "\\u{1b}[31m"),
            (b"\xffx", "\\xffx"),
            ("\u{9b}31m".as_bytes(), "\\u{9b}31m"),
            ("\u{202e}gmi".as_bytes(), "\\u{202e}gmi"),
        ] {
            assert_eq!(shown(OsStr::from_bytes(name)), text);
        }
    }

    #[test]
    fn names_in_messages_of_others_are_replaced() {
        let names = ["a\nb", "--size=\x1bx", "plain"];
        let text = without_raw("error: 'a\nb'\nand '\x1bx' or \x07", names.into_iter());
        assert_eq!(text, "error: 'a\\nb'\nand '\\u{1b}x' or \\u{7}");
    }
}
