//! `floodgate user-service`.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use axum::Router;
use clap::Args;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::output;
use crate::domain::order::UserId;
use crate::shutdown;
use crate::user_service::{Behaviour, Counts, Latency, UserService, serve};

/// The options of `user-service`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  \
    floodgate user-service --latency-ms lognormal:50:0.5 --failures 0.02 --denials 0.1 --deny u-1\n\n\
    and in other terminals:\n  \
    FLOODGATE_VERIFICATION__URL=http://127.0.0.1:9090 floodgate up\n  \
    floodgate sale open --sale-id s --stock 5 --verification\n  \
    curl http://127.0.0.1:9090/verify -d '{\"user_id\": \"u-1\", \"sale_id\": \"s\", \"order_id\": \"o-1\"}'\n  \
    curl http://127.0.0.1:9090/calls\n\n\
    A stand-in, for trying things out. POST /verify answers {\"allowed\": true}, or {\"allowed\": false, \
    \"reason\": \"...\"}; GET /calls has the counts, which are printed at the end too. Shares are from 0, \
    none, to 1, all. SIGTERM or Ctrl-C answers all waiting calls, and ends it.")]
pub struct Serve {
    /// Where to listen; every client that can reach it may ask
    #[arg(long, default_value = "127.0.0.1:9090", value_name = "ADDRESS:PORT")]
    listen: SocketAddr,
    /// How long an answer takes: milliseconds, or lognormal:MEDIAN:SIGMA, or file:PATH with one
    /// number of milliseconds a line, drawn at random
    #[arg(long, default_value = "0", value_name = "LATENCY")]
    latency_ms: Latency,
    /// The share of calls that fail (503), spread evenly
    #[arg(long, default_value_t = 0.0, value_name = "SHARE", value_parser = share)]
    failures: f64,
    /// The share of users who are denied: always the same ones
    #[arg(long, default_value_t = 0.0, value_name = "SHARE", value_parser = share)]
    denials: f64,
    /// A user who is denied; give it once for each
    #[arg(long, value_name = "USER")]
    deny: Vec<UserId>,
    /// The same seed draws the same latencies
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print the counts as JSON
    #[arg(long)]
    json: bool,
}

/// A share, from 0 to 1.
pub fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "accepted: a number from 0 to 1".to_owned())
}

impl Serve {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        self.run_with(|routes, _| routes).await
    }

    /// Runs the service with what `extend` makes of its routes, until the token that it gets is cancelled.
    pub async fn run_with(
        self,
        extend: impl FnOnce(Router, CancellationToken) -> Router,
    ) -> anyhow::Result<()> {
        let (address, json) = (self.listen, self.json);
        let service = Arc::new(UserService::new(self.behaviour()));
        let stop = shutdown::on_signal()?;
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("can't listen on {address} (--listen)"))?;
        tracing::info!("a user service to try against, on http://{}", listener.local_addr()?);
        let routes = extend(service.clone().routes(stop.clone()), stop.clone());
        serve(listener, routes, stop).await?;
        let counts = service.counts();
        if json { output::json(&counts) } else { print(&counts) }
    }

    fn behaviour(self) -> Behaviour {
        Behaviour {
            latency: self.latency_ms,
            failures: self.failures,
            denials: self.denials,
            denied: self.deny.into_iter().collect(),
            seed: self.seed,
        }
    }
}

fn print(counts: &Counts) -> anyhow::Result<()> {
    output::table(
        ["", ""],
        [
            ("calls", counts.calls),
            ("users", counts.users),
            ("allowed", counts.allowed),
            ("denied", counts.denied),
            ("failed (503)", counts.failed),
            ("abandoned", counts.abandoned),
            ("most in flight", counts.most_in_flight),
            ("malformed (400)", counts.malformed),
        ]
        .map(|(name, count)| [name.to_owned(), count.to_string()]),
    )
}
