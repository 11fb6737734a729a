//! `floodgate user-service`.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use clap::error::ErrorKind;
use tokio::net::TcpListener;

use super::output;
use crate::domain::order::{SaleId, UserId};
use crate::shutdown;
use crate::user_service::{Behaviour, Counts, Latency, Stall, UserService};

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
    none, to 1, all. SIGTERM or Ctrl-C answers whoever waits, and ends it.")]
pub(super) struct Serve {
    /// Where to listen; anybody who can reach it may ask
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
    /// The share of calls that hang, of those that don't fail, spread evenly
    #[arg(long, default_value_t = 0.0, value_name = "SHARE", value_parser = share)]
    hangs: f64,
    /// A sale of which every call hangs; give it once for each
    #[arg(long, value_name = "SALE")]
    hang_sale: Vec<SaleId>,
    /// How long a call that hangs takes, in milliseconds
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=3_600_000))]
    hang_ms: u64,
    /// From one stall's end to the next one's, in milliseconds
    #[arg(long, requires = "stall_ms", value_parser = clap::value_parser!(u64).range(1..=3_600_000))]
    stall_every_ms: Option<u64>,
    /// How long a stall is: nobody is answered while it lasts, and all who wait at its end
    #[arg(long, requires = "stall_every_ms", value_parser = clap::value_parser!(u64).range(1..=3_600_000))]
    stall_ms: Option<u64>,
    /// Calls a second, and as many at once, beyond which calls are refused (429, Retry-After)
    #[arg(long, value_name = "CALLS")]
    rate_limit: Option<NonZeroU32>,
    /// The same seed draws the same latencies
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print the counts as JSON
    #[arg(long)]
    json: bool,
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "accepted: a number from 0 to 1".to_owned())
}

impl Serve {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let (address, json) = (self.listen, self.json);
        let service = Arc::new(UserService::new(self.behaviour()));
        let stop = shutdown::on_signal()?;
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("can't listen on {address} (--listen)"))?;
        tracing::info!("a user service to try against, on http://{}", listener.local_addr()?);
        service.clone().serve(listener, stop).await?;
        let counts = service.counts();
        if json { output::json(&counts) } else { print(&counts) }
    }

    fn behaviour(self) -> Behaviour {
        Behaviour {
            stall: self.stall(),
            latency: self.latency_ms,
            failures: self.failures,
            denials: self.denials,
            denied: self.deny.into_iter().collect(),
            hangs: self.hangs,
            hanging_sales: self.hang_sale.into_iter().collect(),
            hang: Duration::from_millis(self.hang_ms),
            rate_limit: self.rate_limit,
            seed: self.seed,
        }
    }

    /// Ends the process, as other bad usage does, where the two options don't go together.
    fn stall(&self) -> Option<Stall> {
        let (every, length) = (self.stall_every_ms?, self.stall_ms?);
        let stall = Stall::new(Duration::from_millis(every), Duration::from_millis(length));
        Some(stall.unwrap_or_else(|error| {
            let message = format!("--stall-every-ms and --stall-ms: {error}\n");
            clap::Error::raw(ErrorKind::ValueValidation, message).exit()
        }))
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
            ("too fast (429)", counts.rate_limited),
            ("abandoned by the caller", counts.abandoned),
            ("hung", counts.hung),
            ("most in flight", counts.most_in_flight),
            ("malformed (400)", counts.malformed),
        ]
        .map(|(name, count)| [name.to_owned(), count.to_string()]),
    )
}
