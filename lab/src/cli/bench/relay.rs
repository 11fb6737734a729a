//! The bare relay: consume, publish with confirm, acknowledge.

use std::sync::Arc;

use clap::Args;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::cli::load::Load;
use floodgate::app::App;
use floodgate::broker::{Delivery, Message, Queue};
use floodgate::domain::event::Event;
use floodgate::shutdown;

/// What a worker would be without its stages: for each message one event, of the size that a
/// decision's has. Takes batches like the worker does, and as many at once.
#[derive(Debug, Args)]
pub(crate) struct Relay {}

impl Relay {
    pub(crate) async fn run(self, app: &App) -> anyhow::Result<()> {
        let stop = shutdown::on_signal()?;
        let (broker, settings) = (app.broker().await?, &app.settings().worker);
        let mut deliveries = broker.consume(Queue::Intents, app.settings().broker.prefetch).await?;
        let event = Arc::new(Load::new(0, 1).sample_event()?);
        let slots = Arc::new(Semaphore::new(settings.batches_in_flight));
        let mut relaying = JoinSet::new();
        loop {
            let slot = slots.clone().acquire_owned().await?;
            let first = tokio::select! {
                first = deliveries.next() => first,
                () = stop.cancelled() => break,
            };
            let Some(first) = first else { break };
            let mut batch = vec![first];
            while batch.len() < settings.max_batch
                && let Some(delivery) = deliveries.ready()
            {
                batch.push(delivery);
            }
            let (broker, event) = (broker.clone(), event.clone());
            relaying.spawn(async move {
                let events: Vec<Event> =
                    batch.iter().map(|intent| of(&intent.body, &event)).collect();
                let messages: Vec<Message<'_>> = events.iter().map(Message::Event).collect();
                let published = broker.publish(&messages).await.all();
                if published.is_ok() {
                    batch.into_iter().for_each(Delivery::ack);
                }
                drop(slot);
                published
            });
            while let Some(relayed) = relaying.try_join_next() {
                relayed??;
            }
        }
        deliveries.stop();
        while let Some(relayed) = relaying.join_next().await {
            relayed??;
        }
        deliveries.finished().await;
        Ok(())
    }
}

/// An event like `sample` that tells of the order in `intent`.
fn of(intent: &[u8], sample: &Event) -> Event {
    let mut data = intent.strip_suffix(b"}").unwrap_or(intent).to_vec();
    data.extend_from_slice(br#","outcome":"sold_out","decided_at":"2026-11-26T08:00:00.123Z"}"#);
    Event { data, ..sample.clone() }
}
