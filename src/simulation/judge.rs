// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The judge: it decides whether the contents of a disk after a crash are allowed.

use super::submit::apply;
use super::{site, sites, tag_of, Report, BLOCKS, SITES};
use crate::engine::check::{check, Finding};
use crate::engine::format::{Superblock, SUPERBLOCK_OFFSETS};
use crate::engine::Access;
use crate::engine::{Error, Volume, BLOCK_SIZE};
use crate::platform::sim::{self, Fault, Mark, Placed, Rng, Sim, SimFile};
use crate::platform::BackingFile;
use core::fmt::Write;
use std::format;
use std::string::{String, ToString};
use std::vec::Vec;

/// Blocks read at once.
const CHUNK: u64 = 32;

/// The contents of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Size of the device in blocks.
    pub(super) blocks: u64,
    /// The tags of its sites; zeros beyond its end.
    pub(super) tags: Vec<u32>,
    /// Segments that only the older superblock needs may have been used again.
    pub(super) may_lose_older_superblock: bool,
}

/// The knowledge of the judge: the state of the device when the round began, and its changes in order.
pub(super) struct History<'a> {
    pub(super) start: &'a [u32],
    pub(super) order: &'a [Placed],
}

impl History<'_> {
    /// Judges the disk `found` after a crash at `mark`. Returns the recovered disk and its state, unless a
    /// fault had put wrong bytes on the disk. If `thorough`, everything is checked, and the recovery is
    /// interrupted as well.
    pub(super) fn judge(
        &self,
        found: SimFile,
        mark: Mark,
        thorough: bool,
        rng: &mut Rng,
        report: &mut Report,
    ) -> Result<Option<(SimFile, Found)>, String> {
        if found.corrupted() {
            report.corrupted += 1;
            self.judge_corrupted(&found, mark, report)?;
            return Ok(None);
        }
        let state = self.prefix(&found, mark)?;
        if thorough || rng.below(4) == 0 {
            either_superblock(&found, &state, mark, report)?;
        }
        if !thorough {
            return Ok(Some((found, state)));
        }
        whole(&found, report)?;
        let (file, state) = interrupt_recovery(found, state, mark, rng, report)?;
        whole(&file, report).map_err(|e| format!("recovered: {e}"))?;
        Ok(Some((file, state)))
    }

    /// The state found must follow from a prefix of the order that is at least as long as promised. Returns
    /// the state.
    pub(super) fn prefix(&self, found: &SimFile, mark: Mark) -> Result<Found, String> {
        let found = read_all(found)?;
        found.fits(mark)?;
        let now = &found.tags;
        let mut state = self.state(mark.promised);
        let promised_state = state.clone();
        let later = &self.order[mark.promised..mark.placed];
        let mut length = mark.promised;
        let mut torn = None;
        while state != *now || self.tears(length) {
            if state == *now {
                torn = torn.or(Some(length));
            }
            let Some(change) = self.order[..mark.placed].get(length) else {
                if let Some(length) = torn {
                    return Err(format!(
                        "an atomic write is torn: this is the state after {length} changes, {:?}",
                        &self.order[length.saturating_sub(4)..mark.placed.min(length + 4)]
                    ));
                }
                let mut text = format!(
                    "not a prefix: {} of {} changes promised; block: promised, found:",
                    mark.promised, mark.placed
                );
                for (b, (was, is)) in sites().zip(promised_state.iter().zip(now)) {
                    if was != is {
                        let _ = write!(text, " {b}: {was}, {is};");
                    }
                }
                let _ = write!(text, " changes after that: {later:?}");
                return Err(text);
            };
            apply(&mut state, change);
            length += 1;
        }
        Ok(found)
    }

    /// True if a crash must not leave the state after the first `length` changes, because it has a part of an atomic
    /// write only (promise P9).
    fn tears(&self, length: usize) -> bool {
        length > 0 && self.order[length - 1].tears
    }

    pub(super) fn state(&self, length: usize) -> Vec<u32> {
        let mut state = self.start.to_vec();
        self.order[..length]
            .iter()
            .for_each(|change| apply(&mut state, change));
        state
    }

    /// With wrong bytes on the disk: the image is refused as a whole; or every block is right or refused,
    /// and `check` finds something.
    /// The log behind the last checkpoint may end at the damage as at a crash. So the state may be as old
    /// as the last checkpoint that is certainly there.
    fn judge_corrupted(
        &self,
        found: &SimFile,
        mark: Mark,
        report: &mut Report,
    ) -> Result<(), String> {
        let volume = match Volume::<Sim>::open(found.copy(), Access::Read) {
            Ok(volume) => volume,
            Err(Error::Corrupt { .. } | Error::NotAnImage) => {
                report.refused += 1;
                return Ok(());
            }
            Err(error) => return Err(format!("opening a corrupted disk: {error}")),
        };
        let mut ws = volume.workspace().map_err(|e| e.to_string())?;
        let mut now = Vec::new();
        let mut bytes = std::vec![0; BLOCK_SIZE];
        let blocks = volume.size().blocks();
        for b in sites() {
            if b >= blocks {
                now.push(Some(0));
                continue;
            }
            now.push(match volume.read(&mut ws, b, &mut bytes) {
                Ok(()) => Some(tag_of(&bytes).ok_or_else(|| format!("block {b} is a mixture"))?),
                Err(Error::Corrupt { .. }) => None,
                Err(error) => {
                    return Err(format!("reading block {b} of a corrupted disk: {error}"))
                }
            });
        }
        if now.contains(&None) {
            let mut findings = 0;
            let checked = check::<Sim>(
                found.copy(),
                &mut |_: &Finding| findings += 1,
                &mut |_, _| {},
            );
            report.checks += 1;
            if checked.is_ok() && findings == 0 {
                return Err("blocks are refused, but check finds nothing".to_string());
            }
        }
        let [_, sure] = mark.checkpoints;
        let mut state = self.state(sure);
        let mut changes = self.order[sure..mark.placed].iter();
        let fits = |state: &[u32]| {
            now.iter()
                .zip(state)
                .all(|(is, was)| is.is_none_or(|is| is == *was))
        };
        while !fits(&state) {
            let Some(change) = changes.next() else {
                return Err(format!(
                    "wrong data from a corrupted disk: no prefix from {sure} to {} has what is served",
                    mark.placed
                ));
            };
            apply(&mut state, change);
        }
        Ok(())
    }
}

impl Found {
    /// The size must be one that the device may have.
    pub(super) fn fits(&self, mark: Mark) -> Result<(), String> {
        match mark.sizes.contains(&self.blocks) {
            true => Ok(()),
            false => Err(format!(
                "{} blocks instead of {:?}",
                self.blocks, mark.sizes
            )),
        }
    }
}

/// The tags of the whole device.
pub(super) fn read_all(file: &SimFile) -> Result<Found, String> {
    let volume = Volume::<Sim>::open(file.copy(), Access::Read).map_err(|e| e.to_string())?;
    let mut ws = volume.workspace().map_err(|e| e.to_string())?;
    let blocks = volume.size().blocks();
    let mut tags = std::vec![0; SITES];
    let mut data = std::vec![0; CHUNK as usize * BLOCK_SIZE];
    let mut at = 0;
    while at < blocks {
        let run = volume.next_mapped(&mut ws, at);
        let Some((first, count)) = run.map_err(|e| format!("looking at the device: {e}"))? else {
            break;
        };
        // Read the blocks behind a run together with it.
        let count = match first < BLOCKS {
            true => CHUNK.min(BLOCKS - first),
            false => CHUNK.min(count),
        };
        let data = &mut data[..count as usize * BLOCK_SIZE];
        volume
            .read(&mut ws, first, data)
            .map_err(|e| format!("reading the device: {e}"))?;
        for (b, bytes) in (first..).zip(data.chunks_exact(BLOCK_SIZE)) {
            let tag = tag_of(bytes).ok_or_else(|| format!("block {b} is a mixture"))?;
            let site = site(b).ok_or_else(|| format!("block {b} was never written"))?;
            tags[site] = tag;
        }
        at = first + count;
    }
    Ok(Found {
        blocks,
        tags,
        may_lose_older_superblock: false,
    })
}

/// The image must be intact: `cloop check` finds nothing.
pub(super) fn whole(file: &SimFile, report: &mut Report) -> Result<(), String> {
    let mut first = None;
    let mut hear = |finding: &Finding| {
        first.get_or_insert(*finding);
    };
    check::<Sim>(file.copy(), &mut hear, &mut |_, _| {}).map_err(|e| e.to_string())?;
    report.checks += 1;
    match first {
        None => Ok(()),
        Some(finding) => Err(format!("check finds {finding:?}")),
    }
}

/// If both superblocks are valid, each of them alone must lead to the same state. I11.
pub(super) fn either_superblock(
    found: &SimFile,
    state: &Found,
    mark: Mark,
    report: &mut Report,
) -> Result<(), String> {
    let valid = |offset| {
        let mut page = std::vec![0; BLOCK_SIZE];
        found.read_at(&mut page, offset).is_ok()
            && Superblock::decode::<Sim>(&mut page, offset).is_ok()
    };
    if mark.may_lose_older_superblock || !SUPERBLOCK_OFFSETS.into_iter().all(valid) {
        return Ok(());
    }
    for offset in SUPERBLOCK_OFFSETS {
        let hurt = found.copy();
        match mark.placed % 2 {
            0 => hurt.damage(offset + 100, 1),
            _ => hurt.spoil(offset, 1),
        }
        let now =
            read_all(&hurt).map_err(|e| format!("without the superblock at {offset}: {e}"))?;
        let fits = now.fits(mark);
        fits.map_err(|e| format!("without the superblock at {offset}: {e}"))?;
        if now.tags != state.tags {
            return Err(format!("another state without the superblock at {offset}"));
        }
        report.alone += 1;
    }
    Ok(())
}

/// Recovers, with crashes and errors meanwhile: none of them may change the state that was found.
fn interrupt_recovery(
    mut found: SimFile,
    mut state: Found,
    mark: Mark,
    rng: &mut Rng,
    report: &mut Report,
) -> Result<(SimFile, Found), String> {
    for _ in 0..rng.below(4) {
        let when = rng.below(12);
        // The loss of a failed fsync shows only after the memory is gone.
        let mut cut = rng.below(2) == 0;
        let how = rng.below(12);
        let limited = how == 5;
        match how {
            0 => found.fail_after(when, Fault::Error),
            1 => found.fail_after(when, Fault::Broken),
            2 => found.fail_after(when, Fault::Short),
            3 => {
                found.fail_after(when, Fault::LostSync);
                cut = true;
            }
            4 => found.fail_read_after(when),
            5 => found.limit(when << 18),
            6 | 7 => sim::fail_allocation(Some(rng.below(150))),
            _ => found.crash_after(when),
        }
        let opened = Volume::<Sim>::open(found.clone(), Access::Write).map(|_| ());
        let what = format!("{opened:?}");
        sim::fail_allocation(None);
        found.repair();
        if cut || found.crashed() {
            found = found.after_crash(rng);
        }
        report.interrupted += 1;
        let now =
            read_all(&found).map_err(|e| format!("after an interrupted recovery ({what}): {e}"))?;
        now.fits(mark)
            .map_err(|e| format!("after an interrupted recovery ({what}): {e}"))?;
        if now.tags != state.tags {
            return Err(format!(
                "an interrupted recovery ({what}) changed the state"
            ));
        }
        // If there is no other space, an opening uses segments that only the older superblock needs.
        let may_lose_older_superblock = state.may_lose_older_superblock || limited;
        state = Found {
            may_lose_older_superblock,
            ..now
        };
    }
    Ok((found, state))
}
