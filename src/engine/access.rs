// SPDX-License-Identifier: GPL-2.0
//! [`Access`]: whether an image is opened to be written.

/// How an image is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing is written to the image.
    Read,
    /// The image is marked as being in use, and changes.
    Write,
}
