// SPDX-License-Identifier: GPL-2.0 OR MIT
//! `cloop`: makes, attaches, inspects and converts images of compressed block devices.
//!
//! Each command has its own file. Only the engine interprets an image; this program opens files, locks
//! them, and talks to the user and to the control device of the kernel module.

#![deny(unsafe_code)]

mod attach;
mod check;
mod chunk;
mod compact;
mod contents;
mod control;
mod create;
mod device;
mod estimate;
mod export;
mod fail;
mod image;
mod import;
mod info;
mod list;
mod output;
mod progress;
mod recognise;
mod reorder;
mod resize;
mod set;
mod signals;
mod size;
mod target;
mod workers;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Read-write compressed block devices, each in one file.
///
/// An image made by `cloop create` becomes a block device by `cloop attach` and is then used as any disk
/// is: mkfs, mount, discard. Sizes take the suffixes K, M, G, T, P (powers of 1024; KiB and so on mean
/// the same) and KB, MB, GB, TB, PB (powers of 1000).
#[derive(Parser)]
#[command(name = "cloop", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Create(create::Args),
    Attach(attach::Args),
    Detach(attach::DetachArgs),
    List(list::Args),
    Info(info::Args),
    Resize(resize::Args),
    Set(set::Args),
    Compact(compact::Args),
    Check(check::Args),
    Estimate(estimate::Args),
    Import(import::Args),
    Export(export::Args),
}

/// Exit status for a wrong command line, for all commands but `check`.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    signals::ignore_file_size_limit();
    let checking = std::env::args_os().nth(1).is_some_and(|a| a == "check");
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // clap treats help and version as errors that go to standard output. A reader that has gone
            // away is no reason to fail.
            let _ = print(&error);
            return match (error.use_stderr(), checking) {
                (false, _) => ExitCode::SUCCESS,
                (true, true) => ExitCode::from(check::USAGE),
                (true, false) => ExitCode::from(USAGE),
            };
        }
    };
    let result = match cli.command {
        Command::Create(args) => create::run(&args),
        Command::Attach(args) => attach::run(&args),
        Command::Detach(args) => attach::run_detach(&args),
        Command::List(args) => list::run(&args),
        Command::Info(args) => info::run(&args),
        Command::Resize(args) => resize::run(&args),
        Command::Set(args) => set::run(&args),
        Command::Compact(args) => compact::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Estimate(args) => estimate::run(&args),
        Command::Import(args) => import::run(&args),
        Command::Export(args) => export::run(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("cloop: {error:#}");
        if checking {
            ExitCode::from(check::OPERATIONAL)
        } else {
            ExitCode::FAILURE
        }
    })
}

/// Prints what clap has to say. The arguments that it cites may be names of files.
fn print(error: &clap::Error) -> std::io::Result<()> {
    let text = error.render().to_string();
    let harmless = output::without_raw(&text, std::env::args_os());
    if harmless == text {
        return error.print();
    }
    eprint!("{harmless}");
    Ok(())
}
