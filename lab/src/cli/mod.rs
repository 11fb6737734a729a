//! The laboratory's command line, with floodgate's conventions.

mod bench;
mod chaos;
mod compare;
mod failover;
mod load;
mod simulate;
mod user_service;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use floodgate::app::App;
use floodgate::cli::{exit, start};

/// Measures floodgate, and compares it with other designs for selling limited stock.
///
/// Settings are floodgate's: from the environment (FLOODGATE_AMQP_URL, FLOODGATE_REDIS_URL,
/// FLOODGATE_DATABASE_URL and others) or a file.
#[derive(Debug, Parser)]
#[command(version, after_help = "Example:\n  floodgate-lab bench --orders 100000 --batch 32")]
pub(crate) struct Cli {
    /// A file with settings, in TOML
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure the whole path against a bare relay on the configured servers
    Bench(bench::Bench),
    /// The sender and receiver of the bare relay that `bench` compares with
    #[command(hide = true)]
    BenchRelay(bench::Relay),
    /// A plain worker that `bench --peers` compares with
    #[command(hide = true)]
    BenchPlainWorker(bench::PlainWorker),
    /// Make faults of every kind, drawn from a seed, under a steady load, and check that every promise was kept
    Chaos(chaos::Chaos),
    /// Compare with other designs for selling limited stock, side by side
    Compare(compare::Compare),
    /// One process of a design that `compare` compares with
    #[command(hide = true)]
    CompareShop(compare::ShopArgs),
    /// Make a fault in the middle of a steady load on the configured servers, and show what it cost
    Failover(failover::Failover),
    /// Run the worker in a simulated world, for each of many seeds, and check that the promises hold
    Simulate(simulate::Simulate),
    /// Stand in for the user service that is asked before a user may buy, with more that can go wrong
    UserService(user_service::Disrupted),
}

impl Cli {
    /// Runs the command.
    pub(crate) fn run(self) -> ExitCode {
        exit("floodgate-lab", self.try_run())
    }

    #[tokio::main]
    async fn try_run(self) -> anyhow::Result<ExitCode> {
        let app = start(self.config.as_deref())?;
        let ended = Box::pin(self.run_command(&app)).await;
        app.close().await;
        ended
    }

    async fn run_command(self, app: &App) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Bench(command) => command.run(app, self.config).await?,
            Command::BenchRelay(command) => command.run(app).await?,
            Command::BenchPlainWorker(command) => command.run(app).await?,
            Command::Chaos(command) => {
                let holds = command.run(app, self.config).await?;
                return Ok(if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE });
            }
            Command::Compare(command) => return command.run(app, self.config).await,
            Command::CompareShop(command) => command.run(app).await?,
            Command::Failover(command) => {
                let holds = command.run(app, self.config).await?;
                return Ok(if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE });
            }
            Command::Simulate(command) => {
                // It has runtimes with a time of their own.
                let holds = tokio::task::spawn_blocking(|| command.run()).await??;
                return Ok(if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE });
            }
            Command::UserService(command) => command.run().await?,
        }
        Ok(ExitCode::SUCCESS)
    }
}
