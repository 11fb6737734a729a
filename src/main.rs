//! The `floodgate` command.

use std::process::ExitCode;

use clap::Parser;
use floodgate::cli::Cli;

fn main() -> ExitCode {
    Cli::parse().run()
}
