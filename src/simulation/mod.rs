// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Histories of a simulated volume with crashes and faults, and the judge of promise P1.
//! Several submitters operate on the volume at once ([`submit`]). The engine reports in which order its log
//! took the changes. After a crash the device must have the state after the first `n` changes of that
//! order, and `n` must include everything that had completed before the last completed flush was issued,
//! and every completed FUA write ([`judge`]). Then the history goes on from there, and crashes again. On
//! the way snapshots of the disk are taken: each of them is a crash at that moment, and is judged in the
//! same way. [`script`] does this exhaustively for short histories. Everything follows from the plan.

mod damage;
mod judge;
mod provable;
pub mod script;
mod submit;

use crate::engine::{
    Access, Algorithm, Compression, CreateOptions, Error, Recompression, Volume, BLOCK_SIZE,
};
use crate::platform::sim::{self, Fault, Rng, Sim, SimFile};
use crate::platform::{BackingFile, Sabotage};
use core::fmt::Write;
use core::ops::AddAssign;
use shuttle::current::reset_step_count;
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, FailurePersistence, MaxSteps, Runner};
use std::format;
use std::string::{String, ToString};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::vec::Vec;

/// Blocks of the smallest device: a little more than two leaves of the sector table. Any of them may be
/// written.
const BLOCKS: u64 = 1100;

/// Sizes of a device in blocks, the smallest first. They end within a leaf and at the end of a node, and
/// the larger ones need one more level of the sector table.
const SIZES: [u64; 6] = [BLOCKS, 1132, 12_000, 24_000, 275_000, 1 << 20];

/// The blocks of larger devices that are written: a few in each of many leaves, and on both sides of
/// what one zero record may cover.
const FAR: [u64; 90] = far();

const fn far() -> [u64; 90] {
    let mut far = [0; 90];
    let mut i = 0;
    while i < 90 {
        let n = i as u64;
        far[i] = match i {
            0..32 => BLOCKS + n,
            32..72 => 2048 + 519 * (n - 32),
            72..80 => (1 << 18) - 4 + (n - 72),
            80..88 => 270_000 + 600 * (n - 80),
            _ => (1 << 20) - 90 + n,
        };
        i += 1;
    }
    far
}

/// Bytes of a segment.
const SEGMENT: u32 = 256 << 10;

/// Bytes of a segment in histories with many submitters. With larger segments the reserve takes most of what the bound on
/// the image's size leaves.
const LARGE_SEGMENT: u32 = 1 << 20;

/// Bytes of memory for the sector table in histories with little memory.
const TABLE: u64 = 64 << 10;

/// Turns of the scheduler without a write, after which a device is at rest.
const QUIET_TURNS: u64 = 1000;
/// Turns of the scheduler after which recompression must have come to rest.
const REST_TURNS: u64 = 50_000;

/// Number of blocks whose contents are known: the *sites*.
const SITES: usize = BLOCKS as usize + FAR.len();

/// The block numbers of the sites, in order.
fn sites() -> impl Iterator<Item = u64> {
    (0..BLOCKS).chain(FAR)
}

/// The number of the site that a block is, if any.
fn site(block: u64) -> Option<usize> {
    match FAR.binary_search(&block) {
        _ if block < BLOCKS => Some(block as usize),
        Ok(at) => Some(BLOCKS as usize + at),
        Err(_) => None,
    }
}

/// The operations of the submitters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// All operations, mostly on the same few blocks, so that submitters meet.
    Mixed,
    /// Incompressible data again and again on the same blocks, with hardly more space than they need.
    Pressure,
    /// Many leaves of the sector table, most of them not in memory: discards over many of them, and writes
    /// where something was discarded.
    Leaves,
    /// A full disk of incompressible data: whole leaves of the sector table are discarded, and their space is
    /// used again before a checkpoint.
    Refill,
    /// Overlapping writes, discards and reads of the same few blocks by up to five submitters, beside all that moves
    /// blocks and leaves of the sector table, on a disk with slow reads.
    Clash,
    /// Small writes, each of which is flushed, and large ones beside them, on a disk with slow writes.
    Commits,
    /// Small writes beside recompression, in the background and on request.
    Cold,
    /// Up to 64 submitters that write incompressible data again and again, on an image that reaches its largest size.
    Crowd,
}

impl Profile {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Mixed,
        Self::Pressure,
        Self::Leaves,
        Self::Refill,
        Self::Clash,
        Self::Commits,
        Self::Cold,
        Self::Crowd,
    ];

    /// A number of submitters.
    fn threads(self, rng: &mut Rng) -> u64 {
        match self {
            Self::Clash => 2 + rng.below(4),
            Self::Crowd => [1, 8, 24, 64][rng.below(4) as usize],
            _ => 1 + rng.below(3),
        }
    }
}

/// The kinds of faults besides power cuts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Nothing.
    None,
    /// Errors of the disk, full disks and failed allocations.
    Errors,
    /// Wrong bytes on the disk: misdirected writes and bit rot.
    Damage,
    /// Sectors that cannot be read until they are written.
    Sectors,
}

/// How the next thread to run is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// Uniformly at random, at each step.
    Random,
    /// The thread with the highest priority, with a few changes of priority in a history (probabilistic
    /// concurrency testing). It finds failures that need one thread to sleep for long. It runs the history
    /// twice, the first time to learn its length.
    Pct,
}

/// The parameters of a simulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// All random choices follow from it.
    pub seed: u64,
    /// What the submitters do.
    pub profile: Profile,
    /// Number of concurrent submitters.
    pub threads: u64,
    /// Operations of each submitter in each round.
    pub operations: u64,
    /// Number of rounds; each operates, crashes and recovers.
    pub rounds: u64,
    /// A snapshot is taken at one of this many operations of the disk.
    pub snapshots: u64,
    /// One of this many snapshots is not only read, but also checked, recovered with interruptions, and
    /// checked again.
    pub thorough: u64,
    /// A copy of one of this many states is damaged, repaired and judged; 0: of none.
    pub damage: u64,
    /// In the first round a second volume opens the same file.
    pub rival: bool,
    /// What goes wrong besides the power.
    pub trouble: Trouble,
    /// Who runs next.
    pub schedule: Schedule,
    /// The fault that the engine commits on purpose.
    pub sabotage: Option<Sabotage>,
}

impl Plan {
    /// A long random history.
    pub fn random(seed: u64) -> Self {
        let mut rng = Rng(seed ^ 0x706c_616e);
        let profile = match rng.below(13) {
            0 | 1 => Profile::Pressure,
            2 | 3 => Profile::Leaves,
            4 => Profile::Refill,
            5 | 6 => Profile::Clash,
            7 => Profile::Crowd,
            8 => Profile::Commits,
            9 => Profile::Cold,
            _ => Profile::Mixed,
        };
        let trouble = match rng.below(7) {
            0 | 1 => Trouble::Errors,
            2 => Trouble::Damage,
            3 => Trouble::Sectors,
            _ => Trouble::None,
        };
        let schedule = match rng.below(8) {
            0 => Schedule::Pct,
            _ => Schedule::Random,
        };
        let threads = profile.threads(&mut rng);
        let plan = Self {
            seed,
            profile,
            threads,
            operations: 10 + rng.below(40),
            rounds: 1 + rng.below(4),
            snapshots: 4,
            thorough: 16,
            damage: 0,
            rival: trouble == Trouble::None && rng.below(12) == 0,
            trouble,
            schedule,
            sabotage: None,
        };
        match profile {
            Profile::Crowd => plan.with_profile(profile),
            _ => plan,
        }
    }

    /// The same history, but for what the submitters do.
    pub fn with_profile(self, profile: Profile) -> Self {
        let threads = profile.threads(&mut Rng(self.seed));
        Self {
            profile,
            threads,
            operations: match profile {
                // As many operations in all, whatever their number.
                Profile::Crowd => 4 + 512 / threads,
                _ => self.operations,
            },
            ..self
        }
    }

    /// A history in which a sabotage is likely to show.
    pub fn hunt(seed: u64, sabotage: Sabotage) -> Self {
        let random = Self::random(seed);
        let profiles = [
            Profile::Mixed,
            Profile::Pressure,
            Profile::Leaves,
            Profile::Refill,
        ];
        let (profile, snapshots) = match sabotage {
            // It shows in what submitters are told, not on the disk.
            sabotage if sabotage.is_race() => (Profile::Clash, 10_000),
            Sabotage::EarlyEntry => (Profile::Commits, random.snapshots),
            Sabotage::BlindRecompression | Sabotage::EarlyMark => (Profile::Cold, 10_000),
            Sabotage::UnfairGrant | Sabotage::HastyVerdict => (Profile::Crowd, 10_000),
            _ => (profiles[(seed % 4) as usize], random.snapshots),
        };
        Self {
            sabotage: Some(sabotage),
            snapshots,
            damage: u64::from(sabotage.is_of_repair()) * 2,
            rival: sabotage == Sabotage::BlindCheckpoint,
            trouble: match seed / 4 % 2 {
                0 => Trouble::None,
                _ => Trouble::Errors,
            },
            // Long histories: a segment must have had an earlier incarnation to be mistaken for it.
            operations: 60,
            rounds: 4,
            ..random
        }
        .with_profile(profile)
    }
}

/// The figures of a simulation that passed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Power cuts that were recovered from and judged, and after which the history went on.
    pub crashes: u64,
    /// Snapshots that were recovered from, read completely and judged.
    pub snapshots: u64,
    /// Recoveries that a crash or an error interrupted, and whose result was judged.
    pub interrupted: u64,
    /// Recoveries from one superblock alone: two for each of the above states that was chosen for it.
    pub alone: u64,
    /// Images checked completely.
    pub checks: u64,
    /// Disks that were damaged and repaired.
    pub repairs: u64,
    /// Of those, the ones that no repair could open, or that it left alone.
    pub hopeless: u64,
    /// Blocks that repairs listed as lost.
    pub lost: u64,
    /// Of the above, the number of disks with wrong bytes.
    pub corrupted: u64,
    /// Of those, the images that were refused as a whole.
    pub refused: u64,
    /// Changes that got a place in the log.
    pub changes: u64,
}

impl Report {
    /// States of the disk that were recovered from, read completely and judged.
    pub fn points(&self) -> u64 {
        self.crashes + self.snapshots + self.interrupted + self.alone
    }
}

impl core::fmt::Display for Report {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(
            f,
            "{} crash points: {} power cuts gone on from, {} snapshots, {} interrupted recoveries, \
             {} recoveries from one superblock; {} complete checks; {} repairs, {} of them hopeless, {} blocks lost; \
             {} of {} corrupted disks refused; {} changes",
            self.points(),
            self.crashes,
            self.snapshots,
            self.interrupted,
            self.alone,
            self.checks,
            self.repairs,
            self.hopeless,
            self.lost,
            self.refused,
            self.corrupted,
            self.changes
        )
    }
}

impl AddAssign for Report {
    fn add_assign(&mut self, other: Self) {
        self.crashes += other.crashes;
        self.snapshots += other.snapshots;
        self.interrupted += other.interrupted;
        self.alone += other.alone;
        self.checks += other.checks;
        self.repairs += other.repairs;
        self.hopeless += other.hopeless;
        self.lost += other.lost;
        self.corrupted += other.corrupted;
        self.refused += other.refused;
        self.changes += other.changes;
    }
}

/// The events, one line each, if a trace was requested.
#[derive(Clone, Debug, Default)]
struct Trace(Option<Arc<Mutex<String>>>);

impl Trace {
    fn say(&self, text: core::fmt::Arguments<'_>) {
        if let Some(lines) = &self.0 {
            let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
            let _ = writeln!(lines, "{text}");
        }
    }
}

/// Runs a simulation; with `trace` it tells what happened.
///
/// # Errors
/// The objection of the judge, or a failed assertion of the engine.
pub fn run(plan: Plan, trace: Option<Arc<Mutex<String>>>) -> Result<Report, String> {
    let trace = Trace(trace);
    execute(plan.seed, plan.schedule, plan.sabotage, move || {
        let mut report = Report::default();
        simulate(plan, &trace, &mut report)?;
        Ok(report)
    })
}

/// Runs `f` with the threads it starts as coroutines of a scheduler.
fn execute(
    seed: u64,
    schedule: Schedule,
    sabotage: Option<Sabotage>,
    f: impl Fn() -> Result<Report, String> + Send + Sync + 'static,
) -> Result<Report, String> {
    let mut config = Config::new();
    config.stack_size = 256 * 1024;
    config.failure_persistence = FailurePersistence::None;
    // The bound for one round, or for judging one state: a simulation that takes longer is stuck, as a
    // sabotaged engine may be.
    config.max_steps = MaxSteps::FailAfter(10_000_000);
    config.silence_warnings = true;
    let verdict = Arc::new(Mutex::new(Ok(Report::default())));
    let inside = verdict.clone();
    let body = move || {
        let lock = || inside.lock().unwrap_or_else(PoisonError::into_inner);
        if lock().is_err() {
            return;
        }
        sim::begin(seed, sabotage);
        let result = f();
        sim::end();
        let mut verdict = lock();
        match (&mut *verdict, result) {
            (Ok(sum), Ok(report)) => *sum += report,
            (verdict, result) => *verdict = result,
        }
    };
    let outcome = std::panic::catch_unwind(core::panic::AssertUnwindSafe(|| match schedule {
        Schedule::Random => {
            Runner::new(RandomScheduler::new_from_seed(seed, 1), config).run(body);
        }
        Schedule::Pct => {
            // PCT requires threads, but the power may fail before the volume starts any.
            let body = move || {
                let _ = shuttle::thread::spawn(|| {}).join();
                body();
            };
            Runner::new(PctScheduler::new_from_seed(seed, 8, 2), config).run(body);
        }
    }));
    sim::end();
    outcome.map_err(|panic| format!("panic: {}", message(&*panic)))?;
    let verdict = verdict.lock().unwrap_or_else(PoisonError::into_inner);
    verdict.clone()
}

fn message(panic: &(dyn core::any::Any + Send)) -> String {
    if let Some(text) = panic.downcast_ref::<&str>() {
        return (*text).to_string();
    }
    panic
        .downcast_ref::<String>()
        .cloned()
        .unwrap_or_else(|| "something".to_string())
}

/// The state that the submitters of a round share.
struct Round {
    /// Tags of the sites before the round.
    start: Vec<u32>,
    next_tag: u32,
    /// Size of the device in blocks.
    blocks: u64,
    /// Operations under way that reach beyond the smallest size: the size does not change meanwhile.
    far: u64,
    /// The size is being changed: no operation goes beyond the smallest size.
    resizing: bool,
    /// The size could not be changed, and is not changed again.
    stuck: bool,
    /// A second volume has opened the file.
    rival: bool,
    /// A write has found space, so that what is reserved for discards was there.
    wrote: bool,
    objection: Option<String>,
    trace: Trace,
}

type Shared = Arc<Mutex<Round>>;

fn round(shared: &Shared) -> MutexGuard<'_, Round> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Round {
    fn new(start: Vec<u32>, blocks: u64) -> Self {
        Self {
            start,
            next_tag: 0,
            blocks,
            far: 0,
            resizing: false,
            stuck: false,
            rival: false,
            wrote: false,
            objection: None,
            trace: Trace::default(),
        }
    }

    fn say(&mut self, text: core::fmt::Arguments<'_>) {
        self.trace.say(text);
    }

    fn object(&mut self, text: String) {
        self.objection.get_or_insert(text);
    }
}

const ZEROS: [u8; BLOCK_SIZE] = [0; BLOCK_SIZE];

/// The contents of a block with this tag: zeros for 0, otherwise the tag and bytes that compress well,
/// badly or not at all.
pub fn fill(tag: u32, block: &mut [u8]) {
    block.fill(0);
    if tag == 0 {
        return;
    }
    let random = match tag % 3 {
        0 => 64,
        1 => BLOCK_SIZE / 2,
        _ => BLOCK_SIZE,
    };
    let mut rng = Rng(u64::from(tag) << 20);
    for chunk in block[..random].chunks_exact_mut(8) {
        chunk.copy_from_slice(&rng.next_u64().to_le_bytes());
    }
    block[..4].copy_from_slice(&tag.to_le_bytes());
}

/// The tag of a block, or `None` if the contents of the block do not follow from the tag.
pub fn tag_of(block: &[u8]) -> Option<u32> {
    let mut first = [0; 4];
    first.copy_from_slice(&block[..4]);
    let tag = u32::from_le_bytes(first);
    if tag == 0 {
        return (block == ZEROS).then_some(0);
    }
    let mut expected = [0; BLOCK_SIZE];
    fill(tag, &mut expected);
    (block == expected).then_some(tag)
}

fn options(blocks: u64, record_size: u32, segment_size: u32) -> CreateOptions {
    CreateOptions {
        size: blocks * BLOCK_SIZE as u64,
        record_size,
        segment_size,
        compression: Compression::of(Algorithm::Lz4),
        recompression: Recompression::OFF,
        uuid: *b"a simulated disk",
    }
}

fn simulate(plan: Plan, trace: &Trace, report: &mut Report) -> Result<(), String> {
    let mut rng = Rng(plan.seed);
    let mut file = SimFile::new();
    if rng.below(2) == 0 {
        file.keep_punched();
    }
    // Opening an image spends most of its time on the memory for large records.
    let record_size = match rng.below(8) {
        0..=2 => 4096,
        3..=5 => 16384,
        n if plan.profile == Profile::Clash => 4096 << (2 * (n % 2)),
        6 => 65536,
        _ => 131_072,
    };
    let first_size = match plan.profile {
        Profile::Leaves => 2 + rng.below(SIZES.len() as u64 - 2),
        _ => 0,
    };
    let segment_size = match plan.profile {
        Profile::Crowd => LARGE_SEGMENT,
        _ => SEGMENT,
    };
    let options = options(SIZES[first_size as usize], record_size, segment_size);
    Volume::<Sim>::create(&file, &options).map_err(|e| e.to_string())?;
    let mut state = judge::Found {
        blocks: options.size / BLOCK_SIZE as u64,
        tags: std::vec![0; SITES],
        may_lose_older_superblock: false,
    };
    let mut next_tag = 0;
    let (mut sizes, mut may_lose_older_superblock) = ([state.blocks; 2], false);
    let mut damager = Damager::new(plan);
    for number in 0..plan.rounds {
        trace.say(format_args!("round {number}"));
        if rng.below(2) == 0 {
            file.crash_after(rng.below(10 + 4 * plan.threads * plan.operations));
        }
        file.snapshot_every(plan.snapshots, Rng(rng.next_u64()));
        // Until the image is opened the other superblock may have the other size.
        sim::sized(sizes[0], sizes[1]);
        sim::may_lose_older_superblock(may_lose_older_superblock);
        let shared = Arc::new(Mutex::new(Round {
            next_tag,
            trace: trace.clone(),
            ..Round::new(state.tags.clone(), state.blocks)
        }));
        operate(plan, number, &file, &shared, &mut rng);
        reset_step_count();
        if let Some(overtaking) = sim::overtaking() {
            return Err(format!("round {number}: {overtaking}"));
        }
        let (order, mark) = sim::take_history();
        trace.say(format_args!("the end: crashed {}", file.crashed()));
        next_tag = round(&shared).next_tag;
        if let Some(objection) = round(&shared).objection.take() {
            return Err(format!("round {number}: {objection}"));
        }
        report.changes += order.len() as u64;
        damager.written.note(&order);
        let history = judge::History {
            start: &state.tags,
            order: &order,
        };
        for snapshot in file.take_snapshots() {
            let found = snapshot.crashed_disk(sim::Survival::Random(rng.next_u64()));
            let thorough = rng.below(plan.thorough) == 0;
            let place = |e: String| {
                let (n, what) = (snapshot.operation, snapshot.what);
                format!("round {number}, crash at operation {n} of the disk ({what}): {e}")
            };
            let whole = found.copy();
            let judged = history.judge(found, snapshot.mark, thorough, &mut rng, report);
            if judged.map_err(place)?.is_some() {
                damager
                    .judge(&history, &whole, snapshot.mark, report)
                    .map_err(place)?;
            }
            report.snapshots += 1;
            reset_step_count();
        }
        if round(&shared).rival {
            // Two logs have met on the disk.
            break;
        }
        let found = file.after_crash(&mut rng);
        let whole = found.copy();
        report.crashes += 1;
        let recovered = history
            .judge(found, mark, true, &mut rng, report)
            .map_err(|e| format!("round {number}, after the crash: {e}"))?;
        // A history does not go on from a disk with wrong bytes.
        let Some(recovered) = recovered else { break };
        damager
            .judge(&history, &whole, mark, report)
            .map_err(|e| format!("round {number}, after the crash: {e}"))?;
        (file, state) = recovered;
        sizes = mark.sizes;
        may_lose_older_superblock =
            mark.may_lose_older_superblock || state.may_lose_older_superblock;
    }
    Ok(())
}

/// Damages copies of the states of a history.
struct Damager {
    one_of: u64,
    rng: Rng,
    donors: Option<damage::Donors>,
    written: provable::Written,
    at_root: bool,
}

impl Damager {
    fn new(plan: Plan) -> Self {
        Self {
            one_of: plan.damage,
            rng: Rng(plan.seed ^ 0x6861_726d),
            donors: None,
            written: provable::Written::default(),
            at_root: plan.sabotage == Some(Sabotage::IgnoreFingerprints),
        }
    }

    /// Chooses whether to damage and repair a copy of `found`, and judges the result. The first state chosen gives
    /// older bytes to the later ones.
    fn judge(
        &mut self,
        history: &judge::History<'_>,
        found: &SimFile,
        mark: sim::Mark,
        report: &mut Report,
    ) -> Result<(), String> {
        if self.one_of == 0 || self.rng.below(self.one_of) > 0 || found.corrupted() {
            return Ok(());
        }
        let donors = match &self.donors {
            Some(donors) => donors,
            None => self.donors.insert(damage::Donors::new(found)?),
        };
        let state = history.prefix(found, mark)?;
        let target = damage::Target {
            found,
            state: &state,
            mark,
            at_root: self.at_root,
            written: &self.written,
        };
        damage::judge_repair(history, &target, donors, &mut self.rng, report)?;
        reset_step_count();
        Ok(())
    }
}

/// One round: opens the volume, lets the submitters work, and closes it, until something stops that.
fn operate(plan: Plan, number: u64, file: &SimFile, shared: &Shared, rng: &mut Rng) {
    file.allocate_in_units([4096, 4096, 4096, 65536][rng.below(4) as usize]);
    if plan.profile == Profile::Pressure {
        // From hardly enough space to open the image up to some space to spare.
        let most = (14 + rng.below(28)) * u64::from(SEGMENT);
        match rng.below(4) {
            0 => file.limit_length(most + (1 << 20)),
            _ => file.limit(most),
        }
        sim::may_lose_older_superblock(true);
    }
    let mut opened = Volume::<Sim>::open(file.clone(), Access::Write);
    if let Err(Error::NoSpace) = opened {
        file.limit(u64::MAX);
        file.limit_length(u64::MAX);
        opened = Volume::<Sim>::open(file.clone(), Access::Write);
    }
    let volume = match opened {
        Ok(volume) => Arc::new(volume),
        Err(error) => {
            if !file.crashed() {
                round(shared).object(format!("opening: {error}"));
            }
            return;
        }
    };
    let blocks = volume.size().blocks();
    sim::opened();
    sim::sized(blocks, blocks);
    sim::may_lose_older_superblock(false);
    round(shared).blocks = blocks;
    if plan.profile == Profile::Leaves || rng.below(8) == 0 {
        volume.store.map.set_limit(TABLE + (rng.below(128) << 10));
    }
    let harm = cause_trouble(plan, file, rng);
    let threads: Vec<_> = (0..plan.threads)
        .map(|t| {
            let (volume, shared) = (volume.clone(), shared.clone());
            let rng = Rng(plan.seed ^ ((number * 64 + t + 1) << 40));
            shuttle::thread::spawn(move || submit::submit(&volume, &shared, plan, t, rng))
        })
        .collect();
    for thread in threads {
        let _ = thread.join();
    }
    sim::fail_allocation(None);
    // The state comes first: a background thread may still make the write at which the power fails.
    let stopped = volume.state().error;
    if let (Harm::None, false, Some(error)) = (harm, file.crashed(), stopped) {
        round(shared).object(format!("the device stopped without a reason: {error}"));
    }
    if plan.profile == Profile::Pressure && plan.trouble == Trouble::None && rng.below(2) == 0 {
        file.snapshot_every(plan.snapshots * 16, Rng(rng.next_u64()));
        submit::make_room(&volume, shared, Rng(rng.next_u64()));
    }
    if plan.rival && number == 0 && !file.crashed() {
        round(shared).rival = true;
        file.snapshot_every(u64::MAX, Rng(0));
        if let Err(objection) = meet_rival(&volume, file) {
            round(shared).object(objection);
        }
        return;
    }
    if plan.profile == Profile::Cold && harm == Harm::None && !file.crashed() {
        file.snapshot_every(plan.snapshots * 4, Rng(rng.next_u64()));
        if let Err(objection) = come_to_rest(&volume, plan) {
            round(shared).object(objection);
        }
    }
    if rng.below(2) == 0 {
        file.repair();
    }
    if rng.below(2) == 0 {
        let completed = sim::mark().completed;
        let closed = volume.close();
        round(shared).say(format_args!("close: {closed:?}"));
        match closed {
            Ok(()) | Err(Error::NoSpace) => {}
            Err(_) if harm == Harm::Possible || file.crashed() => {}
            Err(error) => {
                round(shared).object(format!("the close failed without a reason: {error}"))
            }
        }
        if closed.is_ok() {
            sim::promised(completed);
            sim::checkpointed(completed);
        }
    }
}

/// Data that is cold is compressed again until there is nothing left to gain, and then nothing more is written: recompression
/// ends, and what it says of a segment is true.
fn come_to_rest(volume: &Volume<Sim>, plan: Plan) -> Result<(), String> {
    let Some(compression) = volume.recompression().compression else {
        return Ok(());
    };
    // A device at rest does not look before the log has something to write.
    if volume.flush().is_err() {
        return Ok(());
    }
    // Without memory for a context there is nothing but LZ4.
    sim::scarce_memory(1);
    let stats = || volume.stats().map_err(|e| e.to_string());
    let stopped = || volume.state().error.is_some() || volume.file().crashed();
    let (mut turns, mut written, mut quiet) = (0, 0, 0);
    while quiet < QUIET_TURNS {
        if stopped() {
            return Ok(());
        }
        let now = stats()?;
        let at_rest = now.pending_bytes == 0 && now.log_bytes == written;
        (written, quiet) = (now.log_bytes, if at_rest { quiet + 1 } else { 0 });
        turns += 1;
        if turns > REST_TURNS {
            // Damaged and detached data cannot be looked at, nor what is in the segment that the log fills, if it cannot go
            // on to another one.
            let left = stats()?;
            return match plan.trouble {
                Trouble::None if left.pending_bytes > u64::from(SEGMENT) => {
                    Err(format!("recompression does not end: {left:?}"))
                }
                _ => Ok(()),
            };
        }
        sim::pass_time(50);
        shuttle::thread::yield_now();
    }
    // What is marked is not marked too early: a pass that looks at all of it finds nothing.
    let _ = volume.quiesce();
    if volume.set_recompression(Recompression::OFF).is_err() {
        return Ok(());
    }
    let before = stats()?.recompressed_bytes;
    let Ok(pass) = volume.begin_recompression(compression) else {
        return Ok(());
    };
    let done = volume.recompress(&pass, &mut || true);
    volume.wake();
    let gained = stats()?.recompressed_bytes - before;
    match done.is_ok() && gained > 0 && !stopped() {
        true => Err(format!(
            "a marked segment has {gained} bytes of records to gain from"
        )),
        false => Ok(()),
    }
}

/// Opens the file for a second time, as behind another device that leads to it. From then on the first volume must stop
/// at its next checkpoint, and leave the superblocks alone.
fn meet_rival(volume: &Volume<Sim>, file: &SimFile) -> Result<(), String> {
    // A checkpoint that has read the slots before the rival writes them, and writes its own one after that, cannot know
    // better. No background work begins one from here on.
    let _ = volume.quiesce();
    let Ok(rival) = Volume::<Sim>::open(file.clone(), Access::Write) else {
        // It met a checkpoint of the first volume, or the disk is full or lost.
        return Ok(());
    };
    let checkpoint = volume.checkpoint();
    if checkpoint.is_ok() {
        return Err("a checkpoint succeeds over the superblocks of another volume".to_string());
    }
    let _ = volume.close();
    let salts = damage::salts(file);
    drop(rival);
    match salts[0] == salts[1] {
        true => Ok(()),
        false => Err("a superblock of another volume was overwritten".to_string()),
    }
}

/// Whether the faults of a round may stop the device.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Harm {
    /// Each of them passes.
    None,
    /// They may.
    Possible,
}

/// Arms the faults of this round.
fn cause_trouble(plan: Plan, file: &SimFile, rng: &mut Rng) -> Harm {
    let reach = 5 + plan.threads * plan.operations;
    for _ in 0..rng.below(4) {
        file.fail_after(rng.below(reach), Fault::Slow);
    }
    if plan.profile == Profile::Clash {
        file.slow_reads(3, Rng(rng.next_u64()));
    } else if rng.below(4) == 0 {
        file.slow_reads(16, Rng(rng.next_u64()));
    }
    if plan.profile == Profile::Commits {
        file.slow_writes(3, Rng(rng.next_u64()));
    }
    let when = rng.below(reach);
    match plan.trouble {
        Trouble::None => return Harm::None,
        Trouble::Sectors => {
            for _ in 0..1 + rng.below(3) {
                let at = rng.below(file.len().unwrap_or(0) / 4096 + 1);
                file.spoil(at * 4096, (1 + rng.below(8)) * 4096);
            }
            return Harm::None;
        }
        Trouble::Errors => match rng.below(13) {
            0 => file.fail_after(when, Fault::Error),
            1 => file.fail_after(when, Fault::Broken),
            2 => file.fail_after(when, Fault::Dead),
            3 => file.fail_after(when, Fault::Short),
            4 | 12 => file.fail_after(when, Fault::LostSync),
            5 => file.limit((2 + rng.below(3)) << 20),
            6 => file.fail_read_after(when),
            7..=9 => {
                file.fail_after(when, Fault::Passing(1 + rng.below(6) as u32));
                return Harm::None;
            }
            _ => sim::fail_allocation(Some(when * 8)),
        },
        Trouble::Damage => match rng.below(2) {
            0 => file.fail_after(when, Fault::Misdirected),
            _ => file.fail_after(when, Fault::Rot),
        },
    }
    Harm::Possible
}
