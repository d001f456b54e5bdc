// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The blocks that a repair must not give up: those whose fingerprint the damage has left right for certain. The judge
//! works them out from the disk before the damage, without any code of the repair.

use super::damage::newest;
use super::{sites, BLOCKS};
use crate::engine::format::{
    Entry, Fingerprints, SegmentHeader, Superblock, BLOCK_SIZE, FINGERPRINTS,
};
use crate::engine::{Access, Volume};
use crate::platform::sim::{Sim, SimFile};
use crate::platform::BackingFile;
use core::ops::Range;
use std::collections::BTreeSet;
use std::string::{String, ToString};

/// Blocks that were ever written with other contents than zeros.
#[derive(Default)]
pub(super) struct Written(BTreeSet<u64>);

impl Written {
    /// Notes the changes of a round.
    pub(super) fn note(&mut self, order: &[crate::platform::sim::Placed]) {
        for change in order {
            let tags = (change.block..).zip(&change.tags);
            let written = tags.filter(|(_, &tag)| tag != 0);
            self.0.extend(written.map(|(block, _)| block));
        }
    }
}

/// A disk before the damage.
struct Whole {
    file: SimFile,
    newest: Superblock,
    fingerprints: Fingerprints,
}

impl Whole {
    /// `None` if no superblock can be read.
    fn new(file: &SimFile) -> Result<Option<Self>, String> {
        let Some(newest) = newest(file) else {
            return Ok(None);
        };
        let mut page = std::vec![0; BLOCK_SIZE];
        let read = file.read_at(&mut page, newest.offset());
        let fingerprints = read.and_then(|()| Fingerprints::decode::<Sim>(&page, &newest));
        Ok(Some(Self {
            file: file.copy(),
            newest,
            fingerprints: fingerprints.map_err(|e| e.to_string())?,
        }))
    }

    /// The header of a segment.
    fn header(&self, index: u64) -> Option<SegmentHeader> {
        let mut page = std::vec![0; BLOCK_SIZE];
        let offset = self.newest.layout.segment_offset(index);
        self.file.read_at(&mut page, offset).ok()?;
        SegmentHeader::of_segment::<Sim>(&page, &self.newest.layout, index)
    }

    /// Whether the damage in `hurt` leaves everything but the contents of records and nodes in place.
    fn keeps_structure(&self, hurt: &Range<u64>, cut: bool) -> bool {
        let layout = &self.newest.layout;
        let page = |offset: u64| meets(hurt, &(offset..offset + BLOCK_SIZE as u64));
        let headers = (0..layout.max_segments())
            .map(|index| layout.segment_offset(index))
            .take_while(|&offset| offset < hurt.end && offset < self.newest.length);
        !page(self.newest.offset()) && (cut || !headers.into_iter().any(page))
    }

    /// Whether the record of an entry, and all that tells its place in the log, is in place.
    fn keeps_record(&self, entry: Entry, hurt: &Range<u64>) -> bool {
        let layout = &self.newest.layout;
        let first = entry.address() / BLOCK_SIZE as u64 * BLOCK_SIZE as u64;
        let record = first..first + (entry.sectors() * BLOCK_SIZE) as u64;
        let Some(index) = layout.segment_of(entry.address()) else {
            return false;
        };
        let segment = layout.segment_offset(index)..layout.segment_offset(index + 1);
        // The log of an earlier epoch may seem to end at damage in its last segment.
        let latest = self
            .header(index)
            .is_some_and(|h| h.epoch == self.newest.epoch);
        !meets(&record, hurt) && (latest || !meets(&segment, hurt))
    }
}

fn meets(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

/// The first block that is among the `given_up` ones (first and number of each run) although a fingerprint of the newest
/// superblock proves it: all blocks of its range, or of its stripe, have their records, or were never written. `hurt` are
/// the damaged bytes of a disk that was `file` and had been closed.
pub(super) fn needless(
    file: &SimFile,
    written: &Written,
    hurt: Range<u64>,
    cut: bool,
    given_up: &[(u64, u64)],
) -> Result<Option<u64>, String> {
    // Very many pieces of stripes are not told apart.
    const MOST: u64 = 1 << 16;
    let Some(whole) = Whole::new(file)? else {
        return Ok(None);
    };
    let page = BLOCK_SIZE as u64;
    let hurt = hurt.start / page * page..hurt.end.div_ceil(page).saturating_mul(page);
    if given_up.is_empty() || whole.newest.detached || !whole.keeps_structure(&hurt, cut) {
        return Ok(None);
    }
    let volume = Volume::<Sim>::open(file.copy(), Access::Read).map_err(|e| e.to_string())?;
    let mut ws = volume.workspace().map_err(|e| e.to_string())?;
    let (mut right, mut bytes) = ([true; FINGERPRINTS], std::vec![0; BLOCK_SIZE]);
    let blocks = volume.size().blocks();
    for block in sites().filter(|&block| block < blocks) {
        // It loads the leaf of the block.
        let read = volume.read(&mut ws, block, &mut bytes);
        read.map_err(|e| e.to_string())?;
        let map = volume.store.map.lock();
        let leaf = map.leaf(block);
        let entry = Entry(leaf.map_or(0, |leaf| leaf[block as usize % leaf.len()]));
        let kept = match entry.is_hole() {
            true => !written.0.contains(&block),
            false => whole.keeps_record(entry, &hurt),
        };
        if !kept {
            for part in whole.fingerprints.parts_of(block) {
                right[part] = false;
            }
        }
    }
    let fine = given_up.iter().map(|run| run.1).sum::<u64>() <= MOST;
    let proven = |block: u64| {
        let [range, stripe] = whole.fingerprints.parts_of(block);
        let known = |part| right[part] && whole.fingerprints.get(part).is_some();
        known(range) || fine && known(stripe)
    };
    let runs = given_up.iter();
    let mut listed = runs.flat_map(|&(first, count)| first..(first + count).min(first + BLOCKS));
    Ok(listed.find(|&block| proven(block)))
}
