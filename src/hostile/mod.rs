// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Hostile images: complete, with right checksums, and wrong on purpose.
//! [`Maker`] writes an image record by record, as the engine would or in any other way. [`Image`] knows the
//! place of every integer in an image ([`Field`]), changes them and makes all checksums right again.
//! [`Forgery`] is a list of such changes in few bytes, for a fuzzer. [`exercise`] does to an image what
//! users do, and panics if the engine breaks a promise.

mod exercise;
mod field;
mod forgery;
mod maker;
mod named;

pub use self::exercise::{exercise, first_read, mend, survey, Survey};
pub use self::field::{Field, Image};
pub use self::forgery::{
    bases, compact, exercise_compact, exercise_forgery, expand, forgery_bases, random_forgery,
    Base, Forgery,
};
pub use self::maker::{contents, tag_of, Maker};
pub use self::named::{named, Expect, Named, BLOCKS, RECORD_IN_RECORD};
