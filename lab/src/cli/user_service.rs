//! `floodgate-lab user-service`.

use std::num::NonZeroU32;
use std::time::Duration;

use clap::Args;
use clap::error::ErrorKind;
use floodgate::cli::user_service::{Serve, share};
use floodgate::domain::order::SaleId;

use crate::disruption::{Disruption, Stall};

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  \
    floodgate-lab user-service --latency-ms 50 --hangs 0.01 --stall-every-ms 60000 --stall-ms 5000\n\n\
    The stand-in of `floodgate user-service`, with more that can go wrong; GET /calls counts that too.")]
pub(super) struct Disrupted {
    #[command(flatten)]
    service: Serve,
    /// The share of calls that hang, spread evenly
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
    /// How long a stall is: no call is answered while it lasts, and all that wait at its end
    #[arg(long, requires = "stall_every_ms", value_parser = clap::value_parser!(u64).range(1..=3_600_000))]
    stall_ms: Option<u64>,
    /// Calls a second, and as many at once, beyond which calls are refused (429, Retry-After)
    #[arg(long, value_name = "CALLS")]
    rate_limit: Option<NonZeroU32>,
}

impl Disrupted {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let disruption = Disruption {
            hangs: self.hangs,
            stall: self.stall(),
            hanging_sales: self.hang_sale.into_iter().collect(),
            hang: Duration::from_millis(self.hang_ms),
            rate_limit: self.rate_limit,
        };
        self.service.run_with(|routes, stop| disruption.around(routes, stop)).await
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
