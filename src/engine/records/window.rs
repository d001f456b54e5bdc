// SPDX-License-Identifier: GPL-2.0
//! [`Window`]: a part of the backing file with several records, read at once for a large request.

use crate::engine::format::{Entry, BLOCK_SIZE};
use crate::engine::Result;
use crate::platform::mem::{boxed, Box, Buf, Vec};
use crate::platform::{Monitor, Platform, Rank};
use core::sync::atomic::{AtomicU64, Ordering};

/// Bytes of a window: half of a request of 1 MiB that does not compress at all, and of the headers of its records.
pub(super) const WINDOW: usize = 576 << 10;
/// Bytes between two records that are read along with them, rather than apart: less than the disk delivers in the time of
/// one more read.
pub(super) const GAP: u64 = 16 << 10;
/// Windows that are kept for later requests.
const KEPT: usize = 4;

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
    idle: P::Monitor<Vec<Buf>>,
    /// Windows that are kept. It is counted under the lock, and read without.
    kept: AtomicU64,
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
            idle: P::Monitor::new(Vec::with_capacity(KEPT)?, Rank::Pool)?,
            kept: AtomicU64::new(0),
        })
    }

    /// Memory for one window.
    pub(super) fn take(&self) -> Option<Buf> {
        let mut idle = self.idle.lock();
        let kept = idle.pop();
        self.kept.store(idle.len() as u64, Ordering::Relaxed);
        drop(idle);
        kept.or_else(|| Buf::zeroed(WINDOW).ok())
    }

    /// Takes the memory of a window back.
    pub(crate) fn give_back(&self, memory: Buf) {
        let mut idle = self.idle.lock();
        if idle.len() < KEPT {
            // Within the capacity.
            let _ = idle.push(memory);
        }
        self.kept.store(idle.len() as u64, Ordering::Relaxed);
    }

    /// Bytes of memory that are kept. Takes no lock.
    pub(crate) fn memory(&self) -> u64 {
        self.kept.load(Ordering::Relaxed) * WINDOW as u64
    }

    /// Gives up windows until `bytes` bytes are given back or none is left, and returns how many bytes were.
    pub(crate) fn shed(&self, bytes: u64) -> u64 {
        let mut given = 0;
        while given < bytes {
            let mut idle = self.idle.lock();
            let memory = idle.pop();
            self.kept.store(idle.len() as u64, Ordering::Relaxed);
            drop(idle);
            if memory.is_none() {
                break;
            }
            given += WINDOW as u64;
        }
        given
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
    fn few_windows_are_kept_and_all_can_be_shed() {
        let pool = WindowPool::<Std>::new().unwrap();
        let taken: std::vec::Vec<Buf> = (0..KEPT + 2).map(|_| pool.take().unwrap()).collect();
        assert_eq!(pool.memory(), 0);
        for memory in taken {
            pool.give_back(memory);
        }
        assert_eq!(pool.memory(), (KEPT * WINDOW) as u64);
        assert_eq!(pool.shed(1), WINDOW as u64);
        assert_eq!(pool.shed(u64::MAX), ((KEPT - 1) * WINDOW) as u64);
        assert_eq!((pool.memory(), pool.shed(1)), (0, 0));
    }
}
