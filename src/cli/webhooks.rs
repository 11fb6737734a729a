//! `floodgate webhooks`.

use anyhow::bail;
use clap::Args;
use tokio_util::sync::CancellationToken;

use super::worker::monitored;
use crate::app::App;
use crate::shutdown;

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  FLOODGATE_FEED__ENABLED=true floodgate webhooks\n\n\
    Register them by POST /v1/webhooks; docs/webhooks.md has the rest. Start two, so that one takes over\n\
    when the other is gone. SIGTERM finishes the requests that are under way.")]
pub(super) struct SendWebhooks {}

impl SendWebhooks {
    pub(super) async fn run(self, app: &App) -> anyhow::Result<()> {
        if app.settings().is_embedded() {
            bail!("an embedded deployment is one process: floodgate up sends to webhooks too");
        }
        let stop = shutdown::on_signal()?;
        let adapters = app.adapters().await?;
        let sender = app.webhook_sender(&adapters, app.health().clone())?;
        let ended = CancellationToken::new();
        let sending = async {
            let sent = sender.run(stop).await;
            ended.cancel();
            Ok(sent?)
        };
        monitored(app, &ended, sending).await
    }
}
