// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The memory of a volume, counted by the allocator of this program: little when the volume is idle, more under load, and
//! little again afterwards. The memory of the requests of a device is part of it, in pools as the driver has them.

use cloop::engine::{
    Access, Algorithm, Compression, CreateOptions, Pool, Recompression, Volume, Workspace,
    BLOCK_SIZE,
};
use cloop::platform::sim::scarce_memory;
use cloop::platform::std::{Std, StdFile};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// The allocator of the system, which counts the bytes that are allocated.
struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);
/// The count is of the whole program, so the tests take turns.
static TURN: Mutex<()> = Mutex::new(());

// SAFETY: The methods are those of the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: By the safety requirement of this method.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: By the safety requirement of this method.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

type Home = Std<StdFile>;

const MIB: usize = 1 << 20;
const SIZE: usize = 96 * MIB;
/// The most that an idle device may take.
const IDLE: usize = 3 * MIB;
/// Requests at the same time.
const CROWD: usize = 8;

fn options() -> CreateOptions {
    CreateOptions {
        size: SIZE as u64,
        record_size: 64 << 10,
        segment_size: cloop::engine::DEFAULT_SEGMENT_SIZE,
        compression: Compression::of(Algorithm::Lz4),
        recompression: Recompression::OFF,
        uuid: [7; 16],
    }
}

/// A volume with pools of workspaces for two lanes: writes and discards, or writes of data and of metadata.
struct Device {
    volume: Volume<Home>,
    lanes: [Pool<Home, Workspace<Home>>; 2],
}

impl Device {
    fn new() -> Self {
        let file = StdFile::from_file(tempfile::tempfile().unwrap()).unwrap();
        Volume::<Home>::create(&file, &options()).unwrap();
        let volume = Volume::<Home>::open(file, Access::Write).unwrap();
        let lane = || {
            let first = volume.workspace().unwrap();
            let bytes = first.memory();
            Pool::new(64, first, bytes).unwrap()
        };
        let lanes = [lane(), lane()];
        Self { volume, lanes }
    }

    fn with<R>(&self, lane: usize, f: impl FnOnce(&mut Workspace<Home>) -> R) -> R {
        self.lanes[lane].with(|need| self.volume.workspace_if(need), f)
    }

    /// Writes most of the device and reads it back, many requests at the same time.
    fn work(&self, memory: u64) {
        let start = Barrier::new(CROWD);
        thread::scope(|scope| {
            for thread in 0..CROWD {
                let start = &start;
                scope.spawn(move || {
                    scarce_memory(memory);
                    let piece = MIB / BLOCK_SIZE;
                    let share = SIZE / MIB / CROWD * piece;
                    let first = (thread * share) as u64;
                    // One byte in seven is random, so that the buffers of the log fill quickly.
                    let mut noise = thread as u32 + 1;
                    let data: Vec<u8> = (0..MIB)
                        .map(|at| match at % 7 {
                            0 => at as u8,
                            _ => {
                                noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                                (noise >> 24) as u8
                            }
                        })
                        .collect();
                    start.wait();
                    for at in (0..share as u64).step_by(piece) {
                        let block = first + at;
                        self.with(0, |ws| self.volume.write(ws, block, &data))
                            .unwrap();
                    }
                    self.volume.flush().unwrap();
                    let mut out = vec![0; MIB];
                    for at in (0..share as u64).step_by(piece) {
                        self.with(1, |ws| self.volume.read(ws, first + at, &mut out))
                            .unwrap();
                        assert!(out == data);
                    }
                });
            }
        });
    }

    fn trim(&self) {
        self.volume.trim();
        for lane in &self.lanes {
            lane.trim();
        }
    }
}

fn turn() -> std::sync::MutexGuard<'static, ()> {
    TURN.lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Waits until the memory is as it must be. The threads of the volume may still hold a buffer.
fn eventually<T: std::fmt::Debug>(why: &str, check: impl Fn() -> (bool, T)) {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let (right, found) = check();
        if right {
            return;
        }
        assert!(Instant::now() < end, "{found:?} bytes, and {why}");
        thread::sleep(Duration::from_millis(100));
    }
}

/// P6: an idle device takes little memory, also after it was used.
#[test]
fn an_idle_device_takes_little_memory() {
    let _turn = turn();
    let before = ALLOCATED.load(Ordering::Relaxed);
    let taken = || ALLOCATED.load(Ordering::Relaxed) - before;
    let device = Device::new();
    assert!(taken() <= IDLE, "{} bytes after an opening", taken());
    device.work(1);
    let table = device.volume.table_memory() as usize;
    assert!(taken() > IDLE + 4 * MIB, "{} bytes under load", taken());
    eventually("no request is under way", || {
        device.trim();
        let found = (taken(), device.volume.sheddable());
        (taken() <= IDLE + table, found)
    });
    // It works as before.
    device.work(1);
    device.volume.close().unwrap();
}

/// Requests that get no memory take turns with what the device keeps for them: none fails, and none waits for ever.
#[test]
fn a_device_goes_on_without_memory_to_spare() {
    let _turn = turn();
    let before = ALLOCATED.load(Ordering::Relaxed);
    let device = Device::new();
    for memory in [0, 3] {
        device.work(memory);
        device.volume.checkpoint().unwrap();
    }
    drop(device);
    let device = Device::new();
    device.work(0);
    let table = device.volume.table_memory() as usize;
    // What the threads of the test have is freed. The threads of the volume have memory to spare, and give it back.
    eventually("there is no memory to spare", || {
        device.trim();
        let taken = ALLOCATED.load(Ordering::Relaxed) - before;
        let sheddable = device.volume.sheddable() as usize;
        let right = taken <= IDLE + table && sheddable == table;
        (right, (taken, sheddable, table))
    });
    device.volume.close().unwrap();
}
