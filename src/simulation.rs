// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Histories of a simulated volume with crashes and faults, and the judge of promise P1.
//!
//! Several submitters operate on the volume at once. The engine tells in which order its log took the
//! changes. After a crash the device must be what the first `n` changes of that order made of it, and `n`
//! must reach everything that had completed before the last completed flush was issued, and
//! every completed FUA write. Then it goes on from there, and crashes again. Everything follows from the plan.

use crate::engine::check::{check, Finding};
use crate::engine::format::{Superblock, SUPERBLOCK_OFFSETS};
use crate::engine::{Algorithm, CreateOptions, Error, Volume, Workspace, BLOCK_SIZE};
use crate::platform::sim::{self, Fault, Placed, Rng, Sim, SimFile};
use crate::platform::{BackingFile, Sabotage};
use core::fmt::Write;
use shuttle::scheduler::RandomScheduler;
use shuttle::{Config, FailurePersistence, MaxSteps, Runner};
use std::format;
use std::string::{String, ToString};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::vec::Vec;

/// Blocks of the device: two leaves of the sector table, and a bit.
const BLOCKS: u64 = 1100;

/// What happens in a simulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Everything random follows from it.
    pub seed: u64,
    /// Submitters at once.
    pub threads: u64,
    /// Operations of each in each round.
    pub operations: u64,
    /// Rounds of operating, crashing and recovering.
    pub rounds: u64,
    /// The first round crashes at this backing operation (counted from the opening); later rounds, and
    /// all with `None`, at random.
    pub crash: Option<u64>,
    /// Errors of the disk, full disks and failed allocations happen as well.
    pub faults: bool,
    /// What the engine does wrong on purpose.
    pub sabotage: Option<Sabotage>,
}

impl Plan {
    /// A long random history.
    pub fn random(seed: u64) -> Self {
        let mut rng = Rng(seed ^ 0x706c_616e);
        Self {
            seed,
            threads: 1 + rng.below(3),
            operations: 10 + rng.below(40),
            rounds: 1 + rng.below(4),
            crash: None,
            faults: rng.below(3) == 0,
            sabotage: None,
        }
    }

    /// A short history of one submitter that crashes at a given backing operation.
    pub fn scripted(seed: u64, crash: u64) -> Self {
        Self {
            seed,
            threads: 1,
            operations: 25,
            rounds: 1,
            crash: Some(crash),
            faults: false,
            sabotage: None,
        }
    }
}

/// What a simulation that passed did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Crashes that were recovered from and judged.
    pub crashes: u64,
    /// Whether the crash of the plan's first round happened before the round was over.
    pub reached: bool,
    /// Changes that took a place in the log.
    pub changes: u64,
    /// What happened, a line each, when a trace was asked for.
    pub trace: String,
}

/// Runs a simulation.
///
/// # Errors
///
/// What the judge (or an assertion of the engine) has against it.
pub fn run(plan: Plan, trace: bool) -> Result<Report, String> {
    let shared = Arc::new(Mutex::new((Report::default(), None)));
    let inside = shared.clone();
    let mut config = Config::new();
    config.stack_size = 512 * 1024;
    config.failure_persistence = FailurePersistence::None;
    config.max_steps = MaxSteps::FailAfter(20_000_000);
    config.silence_warnings = true;
    let runner = Runner::new(RandomScheduler::new_from_seed(plan.seed, 1), config);
    let outcome = std::panic::catch_unwind(core::panic::AssertUnwindSafe(|| {
        runner.run(move || {
            sim::begin(plan.seed, plan.sabotage);
            let mut report = Report::default();
            let verdict = simulate(plan, trace, &mut report);
            sim::end();
            *inside.lock().unwrap_or_else(PoisonError::into_inner) = (report, Some(verdict));
        });
    }));
    sim::end();
    let (report, verdict) = shared
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    match (outcome, verdict) {
        (Ok(()), Some(Ok(()))) => Ok(report),
        (_, Some(Err(objection))) => Err(format!("{objection}\n{}", report.trace)),
        (Err(panic), _) => Err(format!("panic: {}\n{}", message(&*panic), report.trace)),
        (Ok(()), None) => Err("the simulation did not come to an end".to_string()),
    }
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

/// What the submitters of a round know together.
struct Round {
    /// State of the device before the round.
    start: Vec<u32>,
    /// Length of the order that completed operations reach.
    completed: usize,
    /// Length of the order that is promised to be there after a crash.
    promised: usize,
    next_tag: u32,
    objection: Option<String>,
    trace: Option<String>,
}

type Shared = Arc<Mutex<Round>>;

fn round(shared: &Shared) -> MutexGuard<'_, Round> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Round {
    fn say(&mut self, text: core::fmt::Arguments<'_>) {
        if let Some(trace) = &mut self.trace {
            let _ = writeln!(trace, "{text}");
        }
    }

    fn object(&mut self, text: String) {
        self.objection.get_or_insert(text);
    }
}

/// The contents of a block with this tag: zeros for 0, else the tag and bytes that compress well, badly,
/// or not at all.
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

/// The tag of a block, or `None` if the block is not what its tag says.
pub fn tag_of(block: &[u8]) -> Option<u32> {
    let mut first = [0; 4];
    first.copy_from_slice(&block[..4]);
    let tag = u32::from_le_bytes(first);
    let mut expected = [0; BLOCK_SIZE];
    fill(tag, &mut expected);
    (block == expected).then_some(tag)
}

fn apply(state: &mut [u32], change: &Placed) {
    let at = change.block as usize;
    state[at..at + change.tags.len()].copy_from_slice(&change.tags);
}

fn read_all(volume: &Volume<Sim>) -> Result<Vec<u32>, String> {
    let mut ws = volume.workspace().map_err(|e| e.to_string())?;
    let mut data = std::vec![0; BLOCKS as usize * BLOCK_SIZE];
    volume
        .read(&mut ws, 0, &mut data)
        .map_err(|e| format!("reading the device: {e}"))?;
    data.chunks_exact(BLOCK_SIZE)
        .enumerate()
        .map(|(b, bytes)| tag_of(bytes).ok_or_else(|| format!("block {b} is a mixture")))
        .collect()
}

fn simulate(plan: Plan, trace: bool, report: &mut Report) -> Result<(), String> {
    let mut rng = Rng(plan.seed);
    let mut file = SimFile::new();
    let options = CreateOptions {
        size: BLOCKS * BLOCK_SIZE as u64,
        record_size: [4096, 16384, 65536, 131_072][rng.below(4) as usize],
        segment_size: 256 * 1024,
        algorithm: Algorithm::Lz4,
        uuid: *b"a simulated disk",
    };
    if rng.below(2) == 0 {
        file.keep_punched();
    }
    Volume::<Sim>::create(&file, &options).map_err(|e| e.to_string())?;
    let mut state = std::vec![0; BLOCKS as usize];
    let mut next_tag = 0;
    for number in 0..plan.rounds {
        match (plan.crash, number) {
            (Some(crash), 0) => file.crash_after(crash),
            _ => file.crash_after(rng.below(10 + 4 * plan.threads * plan.operations)),
        }
        let round = Round {
            start: state.clone(),
            completed: 0,
            promised: 0,
            next_tag,
            objection: None,
            trace: trace.then(String::new),
        };
        let shared = Arc::new(Mutex::new(round));
        operate(plan, number, &file, &shared, &mut rng);
        let order = sim::take_history();
        let crashed = file.crashed();
        let known = self::round(&shared);
        report.reached |= crashed && number == 0;
        report.crashes += 1;
        report.changes += order.len() as u64;
        if let Some(trace) = &known.trace {
            let _ = writeln!(report.trace, "round {number}: crashed {crashed}\n{trace}");
        }
        next_tag = known.next_tag;
        let objection = known.objection.clone();
        let promised = known.promised;
        drop(known);
        if let Some(objection) = objection {
            return Err(format!("round {number}: {objection}"));
        }
        let found = file.after_crash(&mut rng);
        let what = format!("round {number}, after the crash");
        state = judge(&found, &state, &order, promised).map_err(|e| format!("{what}: {e}"))?;
        file = interrupt_recovery(found, &state, &mut rng).map_err(|e| format!("{what}: {e}"))?;
        whole(&file).map_err(|e| format!("{what}, recovered: {e}"))?;
    }
    Ok(())
}

/// One round: opens the volume, lets the submitters work, and closes it, until something stops that.
fn operate(plan: Plan, number: u64, file: &SimFile, shared: &Shared, rng: &mut Rng) {
    let volume = match Volume::<Sim>::open(file.clone(), false) {
        Ok(volume) => Arc::new(volume),
        Err(error) => {
            if !file.crashed() {
                round(shared).object(format!("opening: {error}"));
            }
            return;
        }
    };
    if plan.faults {
        let when = rng.below(5 + plan.threads * plan.operations);
        match rng.below(8) {
            0 => file.fail_after(when, Fault::Error),
            1 => file.fail_after(when, Fault::Broken),
            2 => file.fail_after(when, Fault::Short),
            3 => file.fail_after(when, Fault::LostSync),
            4 => file.limit((2 + rng.below(3)) << 20),
            5 => file.fail_read_after(when),
            _ => sim::fail_allocation(Some(when * 8)),
        }
    }
    let threads: Vec<_> = (0..plan.threads)
        .map(|t| {
            let (volume, shared) = (volume.clone(), shared.clone());
            let rng = Rng(plan.seed ^ ((number * 16 + t + 1) << 40));
            shuttle::thread::spawn(move || submit(&volume, &shared, plan.operations, t, rng))
        })
        .collect();
    for thread in threads {
        let _ = thread.join();
    }
    sim::fail_allocation(None);
    file.limit(u64::MAX);
    if rng.below(2) == 0 {
        let closed = volume.close();
        let mut round = round(shared);
        round.say(format_args!("close: {closed:?}"));
        if closed.is_ok() {
            round.promised = round.completed;
        }
    }
}

/// One submitter. It stops at the first error that is not about space or memory.
fn submit(volume: &Volume<Sim>, shared: &Shared, operations: u64, t: u64, rng: Rng) {
    let Ok(ws) = volume.workspace() else { return };
    let mut site = Submitter {
        volume,
        shared,
        name: t,
        rng,
        ws,
    };
    for _ in 0..operations {
        // Mostly the same few blocks, so that submitters meet.
        let block = match site.rng.below(4) {
            0 => site.rng.below(BLOCKS),
            1 => 500 + site.rng.below(24),
            _ => site.rng.below(40),
        };
        let rest = BLOCKS - block;
        let size = site.rng.next_u64();
        let up_to = |max: u64| 1 + size % max.min(rest);
        let result = match site.rng.below(16) {
            0..=4 => site.write(block, up_to(4)).map(|_| ()),
            5 => site.write(block, up_to(64)).map(|_| ()),
            6 | 7 => site.write_through(block),
            8 | 9 => site.zero(block, up_to(16)),
            10 => site.zero(block, up_to(rest)),
            11 | 12 => site.flush("flush", |volume| volume.flush()),
            13 => site.flush("checkpoint", |volume| volume.checkpoint()),
            _ => site.read(block, up_to(32)),
        };
        match result {
            Ok(()) | Err(Error::NoSpace | Error::NoMemory) => {}
            Err(Error::Corrupt { what, offset }) => {
                let text = format!("damaged {what} at {offset}, without any damage done");
                return round(shared).object(text);
            }
            Err(error) => {
                return round(shared).say(format_args!("{t}: stops, {error}"));
            }
        }
    }
}

struct Submitter<'a> {
    volume: &'a Volume<Sim>,
    shared: &'a Shared,
    name: u64,
    rng: Rng,
    ws: Workspace<Sim>,
}

impl Submitter<'_> {
    /// Notes the end of an operation that changed something: how far the order reaches with it.
    fn done(&self, what: &str, range: (u64, u64), reached: usize, result: Result<(), Error>) {
        let mut round = round(self.shared);
        if result.is_ok() {
            round.completed = round.completed.max(reached);
        }
        let (block, count) = range;
        round.say(format_args!(
            "{}: {what} {count} at {block}: {result:?}, last change {reached}",
            self.name
        ));
    }

    /// Writes new tags, some of them zero; answers with how far the order reaches with them.
    fn write(&mut self, block: u64, count: u64) -> Result<usize, Error> {
        let mut tags = Vec::new();
        let mut data = std::vec![0; count as usize * BLOCK_SIZE];
        for bytes in data.chunks_exact_mut(BLOCK_SIZE) {
            let tag = {
                let mut round = round(self.shared);
                round.next_tag += 1;
                round.next_tag
            };
            let tag = if self.rng.below(6) == 0 { 0 } else { tag };
            fill(tag, bytes);
            tags.push(tag);
        }
        let end = sim::working_on(block, tags);
        let result = self.volume.write(&mut self.ws, block, &data);
        let reached = end();
        self.done("write", (block, count), reached, result);
        result.map(|()| reached)
    }

    fn write_through(&mut self, block: u64) -> Result<(), Error> {
        let reached = self.write(block, 1)?;
        self.volume.force_unit_access()?;
        let mut round = round(self.shared);
        round.promised = round.promised.max(reached);
        round.say(format_args!("{}: fua, promised {}", self.name, reached));
        Ok(())
    }

    fn zero(&mut self, block: u64, count: u64) -> Result<(), Error> {
        let end = sim::working_on(block, std::vec![0; count as usize]);
        let result = self.volume.zero(&mut self.ws, block, count);
        let reached = end();
        self.done("zero", (block, count), reached, result);
        result
    }

    fn flush(
        &mut self,
        what: &str,
        flush: impl FnOnce(&Volume<Sim>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let target = round(self.shared).completed;
        let result = flush(self.volume);
        let mut round = round(self.shared);
        if result.is_ok() {
            round.promised = round.promised.max(target);
        }
        round.say(format_args!(
            "{}: {what} of {target}: {result:?}",
            self.name
        ));
        result
    }

    /// Every block read is what it was when the read began, or what it became meanwhile.
    fn read(&mut self, block: u64, count: u64) -> Result<(), Error> {
        let mut before = round(self.shared).start.clone();
        let length = sim::since(0, |order| {
            order.iter().for_each(|change| apply(&mut before, change));
            order.len()
        });
        let mut data = std::vec![0; count as usize * BLOCK_SIZE];
        self.volume.read(&mut self.ws, block, &mut data)?;
        for (b, bytes) in (block..).zip(data.chunks_exact(BLOCK_SIZE)) {
            let Some(tag) = tag_of(bytes) else {
                round(self.shared).object(format!("read: block {b} is a mixture"));
                return Ok(());
            };
            let right = before[b as usize] == tag
                || sim::since(length, |order| {
                    order.iter().any(|change| {
                        let at = b.wrapping_sub(change.block) as usize;
                        change.tags.get(at) == Some(&tag)
                    })
                });
            if !right {
                round(self.shared).object(format!(
                    "read: block {b} holds {tag}, was {} and became nothing else",
                    before[b as usize]
                ));
            }
        }
        Ok(())
    }
}

/// The image is whole: nothing for `cloop check` to find.
fn whole(file: &SimFile) -> Result<(), String> {
    let mut first = None;
    let mut report = |finding: &Finding| {
        first.get_or_insert(*finding);
    };
    check::<Sim>(file.snapshot(), &mut report, &mut |_, _| {}).map_err(|e| e.to_string())?;
    match first {
        None => Ok(()),
        Some(finding) => Err(format!("check finds {finding:?}")),
    }
}

/// The state a crash left must be a prefix of the order, at least as long as promised. Returns it.
fn judge(
    found: &SimFile,
    start: &[u32],
    order: &[Placed],
    promised: usize,
) -> Result<Vec<u32>, String> {
    whole(found)?;
    let volume = Volume::<Sim>::open(found.snapshot(), true).map_err(|e| e.to_string())?;
    let now = read_all(&volume)?;
    either_superblock(found, &now)?;
    let mut state = start.to_vec();
    order[..promised]
        .iter()
        .for_each(|change| apply(&mut state, change));
    let promised_state = state.clone();
    if state == now {
        return Ok(now);
    }
    for change in &order[promised..] {
        apply(&mut state, change);
        if state == now {
            return Ok(now);
        }
    }
    let mut text = format!(
        "not a prefix: {promised} of {} changes promised; block: promised, found:",
        order.len()
    );
    for (b, (was, is)) in promised_state.iter().zip(&now).enumerate() {
        if was != is {
            let _ = write!(text, " {b}: {was}, {is};");
        }
    }
    let _ = write!(text, " changes after that: {:?}", &order[promised..]);
    Err(text)
}

/// If both superblocks are whole, each of them alone leads to the same state.
fn either_superblock(found: &SimFile, state: &[u32]) -> Result<(), String> {
    let valid = |offset| {
        let mut page = std::vec![0; BLOCK_SIZE];
        found.read_at(&mut page, offset).is_ok()
            && Superblock::decode::<Sim>(&mut page, offset).is_ok()
    };
    if !SUPERBLOCK_OFFSETS.into_iter().all(valid) {
        return Ok(());
    }
    for offset in SUPERBLOCK_OFFSETS {
        let hurt = found.snapshot();
        hurt.damage(offset + 100, 1);
        let volume = Volume::<Sim>::open(hurt, true)
            .map_err(|e| format!("without the superblock at {offset}: {e}"))?;
        if read_all(&volume)? != state {
            return Err(format!("another state without the superblock at {offset}"));
        }
    }
    Ok(())
}

/// Recovers, with crashes while doing so: none of them changes the state that was found.
fn interrupt_recovery(mut found: SimFile, state: &[u32], rng: &mut Rng) -> Result<SimFile, String> {
    for _ in 0..rng.below(3) {
        found.crash_after(rng.below(12));
        let opened = Volume::<Sim>::open(found.clone(), false);
        drop(opened);
        found = found.after_crash(rng);
        let volume = Volume::<Sim>::open(found.snapshot(), true)
            .map_err(|e| format!("after an interrupted recovery: {e}"))?;
        if read_all(&volume)? != state {
            return Err("an interrupted recovery changed the state".to_string());
        }
    }
    Ok(found)
}
