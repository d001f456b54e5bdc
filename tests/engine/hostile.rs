// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Hostile images: promise P5 against an attacker who can compute a CRC. I3, I6, I17, I18.

use cloop::engine::check::Finding;
use cloop::engine::format::SUPERBLOCK_OFFSETS;
use cloop::engine::Access;
use cloop::engine::{Error, Volume, BLOCK_SIZE};
use cloop::hostile::{
    bases, compact, exercise, exercise_compact, exercise_forgery, forgery_bases, mend, named,
    random_forgery, survey, tag_of, Expect, Image, Named, BLOCKS, RECORD_IN_RECORD,
};
use cloop::platform::fuzz::{Fuzz, MemFile};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

type Home = Fuzz<true>;

/// Writes near what is mapped and elsewhere, discards, reads, checkpoints, and an opening in between.
const SCRIPT: [u8; 24] = [
    0, 0, 0, 9, 3, 2, 1, 3, 6, 0, 0, 0, 7, 0, 0, 0, 1, 1, 7, 30, 5, 0, 0, 0,
];

/// Most time that any operation on an image of a few hundred KiB may take. It is much more than needed,
/// because the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(5);

#[test]
fn the_bases_are_sound() {
    for (i, base) in bases::<Home>(false).into_iter().enumerate() {
        let file = MemFile::new(&base.bytes);
        let survey = survey::<Home>(&file);
        assert!(
            survey.sound(),
            "base {i}: {:?} {:?}",
            survey.refused,
            survey.findings
        );
        assert!(survey.blocks.len() > 5);
        for (block, held) in &survey.blocks {
            let tag = tag_of(&held.unwrap()).unwrap();
            assert!(base.written.contains(&(*block, tag)), "block {block}");
        }
        exercise::<Home>(&file, &SCRIPT);
    }
}

#[test]
fn each_attack_ends_as_it_must() {
    let (mut cases, mut seen) = (Cases::default(), BTreeSet::new());
    for attack in named::<Home>() {
        assert!(seen.insert(attack.name), "{}: twice", attack.name);
        cases.run(attack.name, || judge(&attack));
    }
    assert!(seen.len() > 70, "{}", seen.len());
}

#[test]
fn each_attack_can_be_repaired() {
    let mut cases = Cases::default();
    for attack in named::<Home>() {
        cases.run(attack.name, || {
            let file = MemFile::new(&attack.bytes);
            mend::<Home>(&file, &survey::<Home>(&file));
        });
    }
}

fn judge(attack: &Named) {
    let file = MemFile::new(&attack.bytes);
    let survey = survey::<Home>(&file);
    let said = format!("{:?} {:?}", survey.refused, survey.findings);
    let refused = survey.refused.is_some();
    assert_eq!(refused, attack.expect == Expect::Refused, "{said}");
    let harmless = attack.expect == Expect::Harmless;
    assert_eq!(survey.sound(), harmless, "{said}");
    if !refused {
        let lost = match attack.expect {
            Expect::Damaged(first, count) => first..first + count,
            _ => 0..0,
        };
        let volume = Volume::<Home>::open(file.clone(), Access::Read).unwrap();
        let mut ws = volume.workspace().unwrap();
        let mut block = [0; BLOCK_SIZE];
        for at in 0..BLOCKS {
            match volume.read(&mut ws, at, &mut block) {
                Ok(()) => {
                    assert!(!lost.contains(&at), "block {at} was read: {said}");
                    let known = at == RECORD_IN_RECORD || tag_of(&block).is_some();
                    assert!(known, "block {at} holds rubbish: {said}");
                }
                Err(Error::Corrupt { .. }) => {
                    assert!(lost.contains(&at), "block {at} is lost: {said}");
                }
                Err(error) => panic!("{error}"),
            }
        }
        // Lost blocks are reported with their place, and reads that cover more blocks fail as well.
        let mut two = [0; 2 * BLOCK_SIZE];
        for at in lost.clone() {
            if lost.end - lost.start <= 8 {
                // Open the image again, because the cache may hold the record by way of another entry.
                for first in [at.saturating_sub(1), at] {
                    let volume = Volume::<Home>::open(file.clone(), Access::Read).unwrap();
                    let read = volume.read(&mut ws, first, &mut two);
                    assert!(read.is_err(), "block {at} is read with others: {said}");
                }
            }
            let told = |f: &Finding| f.blocks.is_some_and(|(b, n)| (b..b + n).contains(&at));
            let mapped = survey.blind || survey.blocks.contains_key(&at);
            let told = survey.findings.iter().any(told);
            assert!(!mapped || told, "block {at} is not reported: {said}");
        }
    }
    exercise::<Home>(&file, &SCRIPT);
}

/// Cases, all of which run even if an earlier one fails.
#[derive(Default)]
struct Cases(Vec<String>);

impl Cases {
    fn run(&mut self, name: &str, case: impl FnOnce()) {
        Home::begin(0);
        let began = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(case));
        if let Err(panic) = result {
            let said = panic.downcast_ref::<String>().map(String::as_str);
            let said = said.or(panic.downcast_ref::<&str>().copied());
            self.0
                .push(format!("{name}: {}", said.unwrap_or("panicked")));
        }
        if began.elapsed() > PATIENCE {
            self.0.push(format!("{name}: {:?}", began.elapsed()));
        }
    }
}

impl Drop for Cases {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let n = self.0.len();
            assert!(n == 0, "{n} cases failed:\n{}", self.0.join("\n"));
        }
    }
}

/// The blocks whose own record the structure at a byte offset of the image describes, before and after
/// the change.
fn own_blocks(before: &Image<Home>, after: &Image<Home>, structure: u64) -> BTreeSet<u64> {
    let mut blocks = BTreeSet::new();
    for image in [before, after] {
        let get = |name| {
            image
                .field(name, structure)
                .map_or(0, |f| f.get(&image.bytes))
        };
        let count = match image.field("zero record: blocks", structure) {
            Some(field) => field.get(&image.bytes),
            None => get("record: span"),
        };
        let first = get("record: number");
        blocks.extend(first..first.saturating_add(count.min(4096)));
    }
    blocks
}

/// Every integer of the format takes values that it should not have. The image is refused, or only the
/// blocks concerned fail. No block ever shows contents that were never written to it. I18.
#[test]
fn every_integer_may_lie() {
    let mut verdicts: BTreeMap<&str, [u64; 4]> = BTreeMap::new();
    let mut cases = Cases::default();
    for base in bases::<Home>(false) {
        let image = Image::<Home>::new(base.bytes).unwrap();
        let truth = survey::<Home>(&MemFile::new(&image.bytes)).blocks;
        for (i, field) in image.fields.iter().enumerate() {
            let old = field.get(&image.bytes);
            let mut values = [0, field.max(), old.wrapping_sub(1), old.wrapping_add(1)]
                .map(|v| v & field.max())
                .to_vec();
            values.sort_unstable();
            values.dedup();
            for value in values.into_iter().filter(|&v| v != old) {
                let what = format!("{} at {}: {old} -> {value}", field.name, field.structure);
                cases.run(&what, || {
                    let lie = Lie {
                        clean: base.clean,
                        image: &image,
                        field: i,
                        value,
                    };
                    let verdict = lie.judge(&base.written, &truth);
                    verdicts.entry(field.name).or_default()[verdict] += 1;
                });
            }
        }
    }
    println!("{:40} refused  damaged  found  silent", "integer");
    for (name, [refused, damaged, found, silent]) in &verdicts {
        println!("{name:40} {refused:7} {damaged:8} {found:6} {silent:7}");
    }
    assert!(verdicts.len() > 45, "{}", verdicts.len());
}

/// One integer of an image with another value.
struct Lie<'a> {
    image: &'a Image<Home>,
    field: usize,
    value: u64,
    /// The image was closed cleanly.
    clean: bool,
}

impl Lie<'_> {
    fn forge(&self) -> Image<Home> {
        let mut forged = self.image.clone();
        let superblock = Image::<Home>::superblock_fields();
        let field = &self.image.fields[self.field];
        field.set(&mut forged.bytes, self.value);
        // A forger writes both superblocks.
        if self.field < superblock && field.name != "superblock: generation" {
            self.image.fields[self.field + superblock].set(&mut forged.bytes, self.value);
        }
        forged.seal();
        forged
    }

    /// 0: refused, 1: blocks are damaged, 2: `check` finds something, 3: nothing is noticed.
    fn judge(&self, written: &BTreeSet<(u64, u32)>, truth: &Blocks) -> usize {
        let (forged, field) = (self.forge(), &self.image.fields[self.field]);
        let file = MemFile::new(&forged.bytes);
        let survey = survey::<Home>(&file);
        // The log of an image in use is defined by its superblock, headers and links, and ends where a
        // record is not valid.
        let log = field.name.starts_with("superblock: log start")
            || field.name == "superblock: flags"
            || field.name.starts_with("segment: ")
            || field.name == "superblock: segment size"
            || field.name == "link: segment"
            || (field.name.starts_with("record: ") && !self.clean);
        let own = own_blocks(self.image, &forged, field.structure);
        for (block, held) in &survey.blocks {
            let Some(held) = held.filter(|_| !own.contains(block)) else {
                continue;
            };
            let tag = tag_of(&held);
            assert!(
                tag.is_some_and(|tag| tag == 0 || written.contains(&(*block, tag))),
                "block {block} shows what was never written to it: {tag:?}"
            );
            let same = truth.get(block) == Some(&Some(held));
            assert!(
                same || log || !survey.findings.is_empty(),
                "block {block} is another one, and check is silent"
            );
        }
        exercise::<Home>(&file, &SCRIPT);
        match survey.refused {
            Some(_) => 0,
            None if survey.blind || survey.blocks.values().any(Option::is_none) => 1,
            None if !survey.findings.is_empty() => 2,
            None => 3,
        }
    }
}

type Blocks = BTreeMap<u64, Option<[u8; BLOCK_SIZE]>>;

/// A file that is long but empty must not make an opening allocate memory.
#[test]
fn a_long_empty_file_is_refused_at_once() {
    let base = bases::<Home>(false).remove(0);
    let mut image = Image::<Home>::new(base.bytes).unwrap();
    for slot in SUPERBLOCK_OFFSETS {
        let field = *image.field("superblock: segments", slot).unwrap();
        field.set(&mut image.bytes, 1 << 29);
    }
    image.seal();
    let file = MemFile::new(&image.bytes);
    file.set_len(1 << 47);
    let refused = survey::<Home>(&file).refused;
    assert!(
        matches!(refused, Some(Error::Corrupt { .. })),
        "{refused:?}"
    );
}

/// Writes the inputs that the fuzzer starts with into the corpus in `directory`.
fn write_seeds(directory: &Path) {
    for (i, base) in bases::<Fuzz<false>>(true).iter().enumerate() {
        fs::write(
            directory.join(format!("image/base-{i}")),
            compact(&base.bytes),
        )
        .unwrap();
    }
    for i in 0..5 {
        fs::write(
            directory.join(format!("forgery/base-{i}")),
            [i, 0, 0, 0, 0, 9],
        )
        .unwrap();
    }
}

/// The inputs that the fuzzer kept, out of their archive. With `CLOOP_WRITE_SEEDS=DIRECTORY`, the
/// corpus is this directory, and gets the inputs that the fuzzer starts with.
#[test]
fn the_corpus_of_the_fuzzer_is_survived() {
    let unpacked = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut corpus = unpacked.path().to_path_buf();
    if let Some(directory) = std::env::var_os("CLOOP_WRITE_SEEDS") {
        corpus = directory.into();
        write_seeds(&corpus);
    } else {
        let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus.tar.xz");
        let mut tar = Command::new("tar");
        tar.arg("-xJf").arg(&archive).arg("-C").arg(&corpus);
        assert!(tar.status().unwrap().success(), "{}", archive.display());
    }
    let bases = forgery_bases();
    let (mut cases, mut count) = (Cases::default(), 0);
    for target in ["image", "forgery"] {
        for entry in fs::read_dir(corpus.join(target)).unwrap() {
            let path = entry.unwrap().path();
            let input = fs::read(&path).unwrap();
            let name = path.strip_prefix(&corpus).unwrap().display().to_string();
            cases.run(&name, || match target {
                "image" => exercise_compact(&input),
                _ => exercise_forgery(&bases, &input),
            });
            count += 1;
        }
    }
    assert!(count > 20, "{count} inputs");
}

/// The fuzzer's mutations without its guidance. `CLOOP_TEST_LONG=1` runs a hundred times as many.
#[test]
fn random_forgeries_are_survived() {
    let bases = forgery_bases();
    let long = std::env::var_os("CLOOP_TEST_LONG").is_some();
    let mut cases = Cases::default();
    let seeds = if long { 200_000 } else { 2_000 };
    for seed in 0..seeds {
        let input = random_forgery(seed);
        let name = format!("seed {seed}: {input:?}");
        cases.run(&name, || exercise_forgery(&bases, &input));
    }
}
