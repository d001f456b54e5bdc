// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Without crashes: every operation has the same effect as on the model.

use crate::model::{
    assert_checked, fill, fresh, options, read_all, tag_of, Home, Tested, Vol, BLOCKS,
};
use cloop::engine::Access;
use cloop::engine::{Algorithm, Error, BLOCK_SIZE};
use cloop::platform::sim::{Rng, SimFile};
use std::sync::Arc;

#[test]
fn random_operations_match_the_model() {
    for seed in 0..24 {
        let mut rng = Rng(seed);
        let record_size = [4096, 16384, 65536, 131_072][seed as usize % 4];
        let (file, volume) = fresh(record_size);
        let mut tested = Tested::new(volume, vec![0; BLOCKS as usize], 0);
        for round in 0..3 {
            for _ in 0..150 {
                assert!(tested.random_operation(&mut rng), "seed {seed}");
            }
            let state = tested.state();
            assert_eq!(read_all(&tested.volume), state, "seed {seed}");
            tested.volume.close().unwrap();
            assert_checked(&file, &format!("seed {seed} round {round}"));
            let volume = Vol::open(file.clone(), Access::Write).unwrap();
            assert!(volume.state().clean_at_open);
            assert_eq!(volume.stats().unwrap().replayed, 0);
            assert_eq!(read_all(&volume), state, "seed {seed} after reopening");
            let mapped = state.iter().filter(|&&tag| tag != 0).count() as u64;
            assert_eq!(volume.stats().unwrap().mapped_blocks, mapped);
            tested = Tested::new(volume, state, tested.next_tag());
        }
    }
}

#[test]
fn a_part_of_a_record_is_overwritten_and_the_rest_stays() {
    let (_, volume) = fresh(65536);
    let mut ws = volume.workspace().unwrap();
    let mut data = vec![0; 16 * BLOCK_SIZE];
    for (tag, block) in (1..).zip(data.chunks_exact_mut(BLOCK_SIZE)) {
        fill(3 * tag, block);
    }
    volume.write(&mut ws, 16, &data).unwrap();
    let mut one = vec![0; BLOCK_SIZE];
    fill(1000, &mut one);
    volume.write(&mut ws, 20, &one).unwrap();
    volume.zero(&mut ws, 22, 2).unwrap();
    let tags = read_all(&volume);
    for (i, tag) in tags[16..32].iter().enumerate() {
        let expected = match i {
            4 => 1000,
            6 | 7 => 0,
            i => 3 * (i as u32 + 1),
        };
        assert_eq!(*tag, expected, "block {i}");
    }
}

/// P9: what one record can hold is written, anything else is refused and changes nothing.
#[test]
fn an_atomic_write_that_no_record_holds_is_refused() {
    let (file, volume) = fresh(65536);
    let mut ws = volume.workspace().unwrap();
    let data: Vec<u8> = (1..=17)
        .flat_map(|tag| {
            let mut block = vec![0; BLOCK_SIZE];
            fill(tag, &mut block);
            block
        })
        .collect();
    let blocks = |n: usize| &data[..n * BLOCK_SIZE];
    let mut write = |block, data: &[u8]| volume.write_atomic(&mut ws, block, data);
    for (block, count) in [(16, 17), (31, 2), (15, 16), (BLOCKS - 1, 2)] {
        let result = write(block, blocks(count));
        assert!(
            matches!(result, Err(Error::Invalid(_))),
            "{count} at {block}"
        );
    }
    for length in [0, 512, BLOCK_SIZE + 1] {
        let result = write(16, &data[..length]);
        assert!(matches!(result, Err(Error::Invalid(_))), "{length} bytes");
    }
    assert!(read_all(&volume).iter().all(|&tag| tag == 0));
    let mut write = |block, data: &[u8]| volume.write_atomic(&mut ws, block, data);
    write(16, blocks(16)).unwrap();
    write(37, blocks(11)).unwrap();
    // Zeros among other blocks, and nothing but zeros.
    let mut mixture = blocks(4).to_vec();
    mixture[BLOCK_SIZE..3 * BLOCK_SIZE].fill(0);
    write(20, &mixture).unwrap();
    write(28, &[0; 2 * BLOCK_SIZE]).unwrap();
    let tags = read_all(&volume);
    assert_eq!(tags[16..24], [1, 2, 3, 4, 1, 0, 0, 4]);
    assert_eq!(tags[24..32], [9, 10, 11, 12, 0, 0, 15, 16]);
    assert_eq!(tags[37..48], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]);
    assert_eq!(volume.stats().unwrap().mapped_blocks, 12 + 11);
    volume.close().unwrap();
    let volume = Vol::open(file, Access::Read).unwrap();
    assert_eq!(read_all(&volume), tags);
    let mut ws = volume.workspace().unwrap();
    assert_eq!(
        volume.write_atomic(&mut ws, 0, blocks(1)),
        Err(Error::ReadOnly)
    );
}

#[test]
fn a_flush_without_anything_new_does_no_io() {
    let (file, volume) = fresh(4096);
    let mut ws = volume.workspace().unwrap();
    let mut block = vec![0; BLOCK_SIZE];
    fill(2, &mut block);
    volume.write(&mut ws, 0, &block).unwrap();
    volume.flush().unwrap();
    let (syncs, writes) = (file.syncs(), file.writes());
    volume.flush().unwrap();
    volume.flush().unwrap();
    assert_eq!((file.syncs(), file.writes()), (syncs, writes));
    // Writing zeros over zeros changes nothing either.
    volume.zero(&mut ws, 100, 500).unwrap();
    volume.flush().unwrap();
    assert_eq!((file.syncs(), file.writes()), (syncs, writes));
    volume.write(&mut ws, 1, &block).unwrap();
    volume.flush().unwrap();
    assert_eq!((file.syncs(), file.writes()), (syncs + 1, writes + 1));
}

/// P4, I16: zero blocks are holes.
#[test]
fn zeros_are_not_stored() {
    let (_, volume) = fresh(65536);
    let mut ws = volume.workspace().unwrap();
    let before = volume.stats().unwrap();
    volume
        .write(&mut ws, 0, &vec![0; 200 * BLOCK_SIZE])
        .unwrap();
    let after = volume.stats().unwrap();
    assert_eq!(before.log_bytes, after.log_bytes);
    assert_eq!(after.mapped_blocks, 0);
    // One block of data between zeros maps one block.
    let mut data = vec![0; 16 * BLOCK_SIZE];
    fill(5, &mut data[7 * BLOCK_SIZE..8 * BLOCK_SIZE]);
    volume.write(&mut ws, 32, &data).unwrap();
    assert_eq!(volume.stats().unwrap().mapped_blocks, 1);
    assert_eq!(volume.next_mapped(&mut ws, 0).unwrap(), Some((39, 1)));
    assert_eq!(volume.next_mapped(&mut ws, 40).unwrap(), None);
}

#[test]
fn rewriting_does_not_grow_the_image_for_ever() {
    let (file, volume) = fresh(16384);
    let mut tested = Tested::new(volume, vec![0; BLOCKS as usize], 0);
    let mut rng = Rng(7);
    let mut segments = Vec::new();
    for _ in 0..20 {
        assert!(tested.write(0, BLOCKS, false, &mut rng));
        assert!(tested.checkpoint());
        segments.push(tested.volume.stats().unwrap().segments);
    }
    // Dead segments are used again two checkpoints later.
    let (first, second) = segments.split_at(10);
    assert!(
        second.iter().max() <= first.iter().max().map(|most| most + 8).as_ref(),
        "{segments:?}"
    );
    assert_eq!(read_all(&tested.volume), tested.state());
    tested.volume.close().unwrap();
    assert_checked(&file, "after rewriting");
}

#[test]
fn attaching_and_detaching_does_not_grow_the_image() {
    let (file, volume) = fresh(65536);
    let mut tested = Tested::new(volume, vec![0; BLOCKS as usize], 0);
    let mut rng = Rng(3);
    assert!(tested.write(0, 300, false, &mut rng));
    tested.volume.close().unwrap();
    let mut lengths = Vec::new();
    for _ in 0..30 {
        let volume = Vol::open(file.clone(), Access::Write).unwrap();
        volume.close().unwrap();
        lengths.push(file.bytes().len());
    }
    assert!(
        lengths
            .iter()
            .skip(5)
            .all(|&l| l <= lengths[4] + (512 << 10)),
        "{lengths:?}"
    );
    assert_checked(&file, "after thirty rounds");
}

#[test]
fn many_threads_at_once() {
    let (file, volume) = fresh(65536);
    let volume = Arc::new(volume);
    let threads: Vec<_> = (0..4u64)
        .map(|t| {
            let volume = volume.clone();
            std::thread::spawn(move || {
                // Each thread has blocks of its own, interleaved with those of the others.
                let mut rng = Rng(t);
                let mut ws = volume.workspace().unwrap();
                let mut tags = vec![0u32; BLOCKS as usize / 4];
                let mut block = vec![0; BLOCK_SIZE];
                for round in 0..3000u32 {
                    let i = rng.below(tags.len() as u64) as usize;
                    let at = i as u64 * 4 + t;
                    match rng.below(8) {
                        0 => {
                            volume.zero(&mut ws, at, 1).unwrap();
                            tags[i] = 0;
                        }
                        1 => volume.flush().unwrap(),
                        2..=4 => {
                            volume.read(&mut ws, at, &mut block).unwrap();
                            assert_eq!(tag_of(&block), tags[i], "thread {t} round {round}");
                        }
                        _ => {
                            tags[i] = 1 + round * 4 + t as u32;
                            fill(tags[i], &mut block);
                            volume.write(&mut ws, at, &block).unwrap();
                        }
                    }
                    if t == 0 && round % 500 == 0 {
                        volume.checkpoint().unwrap();
                    }
                }
                tags
            })
        })
        .collect();
    let tags: Vec<_> = threads.into_iter().map(|t| t.join().unwrap()).collect();
    let expected: Vec<u32> = (0..BLOCKS as usize).map(|b| tags[b % 4][b / 4]).collect();
    assert_eq!(read_all(&volume), expected);
    volume.close().unwrap();
    assert_checked(&file, "after threads");
    let volume = Vol::open(file, Access::Write).unwrap();
    assert_eq!(read_all(&volume), expected);
}

#[test]
fn concurrent_flushes_share_one_fsync() {
    let (file, volume) = fresh(4096);
    let volume = Arc::new(volume);
    let before = file.syncs();
    const THREADS: u64 = 8;
    const ROUNDS: u64 = 200;
    let threads: Vec<_> = (0..THREADS)
        .map(|t| {
            let volume = volume.clone();
            std::thread::spawn(move || {
                let mut ws = volume.workspace().unwrap();
                let mut block = vec![0; BLOCK_SIZE];
                for round in 0..ROUNDS {
                    fill(round as u32 + 1, &mut block);
                    volume.write(&mut ws, t, &block).unwrap();
                    volume.flush().unwrap();
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    let syncs = file.syncs() - before;
    // Checkpoints in the background sync as well.
    let own = 2 * volume.stats().unwrap().checkpoints;
    assert!(syncs <= THREADS * ROUNDS + own, "{syncs} fsyncs");
    assert!(
        syncs >= ROUNDS,
        "{syncs} fsyncs are fewer than one flush a round needs"
    );
}

#[test]
fn a_read_only_volume_changes_nothing() {
    let (file, volume) = fresh(65536);
    let mut tested = Tested::new(volume, vec![0; BLOCKS as usize], 0);
    let mut rng = Rng(1);
    assert!(tested.write(0, 200, false, &mut rng));
    assert!(tested.flush());
    let state = tested.state();
    // The image is as after a crash: the log must be replayed, in memory only.
    let crashed = file.copy();
    drop(tested);
    let before = crashed.operations();
    let volume = Vol::open(crashed.clone(), Access::Read).unwrap();
    assert_eq!(read_all(&volume), state);
    let mut ws = volume.workspace().unwrap();
    let error = volume.write(&mut ws, 0, &[1; BLOCK_SIZE]);
    assert_eq!(error, Err(Error::ReadOnly));
    assert_eq!(volume.zero(&mut ws, 0, 1), Err(Error::ReadOnly));
    volume.flush().unwrap();
    volume.close().unwrap();
    assert_eq!(crashed.operations(), before);
}

#[test]
fn ranges_beyond_the_end_are_refused() {
    let (_, volume) = fresh(65536);
    let mut ws = volume.workspace().unwrap();
    let mut block = vec![0; 2 * BLOCK_SIZE];
    for at in [BLOCKS, BLOCKS - 1, u64::MAX] {
        assert!(matches!(
            volume.read(&mut ws, at, &mut block),
            Err(Error::Invalid(_))
        ));
        assert!(matches!(
            volume.write(&mut ws, at, &block),
            Err(Error::Invalid(_))
        ));
        assert!(matches!(
            volume.zero(&mut ws, at, 2),
            Err(Error::Invalid(_))
        ));
    }
    volume.close().unwrap();
    assert_eq!(volume.read(&mut ws, 0, &mut block), Err(Error::Closed));
    assert_eq!(volume.flush(), Err(Error::Closed));
}

/// P2, I13: the log has its next segments on a full file system too, so a flush succeeds.
#[test]
fn a_full_backing_file_fails_writes_at_once_and_loses_nothing() {
    let (file, volume) = fresh(65536);
    let mut tested = Tested::new(volume, vec![0; BLOCKS as usize], 0);
    let mut rng = Rng(11);
    assert!(tested.write(0, 64, false, &mut rng));
    assert!(tested.flush());
    file.limit(3 << 20);
    let mut ws = tested.volume.workspace().unwrap();
    let mut data = vec![0; 16 * BLOCK_SIZE];
    let mut acknowledged = 64;
    let error = loop {
        for (i, block) in data.chunks_exact_mut(BLOCK_SIZE).enumerate() {
            fill(2 + 3 * (acknowledged as u32 + i as u32), block);
        }
        match tested.volume.write(&mut ws, acknowledged, &data) {
            Ok(()) => acknowledged += 16,
            Err(error) => break error,
        }
    };
    assert_eq!(error, Error::NoSpace);
    tested.volume.flush().unwrap();
    let tags = read_all(&tested.volume);
    assert_eq!(tags[..64], tested.state()[..64]);
    for at in 64..acknowledged {
        assert_eq!(tags[at as usize], 2 + 3 * at as u32);
    }
    // Acknowledged data is durable.
    let volume = Vol::open(file.after_crash(&mut rng), Access::Read).unwrap();
    assert_eq!(read_all(&volume), tags);
    // When there is room again, writing continues.
    file.limit(1 << 40);
    tested.volume.write(&mut ws, acknowledged, &data).unwrap();
}

/// P4, P6: regions that were never touched take neither space nor memory.
#[test]
fn a_huge_empty_device_costs_nothing() {
    let file = SimFile::new();
    let huge = cloop::engine::CreateOptions {
        size: 1 << 50,
        ..options(65536, Algorithm::Lz4)
    };
    Vol::create(&file, &huge).unwrap();
    let volume = Vol::open(file, Access::Write).unwrap();
    let mut ws = volume.workspace().unwrap();
    assert_eq!(volume.stats().unwrap().table_memory, 0);
    volume.zero(&mut ws, 0, (1 << 38) - 1).unwrap();
    let mut block = vec![0xff; BLOCK_SIZE];
    volume.read(&mut ws, (1 << 38) - 1, &mut block).unwrap();
    assert_eq!(block, vec![0; BLOCK_SIZE]);
    assert_eq!(volume.stats().unwrap().table_memory, 0);
    fill(8, &mut block);
    volume.write(&mut ws, (1 << 38) - 1, &block).unwrap();
    assert_eq!(
        volume.next_mapped(&mut ws, 0).unwrap(),
        Some(((1 << 38) - 1, 1))
    );
    assert!(volume.stats().unwrap().table_memory < 64 << 10);
    let _: &Workspace = &ws;
}

type Workspace = cloop::engine::Workspace<Home>;

/// All bytes of the device.
fn contents(volume: &Vol) -> Vec<u8> {
    let mut ws = volume.workspace().unwrap();
    let mut data = vec![0; BLOCKS as usize * BLOCK_SIZE];
    volume.read(&mut ws, 0, &mut data).unwrap();
    data
}

/// Records that are encoded before they are placed are those of a write, also where the end of a segment cuts them.
#[test]
fn a_batch_is_what_a_write_makes() {
    const AT_ONCE: usize = 64 * BLOCK_SIZE;
    let mut data = vec![0; 600 * BLOCK_SIZE];
    for (tag, block) in (1..).zip(data.chunks_exact_mut(BLOCK_SIZE)) {
        match tag {
            // Noise, then zeros and what can be compressed, alone and together in a record.
            1..=300 => {
                let mut rng = Rng(tag.into());
                let words = block.chunks_exact_mut(8);
                words.for_each(|word| word.copy_from_slice(&rng.next_u64().to_le_bytes()));
            }
            450..=520 => {}
            _ if tag % 5 == 0 => {}
            _ => fill(tag, block),
        }
    }
    for record_size in [4096, 16384, 65536, 131_072] {
        let (one, two) = (fresh(record_size).1, fresh(record_size).1);
        let (mut ws, mut other) = (one.workspace().unwrap(), two.workspace().unwrap());
        let mut batch = two.batch(AT_ONCE).unwrap();
        // The second time blocks are overwritten, some of them with zeros.
        for start in [3, 40] {
            for (start, data) in (start..).step_by(64).zip(data.chunks(AT_ONCE)) {
                one.write(&mut ws, start, data).unwrap();
                batch.clear();
                let before = contents(&two);
                two.encode(&mut other, start, data, &mut batch).unwrap();
                let more = two.encode(&mut other, 0, &vec![1; AT_ONCE], &mut batch);
                assert!(matches!(more, Err(Error::Invalid(_))), "{more:?}");
                assert!(contents(&two) == before, "{record_size}");
                two.write_batch(&mut other, &batch).unwrap();
            }
        }
        assert!(contents(&two) == contents(&one), "{record_size}");
        let (one, two) = (one.stats().unwrap(), two.stats().unwrap());
        assert_eq!(one.mapped_blocks, two.mapped_blocks, "{record_size}");
        // The same, but for leaves of the table that a checkpoint found at another moment.
        let (less, more) = (
            one.live_bytes.min(two.live_bytes),
            one.live_bytes.max(two.live_bytes),
        );
        assert!(more - less < 1024, "{record_size}: {one:?} {two:?}");
        assert!(
            one.segments.abs_diff(two.segments) <= 1,
            "{record_size}: {one:?} {two:?}"
        );
    }
}
