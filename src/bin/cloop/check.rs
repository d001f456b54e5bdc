// SPDX-License-Identifier: GPL-2.0 OR MIT
//! `cloop check`: offline verification, with the exit codes of fsck.

use crate::fail;
use crate::image::{self, Lock};
use crate::output;
use crate::progress;
use anyhow::Result;
use cloop::engine::check::{self, Finding, Summary};
use cloop::engine::{Error, BLOCK_SIZE};
use cloop::platform::std::Std;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Verify every structure and every record of an image.
///
/// The image is read, never changed. One that was not detached in an orderly way is fine: what its log
/// holds is verified as the next attach will see it.
///
/// Exit status: 0 no errors, 4 errors found, 8 the check could not be done, 16 usage.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Print nothing; the exit status is the result
    #[arg(short, long)]
    quiet: bool,
    /// Image to check
    image: PathBuf,
}

/// fsck: errors left uncorrected.
const DAMAGED: u8 = 4;
/// fsck: operational error.
pub(crate) const OPERATIONAL: u8 = 8;
/// fsck: usage or syntax error.
pub(crate) const USAGE: u8 = 16;

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let path = &args.image;
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
        // So damaged that there is nothing to go on with: a finding, too.
        Err(error @ Error::Corrupt { .. }) => {
            if !args.quiet {
                let finding = Finding {
                    error,
                    blocks: None,
                };
                output::print(&describe(path, &finding))?;
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

fn describe(path: &Path, finding: &Finding) -> String {
    let blocks = match finding.blocks {
        None => String::new(),
        Some((start, 1)) => format!(" (block {start} of the device)"),
        Some((start, count)) => format!(
            " (blocks {start} to {} of the device)",
            start.saturating_add(count).saturating_sub(1)
        ),
    };
    format!("{}: {}{blocks}\n", path.display(), finding.error)
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
    format!(
        "{}: {state}, {} records, {} table nodes, {} mapped blocks, {} bytes of live data\n",
        path.display(),
        summary.records,
        summary.nodes,
        summary.mapped_blocks,
        summary.live_bytes
    )
}
