//! `floodgate api` and `floodgate up`.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::Args;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::api::Api;
use crate::app::{Adapters, App};
use crate::shutdown;

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  FLOODGATE_API__LISTEN=127.0.0.1:8080 floodgate api\n\n\
    Answers on http://127.0.0.1:8080: /docs describes the API, / shows sales live. Orders are only \
    put into the queue; start workers to have them decided.")]
pub(super) struct Serve {}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  floodgate up\n  \
    floodgate sale open --sale-id bottles --stock 100    (in another terminal)\n\n\
    The API and a worker in one process. With no server configured it runs embedded, on the file \
    floodgate.db. Ctrl-C drains.")]
pub(super) struct Up {}

impl Serve {
    pub(super) async fn run(self, app: &App) -> Result<()> {
        let stop = shutdown::on_signal()?;
        let adapters = app.adapters().await?;
        serve(bound(app, &adapters).await?, stop).await
    }
}

impl Up {
    pub(super) async fn run(self, app: &App) -> Result<()> {
        let stop = shutdown::on_signal()?;
        let adapters = app.adapters().await?;
        let bound = bound(app, &adapters).await?;
        let ending = CancellationToken::new();
        let mut worker = tokio::spawn(app.run_worker(&adapters, ending.clone()));
        let sending = app.settings().feed.enabled.then(|| {
            let sender = app.webhook_sender(&adapters, Arc::default())?;
            anyhow::Ok(tokio::spawn(sender.run(ending.clone())))
        });
        let sending = sending.transpose()?;
        // First no more orders are taken, then those in flight are decided: a client that waits for a
        // decision still gets it.
        let served = tokio::select! {
            served = serve(bound, stop) => served,
            ended = &mut worker => {
                ended?.context("the worker ended")?;
                bail!("the worker ended");
            }
        };
        ending.cancel();
        worker.await??;
        if let Some(sending) = sending {
            sending.await??;
        }
        served
    }
}

/// The API and where it listens: everything that can be wrong with the settings shows here.
async fn bound(app: &App, adapters: &Adapters) -> Result<(Api, TcpListener)> {
    let api = app.api(adapters).await?;
    let listener = app.listener(&api)?;
    Ok((api, listener))
}

async fn serve((api, listener): (Api, TcpListener), stop: CancellationToken) -> Result<()> {
    let address = listener.local_addr()?;
    if api.token_verifier.is_none() {
        tracing::warn!("no key is configured: every user of this machine may order and operate");
    }
    tracing::info!("listening on http://{address}");
    api.serve(listener, stop).await?;
    Ok(())
}
