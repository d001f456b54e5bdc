// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Sizes as users type and read them.

use cloop::engine::BLOCK_SIZE;

const BLOCK: u64 = BLOCK_SIZE as u64;
const LARGEST: u64 = 1 << 50;
const UNITS: &[u8] = b"KMGTPE";

/// Parses a number of bytes with the suffixes of coreutils: K and KiB are 1024, KB is 1000. The number may have decimal
/// places if that makes whole bytes: 1.5G.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let number = |c: char| c.is_ascii_digit() || c == '.';
    let (number, suffix) = text.split_at(text.len() - text.trim_start_matches(number).len());
    let suffix = suffix.to_ascii_uppercase();
    let unit = match suffix.as_bytes() {
        [] | [b'B'] => Some(1),
        [unit, rest @ ..] => UNITS
            .iter()
            .position(|u| u == unit)
            .and_then(|place| match rest {
                [] | [b'I', b'B'] => 1024u64.checked_pow(place as u32 + 1),
                [b'B'] => 1000u64.checked_pow(place as u32 + 1),
                _ => None,
            }),
    };
    let (whole, places) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let point = number.contains('.');
    let (Some(unit), false, true) = (
        unit,
        whole.is_empty() || point && places.is_empty(),
        digits(whole) && digits(places),
    ) else {
        return Err("not a size; write a number with a suffix, such as 512M or 1.5G".to_owned());
    };
    let too_large = || "larger than any device can be".to_owned();
    // Beyond 15 places no size is a whole number of bytes.
    if places.len() > 15 {
        return Err("not a whole number of bytes".to_owned());
    }
    let scale = 10u128.pow(places.len() as u32);
    let digits: u128 = format!("{whole}{places}")
        .parse()
        .map_err(|_| too_large())?;
    let bytes = digits.checked_mul(unit.into()).ok_or_else(too_large)?;
    if bytes % scale != 0 {
        return Err("not a whole number of bytes".to_owned());
    }
    u64::try_from(bytes / scale).map_err(|_| too_large())
}

/// Parses the size of a device: a multiple of 4 KiB up to 1 PiB.
pub(crate) fn parse_device(text: &str) -> Result<u64, String> {
    let size = parse(text)?;
    if size == 0 {
        return Err("a device cannot be empty; the smallest size is 4K".to_owned());
    }
    if size > LARGEST {
        return Err("larger than the largest device, 1P".to_owned());
    }
    if size % BLOCK != 0 {
        let below = size - size % BLOCK;
        let above = below + BLOCK;
        return Err(if below == 0 {
            format!("not a multiple of 4096 bytes; the nearest valid size is {above}")
        } else {
            format!("not a multiple of 4096 bytes; the nearest valid sizes are {below} and {above}")
        });
    }
    Ok(size)
}

/// A new size for a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Exactly this size.
    To(u64),
    /// The old size plus this.
    Grow(u64),
    /// The old size less this.
    Shrink(u64),
}

impl Change {
    /// The new size of a device of `old` bytes.
    pub(crate) fn apply(self, old: u64) -> Result<u64, String> {
        match self {
            Self::To(size) => Ok(size),
            Self::Grow(by) => old
                .checked_add(by)
                .filter(|&size| size <= LARGEST)
                .ok_or_else(|| "larger than the largest device, 1P".to_owned()),
            Self::Shrink(by) => old
                .checked_sub(by)
                .filter(|&size| size > 0)
                .ok_or_else(|| format!("has only {old} bytes; a device cannot be empty")),
        }
    }
}

/// Parses a new size for a device: `SIZE`, `+SIZE` or `-SIZE`.
pub(crate) fn parse_change(text: &str) -> Result<Change, String> {
    match (text.strip_prefix('+'), text.strip_prefix('-')) {
        (Some(more), _) => parse_device(more).map(Change::Grow),
        (_, Some(less)) => parse_device(less).map(Change::Shrink),
        _ => parse_device(text).map(Change::To),
    }
}

/// Parses the size of a record: a power of two from 4 KiB to 128 KiB.
pub(crate) fn parse_record(text: &str) -> Result<u32, String> {
    match parse(text)? {
        size @ 4096..=0x2_0000 if size.is_power_of_two() => Ok(size as u32),
        _ => Err("a record holds 4K, 8K, 16K, 32K, 64K or 128K".to_owned()),
    }
}

/// `bytes` in at most five characters, as lsblk writes it: `512M`, `1.5G`.
pub(crate) fn human(bytes: u64) -> String {
    let mut unit = 0;
    while unit < UNITS.len() && bytes >> (10 * (unit + 1)) != 0 {
        unit += 1;
    }
    if unit == 0 {
        return format!("{bytes}B");
    }
    // In tenths, rounded; 1023.95K and more become the next unit.
    let tenths = |unit: usize| ((u128::from(bytes) * 10) + (1 << (10 * unit - 1))) >> (10 * unit);
    if tenths(unit) >= 10_240 && unit < UNITS.len() {
        unit += 1;
    }
    let value = tenths(unit);
    let name = UNITS[unit - 1] as char;
    match (value / 10, value % 10) {
        (whole, 0) => format!("{whole}{name}"),
        (whole, tenth) => format!("{whole}.{tenth}{name}"),
    }
}

/// `bytes` for humans and exactly: `1.5G (1610612736 bytes)`.
pub(crate) fn both(bytes: u64) -> String {
    if bytes < 1024 {
        return format!("{bytes} bytes");
    }
    format!("{} ({bytes} bytes)", human(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_coreutils_parses() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("4096B", 4096),
            ("64K", 65536),
            ("64k", 65536),
            ("64KiB", 65536),
            ("64KB", 64000),
            ("3M", 3 << 20),
            ("10G", 10 << 30),
            ("10GB", 10_000_000_000),
            ("1T", 1 << 40),
            ("1PiB", 1 << 50),
            ("1.5G", 3 << 29),
            ("0.25KB", 250),
            ("2.0", 2),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in [
            "",
            "K",
            "-1",
            "+1",
            "1.1K",
            "1.5",
            ".5G",
            "1.G",
            ".",
            "1.2.3M",
            "0.0000000000000001P",
            "1X",
            "1KiBs",
            "0x10",
            " 1",
            "1 K",
            "1Ki",
            "1é",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
        for text in ["99999999999999999999", "99999999E", "16E"] {
            assert!(parse(text).unwrap_err().contains("larger"), "{text}");
        }
    }

    #[test]
    fn names_the_neighbours_of_an_invalid_device_size() {
        assert_eq!(parse_device("8K"), Ok(8192));
        assert_eq!(parse_device("1P"), Ok(1 << 50));
        let error = parse_device("5000").unwrap_err();
        assert!(error.contains("4096 and 8192"), "{error}");
        let error = parse_device("1").unwrap_err();
        assert!(error.ends_with("nearest valid size is 4096"), "{error}");
        assert!(parse_device("0").is_err());
        assert!(parse_device("1025T").is_err());
    }

    #[test]
    fn changes_by_an_amount_or_to_a_size() {
        assert_eq!(parse_change("8K").unwrap().apply(4096), Ok(8192));
        assert_eq!(parse_change("+8K").unwrap().apply(4096), Ok(12288));
        assert_eq!(parse_change("-8K").unwrap().apply(12288), Ok(4096));
        for text in ["", "+", "-", "+-4K", "+5000", "5000", "0"] {
            assert!(parse_change(text).is_err(), "{text}");
        }
        assert!(Change::Grow(4096).apply(LARGEST).is_err());
        assert!(Change::Shrink(4096).apply(4096).is_err());
        assert!(Change::Shrink(8192).apply(4096).is_err());
    }

    #[test]
    fn takes_only_record_sizes_of_the_format() {
        assert_eq!(parse_record("4K"), Ok(4096));
        assert_eq!(parse_record("128K"), Ok(131_072));
        for text in ["0", "2K", "12K", "256K", "64KB"] {
            assert!(parse_record(text).is_err(), "{text}");
        }
    }

    #[test]
    fn prints_short_sizes() {
        for (bytes, text) in [
            (0, "0B"),
            (1023, "1023B"),
            (1024, "1K"),
            (1536, "1.5K"),
            (1 << 20, "1M"),
            ((1 << 20) - 1, "1M"),
            (1_610_612_736, "1.5G"),
            (1 << 40, "1T"),
            (u64::MAX, "16E"),
        ] {
            assert_eq!(human(bytes), text);
        }
    }
}
