//! `floodgate user`.

mod erase;
mod letters;

use clap::{Args, Subcommand};

use self::erase::Erase;
use crate::app::App;

#[derive(Debug, Args)]
pub(super) struct UserArgs {
    #[command(subcommand)]
    command: UserCommand,
}

#[derive(Debug, Subcommand)]
enum UserCommand {
    /// Replace a user's id in all that is kept. It cannot be undone
    #[command(after_help = "Example:\n  floodgate user erase 17850\n\n\
        In the ledger, in archive files, among the dead letters and in Redis. Each sale has another token in its place,\n\
        so limits hold and repeats get their answers. It cannot be undone. What is in queues of subscribers, in the event\n\
        feed, in logs and in backups is not reached (docs/operations.md). Orders of the user that are still queued are\n\
        decided under the id: run it when they are. Killed, it is to be run again.")]
    Erase(Erase),
}

impl UserArgs {
    pub(super) async fn run(self, app: &App) -> anyhow::Result<()> {
        let UserCommand::Erase(erase) = self.command;
        erase.run(app).await
    }
}
