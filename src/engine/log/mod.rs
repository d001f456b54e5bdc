// SPDX-License-Identifier: GPL-2.0
//! The log: the one place where records get their order, and the commit path that makes them durable.
//!
//! Records are appended to a buffer for the rest of the current segment (the open chunk). A chunk is
//! *sealed* when its segment is full or a flush asks for it: it is padded to a multiple of 4 KiB,
//! queued, and written by whoever comes first: the write-behind thread, a flush, or a writer that
//! needs a buffer. A sealed byte of the log is never written again, and the next record goes after it.
//!
//! Positions in the log (`lsn`) are `sequence number of the segment << log2 segment_size | offset`, so
//! they grow with the log and never repeat.
//!
//! # Lock order
//!
//! [`Rank::Log`] is held while a record is placed and the sector table (under [`Rank::Map`]) changed
//! with it, which makes the order of the log the order of the table. It is never held during I/O.

mod commit;
mod reserve;

use crate::engine::access::Access;
use crate::engine::format::{
    self, Kind, Layout, RecordHeader, SegmentHeader, Superblock, BLOCK_SIZE, RECORD_HEADER,
    SEGMENT_HEADER, UNIT,
};
use crate::engine::space::{Allocator, Demand, Space, Writer, BEGINNING, JOURNAL};
use crate::engine::{Error, Result};
use crate::platform::mem::{arc, Arc, Buf, Unique, Vec};
use crate::platform::{Monitor, MonitorGuard, Platform, Rank};

/// Buffers of one segment each: the bound on what is dirty in memory.
const BUFFERS: usize = 8;
/// Rounds of reclaim that one record waits for.
const PATIENCE: u32 = 8;
/// Space of a link record, kept free at the end of every segment.
const LINK_BYTES: u32 = 32;

/// A record as the log stores it: its encoded header, and the parts of its payload. It can be placed more than
/// once, because it is tied to its place only when it is copied there.
pub(crate) struct EncodedRecord<'a> {
    pub(crate) header: RecordHeader,
    encoded: [u8; RECORD_HEADER],
    parts: &'a [&'a [u8]],
}

impl<'a> EncodedRecord<'a> {
    /// Completes `header` with the length of `parts` in bytes and encodes it. The checksum is computed here,
    /// outside of any lock.
    pub(crate) fn new<P: Platform>(mut header: RecordHeader, parts: &'a [&'a [u8]]) -> Self {
        header.payload = parts.iter().map(|p| p.len()).sum();
        Self {
            header,
            encoded: header.encode::<P>(parts),
            parts,
        }
    }

    /// Bytes the record takes in the log.
    fn bytes(&self) -> u32 {
        self.header.units() * UNIT as u32
    }
}

/// The part of a segment between two seals, being filled.
struct Open {
    start: u32,
    buf: Unique<Buf>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ChunkState {
    Queued,
    Writing,
    /// The write failed. The chunk stays, so that its data can still be read.
    Failed,
}

/// A sealed part of the log that is not known to be written.
struct Chunk {
    state: ChunkState,
    lsn: u64,
    offset: u64,
    len: usize,
    /// Bytes that follow it in the segment and stay unused.
    unused: u64,
    buf: Arc<Buf>,
}

/// A segment the log is about to use.
#[derive(Clone, Copy)]
struct Current {
    index: u64,
    seq: u64,
    seed: u32,
    /// Where the next record goes.
    offset: u32,
    /// The segment after this one, already reserved.
    next: u64,
    /// What is left unused at the end, once the segment is full: see [`Layout::tail_of`].
    tail: u8,
    /// The segment before this one, and its tail.
    before: Option<(u64, u8)>,
}

/// Position of the next record; what a checkpoint states as the start of replay.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Position {
    pub(crate) segment: u64,
    pub(crate) offset: u32,
    pub(crate) seq: u64,
}

/// The tail of the log, under [`Rank::Log`].
pub(crate) struct Tail {
    current: Option<Current>,
    open: Option<Open>,
    chunks: Vec<Chunk>,
    pool: Vec<Unique<Buf>>,
    pub(crate) space: Space,
    /// End of the last record placed.
    appended: u64,
    durable: u64,
    /// Sequence number with which the epoch began.
    first_seq: u64,
    syncing: bool,
    /// Users have written something and flushed it.
    flushed: bool,
    /// First error that made the log unsafe to continue.
    pub(crate) error: Option<Error>,
    /// Only the closing checkpoint may still append.
    pub(crate) closing: bool,
    /// Position where the last stored checkpoint began.
    pub(crate) checkpoint: u64,
    /// What users had appended when it began, see [`LogStats::user_bytes`].
    pub(crate) settled: u64,
    /// Checkpoints that were tried.
    pub(crate) attempts: u64,
    /// Background threads must end.
    pub(crate) stop: bool,
    pub(crate) stats: LogStats,
}

/// Counters of the log.
#[derive(Clone, Copy, Default)]
pub(crate) struct LogStats {
    pub(crate) syncs: u64,
    pub(crate) bytes: u64,
    /// The part of `bytes` that users appended.
    pub(crate) user_bytes: u64,
    pub(crate) errors: u64,
}

/// Where a record was placed.
#[derive(Clone, Copy)]
pub(crate) struct Placed {
    /// Byte offset in the image.
    pub(crate) address: u64,
    /// The segment there, its sequence number and its seed.
    pub(crate) segment: u64,
    pub(crate) seq: u64,
    pub(crate) seed: u32,
    /// The segment before it in the log, if known, and the tail that was left unused there.
    pub(crate) before: Option<(u64, u8)>,
}

/// The next place in the log, held for one record: the lock of the log is taken, and the segment, the buffer and
/// the reserve have space for the record.
///
/// The holder checks under the lock whether the record is still right, and then commits the slot or drops it.
/// Dropping it places nothing.
pub(crate) struct Slot<'a, P: Platform> {
    log: &'a Log<P>,
    tail: TailGuard<'a, P>,
    record: &'a EncodedRecord<'a>,
    writer: Writer,
    placed: Placed,
}

impl<P: Platform> Slot<'_, P> {
    /// Where the record will lie.
    pub(crate) fn placed(&self) -> &Placed {
        &self.placed
    }

    /// Copies the record to its place and runs `apply`, which makes the change in the tables, all in one critical
    /// section. `apply` gets the state of the log as proof that the lock is held.
    ///
    /// # Errors
    ///
    /// That of `apply`. The log stops, because log and tables disagree from here on; what is stored stays right.
    pub(crate) fn commit(mut self, apply: impl FnOnce(&Tail) -> Result) -> Result {
        self.copy()?;
        let applied = apply(&self.tail);
        if let Err(error) = applied {
            self.tail.fail(error);
        }
        applied
    }

    fn copy(&mut self) -> Result {
        let tail = &mut *self.tail;
        let (Some(current), Some(open)) = (tail.current.as_mut(), tail.open.as_mut()) else {
            return Err(Error::ReadOnly);
        };
        place(open, current, self.record);
        tail.appended = self.log.lsn(current.seq, current.offset);
        let bytes = u64::from(self.record.bytes());
        tail.stats.bytes += bytes;
        if self.writer.writes() || self.writer == Writer::Discard {
            tail.stats.user_bytes += bytes;
            tail.space.hopeless = false;
            tail.space.full &= self.writer != Writer::User;
        }
        Ok(())
    }
}

pub(crate) struct Log<P: Platform> {
    tail: P::Monitor<Tail>,
    /// Space the next checkpoint needs, see [`Demand`].
    pub(crate) demand: Arc<Demand>,
    layout: Layout,
    epoch: u64,
    salt: u64,
}

/// Proof that the lock of the log's tail is held.
pub(crate) type TailGuard<'a, P> = <<P as Platform>::Monitor<Tail> as Monitor<Tail>>::Guard<'a>;

impl<P: Platform> Log<P> {
    /// A log that will [`start`](Self::start) in a fresh segment of `allocator`; the epoch and salt of `superblock`
    /// go into its segment headers. Without write access it only answers that it is read-only.
    pub(crate) fn new(
        superblock: &Superblock,
        allocator: Allocator,
        access: Access,
    ) -> Result<Self> {
        let layout = superblock.layout;
        let (buffers, error) = match access {
            Access::Write => (BUFFERS, None),
            Access::Read => (0, Some(Error::ReadOnly)),
        };
        let mut pool = Vec::with_capacity(buffers)?;
        for _ in 0..buffers {
            pool.push(Unique::new(Buf::zeroed(layout.segment_size as usize)?)?)?;
        }
        let tail = Tail {
            current: None,
            open: None,
            chunks: Vec::with_capacity(buffers)?,
            pool,
            space: Space::new(allocator, layout, superblock.size),
            appended: 0,
            durable: 0,
            first_seq: 0,
            syncing: false,
            flushed: false,
            error,
            closing: false,
            checkpoint: 0,
            settled: 0,
            attempts: 0,
            stop: false,
            stats: LogStats::default(),
        };
        Ok(Self {
            tail: P::Monitor::new(tail, Rank::Log)?,
            demand: arc(Demand::default())?,
            layout,
            epoch: superblock.epoch,
            salt: superblock.salt,
        })
    }

    pub(crate) fn lock(&self) -> TailGuard<'_, P> {
        self.tail.lock()
    }

    fn lsn(&self, seq: u64, offset: u32) -> u64 {
        (seq << self.layout.segment_shift()) + u64::from(offset)
    }

    /// Reserves the first two segments and begins the log there with sequence number `seq`.
    pub(crate) fn start(&self, file: &P::File, seq: u64) -> Result<()> {
        let index = self.reserve(file, Writer::Checkpoint)?;
        let next = match self.reserve(file, Writer::Checkpoint) {
            Ok(next) => next,
            Err(error) => {
                self.lock().space.allocator.release(index)?;
                return Err(error);
            }
        };
        let mut tail = self.lock();
        tail.first_seq = seq;
        self.begin(&mut tail, index, seq, next, None);
        tail.appended = self.lsn(seq, SEGMENT_HEADER as u32);
        tail.durable = tail.appended;
        tail.checkpoint = tail.appended;
        Ok(())
    }

    fn begin(&self, tail: &mut Tail, index: u64, seq: u64, next: u64, before: Option<(u64, u8)>) {
        let seed = format::seed::<P>(&self.layout.uuid, self.salt, seq, index);
        tail.current = Some(Current {
            index,
            seq,
            seed,
            offset: SEGMENT_HEADER as u32,
            next,
            tail: 0,
            before,
        });
    }

    fn header(&self, tail: &Tail, current: &Current) -> SegmentHeader {
        SegmentHeader {
            segment_shift: self.layout.segment_shift() as u8,
            index: current.index,
            seq: current.seq,
            epoch: self.epoch,
            salt: self.salt,
            uuid: self.layout.uuid,
            next: current.next,
            durable: tail.durable,
            first: tail.first_seq,
        }
    }

    /// Goes on with a segment of which nothing is used yet.
    pub(crate) fn leave_segment(&self, file: &P::File) -> Result {
        let whole = self.layout.segment_size - SEGMENT_HEADER as u32 - LINK_BYTES;
        drop(self.make_room(file, whole, Writer::Mover)?);
        // Also written, so that what is live in it can be moved.
        loop {
            if self.write_one(file) {
                continue;
            }
            let mut tail = self.lock();
            match tail.error {
                Some(error) => return Err(error),
                None if tail.chunks.is_empty() => return Ok(()),
                None => tail.wait(),
            }
        }
    }

    /// Takes the lock when a record of `need` bytes can be placed at once: there is room in the
    /// current segment and a buffer for it, and what is reserved is left. Waits for what is missing,
    /// and helps to get it.
    ///
    /// # Errors
    ///
    /// [`Error::NoSpace`] when no further segment can be reserved and reclaim finds nothing either; the
    /// sticky error of the log; [`Error::Closed`].
    fn make_room(&self, file: &P::File, need: u32, writer: Writer) -> Result<TailGuard<'_, P>> {
        let mut waits = 0;
        loop {
            let mut tail = self.lock();
            if let Some(error) = tail.error {
                return Err(error);
            }
            if tail.closing && writer != Writer::Checkpoint {
                return Err(Error::Closed);
            }
            let Some(current) = tail.current else {
                return Err(Error::ReadOnly);
            };
            // By what they wrote themselves: reclaim may have filled segments to make space for it.
            let begun = tail.stats.user_bytes >> self.layout.segment_shift();
            let early = begun < BEGINNING || !tail.flushed && begun < JOURNAL;
            let writer = match writer {
                Writer::User | Writer::Metadata if early && tail.space.hopeless => Writer::Replay,
                Writer::User if early => Writer::Metadata,
                other => other,
            };
            let fits = current.offset + need + LINK_BYTES <= self.layout.segment_size;
            // A full segment is left only when the one after the next is reserved, so that the log
            // always knows where it goes on.
            let takes = u64::from(!fits);
            if tail.space.available() < self.floor(&tail, writer) + takes {
                if tail.space.reserving {
                    tail.wait();
                    continue;
                }
                drop(tail);
                match self.reserve_ahead(file, writer) {
                    // Reclaim finds something each time, and others take it, or it takes that itself.
                    Err(Error::NoSpace) if waits == PATIENCE => {
                        self.lock().space.hopeless = true;
                        waits += 1;
                    }
                    Err(Error::NoSpace) => {
                        self.wait_for_space(writer, waits == 0)?;
                        waits += 1;
                    }
                    other => other?,
                }
                continue;
            }
            if tail.open.is_some() && fits {
                return Ok(tail);
            }
            // The end of a segment that was flushed to its last sector is already linked.
            let linked = current.offset == self.layout.segment_size;
            if tail.open.is_none() && !linked {
                match tail.pool.pop() {
                    Some(buf) => self.open(&mut tail, buf),
                    None => {
                        drop(tail);
                        self.write_or_wait(file)?;
                        continue;
                    }
                }
            }
            if !fits {
                if !linked {
                    self.seal(&mut tail, true)?;
                }
                let before = tail.current.map(|c| (c.index, c.tail));
                if let Some(after) = tail.space.next() {
                    self.begin(&mut tail, current.next, current.seq + 1, after, before);
                }
                // The write-behind thread has a chunk to write and a segment to reserve.
                tail.notify_all();
            }
        }
    }

    /// Waits until one more checkpoint was written, or could not be.
    fn wait_for_checkpoint(&self) {
        let mut tail = self.lock();
        let attempts = tail.attempts;
        tail.notify_all();
        while tail.attempts == attempts && tail.error.is_none() && !tail.closing && !tail.stop {
            tail.wait();
        }
    }

    /// Opens a chunk at the present offset.
    fn open(&self, tail: &mut Tail, mut buf: Unique<Buf>) {
        let Some(current) = tail.current else { return };
        let mut start = current.offset;
        if start == SEGMENT_HEADER as u32 {
            let header = self.header(tail, &current);
            buf[..SEGMENT_HEADER].copy_from_slice(&header.encode::<P>());
            start = 0;
        }
        tail.open = Some(Open { start, buf });
    }

    /// Holds the next place in the log for `record`. Waits for space, and for a checkpoint if users have made too
    /// many nodes dirty.
    ///
    /// # Errors
    ///
    /// [`Error::NoSpace`] when no further segment can be reserved and reclaim finds nothing either; the error that
    /// stopped the log; [`Error::Closed`].
    pub(crate) fn slot<'a>(
        &'a self,
        file: &P::File,
        record: &'a EncodedRecord<'a>,
        writer: Writer,
    ) -> Result<Slot<'a, P>> {
        if writer.writes() && self.demand.too_much() {
            self.wait_for_checkpoint();
        }
        let tail = self.make_room(file, record.bytes(), writer)?;
        let current = tail.current.ok_or(Error::ReadOnly)?;
        let placed = Placed {
            address: self.layout.segment_offset(current.index) + u64::from(current.offset),
            segment: current.index,
            seq: current.seq,
            seed: current.seed,
            before: current.before,
        };
        Ok(Slot {
            log: self,
            tail,
            record,
            writer,
            placed,
        })
    }

    /// Ends the open chunk at a multiple of 4 KiB, by a link if the segment is `full` (or ends there)
    /// and by padding otherwise, and queues it.
    fn seal(&self, tail: &mut Tail, full: bool) -> Result<()> {
        let (Some(mut open), Some(mut current)) = (tail.open.take(), tail.current) else {
            return Ok(());
        };
        if !full && open.start == current.offset {
            tail.open = Some(open);
            return Ok(());
        }
        let (lsn, durable) = (self.lsn(current.seq, current.offset), tail.durable);
        let ending = |kind| RecordHeader::ending(kind, lsn, durable);
        let aligned = current.offset.next_multiple_of(BLOCK_SIZE as u32);
        if full || aligned == self.layout.segment_size {
            let next = current.next.to_le_bytes();
            let parts: [&[u8]; 1] = [&next];
            let link = EncodedRecord::new::<P>(ending(Kind::Link), &parts);
            place(&mut open, &mut current, &link);
            let end = current.offset.next_multiple_of(BLOCK_SIZE as u32);
            zero(&mut open, current.offset, end);
            current.offset = end;
        } else if aligned != current.offset {
            let len = aligned - current.offset;
            let header = RecordHeader {
                payload: len as usize - RECORD_HEADER,
                ..ending(Kind::Pad)
            };
            let mut encoded = header.encode::<P>(&[]);
            RecordHeader::stamp(&mut encoded, current.seed, current.offset);
            zero(&mut open, current.offset, aligned);
            let at = (current.offset - open.start) as usize;
            open.buf[at..at + encoded.len()].copy_from_slice(&encoded);
            current.offset = aligned;
        }
        // After a link the rest of the segment stays unused: the log goes on in the next one.
        let end = current.offset;
        if full {
            current.offset = self.layout.segment_size;
            current.tail = self.layout.tail_of(end);
        }
        // On a full file system others might take it, and the segment could not be reserved again when it is free.
        let unused = match tail.space.crowded {
            true => 0,
            false => u64::from(current.offset - end),
        };
        let chunk = Chunk {
            state: ChunkState::Queued,
            lsn: self.lsn(current.seq, open.start),
            offset: self.layout.segment_offset(current.index) + u64::from(open.start),
            len: (end - open.start) as usize,
            unused,
            buf: open.buf.share(),
        };
        tail.current = Some(current);
        // The capacity was allocated with the pool: there are never more chunks than buffers.
        tail.chunks.push(chunk)
    }

    /// If byte `address` of the image lies in a part of the log that is still in memory, copies what
    /// follows it there to the start of `out` and returns how many bytes that were.
    pub(crate) fn read_memory(&self, address: u64, out: &mut [u8]) -> Option<usize> {
        let tail = self.lock();
        let mut copy = |bytes: &[u8], start: u64| {
            let at = (address - start) as usize;
            let n = out.len().min(bytes.len() - at);
            out[..n].copy_from_slice(&bytes[at..at + n]);
            n
        };
        if let (Some(open), Some(current)) = (tail.open.as_ref(), tail.current) {
            let start = self.layout.segment_offset(current.index) + u64::from(open.start);
            let end = self.layout.segment_offset(current.index) + u64::from(current.offset);
            if (start..end).contains(&address) {
                let len = (end - start) as usize;
                return Some(copy(&open.buf[..len], start));
            }
        }
        let chunk = tail
            .chunks
            .iter()
            .find(|c| (c.offset..c.offset + c.len as u64).contains(&address))?;
        Some(copy(&chunk.buf[..chunk.len], chunk.offset))
    }

    /// Where the next record will go. A segment that was flushed to its last sector ends in a link, so
    /// that is the beginning of the next one.
    pub(crate) fn position(&self, tail: &Tail) -> Option<Position> {
        tail.current.map(|c| {
            if c.offset == self.layout.segment_size {
                Position {
                    segment: c.next,
                    offset: SEGMENT_HEADER as u32,
                    seq: c.seq + 1,
                }
            } else {
                Position {
                    segment: c.index,
                    offset: c.offset,
                    seq: c.seq,
                }
            }
        })
    }

    /// Bytes a record that is placed now can take without leaving the segment.
    pub(crate) fn room(&self) -> u32 {
        let offset = self.lock().current.map_or(0, |c| c.offset);
        self.layout.segment_size.saturating_sub(offset + LINK_BYTES)
    }

    /// The log position `position` stands for.
    pub(crate) fn lsn_of(&self, position: Position) -> u64 {
        self.lsn(position.seq, position.offset)
    }

    /// Segments since the last checkpoint began.
    pub(crate) fn segments_since_checkpoint(&self, tail: &Tail) -> u64 {
        tail.appended.saturating_sub(tail.checkpoint) >> self.layout.segment_shift()
    }

    /// Bytes written of segment `index`, if the log holds it: 0 for one that is only reserved.
    pub(crate) fn used(&self, tail: &Tail, index: u64) -> Option<u64> {
        match tail.current {
            Some(c) if c.index == index && c.offset > SEGMENT_HEADER as u32 => {
                Some(u64::from(c.offset).next_multiple_of(BLOCK_SIZE as u64))
            }
            _ => tail.holds(index).then_some(0),
        }
    }
}

impl Tail {
    /// End of the log.
    pub(crate) fn appended(&self) -> u64 {
        self.appended
    }

    /// Remembers the first error that makes it unsafe to go on.
    pub(crate) fn fail(&mut self, error: Error) {
        self.stats.errors += 1;
        if self.error.is_none() {
            self.error = Some(error);
        }
    }

    /// Whether a part of the log from byte `offset` of the image on, `len` bytes long, is not known to be
    /// written.
    pub(crate) fn pending(&self, offset: u64, len: u64) -> bool {
        self.chunks
            .iter()
            .any(|c| (offset..offset + len).contains(&c.offset))
    }

    /// Whether segment `index` is the current one.
    pub(crate) fn writes(&self, index: u64) -> bool {
        self.current.is_some_and(|c| c.index == index)
    }

    /// Whether segment `index` is the current one or the next.
    pub(crate) fn uses(&self, index: u64) -> bool {
        self.current
            .is_some_and(|c| c.index == index || c.next == index)
    }

    /// The current segment and those that are reserved, the next one among them.
    pub(crate) fn held(&self) -> impl Iterator<Item = u64> + Clone + '_ {
        let used = self.current.iter().flat_map(|c| [c.index, c.next]);
        used.chain(self.space.ready.iter().copied())
    }

    /// Whether segment `index` is the current one or reserved.
    pub(crate) fn holds(&self, index: u64) -> bool {
        self.held().any(|held| held == index)
    }
}

/// Copies a record to the present offset of its segment.
fn place(open: &mut Open, current: &mut Current, record: &EncodedRecord<'_>) {
    let mut encoded = record.encoded;
    RecordHeader::stamp(&mut encoded, current.seed, current.offset);
    let mut at = (current.offset - open.start) as usize;
    open.buf[at..at + encoded.len()].copy_from_slice(&encoded);
    at += encoded.len();
    for part in record.parts {
        open.buf[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    let end = current.offset + record.bytes();
    zero(open, open.start + at as u32, end);
    current.offset = end;
}

/// Clears what a reused buffer still holds between two offsets of the segment.
fn zero(open: &mut Open, from: u32, to: u32) {
    let base = open.start;
    open.buf[(from - base) as usize..(to - base) as usize].fill(0);
}
