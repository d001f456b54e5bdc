// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Data is compressed again that has become cold: what that saves, that it ends, and what is left after interruptions.

use crate::model::{assert_checked, options, Home, Vol, BLOCKS};
use cloop::engine::{
    Access, Algorithm, Compression, CreateOptions, Error, Recompression, Workspace, BLOCK_SIZE,
};
use cloop::platform::sim::{Rng, SimFile};
use std::time::{Duration, Instant};

fn compression(text: &str) -> Compression {
    Compression::parse(text).unwrap()
}

/// Cold data is compressed with `with`, as soon as the device is idle.
fn at_once(with: &str) -> Recompression {
    Recompression {
        after: 0,
        ..Recompression::with(compression(with))
    }
}

/// A block of words, frequent ones and rare ones, which LZ4 compresses to two thirds and Zstandard to less than half.
fn words(rng: &mut Rng) -> Vec<u8> {
    const SYLLABLES: [&str; 12] = [
        "ba", "con", "di", "e", "fur", "go", "in", "lo", "men", "tra", "un", "vis",
    ];
    let mut block = Vec::with_capacity(BLOCK_SIZE + 16);
    while block.len() < BLOCK_SIZE {
        // Small numbers are frequent.
        let most = (0..2).fold(4000, |most, _| 1 + rng.below(most));
        let word = rng.below(most);
        let mut rest = word + 1;
        while rest > 0 {
            block.extend_from_slice(SYLLABLES[(rest % 12) as usize].as_bytes());
            rest /= 12;
        }
        block.push(b' ');
    }
    block.truncate(BLOCK_SIZE);
    block
}

/// A volume whose contents are known.
struct Known {
    file: SimFile,
    volume: Vol,
    ws: Workspace<Home>,
    content: Vec<u8>,
    rng: Rng,
}

impl Known {
    fn new(with: &str, recompression: Recompression) -> Self {
        let file = SimFile::new();
        let options = CreateOptions {
            compression: compression(with),
            recompression,
            ..options(65_536, Algorithm::Lz4)
        };
        Vol::create(&file, &options).unwrap();
        let volume = Vol::open(file.clone(), Access::Write).unwrap();
        Self {
            ws: volume.workspace().unwrap(),
            content: vec![0; BLOCKS as usize * BLOCK_SIZE],
            file,
            volume,
            rng: Rng(7),
        }
    }

    /// Writes `count` blocks of words from `block` on.
    fn write(&mut self, block: u64, count: u64) {
        let at = block as usize * BLOCK_SIZE;
        let new: Vec<u8> = (0..count).flat_map(|_| words(&mut self.rng)).collect();
        self.volume.write(&mut self.ws, block, &new).unwrap();
        self.content[at..at + new.len()].copy_from_slice(&new);
    }

    fn fill(&mut self) {
        for block in (0..BLOCKS).step_by(16) {
            self.write(block, 16.min(BLOCKS - block));
        }
    }

    /// Writes a quarter of the blocks again, one by one.
    fn scatter(&mut self) {
        for _ in 0..BLOCKS / 4 {
            let block = self.rng.below(BLOCKS);
            self.write(block, 1);
        }
    }

    fn check(&self) {
        let mut ws = self.volume.workspace().unwrap();
        let mut content = vec![0; self.content.len()];
        self.volume.read(&mut ws, 0, &mut content).unwrap();
        assert!(content == self.content);
    }

    fn live(&self) -> u64 {
        self.volume.stats().unwrap().live_bytes
    }

    fn pending(&self) -> u64 {
        self.volume.stats().unwrap().pending_bytes
    }

    /// Waits until all data that could be compressed again was looked at.
    fn wait(&self) {
        let begin = Instant::now();
        while self.pending() > 0 {
            assert!(
                begin.elapsed() < Duration::from_secs(60),
                "{:?}",
                self.volume.stats()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn reopen(&mut self) {
        self.volume.close().unwrap();
        assert_checked(&self.file, "closed");
        self.volume = Vol::open(self.file.clone(), Access::Write).unwrap();
    }

    /// The live bytes of a volume to which this content is written in order.
    fn as_written_new(&self, with: &str) -> u64 {
        let mut new = Self::new(with, Recompression::OFF);
        for (block, data) in (0..).step_by(16).zip(self.content.chunks(16 * BLOCK_SIZE)) {
            new.volume.write(&mut new.ws, block, data).unwrap();
        }
        new.volume.checkpoint().unwrap();
        new.live()
    }
}

/// Whether `size` is at most `percent` of `of`.
fn at_most(size: u64, percent: u64, of: u64) -> bool {
    size * 100 <= of * percent
}

/// A device at rest comes to the size of one that was written with the strong algorithm from the beginning, and then it
/// stays at rest, also after it was closed.
#[test]
fn an_idle_device_is_as_small_as_one_that_was_written_so() {
    let mut known = Known::new("lz4", at_once("zstd:9"));
    known.fill();
    let before = known.live();
    known.wait();
    known.check();
    let direct = known.as_written_new("zstd:9");
    assert!(at_most(direct, 75, before), "{direct} {before}");
    assert!(
        at_most(known.live(), 101, direct),
        "{} {direct}",
        known.live()
    );
    for _ in 0..2 {
        // Until the background has put everything in order, and then some more idle time.
        std::thread::sleep(Duration::from_secs(7));
        let before = known.volume.stats().unwrap();
        std::thread::sleep(Duration::from_secs(8));
        let after = known.volume.stats().unwrap();
        assert_eq!(
            (before.log_bytes, before.pending_bytes),
            (after.log_bytes, 0)
        );
        known.reopen();
        assert_eq!(known.pending(), 0);
        known.check();
    }
}

/// Blocks that were written one by one are merged with their neighbours.
#[test]
fn scattered_writes_are_merged() {
    let mut known = Known::new("zstd:9", at_once("zstd:9"));
    known.fill();
    known.scatter();
    known.volume.set_compression(compression("lz4")).unwrap();
    known.scatter();
    let before = known.live();
    known.wait();
    known.check();
    let direct = known.as_written_new("zstd:9");
    assert!(at_most(direct, 90, before), "{direct} {before}");
    assert!(
        at_most(known.live(), 105, direct),
        "{} {direct}",
        known.live()
    );
    known.reopen();
    known.check();
}

/// A request ends the work at once, and what was not looked at by then is looked at later.
#[test]
fn an_interrupted_pass_goes_on_later() {
    let mut known = Known::new("lz4", at_once("zstd:19"));
    known.fill();
    let written = known.volume.stats().unwrap().recompressed_bytes;
    assert_eq!(written, 0);
    let begin = Instant::now();
    while known.volume.stats().unwrap().recompressed_bytes == 0 {
        assert!(begin.elapsed() < Duration::from_secs(60));
        std::thread::yield_now();
    }
    // In the middle of a segment.
    known.write(5, 1);
    let stats = known.volume.stats().unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let later = known.volume.stats().unwrap();
    // The record that was under way may still come.
    assert!(later.recompressed_bytes <= stats.recompressed_bytes + 65_536);
    assert!(known.pending() > 0);
    known.wait();
    known.check();
    let direct = known.as_written_new("zstd:19");
    assert!(
        at_most(known.live(), 101, direct),
        "{} {direct}",
        known.live()
    );
}

/// All at once, by several threads, beside writes, whatever the image is told to do with cold data.
#[test]
fn a_pass_on_request_compresses_everything() {
    let mut known = Known::new("lz4", Recompression::OFF);
    known.fill();
    let pass = known
        .volume
        .begin_recompression(compression("zstd:15"))
        .unwrap();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| known.volume.recompress(&pass, &mut || true).unwrap());
        }
    });
    assert_eq!(pass.progress(), 1000);
    assert!(pass.content() >= BLOCKS * BLOCK_SIZE as u64 * 95 / 100);
    known.check();
    let direct = known.as_written_new("zstd:15");
    assert!(
        at_most(known.live(), 101, direct),
        "{} {direct}",
        known.live()
    );
    // A second pass places nothing.
    let stats = known.volume.stats().unwrap();
    let pass = known
        .volume
        .begin_recompression(compression("zstd:15"))
        .unwrap();
    known.volume.recompress(&pass, &mut || true).unwrap();
    let after = known.volume.stats().unwrap();
    assert_eq!(stats.recompressed_bytes, after.recompressed_bytes);
    known.volume.compact(&mut |_| true).unwrap();
    known.reopen();
    known.check();
}

/// Full records that users write with this compression, or a stronger one, need not be looked at.
#[test]
fn what_is_written_so_is_not_looked_at() {
    for (with, looked_at) in [("zstd:9", false), ("zstd:10", false), ("zstd:8", true)] {
        let recompression = Recompression::with(compression("zstd:9"));
        let mut known = Known::new(with, recompression);
        known.fill();
        known.volume.checkpoint().unwrap();
        // The last record is not a full one.
        let pending = known.pending();
        let most = u64::from(known.volume.layout().segment_size);
        assert_eq!(pending > most, looked_at, "{with}: {pending}");
    }
}

/// A device that waits for its data to become cold notices that its users have come back: the work for idle times is done
/// as it is without recompression.
#[test]
fn who_waits_for_cold_data_is_woken() {
    let with = Recompression::with(compression("zstd:9"));
    let mut known = Known::new("lz4", with);
    known.fill();
    known.volume.flush().unwrap();
    // By now it has put everything in order, and waits.
    std::thread::sleep(Duration::from_secs(9));
    let before = known.volume.stats().unwrap();
    known.volume.zero(&mut known.ws, 0, BLOCKS).unwrap();
    known.volume.flush().unwrap();
    let begin = Instant::now();
    loop {
        let now = known.volume.stats().unwrap();
        if now.garbage_bytes == 0 && now.freed_segments > before.freed_segments + 8 {
            break;
        }
        assert!(
            begin.elapsed() < Duration::from_secs(30),
            "{before:?} {now:?}"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// What the image is told, and what it is told last.
#[test]
fn the_choice_is_kept_in_the_image() {
    let mut known = Known::new("lz4", Recompression::OFF);
    known.fill();
    assert_eq!(known.volume.recompression(), Recompression::OFF);
    let choice = Recompression {
        compression: Some(compression("zstd:12")),
        after: 3600,
        rate: 2048,
    };
    known.volume.set_recompression(choice).unwrap();
    assert_eq!(known.volume.recompression(), choice);
    known.reopen();
    assert_eq!(known.volume.recompression(), choice);
    let raw = Recompression::with(compression("none"));
    let refused = known.volume.set_recompression(raw);
    assert!(matches!(refused, Err(Error::Invalid(_))), "{refused:?}");
    known.volume.set_recompression(Recompression::OFF).unwrap();
    known.reopen();
    assert_eq!(known.volume.recompression(), Recompression::OFF);
    // Another choice looks at everything again.
    known.volume.set_recompression(at_once("zstd:1")).unwrap();
    assert!(known.pending() > 0);
    known.wait();
    let first = known.live();
    known.volume.set_recompression(at_once("zstd:19")).unwrap();
    assert!(known.pending() > 0);
    known.wait();
    assert!(at_most(known.live(), 97, first));
    known.check();
}
