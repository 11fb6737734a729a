//! `floodgate worker`.

use clap::Args;

use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::shutdown;

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  eval \"$(scripts/services env)\" && floodgate worker\n\n\
    Start as many as you like; they share the queue. SIGTERM drains: the worker takes no more, \
    finishes the orders in flight, and exits with 0.")]
pub(super) struct Work {}

impl Work {
    pub(super) async fn run(self, app: &App) -> anyhow::Result<()> {
        let stop = shutdown::on_signal()?;
        let adapters = app.adapters().await?;
        let ended = CancellationToken::new();
        let working = async {
            let worked = app.run_worker(&adapters, stop).await;
            ended.cancel();
            Ok(worked?)
        };
        monitored(app, &ended, working).await
    }
}

/// Does `work`, which ends with `ended`, and shows meanwhile how the process does.
pub(super) async fn monitored(
    app: &App,
    ended: &CancellationToken,
    work: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    let monitoring = app.monitor()?.map(|(monitor, listener)| {
        if let Ok(address) = listener.local_addr() {
            tracing::info!("metrics on http://{address}/metrics");
        }
        tokio::spawn(monitor.serve(listener, ended.clone()))
    });
    let worked = work.await;
    if let Some(monitoring) = monitoring {
        monitoring.await?;
    }
    worked
}
