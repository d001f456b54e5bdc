// SPDX-License-Identifier: GPL-2.0 OR MIT
//! `cloop check`: offline verification, with the exit codes of fsck.

use crate::fail;
use crate::image::{self, Lock};
use crate::output;
use crate::progress;
use crate::size;
use anyhow::Result;
use cloop::engine::check::{self, Finding, Summary};
use cloop::engine::repair::{self, Doubtful, Report};
use cloop::engine::{Codec, Error, BLOCK_SIZE};
use cloop::platform::std::{Std, StdFile};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Verify every structure and every record of an image, and repair it if asked to.
///
/// Without --repair the image is only read. An image that was not detached in an orderly way is fine: it
/// is verified as the next attach will see it, with its log replayed.
///
/// Exit status: 0 no errors, 1 errors corrected, 4 errors left (5: some corrected), 8 the check could not be
/// done, 16 usage.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Repair a damaged image: save the blocks that can be saved, and list those that are lost. An image
    /// without damage is not changed
    #[arg(long)]
    repair: bool,
    /// With --repair: keep the newest contents that are found of blocks whose newest contents may be lost, and list
    /// these blocks. Without it they give errors until they are written; and if any block may be affected, nothing is
    /// changed
    #[arg(long, requires = "repair")]
    salvage: bool,
    /// With --repair: repair an image although one with its UUID is attached, because it is a copy of that one
    #[arg(short, long, requires = "repair")]
    force: bool,
    /// Print nothing; the exit status is the result
    #[arg(short, long)]
    quiet: bool,
    /// Image to check
    image: PathBuf,
}

/// fsck: errors corrected.
const CORRECTED: u8 = 1;
/// fsck: errors left uncorrected.
const DAMAGED: u8 = 4;
/// fsck: operational error.
pub(crate) const OPERATIONAL: u8 = 8;
/// fsck: usage or syntax error.
pub(crate) const USAGE: u8 = 16;

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let path = &args.image;
    if args.repair {
        return repair(args);
    }
    let file = image::open(path, false, Lock::Shared)?;
    let bar = progress::bar("checking", 0);
    if args.quiet {
        bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }
    let mut printed = Ok(());
    let result = check::check::<Std>(
        image::backing(path, file)?,
        &mut |finding| {
            if !args.quiet && printed.is_ok() {
                printed = bar.suspend(|| output::print(&describe(path, finding)));
            }
        },
        &mut |done, total| {
            bar.set_length(total * BLOCK_SIZE as u64);
            bar.set_position(done * BLOCK_SIZE as u64);
        },
    );
    bar.finish_and_clear();
    printed?;
    let summary = match result {
        Ok(summary) => summary,
        // The image is so damaged that the check cannot continue, which is a finding as well.
        Err(error @ Error::Corrupt { .. }) => {
            if !args.quiet {
                let finding = Finding {
                    error,
                    blocks: None,
                    data: false,
                };
                output::print(&describe(path, &finding))?;
                survey(path)?;
            }
            return Ok(ExitCode::from(DAMAGED));
        }
        Err(error) => return Err(fail::engine(path, error)),
    };
    if !args.quiet {
        output::print(&conclude(path, &summary))?;
    }
    Ok(if summary.findings == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(DAMAGED)
    })
}

/// Lists the blocks that a repair would not bring back.
fn survey(path: &Path) -> Result<()> {
    let file = image::open(path, false, Lock::Shared)?;
    let mut printed = Ok(());
    let listed = repair::survey::<Std>(image::backing(path, file)?, &mut |report| {
        if printed.is_ok() {
            printed = output::print(&tell(path, report, Doubtful::Refuse));
        }
    });
    printed?;
    match listed {
        // Without a superblock or a copy of one there are no blocks to speak of.
        Ok(()) | Err(Error::NotAnImage | Error::Corrupt { .. }) => Ok(()),
        Err(error) => Err(fail::engine(path, error)),
    }
}

/// Checks the image, and repairs it if anything but the data of single records is damaged.
fn repair(args: &Args) -> Result<ExitCode> {
    let path = &args.image;
    let file = image::open_to_change(path, args.force.into())?;
    let bar = progress::bar("checking", 0);
    if args.quiet {
        bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }
    let choice = match args.salvage {
        true => Doubtful::Keep,
        false => Doubtful::Refuse,
    };
    let mut printed = Ok(());
    let result = repair::repair::<Std>(
        &mut || {
            let file = file.try_clone().and_then(StdFile::from_file);
            file.map_err(|e| Error::Io(e.raw_os_error().unwrap_or(0)))
        },
        choice,
        &mut |report| {
            if !args.quiet && printed.is_ok() {
                printed = bar.suspend(|| output::print(&tell(path, report, choice)));
            }
        },
        &mut |done, total| {
            bar.set_length(total * BLOCK_SIZE as u64);
            bar.set_position(done * BLOCK_SIZE as u64);
        },
    );
    bar.finish_and_clear();
    let repaired = result.map_err(|e| fail::engine(path, e))?;
    printed?;
    let left = repaired.leaves_damage();
    if !args.quiet {
        let said = match (repaired.written, left) {
            (true, false) => "repaired",
            (true, true) => "repaired as far as possible; the data listed above is lost",
            (false, true) if repaired.summary.is_none() => {
                "not changed: any block may have older contents now, because a part of the log is or may be lost; \
                 --repair --salvage makes the image usable with them"
            }
            (false, true) => {
                "not changed: the data named above is lost, and nothing else is damaged"
            }
            (false, false) => "not changed",
        };
        output::print(&format!("{}: {said}\n", output::shown(path)))?;
        if let Some(summary) = &repaired.summary {
            output::print(&conclude(path, summary))?;
        }
    }
    let corrected = if repaired.written { CORRECTED } else { 0 };
    Ok(ExitCode::from(corrected | if left { DAMAGED } else { 0 }))
}

fn tell(path: &Path, report: &Report, choice: Doubtful) -> String {
    let said = match *report {
        Report::Damage(finding) => return describe(path, &finding),
        Report::Rebuilt(start, count) => format!(
            "table rebuilt from its older copy and the log{}",
            blocks(start, count)
        ),
        Report::Doubtful(start, count) => {
            let now = match choice {
                Doubtful::Refuse => "lost, as far as can be told",
                Doubtful::Keep => "perhaps with older contents than before",
            };
            format!("{now}:{}", blocks(start, count))
        }
        Report::Unnamed(offset, _) => format!(
            "part of the log lost at byte {offset} of the image; it is unknown which blocks it changed"
        ),
        Report::Unproven(generation) => format!(
            "checkpoint {generation} is the newest one left, but a newer one may be lost with the superblocks"
        ),
        Report::Left(finding) => {
            let place = finding.blocks.map(|(start, count)| blocks(start, count));
            format!("still {}{}", finding.error, place.unwrap_or_default())
        }
    };
    format!("{}: {said}\n", output::shown(path))
}

fn blocks(start: u64, count: u64) -> String {
    match count {
        1 => format!(" (block {start} of the device)"),
        _ => format!(
            " (blocks {start} to {} of the device)",
            start.saturating_add(count).saturating_sub(1)
        ),
    }
}

fn describe(path: &Path, finding: &Finding) -> String {
    let place = finding.blocks.map(|(start, count)| blocks(start, count));
    let place = place.unwrap_or_default();
    format!("{}: {}{place}\n", output::shown(path), finding.error)
}

fn conclude(path: &Path, summary: &Summary) -> String {
    let state = match (summary.findings, summary.clean) {
        (0, true) => "clean".to_owned(),
        (0, false) => format!(
            "no errors; not detached in an orderly way, {} records of the log replayed",
            summary.replayed
        ),
        (1, _) => "1 error".to_owned(),
        (n, _) => format!("{n} errors"),
    };
    let said = format!(
        "{}: {state}, {} records, {} table nodes, {} mapped blocks, {} bytes of live records\n",
        output::shown(path),
        summary.records,
        summary.nodes,
        summary.mapped_blocks,
        summary.live_bytes
    );
    let parts = Codec::ALL
        .iter()
        .map(|codec| (codec.name, summary.compressed(codec.algorithm)));
    parts
        .filter(|(_, part)| part.blocks > 0)
        .fold(said, |said, (name, part)| {
            let data = size::human(part.blocks * BLOCK_SIZE as u64);
            said + &format!(
                "  {name:<6} {data:>8} of data in {:>8}\n",
                size::human(part.bytes)
            )
        })
}
