// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The judge of promise P8: a disk is damaged at random and repaired. Then every block reads as before, or it gives an
//! error and was listed.

use super::judge::{Found, History};
use super::provable::{needless, Written};
use super::{options, site, sites, tag_of, Report, BLOCKS, SEGMENT, SITES};
use crate::engine::check::{check, Finding};
use crate::engine::format::{Superblock, DATA_START, SUPERBLOCK_OFFSETS};
use crate::engine::repair::{self, repair, Doubtful, Repaired};
use crate::engine::{Access, Error, Volume, BLOCK_SIZE};
use crate::platform::sim::{Mark, Rng, Sim, SimFile};
use crate::platform::BackingFile;
use core::ops::Range;
use std::format;
use std::string::{String, ToString};
use std::vec::Vec;

/// The disks that damage takes foreign bytes from.
pub(super) struct Donors {
    /// The same image some time ago.
    older: SimFile,
    /// Another image.
    other: SimFile,
}

impl Donors {
    /// Donors for an image whose disk was `older` some time ago.
    pub(super) fn new(older: &SimFile) -> Result<Self, String> {
        let other = SimFile::new();
        let mut options = options(BLOCKS, 4096, SEGMENT);
        options.uuid = *b"another disk too";
        let volume = Volume::<Sim>::create(&other, &options)
            .and_then(|()| Volume::<Sim>::open(other.clone(), Access::Write));
        let volume = volume.map_err(|e| e.to_string())?;
        let mut ws = volume.workspace().map_err(|e| e.to_string())?;
        let mut data = std::vec![0; BLOCK_SIZE];
        for block in 0..70 {
            super::fill(3 * block + 2, &mut data);
            let written = volume.write(&mut ws, u64::from(block), &data);
            written.map_err(|e| e.to_string())?;
        }
        volume.close().map_err(|e| e.to_string())?;
        Ok(Self {
            older: older.copy(),
            other,
        })
    }
}

/// A way to damage a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Damage {
    /// The file ends here.
    Cut(u64),
    /// Bytes from the one offset to the other become zeros.
    Zeros(u64, u64),
    /// They become those of the same image some time ago.
    Older(u64, u64),
    /// They become those of another image.
    Other(u64, u64),
    /// They cannot be read.
    Bad(u64, u64),
}

impl Damage {
    /// Chooses one for a disk of `len` bytes; with `root`, more often at this byte, where a checkpoint has the root of its
    /// table and most of what has changed of the rest; without, more often from a superblock into the log.
    fn choose(len: u64, root: Option<u64>, rng: &mut Rng) -> Self {
        const UNIT: u64 = 512;
        // Small damage and large, at the end of the file and elsewhere.
        let size = match rng.below(4) {
            0 => UNIT * (1 + rng.below(16)),
            1 => BLOCK_SIZE as u64 * (1 + rng.below(64)),
            2 => 1 + rng.below(256 << 10),
            _ => 1 + rng.below(len),
        };
        let size = size.min(len);
        let what = rng.below(10);
        if what < 2 {
            return Self::Cut(len - size);
        }
        let (from, size) = match (root, rng.below(6)) {
            (Some(root), 2 | 3) => {
                let size = size.min(64 << 10);
                let from = root.saturating_sub(rng.below(size));
                (from.min(len - size) / UNIT * UNIT, size)
            }
            (None, 2) => {
                let from = SUPERBLOCK_OFFSETS[rng.below(2) as usize].min(len - 1);
                (from, 1 + rng.below(len - from))
            }
            (_, 0 | 1) => (len - size, size),
            _ => (rng.below(len - size + 1) / UNIT * UNIT, size),
        };
        let to = from + size;
        // Foreign superblocks in both slots, or one with its segments, make another image, or an older one, which
        // nothing tells from the newer one.
        let another = from < BLOCK_SIZE as u64 && to > SUPERBLOCK_OFFSETS[1];
        let another = another || from < SUPERBLOCK_OFFSETS[1] + 4096 && to > DATA_START;
        match what {
            2..=4 => Self::Zeros(from, to),
            8 | 9 => Self::Bad(from, to),
            _ if another => Self::Zeros(from, to),
            5 | 6 => Self::Older(from, to),
            _ => Self::Other(from, to),
        }
    }

    /// The damaged bytes.
    fn bytes(self) -> Range<u64> {
        match self {
            Self::Cut(len) => len..u64::MAX,
            Self::Zeros(from, to)
            | Self::Older(from, to)
            | Self::Other(from, to)
            | Self::Bad(from, to) => from..to,
        }
    }

    fn apply(self, file: &SimFile, donors: &Donors) {
        let bytes = |donor: &SimFile, from: u64, to: u64| -> Vec<u8> {
            let bytes = donor.bytes();
            (from..to)
                .map(|at| bytes.get(at as usize).copied().unwrap_or(0))
                .collect()
        };
        match self {
            Self::Cut(len) => file.cut(len),
            Self::Bad(from, to) => file.spoil(from, to - from),
            Self::Zeros(from, to) => file.overwrite(from, &std::vec![0; (to - from) as usize]),
            Self::Older(from, to) => file.overwrite(from, &bytes(&donors.older, from, to)),
            Self::Other(from, to) => file.overwrite(from, &bytes(&donors.other, from, to)),
        }
    }
}

/// What a repair has told.
#[derive(Default)]
struct Told {
    /// First block and number of blocks that it listed as unreadable.
    listed: Vec<(u64, u64)>,
    all: Vec<repair::Report>,
}

impl Told {
    fn hear(&mut self, report: &repair::Report) {
        self.all.push(*report);
        match report {
            repair::Report::Damage(finding) if finding.data => self.listed.extend(finding.blocks),
            repair::Report::Left(finding) => self.listed.extend(finding.blocks),
            repair::Report::Doubtful(first, count) => self.listed.push((*first, *count)),
            _ => {}
        }
    }

    /// The runs of blocks that were given up because something newer may be lost: first block and number.
    fn given_up(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.all.iter().filter_map(|report| match report {
            repair::Report::Doubtful(first, count) => Some((*first, *count)),
            _ => None,
        })
    }

    /// The image was left as it was, so all that the check before the repair named is still damaged.
    fn left_alone(&mut self) {
        let findings = self.all.iter().filter_map(|report| match report {
            repair::Report::Damage(finding) => finding.blocks,
            _ => None,
        });
        self.listed.extend(findings);
    }

    fn lists(&self, block: u64) -> bool {
        let mut ranges = self.listed.iter();
        ranges.any(|&(first, count)| (first..first.saturating_add(count)).contains(&block))
    }
}

/// A disk to be damaged.
pub(super) struct Target<'a> {
    pub(super) found: &'a SimFile,
    /// Its contents.
    pub(super) state: &'a Found,
    /// How far the history had come when it crashed.
    pub(super) mark: Mark,
    /// The damage is to hit the table more often.
    pub(super) at_root: bool,
    /// Blocks that were written in the history before and after that.
    pub(super) written: &'a Written,
}

/// Damages a copy of a disk, repairs it, and judges the result.
pub(super) fn judge_repair(
    history: &History<'_>,
    target: &Target<'_>,
    donors: &Donors,
    rng: &mut Rng,
    report: &mut Report,
) -> Result<(), String> {
    let &Target {
        found, state, mark, ..
    } = target;
    if !mark.opened && !clean(found) {
        // The log of the round before may end at the damage as at a crash, and its history is forgotten.
        return Ok(());
    }
    let file = found.copy();
    let len = file.len().map_err(|e| e.to_string())?;
    let root = newest(found).filter(|_| target.at_root);
    let root = root.map(|s| s.map_root.address());
    let damage = Damage::choose(len, root, rng);
    damage.apply(&file, donors);
    judge_opening(history, &file, target).map_err(|e| {
        let clean = clean(found);
        format!("{damage:?} of {len} bytes, clean {clean}, without a repair: {e}")
    })?;
    report.repairs += 1;
    let object = |text: String, told: &Told| {
        let told: Vec<_> = told.all.iter().take(12).collect();
        format!(
            "{damage:?} of {len} bytes, clean {}: {text}; told {told:?}",
            clean(found)
        )
    };
    let mut told = Told::default();
    let outcome = repair::<Sim>(
        &mut || Ok(file.clone()),
        Doubtful::Refuse,
        &mut |report| told.hear(report),
        &mut |_, _| {},
    );
    let repaired = match outcome {
        Ok(repaired) => repaired,
        // Nothing is left that says what the image was.
        Err(Error::Corrupt { .. } | Error::NotAnImage) => {
            report.hopeless += 1;
            return Ok(());
        }
        Err(error) => return Err(object(format!("the repair fails: {error}"), &told)),
    };
    if !repaired.written {
        told.left_alone();
    }
    let volume = match Volume::<Sim>::open(file.copy(), Access::Read) {
        Ok(volume) => volume,
        Err(Error::Corrupt { .. } | Error::Io(_) | Error::NotAnImage) if !repaired.written => {
            report.hopeless += 1;
            return Ok(());
        }
        Err(error) => return Err(object(format!("opening after the repair: {error}"), &told)),
    };
    let now = read_sites(&volume).map_err(|e| object(e, &told))?;
    let mut errors = sites().zip(&now).filter(|(_, is)| is.is_none());
    if let Some((block, _)) = errors.find(|(block, _)| !told.lists(*block)) {
        return Err(object(
            format!("block {block} gives an error and is not listed"),
            &told,
        ));
    }
    if clean(found) {
        let given_up: Vec<_> = told.given_up().collect();
        let cut = matches!(damage, Damage::Cut(_));
        let block = needless(found, target.written, damage.bytes(), cut, &given_up);
        if let Some(block) = block.map_err(|e| object(e, &told))? {
            let text = format!("block {block} is given up, and a fingerprint proves it");
            return Err(object(text, &told));
        }
    }
    report.lost += now.iter().filter(|is| is.is_none()).count() as u64;
    agrees_with_check(&file, &repaired).map_err(|e| object(e, &told))?;
    compare(history, found, state, mark, volume.size().blocks(), &now).map_err(|e| object(e, &told))
}

/// An opening refuses a damaged disk, or it serves no block with other contents than before.
fn judge_opening(history: &History<'_>, file: &SimFile, target: &Target<'_>) -> Result<(), String> {
    let volume = match Volume::<Sim>::open(file.copy(), Access::Read) {
        Ok(volume) => volume,
        Err(Error::Corrupt { .. } | Error::NotAnImage | Error::Io(_)) => return Ok(()),
        Err(error) => return Err(error.to_string()),
    };
    let now = read_sites(&volume)?;
    let blocks = volume.size().blocks();
    compare(
        history,
        target.found,
        target.state,
        target.mark,
        blocks,
        &now,
    )
}

/// The tags of the sites; `None` for one that gives an error.
fn read_sites(volume: &Volume<Sim>) -> Result<Vec<Option<u32>>, String> {
    let mut ws = volume.workspace().map_err(|e| e.to_string())?;
    let (mut now, mut bytes) = (Vec::with_capacity(SITES), std::vec![0; BLOCK_SIZE]);
    for block in sites() {
        now.push(match block < volume.size().blocks() {
            false => Some(0),
            true => match volume.read(&mut ws, block, &mut bytes) {
                Ok(()) => {
                    Some(tag_of(&bytes).ok_or_else(|| format!("block {block} is a mixture"))?)
                }
                Err(Error::Corrupt { .. } | Error::Io(_)) => None,
                Err(error) => return Err(format!("reading block {block}: {error}")),
            },
        });
    }
    // Nothing comes into being where nothing was ever written.
    let (mut at, blocks) = (0, volume.size().blocks());
    while let Ok(Some((first, count))) = volume.next_mapped(&mut ws, at) {
        let foreign = (first..first + count)
            .take(4096)
            .find(|&b| site(b).is_none());
        if let Some(block) = foreign {
            if volume.read(&mut ws, block, &mut bytes).is_ok() {
                return Err(format!("block {block} was never written"));
            }
        }
        at = (first + count).min(blocks);
    }
    Ok(now)
}

fn agrees_with_check(file: &SimFile, repaired: &Repaired) -> Result<(), String> {
    if !repaired.written {
        return Ok(());
    }
    let mut findings = 0;
    let mut hear = |_: &Finding| findings += 1;
    check::<Sim>(file.copy(), &mut hear, &mut |_, _| {}).map_err(|e| format!("check: {e}"))?;
    match repaired.summary.is_some_and(|s| s.findings == findings) {
        true => Ok(()),
        false => Err(format!("check finds {findings} of {repaired:?}")),
    }
}

/// The salts of the superblocks in both slots; none for one that is not valid.
pub(super) fn salts(file: &SimFile) -> [Option<u64>; 2] {
    SUPERBLOCK_OFFSETS.map(|offset| slot(file, offset).map(|s| s.salt))
}

fn slot(file: &SimFile, offset: u64) -> Option<Superblock> {
    let mut page = std::vec![0; BLOCK_SIZE];
    file.read_at(&mut page, offset).ok()?;
    Superblock::decode::<Sim>(&mut page, offset).ok()
}

/// The newest superblock of a disk that can be read.
pub(super) fn newest(file: &SimFile) -> Option<Superblock> {
    let slots = SUPERBLOCK_OFFSETS
        .into_iter()
        .filter_map(|at| slot(file, at));
    slots.max_by_key(|s| s.generation)
}

/// Whether the newest superblock of a disk says that the image was closed cleanly.
fn clean(file: &SimFile) -> bool {
    newest(file).is_some_and(|s| s.clean)
}

/// The blocks that give no error are those of the state before the damage. If the image was not closed, the damage may
/// have hit what no later structure proves: then they are those of a state at which a crash may leave the disk.
fn compare(
    history: &History<'_>,
    found: &SimFile,
    state: &Found,
    mark: Mark,
    blocks: u64,
    now: &[Option<u32>],
) -> Result<(), String> {
    let differs = |state: &[u32]| {
        let pairs = sites().zip(now.iter().zip(state));
        pairs
            .filter_map(|(b, (is, &was))| is.filter(|&is| is != was).map(|is| (b, was, is)))
            .next()
    };
    let Some((block, was, is)) = differs(&state.tags) else {
        return match blocks == state.blocks || !clean(found) && mark.sizes.contains(&blocks) {
            true => Ok(()),
            false => Err(format!("{blocks} blocks instead of {}", state.blocks)),
        };
    };
    let wrong = format!("block {block} held {was} and holds {is}");
    if clean(found) {
        return Err(wrong);
    }
    let [_, sure] = mark.checkpoints;
    let mut state = history.state(sure);
    let mut changes = history.order[sure..mark.placed].iter();
    while differs(&state).is_some() {
        let Some(change) = changes.next() else {
            return Err(format!("{wrong}, and no prefix has all of it"));
        };
        super::submit::apply(&mut state, change);
    }
    Ok(())
}
