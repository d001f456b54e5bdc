// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What a source of data is by its first bytes: a raw disk, or something that only contains one.
//!
//! The magic numbers are those of file(1), and of the specifications of the formats. Nothing is parsed beyond them.

/// Bytes at the beginning that tell what a source is.
pub(crate) const HEAD: usize = 36 << 10;

/// What is wrong with taking a source as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing that is known.
    Raw,
    /// It is no raw disk: what it is, and how to get at the disk in it.
    Container(&'static str, &'static str),
    /// It is a raw disk, which is not usable as it is on a device with sectors of 4096 bytes, for this reason.
    OtherSectors(&'static str),
}

/// What begins with `magic` at byte `at` is `name`; `way` leads to the disk in it.
struct Container {
    at: usize,
    magic: &'static [u8],
    name: &'static str,
    way: &'static str,
}

const CONVERT: &str = "convert it with `qemu-img convert -O raw` first";

const fn container(
    at: usize,
    magic: &'static [u8],
    name: &'static str,
    way: &'static str,
) -> Container {
    Container {
        at,
        magic,
        name,
        way,
    }
}

const CONTAINERS: [Container; 14] = [
    container(0, b"QFI\xfb", "a qcow2 image", CONVERT),
    container(0, b"KDMV", "a VMDK image", CONVERT),
    container(
        0,
        b"# Disk Descriptor",
        "the description of a VMDK image",
        CONVERT,
    ),
    container(0, b"vhdxfile", "a VHDX image", CONVERT),
    container(0, b"conectix", "a VHD image", CONVERT),
    container(0x40, b"\x7f\x10\xda\xbe", "a VDI image", CONVERT),
    container(
        0,
        b"\x1f\x8b\x08",
        "compressed with gzip",
        "import the output of `gzip -dc`, with --size",
    ),
    container(
        0,
        b"\xfd7zXZ\0",
        "compressed with xz",
        "import the output of `xz -dc`, with --size",
    ),
    container(
        0,
        b"\x28\xb5\x2f\xfd",
        "compressed with zstd",
        "import the output of `zstd -dc`, with --size",
    ),
    container(
        0,
        b"BZh",
        "compressed with bzip2",
        "import the output of `bzip2 -dc`, with --size",
    ),
    container(
        0,
        b"\x04\x22\x4d\x18",
        "compressed with lz4",
        "import the output of `lz4 -dc`, with --size",
    ),
    container(
        0,
        b"cloopIMG",
        "a cloop image already",
        "copy the file, or import what `cloop export` makes of it",
    ),
    container(
        0,
        b"#!/bin/sh\n#V",
        "an image of the read-only cloop",
        "import what extract_compressed_fs makes of it",
    ),
    container(
        0,
        b"hsqs",
        "a squashfs, which is compressed already",
        "use it as it is",
    ),
];

/// What the source is that begins with `head`, [`HEAD`] bytes if it has so many.
pub(crate) fn recognise(head: &[u8]) -> Verdict {
    let is = |at: usize, magic: &[u8]| head.get(at..at + magic.len()) == Some(magic);
    if let Some(found) = CONTAINERS.iter().find(|c| is(c.at, c.magic)) {
        return Verdict::Container(found.name, found.way);
    }
    let little = |at: usize| {
        head.get(at..at + 2)
            .map(|b| u16::from_le_bytes([b[0], b[1]]))
    };
    let gpt = (is(512, b"EFI PART"), is(4096, b"EFI PART"));
    match gpt {
        (true, false) => {
            return Verdict::OtherSectors("a GPT for sectors of 512 bytes: its partitions")
        }
        (false, true) => return Verdict::Raw,
        _ => {}
    }
    if is(32_769, b"CD001") {
        return Verdict::OtherSectors("an ISO 9660 file system, with blocks of 2048 bytes: it");
    }
    if is(0, b"XFSB") && is(102, &512u16.to_be_bytes()) {
        return Verdict::OtherSectors("an XFS with sectors of 512 bytes: it");
    }
    if little(1024 + 56) == Some(0xef53) && matches!(little(1024 + 24), Some(0 | 1)) {
        return Verdict::OtherSectors("an ext4 with blocks of 1024 or 2048 bytes: it");
    }
    if is(510, b"\x55\xaa") {
        // The boot sector of a FAT or NTFS says how long its sectors are, where an MBR has code.
        if matches!(head.first(), Some(0xeb | 0xe9))
            && (is(54, b"FAT") || is(82, b"FAT") || is(3, b"NTFS"))
        {
            return match little(11) {
                Some(4096) => Verdict::Raw,
                _ => Verdict::OtherSectors("a FAT or NTFS with sectors of 512 bytes: it"),
            };
        }
        // Only partitions have a type.
        if (0..4).any(|n| head.get(446 + 16 * n + 4).is_some_and(|&kind| kind != 0)) {
            return Verdict::OtherSectors(
                "a partition table, whose sectors mostly have 512 bytes: its partitions",
            );
        }
    }
    Verdict::Raw
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(parts: &[(usize, &[u8])]) -> Vec<u8> {
        let mut head = vec![0; HEAD];
        for (at, bytes) in parts {
            head[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        head
    }

    #[test]
    fn containers_are_known_by_their_magic() {
        for found in &CONTAINERS {
            let head = with(&[(found.at, found.magic)]);
            assert_eq!(recognise(&head), Verdict::Container(found.name, found.way));
            // Not a byte of it may be another.
            let mut other = head.clone();
            other[found.at + found.magic.len() - 1] ^= 1;
            assert_eq!(recognise(&other), Verdict::Raw, "{}", found.name);
        }
        for short in [&b""[..], b"Q", b"QFI", &[0; 511]] {
            assert_eq!(recognise(short), Verdict::Raw);
        }
    }

    #[test]
    fn other_sectors_are_noticed() {
        let other =
            |parts: &[(usize, &[u8])]| matches!(recognise(&with(parts)), Verdict::OtherSectors(_));
        let boot = (510, &b"\x55\xaa"[..]);
        assert!(other(&[boot, (450, b"\x83")]));
        assert!(!other(&[boot]));
        assert!(other(&[boot, (450, b"\xee"), (512, b"EFI PART")]));
        assert!(!other(&[boot, (450, b"\xee"), (4096, b"EFI PART")]));
        assert!(other(&[
            boot,
            (0, b"\xeb\x58\x90mkfs.fat"),
            (11, &[0, 2]),
            (82, b"FAT32")
        ]));
        assert!(!other(&[
            boot,
            (0, b"\xeb\x58\x90mkfs.fat"),
            (11, &[0, 16]),
            (82, b"FAT32")
        ]));
        assert!(other(&[(0, b"XFSB"), (102, &[2, 0])]));
        assert!(!other(&[(0, b"XFSB"), (102, &[16, 0])]));
        assert!(other(&[(1080, &[0x53, 0xef]), (1048, &[0, 0])]));
        assert!(!other(&[(1080, &[0x53, 0xef]), (1048, &[2, 0])]));
        assert!(other(&[(32_769, b"CD001")]));
        assert!(!other(&[]));
    }
}
