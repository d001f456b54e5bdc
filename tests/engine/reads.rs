// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Reads: how many reads of the backing file they cost, what requests share, and what damage costs.

use crate::model::{fill, options, tag_of, Home, Vol};
use cloop::engine::{Access, Algorithm, CreateOptions, Error, Volume, Workspace, BLOCK_SIZE};
use cloop::platform::sim::SimFile;
use cloop::platform::std::{Std, StdFile};
use cloop::platform::BackingFile;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// Blocks of a request of 1 MiB.
const MIB: u64 = 256;
/// Where the log begins.
const DATA_START: u64 = 1 << 20;

/// An image of 4 MiB, written from its beginning to its end.
fn written(record_size: u32, algorithm: Algorithm) -> SimFile {
    let file = SimFile::new();
    let options = CreateOptions {
        size: 4 * MIB * BLOCK_SIZE as u64,
        segment_size: 1 << 20,
        ..options(record_size, algorithm)
    };
    Vol::create(&file, &options).unwrap();
    let volume = Vol::open(file.clone(), Access::Write).unwrap();
    let mut ws = volume.workspace().unwrap();
    let mut data = vec![0; 32 * BLOCK_SIZE];
    for at in (0..4 * MIB).step_by(32) {
        for (block, bytes) in (at..).zip(data.chunks_exact_mut(BLOCK_SIZE)) {
            fill(block as u32 + 1, bytes);
        }
        volume.write(&mut ws, at, &data).unwrap();
    }
    volume.close().unwrap();
    file
}

/// Reads blocks, which must be those that were written.
fn read(volume: &Vol, ws: &mut Workspace<Home>, block: u64, count: u64) -> Result<(), Error> {
    let mut out = vec![0; count as usize * BLOCK_SIZE];
    volume.read(ws, block, &mut out)?;
    for (block, bytes) in (block..).zip(out.chunks_exact(BLOCK_SIZE)) {
        assert_eq!(tag_of(bytes), block as u32 + 1);
    }
    Ok(())
}

#[test]
fn a_large_read_takes_few_reads_of_the_backing_file() {
    for record_size in [4096, 16_384, 65_536, 131_072] {
        for algorithm in [Algorithm::Lz4, Algorithm::Raw] {
            let file = written(record_size, algorithm);
            let volume = Vol::open(file, Access::Read).unwrap();
            let mut ws = volume.workspace().unwrap();
            // The table is loaded.
            for block in (0..4 * MIB).step_by(512) {
                read(&volume, &mut ws, block, 1).unwrap();
            }
            for (block, count, most) in [(0, MIB, 2), (MIB, MIB, 2), (3 * MIB + 7, 77, 1)] {
                let before = SimFile::reads_here();
                read(&volume, &mut ws, block, count).unwrap();
                let reads = SimFile::reads_here() - before;
                assert!(
                    reads <= most,
                    "{record_size} {algorithm:?}: {count} blocks take {reads} reads"
                );
            }
        }
    }
}

#[test]
fn damage_in_a_large_read_costs_the_blocks_of_its_record_alone() {
    for (record_size, unreadable) in [
        (4096, false),
        (16_384, false),
        (65_536, false),
        (4096, true),
    ] {
        let file = written(record_size, Algorithm::Lz4);
        // A sector in the middle of what one request reads.
        let at = DATA_START + 200 * 1024;
        match unreadable {
            true => file.spoil(at, 4096),
            false => file.damage(at + 2000, 0x10),
        }
        let volume = Vol::open(file.clone(), Access::Read).unwrap();
        let mut ws = volume.workspace().unwrap();
        let lost: Vec<u64> = (0..4 * MIB)
            .filter(|&block| read(&volume, &mut ws, block, 1).is_err())
            .collect();
        let (first, last) = (lost[0], lost[lost.len() - 1]);
        // A sector may have parts of several records of one block.
        let most = match unreadable {
            true => 16,
            false => u64::from(record_size) / BLOCK_SIZE as u64,
        };
        assert!(last - first < most, "{record_size}: {lost:?} lost");
        // The records around it are read together with it, and are whole.
        assert!(read(&volume, &mut ws, 0, MIB).is_err());
        read(&volume, &mut ws, 0, first).unwrap();
        read(&volume, &mut ws, last + 1, MIB).unwrap();
    }
}

/// A file whose reads of the log wait until the gate is open.
#[derive(Clone)]
struct Gated(Arc<Gate>);

struct Gate {
    file: StdFile,
    /// Whether it is open, and how many reads of the log there were.
    state: Mutex<(bool, u64)>,
    changed: Condvar,
}

impl Gated {
    fn set_open(&self, open: bool) {
        self.0.state.lock().unwrap().0 = open;
        self.0.changed.notify_all();
    }

    fn reads(&self) -> u64 {
        self.0.state.lock().unwrap().1
    }

    /// Waits until there were more than `before` reads.
    fn wait_for_read(&self, before: u64) {
        let state = self.0.state.lock().unwrap();
        drop(self.0.changed.wait_while(state, |s| s.1 == before).unwrap());
    }
}

impl BackingFile for Gated {
    fn len(&self) -> Result<u64, Error> {
        self.0.file.len()
    }
    fn fixed_size(&self) -> bool {
        self.0.file.fixed_size()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Error> {
        if offset >= DATA_START {
            let mut state = self.0.state.lock().unwrap();
            state.1 += 1;
            self.0.changed.notify_all();
            drop(self.0.changed.wait_while(state, |s| !s.0).unwrap());
        }
        self.0.file.read_at(buf, offset)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), Error> {
        self.0.file.write_at(buf, offset)
    }
    fn sync(&self) -> Result<(), Error> {
        self.0.file.sync()
    }
    fn allocate(&self, offset: u64, len: u64) -> Result<(), Error> {
        self.0.file.allocate(offset, len)
    }
    fn punch(&self, offset: u64, len: u64) -> Result<(), Error> {
        self.0.file.punch(offset, len)
    }
    fn truncate(&self, len: u64) -> Result<(), Error> {
        self.0.file.truncate(len)
    }
    fn free_space(&self) -> Result<Option<u64>, Error> {
        self.0.file.free_space()
    }
    fn allocated(&self) -> Result<u64, Error> {
        self.0.file.allocated()
    }
}

#[test]
fn requests_for_one_record_read_it_once() {
    let file = StdFile::from_file(tempfile::tempfile().unwrap()).unwrap();
    let gate = Gated(Arc::new(Gate {
        file,
        state: Mutex::new((true, 0)),
        changed: Condvar::new(),
    }));
    let options = options(65_536, Algorithm::Lz4);
    Volume::<Std<Gated>>::create(&gate, &options).unwrap();
    let volume = Volume::<Std<Gated>>::open(gate.clone(), Access::Write).unwrap();
    let mut ws = volume.workspace().unwrap();
    let mut data = vec![0; 16 * BLOCK_SIZE];
    for (tag, bytes) in (1..).zip(data.chunks_exact_mut(BLOCK_SIZE)) {
        fill(tag, bytes);
    }
    volume.write(&mut ws, 0, &data).unwrap();
    volume.flush().unwrap();

    gate.set_open(false);
    let before = gate.reads();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| gate.wait_for_read(before));
        for block in 0..16 {
            let volume = &volume;
            scope.spawn(move || {
                let mut ws = volume.workspace().unwrap();
                // All of the record, parts of it, and single blocks.
                let count = [16, 1, 5, 1][block as usize % 4].min(16 - block);
                let mut out = vec![0; count as usize * BLOCK_SIZE];
                volume.read(&mut ws, block, &mut out).unwrap();
                for (block, bytes) in (block..).zip(out.chunks_exact(BLOCK_SIZE)) {
                    assert_eq!(tag_of(bytes), block as u32 + 1);
                }
            });
        }
        waits.join().unwrap();
        // Time for the others to come.
        std::thread::sleep(Duration::from_millis(100));
        gate.set_open(true);
    });
    assert_eq!(gate.reads() - before, 1);
    // The record stays for later requests, and goes when memory is short.
    volume.read(&mut ws, 3, &mut data[..BLOCK_SIZE]).unwrap();
    assert_eq!(gate.reads() - before, 1);
    volume.shed(1);
    volume.read(&mut ws, 3, &mut data[..BLOCK_SIZE]).unwrap();
    assert_eq!(gate.reads() - before, 2);
}
