// SPDX-License-Identifier: GPL-2.0 OR MIT
//! [`exercise`]: everything that users do to an image, and what must hold for every image.

use super::{contents, tag_of};
use crate::engine::check::{check, Finding};
use crate::engine::repair::{repair, Doubtful, Report};
use crate::engine::Access;
use crate::engine::{Algorithm, Compression, Error, Volume, Workspace, BLOCK_SIZE};
use crate::platform::fuzz::MemFile;
use crate::platform::Platform;
use std::collections::BTreeMap;
use std::format;
use std::vec::Vec;

/// Runs of mapped blocks looked at, and blocks of each.
const RUNS: usize = 64;
const RUN_BLOCKS: u64 = 64;

/// The contents of an image, found without changing it.
#[derive(Debug, Default)]
pub struct Survey {
    /// Why it cannot be opened.
    pub refused: Option<Error>,
    /// The findings of `check`.
    pub findings: Vec<Finding>,
    /// The mapped blocks that were looked at, with their contents; `None` for a block that cannot be read.
    pub blocks: BTreeMap<u64, Option<[u8; BLOCK_SIZE]>>,
    /// A part of the table could not be read.
    pub blind: bool,
}

impl Survey {
    /// Nothing is wrong with the image.
    pub fn sound(&self) -> bool {
        self.refused.is_none() && self.findings.is_empty()
    }
}

/// Checks an image and reads it, without changing it.
///
/// # Panics
/// If `check` and an opening disagree, the file was changed, or `check` finds nothing and a block cannot be
/// read.
pub fn survey<P: Platform<File = MemFile>>(file: &MemFile) -> Survey {
    let writes = file.writes();
    let mut survey = Survey::default();
    let findings = &mut survey.findings;
    let checked = check::<P>(file.clone(), &mut |f| findings.push(*f), &mut |_, _| {});
    let volume = Volume::<P>::open(file.clone(), Access::Read);
    assert_eq!(
        checked.err(),
        volume.as_ref().err().copied(),
        "check and opening disagree"
    );
    match volume {
        Ok(volume) => read_some(&volume, &mut survey),
        Err(error) => survey.refused = Some(error),
    }
    if survey.sound() {
        let bad = survey.blocks.iter().find(|(_, held)| held.is_none());
        assert_eq!(bad, None, "check finds nothing and a block is damaged");
        assert!(
            !survey.blind,
            "check finds nothing and the table is damaged"
        );
    }
    assert_eq!(file.writes(), writes, "read-only changed the image");
    survey
}

fn read_some<P: Platform<File = MemFile>>(volume: &Volume<P>, survey: &mut Survey) {
    let mut ws = volume.workspace().expect("memory");
    let (mut at, end) = (0, volume.size().blocks());
    for _ in 0..RUNS {
        match volume.next_mapped(&mut ws, at) {
            Ok(Some((first, count))) => {
                let count = count.min(RUN_BLOCKS);
                let mut together = std::vec![0xee; count as usize * BLOCK_SIZE];
                let read = volume.read(&mut ws, first, &mut together);
                for (block, part) in (first..).zip(together.chunks_exact(BLOCK_SIZE)) {
                    let held = read_block(volume, &mut ws, block).ok();
                    assert!(
                        read.is_err() || held.is_none_or(|h| h == part),
                        "block {block} differs when it is read with others"
                    );
                    survey.blocks.insert(block, held);
                }
                at = first + count;
            }
            Ok(None) => return,
            Err(_) => {
                // Look for mapped blocks behind the damage.
                survey.blind = true;
                at = (at / 512 + 1) * 512;
            }
        }
        if at >= end {
            return;
        }
    }
}

/// What the first read of `block`, which a survey could not read, may find: the forged payload of its record does not
/// decompress to its end, and the first small read of a record decompresses no more than it needs.
///
/// # Panics
/// If the image cannot be opened.
pub fn first_read<P: Platform<File = MemFile>>(
    file: &MemFile,
    block: u64,
) -> Option<[u8; BLOCK_SIZE]> {
    let fresh = Volume::<P>::open(file.clone(), Access::Read).expect("the same image");
    read_block(&fresh, &mut fresh.workspace().expect("memory"), block).ok()
}

fn read_block<P: Platform<File = MemFile>>(
    volume: &Volume<P>,
    ws: &mut Workspace<P>,
    block: u64,
) -> Result<[u8; BLOCK_SIZE], Error> {
    let mut out = [0xee; BLOCK_SIZE];
    volume.read(ws, block, &mut out)?;
    Ok(out)
}

/// Repairs a copy of an image.
///
/// # Panics
/// If a sound image was written to, if the repair and a check of its result disagree, or if the result
/// cannot be opened and changed although nothing was found wrong with it.
pub fn mend<P: Platform<File = MemFile>>(file: &MemFile, survey: &Survey) {
    let file = file.copy();
    let writes = file.writes();
    let (mut before, mut left) = (0, Vec::new());
    let repaired = repair::<P>(
        &mut || Ok(file.clone()),
        Doubtful::Refuse,
        &mut |report| match report {
            Report::Damage(_) => before += 1,
            Report::Left(finding) => left.push(*finding),
            Report::Rebuilt(..)
            | Report::Doubtful(..)
            | Report::Unnamed(..)
            | Report::Unproven(..) => {}
        },
        &mut |_, _| {},
    );
    let found = survey.findings.len() as u64 + u64::from(survey.refused.is_some());
    let refused = matches!(
        survey.refused,
        Some(Error::Version(_) | Error::Feature(_) | Error::Incomplete)
    );
    if !refused {
        assert_eq!(before, found, "a repair and a check before it disagree");
    }
    let written = file.writes() != writes;
    assert!(!(survey.sound() && written), "a sound image was repaired");
    let Ok(repaired) = repaired else {
        assert!(!survey.sound(), "a sound image cannot be repaired");
        return;
    };
    assert_eq!(
        repaired.written, written,
        "the repair does not say if it wrote"
    );
    if !written {
        return;
    }
    let after = super::survey::<P>(&file);
    assert_eq!(after.refused, None, "refused after a repair");
    assert_eq!(after.findings, left, "a check after the repair disagrees");
    // A repair may leave forged structures, and lists them. Nothing else may fail.
    let Ok(volume) = Volume::<P>::open(file.clone(), Access::Write) else {
        assert!(!left.is_empty(), "it cannot be opened after a repair");
        return;
    };
    let mut ws = volume.workspace().expect("memory");
    let wrote = volume.write(&mut ws, 0, &contents(1));
    let closed = volume.close();
    let failed = wrote.and(closed).err();
    assert!(
        failed.is_none() || !left.is_empty(),
        "after a repair: {failed:?}"
    );
}

/// The changes that a user made: tags of blocks (0: zeros), `None` where an operation failed.
struct Written {
    tags: BTreeMap<u64, Option<u32>>,
    next: u32,
    sound: bool,
}

impl Written {
    /// An operation that must not fail on a sound image.
    fn done<T>(&self, result: Result<T, Error>, what: &str) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                assert!(!self.sound, "{what} fails on a sound image: {error}");
                None
            }
        }
    }

    fn note(&mut self, block: u64, count: u64, tags: impl Fn(u64) -> Option<u32>) {
        for i in 0..count {
            self.tags.insert(block + i, tags(i));
        }
    }

    /// Every block holds what was written to it, or gives an error.
    fn compare<P: Platform<File = MemFile>>(&self, volume: &Volume<P>, ws: &mut Workspace<P>) {
        for (&block, &tag) in &self.tags {
            let held = self.done(read_block(volume, ws, block), "a read");
            if let (Some(held), Some(tag)) = (held, tag) {
                assert!(
                    tag_of(&held) == Some(tag),
                    "block {block} is not what was written last"
                );
            }
        }
    }
}

/// Checks, reads, opens, changes, closes and opens again.
///
/// # Panics
/// If something happens that a hostile image must not cause, or that must not happen to an image in which
/// `check` finds nothing.
pub fn exercise<P: Platform<File = MemFile>>(file: &MemFile, script: &[u8]) {
    let survey = survey::<P>(file);
    // One image in four, because a repair costs as much as everything else.
    if script.last().is_some_and(|last| last % 4 == 3) {
        mend::<P>(file, &survey);
    }
    let mut written = Written {
        tags: BTreeMap::new(),
        next: 0,
        sound: survey.sound(),
    };
    let open = || Volume::<P>::open(file.clone(), Access::Write);
    let mut volume = match open() {
        Ok(volume) => volume,
        // The image is read-only because of a feature bit, or because its counters are near their end.
        Err(Error::Feature(_) | Error::ReadOnly) => return,
        Err(error) => {
            assert!(!written.sound, "opening a sound image: {error}");
            return;
        }
    };
    let mut ws = volume.workspace().expect("memory");
    let known: Vec<u64> = survey.blocks.keys().copied().collect();
    for step in script.chunks_exact(4).take(16) {
        let [what, place, offset, count] = [step[0], step[1], step[2], step[3]];
        let blocks = volume.size().blocks();
        // Near a block that was mapped, or anywhere.
        let near = match known.get(usize::from(place) % known.len().max(1)) {
            Some(&block) if place & 1 == 0 => block,
            _ => u64::from(place) << (offset % 40),
        };
        let block = near.saturating_add(u64::from(offset)) % blocks;
        let count = (1 + u64::from(count % 40)).min(blocks - block);
        match what % 8 {
            0..=2 => {
                let first = written.next + 1;
                written.next += count as u32;
                let mut data = Vec::new();
                for i in 0..count as u32 {
                    data.extend_from_slice(&contents(first + i));
                }
                let result = volume.write(&mut ws, block, &data);
                let ok = written.done(result, "a write").is_some();
                written.note(block, count, |i| ok.then_some(first + i as u32));
            }
            3 => {
                // All of a leaf, or a few blocks.
                let count = if place % 4 == 3 { count << 5 } else { count };
                let count = count.min(blocks - block);
                let ok = written.done(volume.zero(&mut ws, block, count), "a discard");
                written.note(block, count, |_| ok.map(|()| 0));
            }
            4 => {
                if offset % 4 == 3 {
                    let with =
                        [Algorithm::Zstd, Algorithm::Lz4, Algorithm::Raw][count as usize % 3];
                    let set = volume.set_compression(Compression::of(with));
                    written.done(set, "a change of compression");
                }
                written.done(volume.flush(), "a flush");
            }
            5 => {
                written.done(volume.checkpoint(), "a checkpoint");
            }
            6 => written.compare(&volume, &mut ws),
            _ => {
                let durable = written.done(volume.flush(), "a flush").is_some();
                if offset % 2 == 0 {
                    written.done(volume.close(), "closing");
                }
                drop(volume);
                let again = written.done(open(), "opening again");
                let Some(again) = again else { return };
                volume = again;
                if !durable {
                    written.tags.clear();
                }
            }
        }
    }
    written.compare(&volume, &mut ws);
    written.done(volume.stats(), "stats");
    if written.done(volume.close(), "closing").is_none() {
        return;
    }
    drop(volume);
    if written.sound {
        let survey = super::survey::<P>(file);
        let said = format!("{:?} {:?}", survey.refused, survey.findings);
        assert!(survey.sound(), "not sound after a clean close: {said}");
    }
    if let Some(volume) = written.done(
        Volume::<P>::open(file.clone(), Access::Read),
        "opening again",
    ) {
        written.compare(&volume, &mut ws);
    }
}
