// SPDX-License-Identifier: GPL-2.0
//! [`Window`]: a part of the backing file with several records, read at once for a large request.

use crate::engine::format::{Entry, BLOCK_SIZE};
use crate::engine::pool::Pool;
use crate::engine::Result;
use crate::platform::mem::{boxed, Box, Buf};
use crate::platform::Platform;

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
    memory: Option<Buf>,
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

    /// Takes memory out of the pool, unless there is some already.
    pub(super) fn get_memory<P: Platform>(&mut self, pool: &Pool<P, Buf>) {
        if self.memory.is_none() {
            self.memory = pool.try_take(|need| Buf::zeroed_if(need, WINDOW));
        }
    }

    /// Forgets the bytes, and gives up the memory.
    pub(crate) fn take_memory(&mut self) -> Option<Buf> {
        self.len = 0;
        self.memory.take()
    }
}

/// The memory of the windows of a volume, which begins without any. If there is none for a window, records are read one by
/// one.
///
/// # Errors
///
/// [`Error::NoMemory`](crate::engine::Error::NoMemory).
// A stack frame of its own: opening an image has many.
#[inline(never)]
pub(crate) fn memory_of_windows<P: Platform>() -> Result<Box<Pool<P, Buf>>> {
    boxed(Pool::without_reserve(MOST, WINDOW as u64)?)
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
        window.get_memory(&memory_of_windows::<Std>().unwrap());
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
        let pool = memory_of_windows::<Std>().unwrap();
        let take = || {
            let mut window = Window::default();
            window.get_memory(&pool);
            window.take_memory()
        };
        let taken: std::vec::Vec<Buf> = (0..MOST).map(|_| take().unwrap()).collect();
        assert!(take().is_none());
        assert_eq!((pool.memory(), pool.shed(1)), ((MOST * WINDOW) as u64, 0));
        for memory in taken {
            pool.put(memory);
        }
        assert_eq!(pool.shed(1), WINDOW as u64);
        // The others were all in use since the last time.
        pool.trim();
        assert_eq!(pool.memory(), ((MOST - 1) * WINDOW) as u64);
        pool.put(take().unwrap());
        pool.trim();
        assert_eq!(pool.memory(), WINDOW as u64);
        assert_eq!(pool.shed(u64::MAX), WINDOW as u64);
        assert_eq!((pool.memory(), pool.shed(1)), (0, 0));
    }
}
