// SPDX-License-Identifier: GPL-2.0
//! [`RecordCache`]: decompressed records, so that a record which serves several small reads is read and decompressed
//! once.
//!
//! The cache is divided into shards by the address of the record, each with a lock of its own. Under the lock nothing is
//! copied, read or decompressed: readers take a reference to the record, and copy without the lock.
//!
//! A request that does not find its record gets a [`Claim`] to it, and reads it. Others that want the record meanwhile
//! wait for that. A thread never waits with a claim in its hands, so claims cannot wait for each other.
//!
//! Each shard evicts by SIEVE: a hand goes from the oldest record to the newest, and over and over. It spares a record
//! that was used since the hand came by last, and evicts the first other one. So a single pass over many records does
//! not drive out those that are used again and again.

use crate::engine::format::{Layout, BLOCK_SIZE};
use crate::engine::Result;
use crate::platform::mem::{boxed, Arc, Box, Buf, Need, Unique, Vec};
use crate::platform::{Monitor, MonitorGuard, Platform, Rank, Sabotage};
use core::sync::atomic::{AtomicU64, Ordering};

/// Bytes of decompressed records that are kept at most.
const BUDGET: usize = 4 << 20;
/// Number of shards; a power of two.
const SHARDS: usize = 8;
/// Keys of records that a shard remembers after requests read them, whether they were kept or not. Together they are four
/// times as many as the records of 64 KiB that there is room for.
const SEEN: usize = 32;

const _: () = assert!(SHARDS.is_power_of_two());

/// Identifies one stored record. No other record ever gets the same key, because a seed is never used again (I5).
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct RecordKey {
    /// Byte offset of the record in the image.
    pub(crate) address: u64,
    /// Checksum seed of the incarnation of its segment.
    pub(crate) seed: u32,
}

/// A decompressed record.
pub(crate) struct CachedRecord {
    /// The first block that the record covers.
    number: u64,
    /// The blocks that are stored: bit `i` for block `number + i`.
    mask: u32,
    /// The stored blocks, one after the other.
    blocks: Buf,
}

impl CachedRecord {
    /// Neighbouring blocks from `block` on, `len` bytes of them, if the record stores them from place `index` on.
    pub(crate) fn blocks(&self, block: u64, index: usize, len: usize) -> Option<&[u8]> {
        let at = index * BLOCK_SIZE;
        let here = holds(block, len / BLOCK_SIZE, index, self.number, self.mask);
        here.then(|| &self.blocks[at..at + len])
    }

    /// The memory for the first `len` bytes of the stored blocks. `None` if no record has as many.
    pub(crate) fn memory(&mut self, len: usize) -> Option<&mut [u8]> {
        self.blocks.get_mut(..len)
    }
}

/// The place of block `block` among the stored blocks of a record that begins at block `number` and stores the blocks of
/// `mask`. `None` if the record does not store it.
pub(crate) fn place_of(block: u64, number: u64, mask: u32) -> Option<usize> {
    let bit = u32::try_from(block.checked_sub(number)?).ok()?;
    if bit >= u32::BITS || (mask >> bit) & 1 == 0 {
        return None;
    }
    Some((mask & ((1 << bit) - 1)).count_ones() as usize)
}

/// True if the stored blocks of a record, from place `index` on, are the `n` neighbouring blocks from `block` on.
pub(crate) fn holds(block: u64, n: usize, index: usize, number: u64, mask: u32) -> bool {
    // Places ascend with block numbers: if the first and the last block are in their places, those between are as well.
    let last = n.saturating_sub(1);
    place_of(block, number, mask) == Some(index)
        && place_of(block + last as u64, number, mask) == Some(index + last)
}

/// A record in a shard.
struct Slot {
    key: RecordKey,
    record: Arc<CachedRecord>,
    /// It was used since the hand came by.
    used: bool,
}

/// A record that a request is reading.
struct Claimed {
    key: RecordKey,
    /// Others wait for it.
    wanted: bool,
}

/// The records whose addresses have the same hash.
struct Shard {
    /// The oldest first.
    slots: Vec<Slot>,
    /// The slot that is looked at next to evict a record.
    hand: usize,
    claimed: Vec<Claimed>,
    /// The records that were claimed last, whether they were kept or not: a ring, in which `seen_next` is the oldest.
    seen: Vec<RecordKey>,
    seen_next: usize,
}

impl Shard {
    fn slot(&mut self, key: RecordKey, same: impl Fn(RecordKey) -> bool) -> Option<&mut Slot> {
        let mut slots = self.slots.iter_mut();
        slots.find(|slot| slot.key == key || same(slot.key))
    }

    /// Takes the record out that is the first to go.
    fn evict(&mut self) -> Option<Arc<CachedRecord>> {
        loop {
            if self.hand >= self.slots.len() {
                self.hand = 0;
            }
            let slot = self.slots.get_mut(self.hand)?;
            if core::mem::take(&mut slot.used) {
                self.hand += 1;
                continue;
            }
            return self.slots.remove(self.hand).map(|slot| slot.record);
        }
    }

    /// Remembers a record, and returns whether it was remembered already.
    fn see(&mut self, key: RecordKey) -> bool {
        if self.seen.contains(&key) {
            return true;
        }
        if let Some(oldest) = self.seen.get_mut(self.seen_next) {
            *oldest = key;
        }
        self.seen_next = (self.seen_next + 1) % SEEN;
        false
    }
}

/// The records that were decompressed lately, under [`Rank::Cache`].
pub(crate) struct RecordCache<P: Platform> {
    shards: Vec<P::Monitor<Shard>>,
    /// Records that a shard keeps at most.
    room: usize,
    record_size: usize,
    /// Records that are kept. It is counted under the locks, and read without.
    kept: AtomicU64,
}

/// The answer of the cache to a request for a record.
pub(crate) enum Cached<'a, P: Platform> {
    /// The record is here.
    Here(Arc<CachedRecord>),
    /// It is not, and the request is to read it.
    Missing(Claim<'a, P>),
}

/// The task to read a record, for which others may wait. Dropping it gives the task up: one of the others takes it.
pub(crate) struct Claim<'a, P: Platform> {
    cache: &'a RecordCache<P>,
    key: RecordKey,
    /// Whether others can find the claim, and wait. Without, they read the record themselves.
    listed: bool,
    /// The record was wanted before, not long ago.
    again: bool,
}

impl<P: Platform> Claim<'_, P> {
    /// True if the record is wanted by this request alone, now and as far as is remembered.
    pub(crate) fn first(&self) -> bool {
        self.listed && !self.again && !self.wanted()
    }

    /// True if other requests wait for the record now.
    pub(crate) fn wanted(&self) -> bool {
        let Some(shard) = self.cache.shard(self.key).filter(|_| self.listed) else {
            return false;
        };
        let shard = shard.lock();
        let mut claimed = shard.claimed.iter();
        claimed.any(|claimed| claimed.key == self.key && claimed.wanted)
    }

    /// Memory for the record: that of one which is evicted, if there is no room. `None` if there is no memory; the record
    /// is then not kept.
    pub(crate) fn memory(&self) -> Option<Unique<CachedRecord>> {
        let evicted = {
            let mut shard = self.cache.shard(self.key)?.lock();
            match shard.slots.len() < self.cache.room {
                true => None,
                false => {
                    let evicted = shard.evict();
                    self.cache.count_out(usize::from(evicted.is_some()));
                    evicted
                }
            }
        };
        // Another request may copy from it at this moment.
        let memory = evicted.and_then(Unique::reclaim);
        memory.or_else(|| {
            let blocks = Buf::zeroed_if(Need::Optional, self.cache.record_size).ok()?;
            let record = CachedRecord {
                number: 0,
                mask: 0,
                blocks,
            };
            Unique::new_if(Need::Optional, record).ok()
        })
    }

    /// Puts the record into the cache, for those who wait and for later. It begins at block `number`, stores the blocks of
    /// `mask`, and was verified.
    pub(crate) fn publish(self, mut record: Unique<CachedRecord>, number: u64, mask: u32) {
        (record.number, record.mask) = (number, mask);
        let Some(shard) = self.cache.shard(self.key) else {
            return;
        };
        let mut shard = shard.lock();
        let mut excess = None;
        if shard.slots.len() >= self.cache.room {
            excess = shard.evict();
            self.cache.count_out(usize::from(excess.is_some()));
        }
        let slot = Slot {
            key: self.key,
            record: record.share(),
            used: false,
        };
        // Without memory it is not kept.
        if shard.slots.push(slot).is_ok() {
            self.cache.kept.fetch_add(1, Ordering::Relaxed);
        }
        drop(shard);
        // Memory is given back without the lock, and those who wait are woken when the claim is dropped.
        drop(excess);
    }
}

impl<P: Platform> Drop for Claim<'_, P> {
    fn drop(&mut self) {
        let Some(shard) = self.cache.shard(self.key).filter(|_| self.listed) else {
            return;
        };
        let mut shard = shard.lock();
        let at = shard.claimed.iter().position(|c| c.key == self.key);
        let claimed = at.and_then(|at| shard.claimed.remove(at));
        if claimed.is_some_and(|claimed| claimed.wanted) {
            shard.notify_all();
        }
    }
}

impl<P: Platform> RecordCache<P> {
    /// An empty cache for images of this layout. It takes memory as it is filled.
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`](crate::engine::Error::NoMemory).
    // A stack frame of its own: opening an image has many.
    #[inline(never)]
    pub(crate) fn new(layout: &Layout) -> Result<Box<Self>> {
        // A record of one block serves reads of that block only, so keeping it gains nothing.
        let count = match layout.record_blocks() > 1 {
            true => SHARDS,
            false => 0,
        };
        let mut shards = Vec::with_capacity(count)?;
        for _ in 0..count {
            let shard = Shard {
                slots: Vec::new(),
                hand: 0,
                claimed: Vec::new(),
                seen: Vec::filled(RecordKey::default(), SEEN)?,
                seen_next: 0,
            };
            shards.push(P::Monitor::new(shard, Rank::Cache)?)?;
        }
        boxed(Self {
            shards,
            // A shift, because objtool takes the panic on a zero divisor for a function that returns.
            room: (BUDGET / SHARDS) >> layout.record_size.trailing_zeros(),
            record_size: layout.record_size as usize,
            kept: AtomicU64::new(0),
        })
    }

    fn shard(&self, key: RecordKey) -> Option<&P::Monitor<Shard>> {
        // The golden ratio: neighbouring addresses go to different shards.
        let hash = key.address.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.shards
            .get((hash >> (u64::BITS - SHARDS.ilog2())) as usize)
    }

    fn count_out(&self, evicted: usize) {
        self.kept.fetch_sub(evicted as u64, Ordering::Relaxed);
    }

    /// Finds a record. If another request is reading it, waits for that.
    pub(crate) fn find(&self, key: RecordKey) -> Cached<'_, P> {
        let mut claim = Claim {
            cache: self,
            key,
            listed: false,
            again: false,
        };
        let Some(shard) = self.shard(key) else {
            return Cached::Missing(claim);
        };
        let stale = P::sabotaged(Sabotage::StaleCache);
        let mut shard = shard.lock();
        loop {
            if let Some(slot) = shard.slot(key, |found| stale && found.address == key.address) {
                slot.used = true;
                return Cached::Here(slot.record.clone());
            }
            match shard.claimed.iter_mut().find(|c| c.key == key) {
                Some(claimed) => claimed.wanted = true,
                None => break,
            }
            shard.wait();
        }
        let wanted = false;
        claim.again = shard.see(key);
        claim.listed = shard.claimed.push(Claimed { key, wanted }).is_ok();
        drop(shard);
        Cached::Missing(claim)
    }

    /// Bytes of memory of the records that are kept. Takes no lock.
    pub(crate) fn memory(&self) -> u64 {
        self.kept.load(Ordering::Relaxed) * self.record_size as u64
    }

    /// Evicts records until about `bytes` bytes are given back, and returns how many were.
    pub(crate) fn shed(&self, bytes: u64) -> u64 {
        let mut given = 0;
        for shard in self.shards.iter() {
            while given < bytes {
                let Some(evicted) = shard.lock().evict() else {
                    break;
                };
                self.count_out(1);
                drop(evicted);
                given += self.record_size as u64;
            }
        }
        given
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::std::Std;

    const RECORD: u32 = 16_384;

    fn cache() -> Box<RecordCache<Std>> {
        let layout = Layout {
            record_size: RECORD,
            segment_size: 1 << 20,
            uuid: [0; 16],
        };
        RecordCache::new(&layout).unwrap()
    }

    fn key(n: u64) -> RecordKey {
        let address = (1 << 20) + n * 4000 * 16;
        RecordKey { address, seed: 7 }
    }

    /// Reads record `n` into the cache, unless it is there. Returns whether it was.
    fn read(cache: &RecordCache<Std>, n: u64) -> bool {
        match cache.find(key(n)) {
            Cached::Here(record) => {
                assert_eq!(record.blocks(4 * n + 1, 0, 4096).unwrap(), [n as u8; 4096]);
                assert!(record.blocks(4 * n, 0, 4096).is_none());
                true
            }
            Cached::Missing(claim) => {
                let mut memory = claim.memory().unwrap();
                memory.memory(4096).unwrap().fill(n as u8);
                // Of four blocks the second one is stored.
                claim.publish(memory, 4 * n, 0b10);
                false
            }
        }
    }

    #[test]
    fn the_cache_keeps_to_its_budget_and_gives_everything_back() {
        let cache = cache();
        assert_eq!(cache.memory(), 0);
        for n in 0..1000 {
            assert!(!read(&cache, n) && cache.memory() <= BUDGET as u64);
        }
        assert_eq!(cache.memory(), BUDGET as u64);
        assert!((990..1000).all(|n| read(&cache, n)));
        assert_eq!(cache.shed(1), u64::from(RECORD));
        assert_eq!(cache.memory(), BUDGET as u64 - u64::from(RECORD));
        cache.shed(u64::MAX);
        assert_eq!((cache.memory(), cache.shed(1)), (0, 0));
        assert!(!read(&cache, 999));
    }

    #[test]
    fn a_record_in_use_survives_a_pass_over_all_others() {
        let cache = cache();
        read(&cache, 0);
        for n in 1..1000 {
            assert!(read(&cache, 0), "evicted by record {n}");
            read(&cache, n);
        }
        assert!(!read(&cache, 1));
    }

    #[test]
    fn a_record_is_first_wanted_once_until_many_others_were() {
        let cache = cache();
        let first = |n| match cache.find(key(n)) {
            Cached::Here(_) => panic!("nothing was put into the cache"),
            Cached::Missing(claim) => claim.first(),
        };
        assert!(first(0));
        assert!(!first(0));
        assert!((1..10).all(first));
        assert!(!first(0));
        assert!((10..2000).all(first));
        assert!(first(0));
    }

    #[test]
    fn a_claim_that_is_given_up_passes_to_one_of_those_who_wait() {
        let cache = cache();
        let Cached::Missing(claim) = cache.find(key(3)) else {
            panic!("the cache is empty");
        };
        assert!(!claim.wanted());
        std::thread::scope(|scope| {
            let others: std::vec::Vec<_> =
                (0..4).map(|_| scope.spawn(|| read(&cache, 3))).collect();
            while !claim.wanted() {
                std::thread::yield_now();
            }
            drop(claim);
            let found = others.into_iter().map(|other| other.join().unwrap());
            assert_eq!(found.filter(|&found| !found).count(), 1);
        });
    }
}
