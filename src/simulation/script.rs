// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Short histories, with a crash at every operation of the disk, every outcome of interest, and
//! every crash of the recovery from it.

use super::judge::{either_superblock, read_all, whole, Found, History};
use super::submit::Submitter;
use super::{execute, options, round, Report, Round, Schedule, Shared, BLOCKS, SEGMENT, SITES};
use crate::engine::format::{LogPosition, Superblock, SUPERBLOCK_OFFSETS};
use crate::engine::Access;
use crate::engine::{Error, Volume, BLOCK_SIZE};
use crate::platform::sim::{self, Mark, Placed, Rng, Sim, SimFile, Snapshot, Survival};
use crate::platform::{BackingFile, Sabotage};
use std::format;
use std::string::{String, ToString};
use std::sync::{Arc, Mutex, PoisonError};
use std::vec::Vec;

/// A step of a script. Ranges are first block and number of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Writes blocks of all kinds, zeros among them.
    Write(u64, u64),
    /// Writes incompressible blocks.
    Raw(u64, u64),
    /// Writes blocks of zeros.
    Zeros(u64, u64),
    /// Writes incompressible blocks atomically, as many of them as one record can hold.
    Atomic(u64, u64),
    /// Writes one block with forced unit access.
    Fua(u64),
    /// Discards.
    Zero(u64, u64),
    /// Flushes.
    Flush,
    /// Writes a checkpoint.
    Checkpoint,
    /// Changes the compression to the one of this name.
    Compress(&'static str),
    /// Closes the volume and opens it again.
    Reopen,
    /// Closes the volume; nothing follows.
    Close,
    /// Limits the space to this many segments more than are used now.
    Limit(u64),
    /// Repeats the steps before this one, so that they run this many times.
    Repeat(u32),
}

/// A short history.
#[derive(Clone, Copy, Debug)]
pub struct Script {
    /// The subject of the script.
    pub name: &'static str,
    /// The steps.
    pub actions: &'static [Action],
    /// The start of the counters of the image (generation, epoch, sequence number).
    pub counters: u64,
}

use Action::{
    Atomic, Checkpoint, Close, Compress, Flush, Fua, Limit, Raw, Reopen, Repeat, Write, Zero, Zeros,
};

/// A segment holds 63 incompressible blocks, in records of one block.
pub const SCRIPTS: &[Script] = &[
    Script {
        name: "checkpoint",
        actions: &[
            Write(3, 6),
            Checkpoint,
            Write(5, 2),
            Write(600, 2),
            Flush,
            Checkpoint,
            Zero(4, 3),
            Checkpoint,
            Checkpoint,
            Write(3, 2),
        ],
        counters: 0,
    },
    Script {
        name: "segment switch",
        actions: &[
            Raw(0, 40),
            Flush,
            Raw(40, 30),
            Flush,
            Raw(70, 50),
            Raw(120, 20),
            Flush,
        ],
        counters: 0,
    },
    Script {
        name: "counters beyond 32 bits",
        actions: &[
            Raw(0, 50),
            Flush,
            Checkpoint,
            Raw(20, 50),
            Checkpoint,
            Fua(3),
        ],
        counters: (1 << 32) - 3,
    },
    Script {
        name: "detach",
        actions: &[
            Write(3, 6),
            Flush,
            Write(700, 3),
            Reopen,
            Write(4, 2),
            Close,
        ],
        counters: 0,
    },
    Script {
        name: "discard across records",
        actions: &[
            Write(10, 40),
            Flush,
            Zero(14, 30),
            Write(20, 4),
            Zero(21, 2),
            Flush,
            Zero(0, BLOCKS),
            Write(30, 1),
            Flush,
        ],
        counters: 0,
    },
    Script {
        name: "FUA among plain writes",
        actions: &[
            Write(1, 2),
            Fua(5),
            Write(5, 2),
            Fua(1),
            Write(2, 1),
            Fua(2),
            Write(5, 1),
        ],
        counters: 0,
    },
    Script {
        name: "reuse of dead segments",
        actions: &[Raw(0, 60), Checkpoint, Raw(0, 60), Flush, Repeat(3)],
        counters: 0,
    },
    Script {
        name: "zeroing",
        actions: &[
            Write(500, 30),
            Checkpoint,
            Zeros(505, 10),
            Flush,
            Zeros(500, 30),
            Checkpoint,
            Write(510, 3),
            Zero(0, BLOCKS),
            Flush,
        ],
        counters: 0,
    },
    Script {
        name: "atomic writes",
        actions: &[
            Raw(0, 44),
            Raw(400, 1),
            // At the end of a segment, where other writes are cut.
            Atomic(44, 16),
            Atomic(48, 16),
            Atomic(52, 16),
            Atomic(56, 16),
            Atomic(60, 16),
            Flush,
            Atomic(64, 16),
            Checkpoint,
            Atomic(45, 2),
            Fua(46),
            Atomic(44, 16),
        ],
        counters: 0,
    },
    Script {
        name: "changes of compression",
        actions: &[
            Write(3, 6),
            Compress("zstd:1"),
            Flush,
            Write(0, 40),
            Flush,
            Write(5, 2),
            Compress("none"),
            Write(20, 8),
            Checkpoint,
            Compress("zstd:19"),
            Write(3, 30),
            Atomic(48, 8),
            Reopen,
            Write(1, 8),
            Compress("lz4"),
            Write(10, 4),
            Close,
        ],
        counters: 0,
    },
    Script {
        name: "full disk",
        actions: &[
            Raw(0, 20),
            Flush,
            Limit(1),
            Raw(20, 60),
            Raw(100, 60),
            Raw(200, 60),
            Flush,
            Raw(0, 4),
            Fua(7),
            Close,
        ],
        counters: 0,
    },
];

/// The result of running a script.
#[derive(Default)]
struct Recording {
    snapshots: Vec<Snapshot>,
    order: Vec<Placed>,
}

/// How exhaustively a script is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Depth {
    /// Runs of each script, each with another scheduler.
    pub seeds: u64,
    /// For one of this many crashes, the recovery is crashed everywhere as well.
    pub recovery: u64,
    /// The last write is torn at this many places at most.
    pub tears: usize,
}

impl Depth {
    /// Takes about half a minute for all scripts.
    pub const SHORT: Self = Self {
        seeds: 2,
        recovery: 8,
        tears: 32,
    };
    /// Everything.
    pub const FULL: Self = Self {
        seeds: 4,
        recovery: 1,
        tears: usize::MAX,
    };
}

impl Script {
    /// Runs the script and judges every crash.
    ///
    /// # Errors
    /// The objection of the judge.
    pub fn exhaust(
        &'static self,
        depth: Depth,
        sabotage: Option<Sabotage>,
    ) -> Result<Report, String> {
        let mut report = Report::default();
        for seed in 0..depth.seeds {
            let name = self.name;
            let recording = Arc::new(Mutex::new(Recording::default()));
            let inside = recording.clone();
            report += execute(seed, Schedule::Random, sabotage, move || {
                let taken = self.play(seed)?;
                *inside.lock().unwrap_or_else(PoisonError::into_inner) = taken;
                Ok(Report::default())
            })
            .map_err(|e| format!("{name}, scheduler {seed}: {e}"))?;
            let recording =
                core::mem::take(&mut *recording.lock().unwrap_or_else(PoisonError::into_inner));
            let order = Arc::new(recording.order);
            for snapshot in recording.snapshots {
                let (n, what, order) = (snapshot.operation, snapshot.what, order.clone());
                let judged = execute(n, Schedule::Random, sabotage, move || {
                    judge_all(&snapshot, &order, seed, depth)
                });
                report += judged.map_err(|e| {
                    format!(
                        "{name}, scheduler {seed}, crash at operation {n} of the disk ({what}): {e}"
                    )
                })?;
            }
        }
        Ok(report)
    }

    /// Performs the steps, and takes a snapshot at every operation of the disk.
    fn play(&self, seed: u64) -> Result<Recording, String> {
        let file = SimFile::new();
        let record_size = [4096, 16384, 65536][seed as usize % 3];
        Volume::<Sim>::create(&file, &options(BLOCKS, record_size, SEGMENT))
            .map_err(|e| e.to_string())?;
        start_from(&file, self.counters)?;
        file.snapshot_every(1, Rng(0));
        sim::sized(BLOCKS, BLOCKS);
        let shared = Arc::new(Mutex::new(Round::new(std::vec![0; SITES], BLOCKS)));
        let open = || Volume::<Sim>::open(file.clone(), Access::Write).map_err(|e| e.to_string());
        let mut volume = open()?;
        let mut actions = Vec::new();
        for &action in self.actions {
            match action {
                Repeat(times) => actions = actions.repeat(times as usize),
                action => actions.push(action),
            }
        }
        for (step, &action) in actions.iter().enumerate() {
            if matches!(action, Reopen | Close) {
                let completed = sim::mark().completed;
                match volume.close() {
                    Ok(()) => sim::promised(completed),
                    Err(Error::NoSpace) => {}
                    Err(error) => return Err(format!("closing: {error}")),
                }
                if action == Reopen {
                    volume = open()?;
                }
                continue;
            }
            self.act(&file, &volume, &shared, action, Rng(seed ^ step as u64))
                .map_err(|e| format!("{action:?}: {e}"))?;
            if let Some(objection) = round(&shared).objection.take() {
                return Err(objection);
            }
        }
        drop(volume);
        let (order, _) = sim::take_history();
        Ok(Recording {
            snapshots: file.take_snapshots(),
            order,
        })
    }

    fn act(
        &self,
        file: &SimFile,
        volume: &Volume<Sim>,
        shared: &Shared,
        action: Action,
        rng: Rng,
    ) -> Result<(), Error> {
        let mut site = Submitter::new(volume, shared, 0, rng)?;
        let result = match action {
            Write(block, count) => site.write(block, count).map(|_| ()),
            Raw(block, count) => site.write_raw(block, count).map(|_| ()),
            Zeros(block, count) => site.write_zeros(block, count).map(|_| ()),
            Atomic(block, count) => site.write_atomic_raw(block, count).map(|_| ()),
            Fua(block) => site.write_through(block),
            Zero(block, count) => site.zero(block, count),
            Flush => site.flush(),
            Checkpoint => site.checkpoint(),
            Compress(with) => site.compress(with),
            Limit(segments) => {
                file.limit(file.allocated()? + segments * u64::from(SEGMENT));
                Ok(())
            }
            Reopen | Close | Repeat(_) => Ok(()),
        };
        match result {
            Err(Error::NoSpace) => Ok(()),
            result => result,
        }
    }
}

/// Makes the counters of an empty image start from `counters`.
fn start_from(file: &SimFile, counters: u64) -> Result<(), String> {
    if counters == 0 {
        return Ok(());
    }
    let mut page = std::vec![0; BLOCK_SIZE];
    for (parity, offset) in (0..).zip(SUPERBLOCK_OFFSETS) {
        file.read_at(&mut page, offset).map_err(|e| e.to_string())?;
        let mut superblock =
            Superblock::decode::<Sim>(&mut page, offset).map_err(|e| e.to_string())?;
        superblock.generation = counters / 2 * 2 + parity;
        superblock.epoch = counters;
        superblock.log_start = LogPosition {
            seq: counters,
            ..superblock.log_start
        };
        superblock.encode::<Sim>(&mut page);
        file.write_at(&page, offset).map_err(|e| e.to_string())?;
    }
    file.sync().map_err(|e| e.to_string())
}

/// Every outcome of interest of a crash at the moment of `snapshot`.
fn judge_all(
    snapshot: &Snapshot,
    order: &[Placed],
    seed: u64,
    depth: Depth,
) -> Result<Report, String> {
    let start = std::vec![0; SITES];
    let history = History {
        start: &start,
        order,
    };
    let mut report = Report::default();
    let mut outcomes = std::vec![Survival::Nothing, Survival::Everything];
    outcomes.extend((0..4).map(|n| Survival::Random((snapshot.operation << 8) | (seed << 4) | n)));
    // An odd step: the tears lie at all places of a page.
    let step = (snapshot.sectors() / depth.tears) | 1;
    for sectors in (1..snapshot.sectors()).step_by(step) {
        outcomes.extend([false, true].map(|others| Survival::Torn { sectors, others }));
    }
    for (n, &outcome) in (0..).zip(&outcomes) {
        let found = snapshot.crashed_disk(outcome);
        let state = history
            .prefix(&found, snapshot.mark)
            .map_err(|e| format!("{outcome:?}: {e}"))?;
        report.snapshots += 1;
        if n < 6 && (snapshot.operation + n) % depth.recovery == 0 {
            exhaust_recovery(&found, &state, snapshot.mark, &mut report)
                .map_err(|e| format!("{outcome:?}: {e}"))?;
        }
    }
    Ok(report)
}

/// Crashes at every operation of the recovery. No crash changes the state, and after the complete recovery
/// the image is intact.
fn exhaust_recovery(
    found: &SimFile,
    state: &Found,
    mark: Mark,
    report: &mut Report,
) -> Result<(), String> {
    whole(found, report)?;
    either_superblock(found, state, mark, report)?;
    for crash in 0.. {
        let file = found.copy();
        file.crash_after(crash);
        let opened = Volume::<Sim>::open(file.clone(), Access::Write).map(|_| ());
        let what = format!("recovery, crash at operation {crash}");
        let outcomes: &[Survival] = if file.crashed() {
            &[
                Survival::Nothing,
                Survival::Everything,
                Survival::Random(crash),
            ]
        } else {
            opened.map_err(|e| format!("recovery: {e}"))?;
            &[Survival::Nothing]
        };
        for &outcome in outcomes {
            let again = file.after(outcome);
            let now = read_all(&again).map_err(|e| format!("{what}, {outcome:?}: {e}"))?;
            if now != *state {
                return Err(format!("{what}, {outcome:?}: it changed the state"));
            }
            report.interrupted += 1;
        }
        if !file.crashed() {
            return whole(&file, report).map_err(|e| format!("recovered: {e}"));
        }
    }
    Ok(())
}
