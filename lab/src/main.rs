//! Floodgate's laboratory: measures floodgate, and compares it with other designs for selling limited stock.

mod chaos;
mod cli;
mod compare;
mod disruption;
mod simulate;

use std::ffi::OsStr;
use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    // It starts processes of floodgate too; see `floodgate::cli::process::floodgate`.
    if std::env::args_os().next().as_deref() == Some(OsStr::new("floodgate")) {
        return floodgate::cli::Cli::parse().run();
    }
    cli::Cli::parse().run()
}
