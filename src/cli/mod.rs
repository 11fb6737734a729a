//! The command line: one file for each command. Results go to standard output, everything else to
//! standard error. Exit codes: 0 success, 1 failed, 2 bad usage.

mod audit;
mod check;
pub mod client;
mod config;
mod contract;
mod dead_letters;
mod demo;
mod events;
mod health;
mod migrate;
mod operator;
mod operator_log;
mod order;
pub mod output;
pub mod process;
mod publish;
mod replay;
mod sale;
mod serve;
pub mod server;
mod shards;
mod token;
mod top;
mod user;
pub mod user_service;
mod webhooks;
mod worker;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use crate::app::App;
use crate::config::Settings;
use crate::telemetry;

/// Order intake for flash sales: never oversells, loses nothing, one decision per order.
///
/// Settings come from the environment (FLOODGATE_AMQP_URL, FLOODGATE_REDIS_URL,
/// FLOODGATE_DATABASE_URL and others) or a file; `floodgate settings` prints them all.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Example:\n  floodgate migrate && floodgate sale open --sale-id bottles --stock 100 && floodgate worker"
)]
pub struct Cli {
    /// A file with settings, in TOML
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// See a flash sale happen, with a crash in the middle, and have everything checked
    Demo(demo::Demo),
    /// Bring the ledger's database to this version's schema
    Migrate(migrate::Migrate),
    /// Serve the HTTP API and take intents from the queue, in one process
    Up(serve::Up),
    /// Serve the HTTP API, which only puts orders into the queue
    Api(serve::Serve),
    /// Take intents from the queue and decide them, until SIGTERM or Ctrl-C
    Worker(worker::Work),
    /// Send events to webhooks, until SIGTERM or Ctrl-C
    Webhooks(webhooks::SendWebhooks),
    /// Open sales, look at them, restock, pause and close them
    Sale(sale::SaleArgs),
    /// Look at orders
    Order(order::OrderArgs),
    /// Replace a user in all that is kept
    User(user::UserArgs),
    /// Publish decisions again
    Events(events::EventsArgs),
    /// Send the orders of a file to the queue
    Replay(replay::Replay),
    /// Look at messages that could not be decided, send them back or delete them
    DeadLetters(dead_letters::DeadLettersArgs),
    /// Make a token to try the API with
    Token(token::Token),
    /// Look at the shards of the intake, or divide it into another number of them
    Shards(shards::ShardsArgs),
    /// Watch what workers do, what waits, and which servers answer, in a terminal
    Top(top::Top),
    /// Look at what operators did, and at tokens that were refused
    OperatorLog(operator_log::OperatorLogArgs),
    /// Stand in for the user service that is asked before a user may buy, to try floodgate against
    UserService(user_service::Serve),
    /// Balance the books: ledger, hints, queues and events against each other
    Audit(audit::Audit),
    /// Look whether every server can be reached and is set up
    Check(check::Check),
    /// Ask the API or a worker on this machine whether it works, for the health check of a container
    Health(health::Health),
    /// Look at the settings that are in force
    Config(config::ConfigArgs),
    /// Print what producers, subscribers and clients may rely on, for machines
    Contract(contract::Contract),
    /// Print what a shell completes floodgate's commands and options by
    #[command(
        after_help = "Example:\n  floodgate completions bash > /etc/bash_completion.d/floodgate"
    )]
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print every setting with its default and what it is for
    #[command(after_help = "Example:\n  floodgate settings > floodgate.toml")]
    Settings,
}

impl Cli {
    /// Runs the command.
    pub fn run(self) -> ExitCode {
        exit("floodgate", self.try_run())
    }

    #[tokio::main]
    async fn try_run(self) -> anyhow::Result<ExitCode> {
        let app = start(self.config.as_deref())?;
        let _fail_points = fail::FailScenario::setup();
        let ended = Box::pin(self.run_command(&app)).await;
        app.close().await;
        ended
    }

    async fn run_command(self, app: &App) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Demo(command) => return command.run(app, self.config).await,
            Command::Migrate(command) => command.run(app).await?,
            Command::Up(command) => command.run(app).await?,
            Command::Api(command) => command.run(app).await?,
            Command::Worker(command) => command.run(app).await?,
            Command::Webhooks(command) => command.run(app).await?,
            Command::Sale(command) => return command.run(app).await,
            Command::Order(command) => return command.run(app).await,
            Command::User(command) => command.run(app).await?,
            Command::Events(command) => command.run(app).await?,
            Command::Replay(command) => command.run(app).await?,
            Command::DeadLetters(command) => command.run(app).await?,
            Command::Token(command) => command.run(app)?,
            Command::Shards(command) => command.run(app).await?,
            Command::Top(command) => command.run(app).await?,
            Command::OperatorLog(command) => command.run(app).await?,
            Command::UserService(command) => command.run().await?,
            Command::Audit(command) => return command.run(app).await,
            Command::Check(command) => return command.run(app).await,
            Command::Health(command) => return command.run(app).await,
            Command::Config(command) => command.run(self.config.as_deref())?,
            Command::Contract(command) => command.run(app)?,
            Command::Completions { shell } => {
                let (mut command, mut text) = (Self::command(), Vec::new());
                clap_complete::generate(shell, &mut command, "floodgate", &mut text);
                output::text(&String::from_utf8(text)?)?;
            }
            Command::Settings => output::text(crate::config::DEFAULTS)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// What every command begins with: the settings, from `config` and the environment, the log, and as many open
/// files as the system allows.
pub fn start(config: Option<&Path>) -> anyhow::Result<App> {
    let app = App::new(Settings::load(config)?);
    telemetry::init(&app.settings().log)?;
    // Most systems give a process 1,024 open files at first and let it have many more. Each connection
    // is one.
    if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
    Ok(app)
}

/// How `program` ends; says what went wrong.
pub fn exit(program: &str, ended: anyhow::Result<ExitCode>) -> ExitCode {
    ended.unwrap_or_else(|error| {
        eprintln!("{program}: {}", explain(&error));
        ExitCode::FAILURE
    })
}

/// An error and its causes in one line. Libraries differ in whether an error repeats its cause;
/// what was said already isn't said again.
fn explain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !text.contains(&cause) {
            let separator = if text.is_empty() { "" } else { ": " };
            text = format!("{text}{separator}{cause}");
        }
    }
    text
}
