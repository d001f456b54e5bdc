// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Writes hostile images into a directory, and for each image the engine's view of it, so that other
//! programs that open them can be tested.
//!
//! `NAME.img` is the image. `NAME.blocks` begins with the byte `r` (refused), `s` (sound) or `d`
//! (damaged). For each block that was looked at it holds its number (u64, little-endian), and a byte: 1 if
//! the block can be read, 2 if it can only be read before the rest of its record is, 0 if it cannot. If it is
//! not 0, the contents follow.

use cloop::hostile::{bases, first_read, named, random_forgery, survey, Forgery, Image};
use cloop::platform::fuzz::{Fuzz, MemFile};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::ExitCode;

type Home = Fuzz<true>;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (dir, count) = match args.as_slice() {
        [dir, count] => (dir, count.parse()),
        _ => {
            eprintln!("usage: cloop-hostile DIRECTORY NUMBER-OF-RANDOM-IMAGES");
            return ExitCode::from(2);
        }
    };
    match count
        .map_err(io::Error::other)
        .and_then(|n| write_all(Path::new(dir), n))
    {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cloop-hostile: {dir}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write_all(dir: &Path, count: u64) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    for attack in named::<Home>() {
        write(dir, &attack.name.replace(' ', "-"), &attack.bytes)?;
    }
    let bases: Vec<_> = bases::<Home>(false)
        .into_iter()
        .map(|base| Image::<Home>::new(base.bytes).expect("a good image"))
        .collect();
    for seed in 0..count {
        let input = random_forgery(seed);
        let image = Forgery::new(&input).apply(&bases);
        write(dir, &format!("random-{seed}"), &image.bytes)?;
    }
    Ok(())
}

fn write(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let image = File::create(dir.join(format!("{name}.img")))?;
    image.set_len(bytes.len() as u64)?;
    for (at, page) in (0..).zip(bytes.chunks(4096)) {
        if page.iter().any(|&b| b != 0) {
            image.write_all_at(page, at * 4096)?;
        }
    }
    let file = MemFile::new(bytes);
    let survey = survey::<Home>(&file);
    let mut out = BufWriter::new(File::create(dir.join(format!("{name}.blocks")))?);
    out.write_all(match survey.refused {
        Some(_) => b"r",
        None if survey.sound() => b"s",
        None => b"d",
    })?;
    for (block, held) in &survey.blocks {
        out.write_all(&block.to_le_bytes())?;
        let found = match held {
            Some(bytes) => Some((1, *bytes)),
            None => first_read::<Home>(&file, *block).map(|start| (2, start)),
        };
        out.write_all(&[found.map_or(0, |(how, _)| how)])?;
        if let Some((_, bytes)) = found {
            out.write_all(&bytes)?;
        }
    }
    out.flush()
}
