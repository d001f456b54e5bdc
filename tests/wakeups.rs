// SPDX-License-Identifier: GPL-2.0 OR MIT
//! How often the background threads of a volume are woken: they run beside users, on the same CPUs.

use cloop::engine::{
    Access, Algorithm, Compression, CreateOptions, Recompression, Volume, BLOCK_SIZE,
};
use cloop::platform::std::{Std, StdFile};
use std::fs;

/// Times that the background threads of all volumes of this process have gone to sleep.
fn sleeps() -> u64 {
    let mut sum = 0;
    for task in fs::read_dir("/proc/self/task").unwrap() {
        let task = task.unwrap().path();
        if !fs::read_to_string(task.join("comm"))
            .unwrap()
            .starts_with("cloop-")
        {
            continue;
        }
        let status = fs::read_to_string(task.join("status")).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("voluntary_ctxt_switches:"));
        let count = line.and_then(|line| line.split_whitespace().nth(1));
        sum += count.unwrap().parse::<u64>().unwrap();
    }
    sum
}

/// A flush gives background threads nothing to do, so it wakes none of them, however many there are.
#[test]
fn a_flush_wakes_no_background_thread() {
    const FLUSHES: u64 = 2000;
    let file = StdFile::from_file(tempfile::tempfile().unwrap()).unwrap();
    let options = CreateOptions {
        size: 64 << 20,
        record_size: 65536,
        segment_size: cloop::engine::DEFAULT_SEGMENT_SIZE,
        compression: Compression::of(Algorithm::Lz4),
        recompression: Recompression::OFF,
        uuid: [7; 16],
    };
    Volume::<Std>::create(&file, &options).unwrap();
    let volume = Volume::<Std>::open(file, Access::Write).unwrap();
    let mut ws = volume.workspace().unwrap();
    let before = sleeps();
    for n in 0..FLUSHES {
        volume
            .write(&mut ws, n % 1000, &[n as u8 | 1; BLOCK_SIZE])
            .unwrap();
        volume.flush().unwrap();
    }
    let syncs = volume.stats().unwrap().syncs;
    assert!(syncs >= FLUSHES, "{syncs} syncs");
    // Each flush takes 4 KiB of the log, so they fill 8 segments. For each of these there is something to do, and for
    // checkpoints as well.
    let sleeps = sleeps() - before;
    assert!(sleeps < FLUSHES / 4, "{sleeps} times for {FLUSHES} flushes");
    volume.close().unwrap();
}
