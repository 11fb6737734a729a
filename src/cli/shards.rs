//! `floodgate shards`.

use clap::Args;
use serde::Serialize;

use super::operator::operator;
use super::output;
use crate::app::App;
use crate::operator_log::{Action, Entry};
use crate::shards::Roster;
use crate::status::{Depths, ShardDepth};

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  floodgate shards\n  floodgate shards 8\n\n\
    With more than one shard each sale has all of its orders in one shard, and each\n\
    shard has one worker at a time, so that a sale keeps its order however many\n\
    workers there are. Needs RabbitMQ's plugin rabbitmq_consistent_hash_exchange.\n\
    Workers notice a change within seconds. Orders that wait in queues of before are\n\
    decided beside new ones; nothing is lost, and nothing is decided twice.")]
pub(super) struct ShardsArgs {
    /// Divide the intake into so many shards from now on: 1 (one queue for all) to 64
    #[arg(value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    shards: Option<u16>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What is shown.
#[derive(Serialize)]
struct Shown {
    shards: u16,
    workers: usize,
    queues: Vec<Waiting>,
}

/// What waits in a shard, or in the queues that are not sharded.
#[derive(Serialize)]
struct Waiting {
    /// None: the queues without a number.
    shard: Option<u16>,
    /// It gets new orders.
    in_use: bool,
    intents: u32,
    returned: u32,
    consumers: u32,
}

impl ShardsArgs {
    pub(super) async fn run(self, app: &App) -> anyhow::Result<()> {
        if let Some(shards) = self.shards {
            let before = app.divide(shards).await?;
            if before != shards {
                let detail = format!("{shards} shards; {before} before");
                let entry = Entry::new(&operator(), Action::Divided, None, &detail);
                app.journal().await?.record(&[entry]).await;
            }
        }
        let shown = look(app).await?;
        if self.json {
            return output::json(&shown);
        }
        let rows = shown.queues.iter().map(|waiting| {
            let Waiting { shard, in_use, intents, returned, consumers } = waiting;
            let shard = shard.map_or("-".to_owned(), |shard| shard.to_string());
            let gets = if *in_use { "yes" } else { "no" };
            [
                shard,
                gets.to_owned(),
                intents.to_string(),
                returned.to_string(),
                consumers.to_string(),
            ]
        });
        output::table(["shard", "gets new orders", "intents", "returned", "workers"], rows)?;
        let Shown { shards, workers, .. } = shown;
        output::text(&format!("\nShards: {shards}. Workers that run: {workers}.\n"))
    }
}

async fn look(app: &App) -> anyhow::Result<Shown> {
    let Roster { division, workers } = app.roster().await?;
    let broker = app.broker().await?;
    let depths = Depths::look(broker.as_ref(), division).await?;
    let queues = depths.shards.into_iter().map(|depth| {
        let ShardDepth { shard, intents, returned, consumers } = depth;
        Waiting { shard, in_use: division.uses(shard), intents, returned, consumers }
    });
    let queues = queues.collect();
    Ok(Shown { shards: division.shards, workers: workers.len(), queues })
}
