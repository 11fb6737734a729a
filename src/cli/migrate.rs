//! `floodgate migrate`.

use clap::Args;

use crate::app::App;

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  FLOODGATE_DATABASE_URL=postgres://user@host/shop floodgate migrate"
)]
pub(super) struct Migrate {
    /// Then distribute the tables by sale over the nodes of a PostgreSQL with Citus, to be used with
    /// ledger.distributed = true. Moves the rows that are there; stop workers and API first
    #[arg(long)]
    distribute: bool,
}

impl Migrate {
    pub(super) async fn run(self, app: &App) -> anyhow::Result<()> {
        app.migrate().await?;
        eprintln!("The ledger is up to date.");
        if self.distribute {
            app.distribute().await?;
            eprintln!("Its tables are distributed by sale.");
        }
        Ok(())
    }
}
