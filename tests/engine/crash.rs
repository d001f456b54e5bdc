// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Promise P1: after a crash at any backing operation the device is an exact prefix of its history, and
//! the prefix holds everything that a completed flush covered. I1, I2, I9, I10, I11, I12, I14.

use crate::model::{
    apply, assert_checked, fill, fresh, options, read_all, Home, Tested, Vol, BLOCKS,
};
use cloop::engine::repair::{repair, Doubtful};
use cloop::engine::{Access, Algorithm, Error, BLOCK_SIZE};
use cloop::platform::sim::{Rng, SimFile};

/// Opens the image that a crash left and judges it. Returns the state found.
fn judge(tested: &Tested, found: &SimFile, what: &str) -> Vec<u32> {
    let volume = Vol::open(found.copy(), Access::Read).unwrap_or_else(|e| panic!("{what}: {e}"));
    let tags = read_all(&volume);
    let mut state = tested.state_after(tested.durable);
    if state == tags {
        return tags;
    }
    for step in &tested.steps[tested.durable..] {
        apply(&mut state, step);
        if state == tags {
            return tags;
        }
    }
    let durable = tested.state_after(tested.durable);
    let differing: Vec<_> = (0..BLOCKS as usize)
        .filter(|&b| tags[b] != durable[b])
        .map(|b| (b, durable[b], tags[b]))
        .collect();
    panic!(
        "{what}: not a prefix; {} of {} steps durable; (block, durable, found): {differing:?}; later: {:?}",
        tested.durable,
        tested.steps.len(),
        &tested.steps[tested.durable..]
    );
}

/// Operates until the power fails or `operations` are done.
fn operate(tested: &mut Tested, operations: usize, rng: &mut Rng) {
    for _ in 0..operations {
        if !tested.random_operation(rng) {
            return;
        }
    }
    // A crash may happen during the close as well.
    if tested.volume.close().is_ok() {
        tested.durable = tested.steps.len();
    }
}

/// Crashes a history at the `crash`th backing operation, recovers, goes on and crashes again.
fn chain(seed: u64, crash: u64, operations: usize, crashes: u64) -> bool {
    let mut rng = Rng(seed);
    let record_size = [4096, 16384, 65536, 131_072][seed as usize % 4];
    let (mut file, volume) = fresh(record_size);
    let mut tested = Tested::new(volume, vec![0; BLOCKS as usize], 0);
    file.crash_after(crash);
    let mut crashed = false;
    for round in 0..crashes {
        operate(&mut tested, operations, &mut rng);
        crashed |= file.crashed();
        let what = format!("seed {seed}, crash at {crash}, round {round}");
        let mut found = file.after_crash(&mut Rng(seed ^ (crash << 32) ^ (round << 56)));
        let state = judge(&tested, &found, &what);
        let next_tag = tested.next_tag();
        drop(tested);
        // Recovery itself is interrupted too.
        for attempt in 0..3 {
            let again = found.copy();
            again.crash_after(attempt * 3);
            if Vol::open(again.clone(), Access::Write).is_err() {
                found = again.after_crash(&mut Rng(seed ^ attempt));
                let volume = Vol::open(found.copy(), Access::Read).expect("after a second crash");
                assert_eq!(
                    read_all(&volume),
                    state,
                    "{what}, recovery attempt {attempt}"
                );
            }
        }
        assert_checked(&found, &what);
        let volume =
            Vol::open(found.clone(), Access::Write).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(read_all(&volume), state, "{what}, recovered");
        assert_checked(&found, &what);
        found.crash_after(rng.below(60));
        file = found;
        tested = Tested::new(volume, state, next_tag);
    }
    crashed
}

#[test]
fn a_crash_at_every_backing_operation() {
    let mut points = 0;
    for seed in 0..8 {
        let mut crash = 0;
        while chain(seed, crash, 40, 1) {
            crash += 1;
        }
        assert!(
            crash > 10,
            "seed {seed} had only {crash} backing operations"
        );
        points += crash;
    }
    println!("{points} crash points");
}

#[test]
fn chains_of_crashes() {
    let chains = std::env::var("CLOOP_CRASH_CHAINS").map_or(100, |n| n.parse().unwrap());
    for seed in 100..100 + chains {
        let crash = Rng(seed).below(80);
        chain(seed, crash, 60, 4);
    }
}

/// Makes an image as an import does, until the power fails. Returns whether it was finished.
fn make(file: &SimFile) -> Result<Vec<u32>, Vec<u32>> {
    let tags: Vec<u32> = (1..=BLOCKS as u32).collect();
    let mut data = vec![0; tags.len() * BLOCK_SIZE];
    for (tag, block) in tags.iter().zip(data.chunks_exact_mut(BLOCK_SIZE)) {
        fill(*tag, block);
    }
    let make = || {
        let volume = Vol::create_incomplete(file.clone(), &options(16384, Algorithm::Lz4))?;
        let mut ws = volume.workspace()?;
        for (i, piece) in data.chunks(64 * BLOCK_SIZE).enumerate() {
            volume.write(&mut ws, i as u64 * 64, piece)?;
            if i % 4 == 1 {
                volume.checkpoint()?;
            }
        }
        volume.complete()
    };
    match make() {
        Ok(()) => Ok(tags),
        Err(_) => Err(tags),
    }
}

#[test]
fn an_image_that_is_being_made_opens_only_when_it_is_whole() {
    let (mut refused, mut opened) = (0, 0);
    for crash in 0.. {
        let file = SimFile::new();
        file.crash_after(crash);
        let made = make(&file);
        let found = file.after_crash(&mut Rng(crash));
        let (Ok(state) | Err(state)) = &made;
        match Vol::open(found.copy(), Access::Read) {
            Ok(volume) => {
                assert_eq!(read_all(&volume), *state, "crash at {crash}");
                assert_checked(&found, &format!("crash at {crash}"));
                opened += 1;
            }
            Err(error) => {
                assert!(made.is_err(), "crash at {crash}: {error}");
                // Before the creation is durable there is no image at all.
                assert!(
                    error == Error::Incomplete || crash < 4,
                    "crash at {crash}: {error}"
                );
                // Nothing else takes it for an image, either.
                assert!(Vol::open(found.copy(), Access::Write).is_err());
                let repaired = repair::<Home>(
                    &mut || Ok(found.copy()),
                    Doubtful::Refuse,
                    &mut |_| {},
                    &mut |_, _| {},
                );
                assert!(repaired.is_err(), "crash at {crash}: {repaired:?}");
                refused += 1;
            }
        }
        if made.is_ok() {
            break;
        }
    }
    assert!(refused > 20 && opened > 3, "{refused} {opened}");
}

#[test]
fn either_superblock_of_a_finished_image_is_enough() {
    for (slot, offset) in [0, 64 << 10].into_iter().enumerate() {
        let file = SimFile::new();
        let state = make(&file).unwrap();
        file.damage(offset + 100, 1);
        let volume = Vol::open(file, Access::Read).unwrap();
        assert_eq!(read_all(&volume), state, "slot {slot}");
    }
}
