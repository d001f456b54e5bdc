// SPDX-License-Identifier: GPL-2.0
//! [`Window`]: a part of the backing file with several records, read at once for a large request.

use crate::engine::format::{Entry, BLOCK_SIZE};
use crate::engine::spares::Spares;
use crate::engine::Result;
use crate::platform::mem::{boxed, Box, Buf, Need};
use crate::platform::{Monitor, Platform, Rank};
use core::sync::atomic::{AtomicU64, Ordering};

/// Bytes of a window: half of a request of 1 MiB that does not compress at all, and of the headers of its records.
pub(super) const WINDOW: usize = 576 << 10;
/// Bytes between two records that are read along with them, rather than apart: less than the disk delivers in the time of
/// one more read.
pub(super) const GAP: u64 = 16 << 10;
/// Windows that exist at most. When all of them are in use, further large requests read their records one by one.
const MOST: usize = 16;

/// Bytes of the backing file that were read for the records in them. A window that is out of date does no harm: its records
/// fail their checks, and are read again.
#[derive(Default)]
pub(crate) struct Window {
    /// Byte offset in the image.
    from: u64,
    /// Bytes read.
    len: usize,
    /// None as long as no request needed it.
    pub(super) memory: Option<Buf>,
}

impl Window {
    /// The bytes from the record at `entry` on, if all of its sectors are here.
    pub(super) fn record(&self, entry: Entry) -> Option<&[u8]> {
        let at = entry.address().checked_sub(self.from)? as usize;
        let end = at / BLOCK_SIZE * BLOCK_SIZE + entry.sectors() * BLOCK_SIZE;
        self.memory.as_ref()?.get(..self.len)?.get(at..end)
    }

    /// Reads `len` bytes from byte `from` of the image on by `read`, into memory that is there. True if that succeeded.
    pub(super) fn read(
        &mut self,
        from: u64,
        len: usize,
        read: impl FnOnce(&mut [u8], u64) -> Result,
    ) -> bool {
        let Some(memory) = self
            .memory
            .as_mut()
            .and_then(|memory| memory.get_mut(..len))
        else {
            return false;
        };
        let done = read(memory, from).is_ok();
        (self.from, self.len) = (from, if done { len } else { 0 });
        done
    }

    /// Forgets the bytes, and gives up the memory.
    pub(crate) fn take_memory(&mut self) -> Option<Buf> {
        self.len = 0;
        self.memory.take()
    }
}

/// Memory for the windows of a volume. It is allocated when a request needs it. If there is none, records are read one by
/// one.
pub(crate) struct WindowPool<P: Platform> {
    spares: P::Monitor<Spares<Buf>>,
    /// Windows that exist. It is counted under the lock, and read without.
    made: AtomicU64,
}

impl<P: Platform> WindowPool<P> {
    /// A pool without memory.
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`](crate::engine::Error::NoMemory).
    // A stack frame of its own: opening an image has many.
    #[inline(never)]
    pub(crate) fn new() -> Result<Box<Self>> {
        boxed(Self {
            spares: P::Monitor::new(Spares::new(MOST, 0)?, Rank::Pool)?,
            made: AtomicU64::new(0),
        })
    }

    fn note(&self, spares: &Spares<Buf>) {
        self.made.store(spares.made() as u64, Ordering::Relaxed);
    }

    /// Memory for one window.
    pub(super) fn take(&self) -> Option<Buf> {
        let mut spares = self.spares.lock();
        let kept = spares.take();
        if kept.is_some() || !spares.may_grow() {
            return kept;
        }
        drop(spares);
        let made = Buf::zeroed_if(Need::Optional, WINDOW).ok();
        let mut spares = self.spares.lock();
        spares.grown(made.is_some());
        self.note(&spares);
        made
    }

    /// Takes the memory of a window back.
    pub(crate) fn give_back(&self, memory: Buf) {
        self.spares.lock().put(memory);
    }

    /// Bytes of memory. Takes no lock.
    pub(crate) fn memory(&self) -> u64 {
        self.made.load(Ordering::Relaxed) * WINDOW as u64
    }

    /// Gives up the windows that were not needed since the last call.
    pub(crate) fn trim(&self) {
        while self.give_up(Spares::trim) > 0 {}
    }

    /// Gives up windows until `bytes` bytes are given back or none is left, and returns how many bytes were.
    pub(crate) fn shed(&self, bytes: u64) -> u64 {
        let mut given = 0;
        while given < bytes {
            match self.give_up(Spares::shed) {
                0 => break,
                more => given += more,
            }
        }
        given
    }

    fn give_up(&self, choose: impl FnOnce(&mut Spares<Buf>) -> Option<Buf>) -> u64 {
        let mut spares = self.spares.lock();
        let memory = choose(&mut spares);
        self.note(&spares);
        drop(spares);
        memory.map_or(0, |_| WINDOW as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::std::Std;

    #[test]
    fn a_record_is_in_the_window_only_as_a_whole() {
        let mut window = Window::default();
        let entry = Entry::new(8192 + 4000, 8192 / 16, 0, 2);
        assert!(window.record(entry).is_none());
        window.memory = WindowPool::<Std>::new().unwrap().take();
        assert_eq!(entry.sectors(), 3);
        let fill = |memory: &mut [u8], _| {
            memory.fill(7);
            Ok(())
        };
        for (from, len, found) in [
            (8192, 3 * 4096, Some(3 * 4096 - 4000)),
            (8192, 2 * 4096, None),
            (4096, 4 * 4096, Some(3 * 4096 - 4000)),
            (12_288, 4 * 4096, None),
        ] {
            assert!(window.read(from, len, fill));
            let bytes = window.record(entry);
            assert_eq!(bytes.map(<[u8]>::len), found, "{from} {len}");
        }
        assert!(!window.read(0, WINDOW + 4096, fill));
        let failed = |_: &mut [u8], _| Err(crate::engine::Error::Io(5));
        assert!(!window.read(8192, 3 * 4096, failed));
        assert!(window.record(entry).is_none());
    }

    #[test]
    fn few_windows_exist_and_all_can_be_given_up() {
        let pool = WindowPool::<Std>::new().unwrap();
        let taken: std::vec::Vec<Buf> = (0..MOST).map(|_| pool.take().unwrap()).collect();
        assert!(pool.take().is_none());
        assert_eq!((pool.memory(), pool.shed(1)), ((MOST * WINDOW) as u64, 0));
        for memory in taken {
            pool.give_back(memory);
        }
        assert_eq!(pool.shed(1), WINDOW as u64);
        // The others were all in use since the last time.
        pool.trim();
        assert_eq!(pool.memory(), ((MOST - 1) * WINDOW) as u64);
        let one = pool.take().unwrap();
        pool.give_back(one);
        pool.trim();
        assert_eq!(pool.memory(), WINDOW as u64);
        assert_eq!(pool.shed(u64::MAX), WINDOW as u64);
        assert_eq!((pool.memory(), pool.shed(1)), (0, 0));
    }
}
