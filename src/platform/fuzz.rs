// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The home for hostile images: one thread, a file in memory, and the same behaviour every time.
//! The engine works without its background threads (writers and flushes then do their work), so there are
//! none. With one thread, a sleeper is never woken and a lock that is waited for never released: both are
//! panics, so a hang is found at once.

use super::held::Hold;
use super::std::{StdLz4, StdZstdCompressor, StdZstdDecompressor};
use super::{BackingFile, Monitor, MonitorGuard, Platform, Rank, Thread};
use crate::engine::Error;
use core::cell::Cell;
use std::boxed::Box;
use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::vec::Vec;

const PAGE: usize = 4096;
const ZEROS: [u8; PAGE] = [0; PAGE];

#[derive(Clone, Debug, Default)]
struct Contents {
    pages: BTreeMap<u64, Box<[u8; PAGE]>>,
    len: u64,
    writes: u64,
    read: u64,
}

/// A sparse file in memory; clones share the contents.
#[derive(Clone, Debug, Default)]
pub struct MemFile(Arc<Mutex<Contents>>);

impl MemFile {
    /// A file that holds these bytes. Pages of zeros take no memory.
    pub fn new(bytes: &[u8]) -> Self {
        let mut pages = BTreeMap::new();
        for (at, chunk) in (0..).zip(bytes.chunks(PAGE)) {
            // Compare the page as a whole, because a fuzzer counts every comparison that it sees.
            if *chunk != ZEROS[..chunk.len()] {
                let mut page = Box::new([0; PAGE]);
                page[..chunk.len()].copy_from_slice(chunk);
                pages.insert(at, page);
            }
        }
        Self(Arc::new(Mutex::new(Contents {
            pages,
            len: bytes.len() as u64,
            ..Contents::default()
        })))
    }

    fn contents(&self) -> MutexGuard<'_, Contents> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An independent file with the same contents.
    pub fn copy(&self) -> Self {
        let contents = self.contents().clone();
        Self(Arc::new(Mutex::new(contents)))
    }

    /// Changes of any kind so far.
    pub fn writes(&self) -> u64 {
        self.contents().writes
    }

    /// Bytes read so far.
    pub fn bytes_read(&self) -> u64 {
        self.contents().read
    }

    /// All bytes of the file.
    pub fn bytes(&self) -> Vec<u8> {
        let contents = self.contents();
        let mut bytes = std::vec![0; contents.len as usize];
        for (at, page) in &contents.pages {
            let start = *at as usize * PAGE;
            if start < bytes.len() {
                let end = bytes.len().min(start + PAGE);
                bytes[start..end].copy_from_slice(&page[..end - start]);
            }
        }
        bytes
    }

    /// Sets another length; bytes behind the old end read as zeros.
    pub fn set_len(&self, len: u64) {
        let mut contents = self.contents();
        contents.pages.split_off(&len.div_ceil(PAGE as u64));
        contents.len = len;
    }
}

impl BackingFile for MemFile {
    fn len(&self) -> Result<u64, Error> {
        Ok(self.contents().len)
    }

    fn fixed_size(&self) -> bool {
        false
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Error> {
        assert!(offset % PAGE as u64 == 0 && buf.len() % PAGE == 0);
        let mut contents = self.contents();
        contents.read += buf.len() as u64;
        for (at, out) in (offset / PAGE as u64..).zip(buf.chunks_mut(PAGE)) {
            match contents.pages.get(&at) {
                Some(page) => out.copy_from_slice(&page[..]),
                None => out.fill(0),
            }
        }
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), Error> {
        assert!(offset % PAGE as u64 == 0 && buf.len() % PAGE == 0);
        let mut contents = self.contents();
        contents.writes += 1;
        contents.len = contents.len.max(offset + buf.len() as u64);
        for (at, bytes) in (offset / PAGE as u64..).zip(buf.chunks_exact(PAGE)) {
            let page = contents.pages.entry(at).or_insert(Box::new([0; PAGE]));
            page.copy_from_slice(bytes);
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), Error> {
        Ok(())
    }

    fn allocate(&self, offset: u64, len: u64) -> Result<(), Error> {
        let mut contents = self.contents();
        contents.writes += 1;
        contents.len = contents.len.max(offset + len);
        Ok(())
    }

    fn punch(&self, offset: u64, len: u64) -> Result<(), Error> {
        let mut contents = self.contents();
        contents.writes += 1;
        let range = offset / PAGE as u64..(offset + len) / PAGE as u64;
        let punched: Vec<u64> = contents.pages.range(range).map(|(&at, _)| at).collect();
        for at in punched {
            contents.pages.remove(&at);
        }
        Ok(())
    }

    fn truncate(&self, len: u64) -> Result<(), Error> {
        self.set_len(len);
        self.contents().writes += 1;
        Ok(())
    }

    fn free_space(&self) -> Result<Option<u64>, Error> {
        Ok(None)
    }

    fn allocated(&self) -> Result<u64, Error> {
        Ok((self.contents().pages.len() * PAGE) as u64)
    }
}

std::thread_local! {
    static RANDOM: Cell<u64> = const { Cell::new(0) };
}

/// The home. Without `CHECKSUMS` every CRC is 0, on disk as well, so a fuzzer's change is never refused
/// because of its checksum.
#[derive(Debug)]
pub struct Fuzz<const CHECKSUMS: bool>;

impl<const CHECKSUMS: bool> Fuzz<CHECKSUMS> {
    /// From here on all random choices on this thread follow from `seed`.
    pub fn begin(seed: u64) {
        RANDOM.set(seed);
    }
}

impl<const CHECKSUMS: bool> Platform for Fuzz<CHECKSUMS> {
    type Monitor<T: Send + 'static> = LoneMonitor<T>;
    type File = MemFile;
    type Thread = NoThread;
    type Lz4 = StdLz4;
    type ZstdCompressor = StdZstdCompressor;
    type ZstdDecompressor = StdZstdDecompressor;

    fn spawn<F: FnOnce() + Send + 'static>(_: &'static str, _: F) -> Result<NoThread, Error> {
        Ok(NoThread)
    }

    fn random_u64() -> u64 {
        // splitmix64.
        RANDOM.set(RANDOM.get().wrapping_add(0x9e37_79b9_7f4a_7c15));
        let mut z = RANDOM.get();
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn now_ms() -> u64 {
        0
    }

    fn crc32c(crc: u32, data: &[u8]) -> u32 {
        if CHECKSUMS {
            crc32c::crc32c_append(crc, data)
        } else {
            0
        }
    }
}

/// A thread that never ran.
#[derive(Debug)]
pub struct NoThread;

impl Thread for NoThread {
    fn join(&mut self) {}
}

/// A lock that only one thread ever takes.
#[derive(Debug)]
pub struct LoneMonitor<T> {
    value: Mutex<T>,
    rank: Rank,
}

impl<T: Send> Monitor<T> for LoneMonitor<T> {
    type Guard<'a>
        = LoneGuard<'a, T>
    where
        T: 'a;

    fn new(value: T, rank: Rank) -> Result<Self, Error> {
        let value = Mutex::new(value);
        Ok(Self { value, rank })
    }

    fn lock(&self) -> LoneGuard<'_, T> {
        LoneGuard {
            _hold: Hold::take(0, self.rank),
            value: self.value.try_lock().expect("a lock is taken twice"),
        }
    }
}

/// The guard of a [`LoneMonitor`].
#[derive(Debug)]
pub struct LoneGuard<'a, T> {
    value: MutexGuard<'a, T>,
    /// The check of the lock order.
    _hold: Hold,
}

impl<T> MonitorGuard for LoneGuard<'_, T> {
    fn wait(&mut self) {
        panic!("waits for what nobody will do");
    }

    fn wait_idle(&mut self, _timeout_ms: u32) -> bool {
        panic!("waits for what nobody will do");
    }

    fn notify_all(&self) {}

    fn notify_requests(&self) {}
}

impl<T> Deref for LoneGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for LoneGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}
