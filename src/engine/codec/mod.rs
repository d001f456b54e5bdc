// SPDX-License-Identifier: GPL-2.0
//! The compression algorithms: one file for each.
//!
//! What is fixed about an algorithm is the same for all who use it: [`Codec`], and [`Compression`] to choose one with a
//! level. [`Codecs`] are those of an open image, with the memory that they need beyond a request's own, and [`Encoder`] is
//! the part of the memory of a request. Callers know neither the algorithms nor how many there are.

mod lz4;
mod noise;
mod raw;
mod recompression;
mod zstd;

pub use self::recompression::Recompression;

use self::recompression::SharedRecompression;
use self::zstd::{Compressed, Compressors};
use crate::engine::format::{Algorithm, UNIT};
use crate::engine::{Error, Result};
use crate::platform::mem::{boxed, Box, Buf, Need};
use crate::platform::{Lz4, Platform};
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU16, Ordering};

/// What is fixed about an algorithm: a row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Codec {
    /// The algorithm, as the disk names it.
    pub algorithm: Algorithm,
    /// The name users type and read.
    pub name: &'static str,
    /// The compression levels it has.
    pub levels: Levels,
}

/// Compression levels. A higher one takes more time to save more space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Levels {
    /// The lowest level.
    pub min: u8,
    /// The highest level.
    pub max: u8,
    /// The level of those who do not ask for one.
    pub default: u8,
}

impl Levels {
    /// The levels of an algorithm that leaves nothing to choose.
    const ONE: Self = Self {
        min: 0,
        max: 0,
        default: 0,
    };
}

impl Codec {
    /// All algorithms. The first one is the default for new images.
    pub const ALL: &'static [Self] = &[lz4::CODEC, zstd::CODEC, raw::CODEC];

    /// What is fixed about `algorithm`.
    pub fn of(algorithm: Algorithm) -> &'static Self {
        match algorithm {
            Algorithm::Raw => &raw::CODEC,
            Algorithm::Lz4 => &lz4::CODEC,
            Algorithm::Zstd => &zstd::CODEC,
        }
    }

    /// The algorithm with this name.
    pub fn by_name(name: &str) -> Option<&'static Self> {
        Self::ALL.iter().find(|codec| codec.name == name)
    }
}

/// How to compress: an algorithm and one of its levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compression {
    algorithm: Algorithm,
    level: u8,
}

impl Compression {
    /// An algorithm at its default level.
    pub fn of(algorithm: Algorithm) -> Self {
        Self {
            algorithm,
            level: Codec::of(algorithm).levels.default,
        }
    }

    /// An algorithm at a level. None if it does not have that level.
    pub fn new(algorithm: Algorithm, level: u8) -> Option<Self> {
        let levels = Codec::of(algorithm).levels;
        (levels.min..=levels.max)
            .contains(&level)
            .then_some(Self { algorithm, level })
    }

    /// Reads what users type: the name of an algorithm, and perhaps a colon and a level. None if there is no such
    /// algorithm or level.
    pub fn parse(text: &str) -> Option<Self> {
        let Some((name, level)) = text.split_once(':') else {
            return Some(Self::of(Codec::by_name(text)?.algorithm));
        };
        let codec = Codec::by_name(name)?;
        let levels = codec.levels;
        // Digits alone: no sign.
        let digits = level.bytes().all(|byte| byte.is_ascii_digit());
        let level = level.parse().ok().filter(|_| digits)?;
        (levels.min < levels.max)
            .then(|| Self::new(codec.algorithm, level))
            .flatten()
    }

    /// The algorithm.
    pub fn algorithm(self) -> Algorithm {
        self.algorithm
    }

    /// True if what this has compressed gains nothing from `other`, as far as the algorithm and the level tell.
    pub(crate) fn saves_as_much_as(self, other: Self) -> bool {
        self.algorithm == other.algorithm && self.level >= other.level
    }

    /// The level; 0 for an algorithm that leaves nothing to choose.
    pub fn level(self) -> u8 {
        self.level
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let codec = Codec::of(self.algorithm);
        f.write_str(codec.name)?;
        match codec.levels.min < codec.levels.max {
            true => write!(f, ":{}", self.level),
            false => Ok(()),
        }
    }
}

/// The algorithms of an open image: the one of new records, that of cold ones, and the contexts that requests share because
/// each has not one of its own.
pub(crate) struct Codecs<P: Platform> {
    /// The algorithm's tag, and its level in the upper byte.
    chosen: AtomicU16,
    recompression: SharedRecompression,
    /// The superblocks say that there may be records of Zstandard, durably.
    announced: AtomicBool,
    /// A write waits for that.
    awaited: AtomicBool,
    zstd: zstd::Contexts<P>,
}

impl<P: Platform> Codecs<P> {
    /// For records of at most `most` bytes. `announced` tells whether some may be compressed with Zstandard.
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`](crate::engine::Error::NoMemory).
    // A stack frame of its own: opening an image has many.
    #[inline(never)]
    pub(crate) fn new(compression: Compression, announced: bool, most: usize) -> Result<Box<Self>> {
        let codecs = boxed(Self {
            chosen: AtomicU16::new(0),
            recompression: SharedRecompression::default(),
            announced: AtomicBool::new(false),
            awaited: AtomicBool::new(false),
            zstd: zstd::Contexts::new(most)?,
        })?;
        codecs.choose(compression);
        if announced {
            codecs.prepare_announcement()?;
            codecs.announced();
        }
        Ok(codecs)
    }

    /// The compression that is chosen for new records.
    pub(crate) fn chosen(&self) -> Compression {
        let [tag, level] = self.chosen.load(Ordering::Relaxed).to_le_bytes();
        let algorithm = Algorithm::from_tag(tag).unwrap_or(Algorithm::Raw);
        Compression { algorithm, level }
    }

    /// Chooses the compression of new records.
    pub(crate) fn choose(&self, compression: Compression) {
        let Compression { algorithm, level } = compression;
        if algorithm == Algorithm::Zstd {
            self.zstd.written.set_level(level);
        }
        let word = u16::from_le_bytes([algorithm.tag(), level]);
        self.chosen.store(word, Ordering::Relaxed);
    }

    /// How cold data is compressed again.
    pub(crate) fn recompression(&self) -> Recompression {
        self.recompression.get()
    }

    /// Chooses how cold data is compressed again.
    pub(crate) fn set_recompression(&self, recompression: Recompression) {
        if let Some(compression) = recompression.compression {
            self.prepare_again(compression);
        }
        self.recompression.set(recompression);
    }

    /// From now on data is compressed again with `compression`.
    pub(crate) fn prepare_again(&self, compression: Compression) {
        if compression.algorithm == Algorithm::Zstd {
            self.zstd.again.set_level(compression.level);
        }
    }

    /// How often that was chosen: another number tells that it may have changed.
    pub(crate) fn recompression_choices(&self) -> u64 {
        self.recompression.choices()
    }

    /// The compression that the next record gets: the chosen one, or LZ4 until its records are announced.
    pub(crate) fn next(&self) -> Compression {
        let chosen = self.chosen();
        match chosen.algorithm {
            Algorithm::Zstd if !self.announced.load(Ordering::Acquire) => {
                Compression::of(Algorithm::Lz4)
            }
            _ => chosen,
        }
    }

    /// Whether the next record is to be one that older versions cannot read, and no superblock says yet that there are such
    /// records.
    pub(crate) fn wants_announcement(&self) -> bool {
        self.next() != self.chosen()
    }

    /// Whether the superblocks say that there may be records of this algorithm, or need not say it.
    pub(crate) fn may_make(&self, algorithm: Algorithm) -> bool {
        algorithm != Algorithm::Zstd || self.announced.load(Ordering::Acquire)
    }

    /// Tells whether a write waits for the announcement.
    pub(crate) fn await_announcement(&self, awaited: bool) {
        self.awaited.store(awaited, Ordering::Relaxed);
    }

    /// Whether a write waits for the announcement: background work that has all superblocks to itself is to end soon.
    pub(crate) fn announcement_awaited(&self) -> bool {
        self.awaited.load(Ordering::Relaxed)
    }

    /// Allocates what is needed to read records that will be announced: no read may depend on an allocation.
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`](crate::engine::Error::NoMemory).
    pub(crate) fn prepare_announcement(&self) -> Result {
        self.zstd.add_reserve()
    }

    /// Both superblocks say durably that there may be records of Zstandard.
    pub(crate) fn announced(&self) {
        self.announced.store(true, Ordering::Release);
    }

    /// Decompresses `src`, stored with the algorithm `tag`, into all of `dst`. False when that does not
    /// fit exactly, or the algorithm is unknown or not announced.
    pub(crate) fn decompress(&self, tag: u8, src: &[u8], dst: &mut [u8]) -> bool {
        match Algorithm::from_tag(tag) {
            Some(Algorithm::Zstd) => {
                self.announced.load(Ordering::Acquire) && self.zstd.decompress(src, dst)
            }
            _ => Self::decompress_node(tag, src, dst),
        }
    }

    /// What is wrong with a record whose payload, stored with the algorithm `tag`, could not be decompressed.
    pub(crate) fn objection(&self, tag: u8) -> &'static str {
        match Algorithm::from_tag(tag) {
            None => "record: unknown compression algorithm",
            Some(Algorithm::Zstd) if !self.announced.load(Ordering::Acquire) => {
                "record: zstd, which the superblock does not announce"
            }
            Some(_) => "record payload",
        }
    }

    /// As [`decompress`](Self::decompress), for a node of a table, which has an algorithm without contexts.
    pub(crate) fn decompress_node(tag: u8, src: &[u8], dst: &mut [u8]) -> bool {
        match Algorithm::from_tag(tag) {
            Some(Algorithm::Raw) => raw::decompress(src, dst),
            Some(Algorithm::Lz4) => lz4::decompress::<P>(src, dst),
            Some(Algorithm::Zstd) | None => false,
        }
    }

    /// As [`decompress`](Self::decompress), where only the first `end` bytes of `dst` are wanted. The others may stay as they
    /// are. False when there are not as many, or there is more content than `dst` has room for, and that is seen.
    pub(crate) fn decompress_start(&self, tag: u8, src: &[u8], dst: &mut [u8], end: usize) -> bool {
        match Algorithm::from_tag(tag) {
            Some(Algorithm::Raw) => raw::decompress_start(src, &mut dst[..end]),
            Some(Algorithm::Lz4) => lz4::decompress_start::<P>(src, &mut dst[..end]),
            // Its blocks are as long as records: there is nothing to save.
            Some(Algorithm::Zstd) => self.decompress(tag, src, dst),
            None => false,
        }
    }

    /// Records that were compressed with LZ4, because there was no memory for the algorithm chosen.
    pub(crate) fn replaced(&self) -> u64 {
        self.zstd.replaced.load(Ordering::Relaxed)
    }

    /// Bytes of memory. Takes no lock.
    pub(crate) fn memory(&self) -> u64 {
        self.zstd.memory()
    }

    /// Bytes of memory that [`shed`](Self::shed) may give back. Takes no lock.
    pub(crate) fn sheddable(&self) -> u64 {
        self.zstd.sheddable()
    }

    /// Gives back about `bytes` bytes of memory that is not in use, and returns how many were.
    pub(crate) fn shed(&self, bytes: u64) -> u64 {
        self.zstd.shed(bytes)
    }

    /// Gives back memory that was not needed since the last call.
    pub(crate) fn trim(&self) {
        self.zstd.trim();
    }
}

/// Compresses payloads of records, one at a time.
pub(crate) struct Encoder<P: Platform> {
    lz4: P::Lz4,
    packed: Buf,
}

impl<P: Platform> Encoder<P> {
    /// Allocates the memory to compress at most `most` bytes at once, which is needed this much.
    pub(crate) fn new(need: Need, most: usize) -> Result<Self> {
        Ok(Self {
            lz4: P::Lz4::new(need)?,
            packed: Buf::zeroed_if(need, most)?,
        })
    }

    /// Bytes of memory of the results; the scratch memory of the algorithms is less than that.
    pub(crate) fn memory(&self) -> usize {
        self.packed.len()
    }

    /// The payload to store for `content`, and the algorithm it is stored with: compressed as `codecs` say if that saves
    /// space in the log, and as it is otherwise.
    pub(crate) fn encode<'a>(
        &'a mut self,
        codecs: &Codecs<P>,
        content: &'a [u8],
    ) -> (Algorithm, &'a [u8]) {
        match self.encode_with(&codecs.zstd.written, codecs.next(), content) {
            Some((algorithm, len)) => (algorithm, self.payload(content, len)),
            None => {
                codecs.zstd.replaced.fetch_add(1, Ordering::Relaxed);
                self.encode_lz4(content)
            }
        }
    }

    /// As [`encode`](Self::encode), for data that is compressed again, with `compression`, whose records are announced.
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`].
    pub(crate) fn encode_again<'a>(
        &'a mut self,
        codecs: &Codecs<P>,
        compression: Compression,
        content: &'a [u8],
    ) -> Result<(Algorithm, &'a [u8])> {
        let encoded = self.encode_with(&codecs.zstd.again, compression, content);
        let (algorithm, len) = encoded.ok_or(Error::NoMemory)?;
        Ok((algorithm, self.payload(content, len)))
    }

    /// Compresses `content`, into the memory of the encoder. Returns the algorithm, and the length unless nothing is saved.
    /// None if there is no memory.
    fn encode_with(
        &mut self,
        zstd: &Compressors<P>,
        compression: Compression,
        content: &[u8],
    ) -> Option<(Algorithm, Option<usize>)> {
        let limit = self.limit(content);
        let to = &mut self.packed[..limit];
        let len = match compression.algorithm {
            Algorithm::Raw => None,
            Algorithm::Lz4 => self.lz4.compress(content, to),
            // LZ4 finds repetitions at a fraction of the cost.
            Algorithm::Zstd
                if noise::looks_like_noise(content) && self.lz4.compress(content, to).is_none() =>
            {
                None
            }
            Algorithm::Zstd => match zstd.compress(compression.level, content, to) {
                Compressed::Into(len) => Some(len),
                Compressed::TooLarge => None,
                Compressed::NoMemory => return None,
            },
        };
        let algorithm = len.map_or(Algorithm::Raw, |_| compression.algorithm);
        Some((algorithm, len))
    }

    /// The payload: what was compressed to `len` bytes, or the content as it is.
    fn payload<'a>(&'a self, content: &'a [u8], len: Option<usize>) -> &'a [u8] {
        len.map_or(content, |len| &self.packed[..len])
    }

    /// The payload to store for a node of a table. Its algorithm needs no more memory than this.
    pub(crate) fn encode_node<'a>(&'a mut self, node: &'a [u8]) -> (Algorithm, &'a [u8]) {
        self.encode_lz4(node)
    }

    fn encode_lz4<'a>(&'a mut self, content: &'a [u8]) -> (Algorithm, &'a [u8]) {
        let limit = self.limit(content);
        match self.lz4.compress(content, &mut self.packed[..limit]) {
            Some(len) => (Algorithm::Lz4, &self.packed[..len]),
            None => (Algorithm::Raw, content),
        }
    }

    /// Bytes that the payload may have: the header of the record takes one unit, which compression must save.
    fn limit(&self, content: &[u8]) -> usize {
        content.len().saturating_sub(UNIT).min(self.packed.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::format::{BLOCK_SIZE, MAX_RECORD_SIZE};
    use crate::platform::std::Std;
    use std::format;
    use std::string::ToString;
    use std::vec;
    use std::vec::Vec;

    /// Every algorithm at every level.
    fn all() -> impl Iterator<Item = Compression> {
        Codec::ALL.iter().flat_map(|codec| {
            let Levels { min, max, .. } = codec.levels;
            (min..=max).map(|level| Compression::new(codec.algorithm, level).unwrap())
        })
    }

    fn codecs(compression: Compression) -> Box<Codecs<Std>> {
        Codecs::new(compression, true, MAX_RECORD_SIZE).unwrap()
    }

    /// Compressible content.
    fn text(len: usize) -> Vec<u8> {
        (0..len as u32)
            .map(|i| ((i / 64) ^ (i % 3 * i / 1000)) as u8)
            .collect()
    }

    /// Content in which no algorithm finds anything.
    fn noise(len: usize) -> Vec<u8> {
        let next = |x: &mut u64, _| {
            *x = x
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            Some((*x >> 56) as u8)
        };
        (0..len).scan(1u64, next).collect()
    }

    #[test]
    fn every_row_is_found_by_its_name_and_its_algorithm() {
        for codec in Codec::ALL {
            assert_eq!(Codec::by_name(codec.name), Some(codec));
            assert_eq!(Codec::of(codec.algorithm), codec);
            assert!((codec.levels.min..=codec.levels.max).contains(&codec.levels.default));
        }
        assert_eq!(Codec::by_name("LZ4"), None);
    }

    #[test]
    fn what_is_printed_is_read_again() {
        for compression in all() {
            let text = compression.to_string();
            assert_eq!(Compression::parse(&text), Some(compression), "{text}");
        }
        let zstd = |level| Compression::new(Algorithm::Zstd, level);
        assert_eq!(Compression::parse("zstd"), zstd(3));
        for wrong in [
            "", ":", "zstd:", "zstd:0", "zstd:20", "zstd:+3", "zstd:-1", "zstd:3:3", "zstd:259",
            "lz4:0", "lz4:", "none:1", "Zstd", " zstd", "gzip", "gzip:3", "zstd:3\n",
        ] {
            assert_eq!(Compression::parse(wrong), None, "{wrong:?}");
        }
        assert_eq!((zstd(0), zstd(20)), (None, None));
    }

    #[test]
    fn every_algorithm_gives_back_what_it_took() {
        let mut encoder = Encoder::<Std>::new(Need::Required, MAX_RECORD_SIZE).unwrap();
        let sizes = [1, 2, 3, 4, 8, 15, 16, 17, 32].map(|blocks| blocks * BLOCK_SIZE);
        let codecs = codecs(Compression::of(Algorithm::Lz4));
        for compression in all() {
            codecs.choose(compression);
            for content in sizes.map(text) {
                let (algorithm, payload) = encoder.encode(&codecs, &content);
                assert_eq!(algorithm, compression.algorithm);
                let (tag, mut out) = (algorithm.tag(), vec![0xff; content.len()]);
                assert!(codecs.decompress(tag, payload, &mut out), "{compression}");
                assert_eq!(out, content);
                // Not into less or more than it was.
                let short = content.len() - 1;
                assert!(!codecs.decompress(tag, payload, &mut out[..short]));
                out.push(0);
                assert!(!codecs.decompress(tag, payload, &mut out));
                // Its beginning alone.
                for len in [0, 1, 63, 64, 65, 4095, content.len() - 1, content.len()] {
                    let mut start = vec![0xff; content.len()];
                    assert!(codecs.decompress_start(tag, payload, &mut start, len));
                    assert_eq!(start[..len], content[..len]);
                }
                // Not one without its end, or with more behind it.
                if algorithm == Algorithm::Zstd {
                    let mut longer = payload.to_vec();
                    longer.push(0);
                    let cut = &payload[..payload.len() - 1];
                    for wrong in [&longer, cut, &[]] {
                        assert!(!codecs.decompress(tag, wrong, &mut out[..content.len()]));
                    }
                }
            }
        }
        assert!(!codecs.decompress(0xff, &text(4096), &mut text(4096)));
        assert!(!codecs.decompress_start(0xff, &text(4096), &mut text(4096), 64));
    }

    #[test]
    fn a_higher_level_saves_more() {
        let mut encoder = Encoder::<Std>::new(Need::Required, 65_536).unwrap();
        // Words in an order without a period.
        let content: Vec<u8> = noise(65_536)
            .iter()
            .flat_map(|n| format!("{} ", u32::from(*n) * 7919 % 521).into_bytes())
            .take(65_536)
            .collect();
        let mut len = |text| {
            let codecs = codecs(Compression::parse(text).unwrap());
            encoder.encode(&codecs, &content).1.len()
        };
        let lengths = ["none", "lz4", "zstd:1", "zstd:19"].map(&mut len);
        assert!(lengths.is_sorted_by(|a, b| a > b), "{lengths:?}");
    }

    #[test]
    fn content_that_does_not_shrink_is_stored_as_it_is() {
        let noise = noise(4096);
        let mut encoder = Encoder::<Std>::new(Need::Required, noise.len()).unwrap();
        for compression in all() {
            let codecs = codecs(compression);
            let (algorithm, payload) = encoder.encode(&codecs, &noise);
            assert_eq!((algorithm, payload), (Algorithm::Raw, &noise[..]));
        }
    }

    #[test]
    fn no_record_is_made_or_read_before_it_is_announced() {
        let compression = Compression::of(Algorithm::Zstd);
        let mut encoder = Encoder::<Std>::new(Need::Required, 4096).unwrap();
        let content = text(4096);
        let payload = encoder.encode(&codecs(compression), &content).1.to_vec();
        let codecs = Codecs::<Std>::new(compression, false, 4096).unwrap();
        let (tag, mut out) = (Algorithm::Zstd.tag(), vec![0; 4096]);
        assert!(codecs.wants_announcement());
        assert!(!codecs.decompress(tag, &payload, &mut out));
        assert_eq!(encoder.encode(&codecs, &content).0, Algorithm::Lz4);
        assert_eq!((codecs.memory(), codecs.replaced()), (0, 0));
        codecs.prepare_announcement().unwrap();
        codecs.announced();
        assert!(!codecs.wants_announcement());
        assert!(codecs.decompress(tag, &payload, &mut out));
        assert_eq!(encoder.encode(&codecs, &content).0, Algorithm::Zstd);
        // Nodes never are.
        assert!(!Codecs::<Std>::decompress_node(tag, &payload, &mut out));
        assert_eq!(encoder.encode_node(&content).0, Algorithm::Lz4);
    }

    /// A write is never kept waiting and a read never fails for lack of a context.
    #[test]
    fn without_memory_lz4_writes_and_the_reserve_reads() {
        use crate::platform::mem::set_scarcity;
        let compression = Compression::of(Algorithm::Zstd);
        let (codecs, content) = (codecs(compression), text(4096));
        let mut encoder = Encoder::<Std>::new(Need::Required, 4096).unwrap();
        let payload = encoder.encode(&codecs, &content).1.to_vec();
        codecs.shed(u64::MAX);
        set_scarcity(0);
        assert_eq!(encoder.encode(&codecs, &content).0, Algorithm::Lz4);
        assert_eq!(codecs.replaced(), 1);
        let mut out = vec![0; 4096];
        assert!(codecs.decompress(Algorithm::Zstd.tag(), &payload, &mut out));
        assert_eq!(out, content);
        set_scarcity(1);
        assert_eq!(encoder.encode(&codecs, &content).0, Algorithm::Zstd);
    }

    #[test]
    fn contexts_are_given_up_but_for_the_one_to_read() {
        let compression = Compression::of(Algorithm::Zstd);
        let (codecs, content) = (codecs(compression), text(4096));
        let mut encoder = Encoder::<Std>::new(Need::Required, 4096).unwrap();
        let reserve = codecs.memory();
        assert!(reserve > 0);
        let (_, payload) = encoder.encode(&codecs, &content);
        let with_one = codecs.memory();
        assert!(with_one > reserve && codecs.sheddable() == with_one - reserve);
        let mut out = vec![0; 4096];
        assert!(codecs.decompress(Algorithm::Zstd.tag(), payload, &mut out));
        assert_eq!(codecs.shed(u64::MAX), with_one - reserve);
        // Those of another level are not used.
        encoder.encode(&codecs, &content);
        codecs.choose(Compression::parse("zstd:19").unwrap());
        assert_eq!(codecs.memory(), reserve);
        encoder.encode(&codecs, &content);
        assert!(codecs.memory() > with_one);
        codecs.trim();
        codecs.trim();
        assert_eq!(codecs.memory(), reserve);
    }
}
