//! `floodgate migrate`.

use clap::Args;

use crate::app::App;

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  FLOODGATE_DATABASE_URL=postgres://user@host/shop floodgate migrate"
)]
pub(super) struct Migrate {}

impl Migrate {
    pub(super) async fn run(self, app: &App) -> anyhow::Result<()> {
        app.migrate().await?;
        eprintln!("The ledger is up to date.");
        Ok(())
    }
}
