// SPDX-License-Identifier: GPL-2.0
//! Proof: blocks of the rebuilt table that are certain, because the fingerprints of the newest checkpoint say so.
//!
//! A fingerprint is right if the rebuilt table has the same one, at the log start of the checkpoint or at any moment of the
//! replay from there on: leaves are stored while changes go on. Then the table has, for all blocks of that part, the
//! entries of the checkpoint's table, and the rest of the log is applied to it as to that one.

use super::Repair;
use crate::engine::format::{fingerprint, Entry, Fingerprints, NodeId, FINGERPRINTS};
use crate::engine::Result;
use crate::platform::mem::Vec;
use crate::platform::{Platform, Sabotage};

/// The knowledge from fingerprints.
pub(super) struct Proof {
    /// The fingerprints of the newest checkpoint, without the blocks that its table has detached.
    expected: Fingerprints,
    /// Those that were right.
    right: Vec<bool>,
    /// The replay has come to the log start of the checkpoint.
    begun: bool,
}

/// How finely doubtful blocks are told from proven ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Grain {
    /// By ranges and stripes, which may leave very many small pieces of a large device.
    Fine,
    /// By ranges alone.
    Coarse,
}

impl Proof {
    /// Nothing is proven yet by the fingerprints `expected`.
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`](crate::engine::Error::NoMemory).
    pub(super) fn new(expected: Fingerprints) -> Result<Self> {
        Ok(Self {
            expected,
            right: Vec::filled(false, FINGERPRINTS)?,
            begun: false,
        })
    }

    /// Nothing is proven any more by the fingerprints of the blocks below a node.
    pub(super) fn forget(&mut self, id: NodeId) {
        self.expected.forget(id.first_block()..id.end_block());
    }

    fn is_right(&self, part: usize) -> bool {
        self.right.get(part).is_some_and(|&right| right)
    }

    /// Whether a block is proven, and the block up to which the same is known of those behind it.
    pub(super) fn look_up(&self, block: u64, grain: Grain) -> (bool, u64) {
        let [range, stripe] = self.expected.parts_of(block);
        let end_of_range = self.expected.blocks_of(range).map_or(u64::MAX, |r| r.end);
        match grain {
            _ if self.is_right(range) => (true, end_of_range),
            Grain::Coarse => (false, end_of_range),
            Grain::Fine => (self.is_right(stripe), self.expected.end_of_piece(block)),
        }
    }
}

impl<P: Platform> Repair<'_, P> {
    /// Takes the blocks below a detached node of the newest table off the expected fingerprints, which include them. The
    /// rebuilt table has none of them.
    // The recursion is as deep as the tree: at most 5 levels.
    pub(super) fn discount(&mut self, id: NodeId, entry: Entry) -> Result {
        let words = match self.read_node(id, entry) {
            Ok(words) => words,
            Err(error) if error.is_damage() => {
                self.proof.forget(id);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        for (at, &word) in words.iter().enumerate().filter(|(_, &word)| word != 0) {
            match id.level {
                0 => {
                    let block = id.first_block() + at as u64;
                    let value = fingerprint(block, Entry(word));
                    self.proof.expected.add(block, value.wrapping_neg());
                }
                _ => self.discount(id.child(at), Entry(word))?,
            }
        }
        Ok(())
    }

    /// Compares all fingerprints when the replay comes to the log start of the newest checkpoint.
    pub(super) fn begin_proof(&mut self) {
        if !self.proof.begun {
            self.proof.begun = true;
            self.prove(0..FINGERPRINTS);
        }
    }

    /// Compares the fingerprints of the blocks from `from` up to `to`, which a record behind the log start has changed.
    pub(super) fn prove_changed(&mut self, from: u64, to: u64) {
        let mut at = from;
        while at < to {
            self.prove(self.proof.expected.parts_of(at));
            at = self.proof.expected.end_of_piece(at);
        }
    }

    fn prove(&mut self, parts: impl IntoIterator<Item = usize>) {
        if P::sabotaged(Sabotage::IgnoreFingerprints) {
            return;
        }
        let map = self.store.map.lock();
        let (found, proof) = (map.fingerprints(), &mut self.proof);
        for part in parts {
            let expected = proof.expected.get(part);
            if expected.is_some() && expected == found.get(part) {
                proof.right[part] = true;
            }
        }
    }
}
