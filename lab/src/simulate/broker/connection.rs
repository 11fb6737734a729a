//! The broker as a worker sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use floodgate::broker::{
    Broker, BrokerError, Deliveries, Delivery, Depth, FeedError, FeedReader, Message, Published,
    Queue, Receipt, Reply, Topic,
};
use floodgate::domain::event::FeedStart;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Server, Session, State, Stored};
use crate::simulate::plan::Fault;
use crate::simulate::world::World;

/// The broker as a worker sees it.
pub(in crate::simulate) struct Connection {
    pub server: Arc<Server>,
    pub worker: usize,
    /// Until when the worker stands still.
    pub frozen: Arc<Frozen>,
}

/// Until when a worker stands still, as an age of the world.
#[derive(Default)]
pub(in crate::simulate) struct Frozen(pub Mutex<Duration>);

impl Frozen {
    /// Waits as long as the worker stands still.
    pub(in crate::simulate) async fn thawed(&self, world: &World) {
        loop {
            let until = *self.0.lock();
            let Some(wait) = until.checked_sub(world.age()).filter(|wait| !wait.is_zero()) else {
                return;
            };
            tokio::time::sleep(wait).await;
        }
    }
}

impl Connection {
    async fn answer(&self) {
        self.frozen.thawed(&self.server.world).await;
        self.server.world.latency(Fault::SlowBroker).await;
    }
}

/// Delivers to one consumer until it stops and everything is settled. A session that was lost is followed by
/// another.
async fn deliver(
    connection: Connection,
    queue: Queue,
    prefetch: u16,
    deliver: mpsc::UnboundedSender<Delivery>,
    stop: CancellationToken,
) {
    let server = connection.server.clone();
    let mut session = None;
    loop {
        let changed = server.changed.notified();
        connection.frozen.thawed(&server.world).await;
        let messages = {
            let mut state = server.state.lock();
            let number = match session {
                Some(number) if state.sessions.contains_key(&number) => number,
                _ => {
                    let number = state.number();
                    let (worker, queue) = (connection.worker, queue.clone());
                    let unsettled = BTreeMap::new();
                    state.sessions.insert(number, Session { worker, queue, unsettled });
                    session = Some(number);
                    number
                }
            };
            if stop.is_cancelled() {
                if state.sessions.get(&number).is_none_or(|session| session.unsettled.is_empty()) {
                    state.sessions.remove(&number);
                    return;
                }
                Vec::new()
            } else {
                take(&mut state, &queue, number, prefetch)
            }
        };
        for (number, position, message) in messages {
            server.world.note(|| format!("delivered {position} to worker {}", connection.worker));
            let to = server.clone();
            let settle = Box::new(move |settlement| {
                // It takes a moment to reach the broker, which may have ended the session by then.
                let delay = Duration::from_millis(to.world.number(0, 3));
                tokio::spawn(async move {
                    tokio::time::sleep(delay).await;
                    to.settle(number, position, settlement);
                });
            });
            let Stored { body, properties, returns } = message;
            let _ = deliver.send(Delivery::new(body, properties, returns > 0, settle));
        }
        tokio::select! {
            biased;
            () = stop.cancelled(), if !stop.is_cancelled() => {}
            () = changed => {}
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    }
}

/// What is delivered now.
fn take(state: &mut State, queue: &Queue, number: u64, prefetch: u16) -> Vec<(u64, u64, Stored)> {
    let mut taken = Vec::new();
    loop {
        let unsettled = state.sessions.get(&number).map_or(0, |session| session.unsettled.len());
        if unsettled >= usize::from(prefetch) {
            return taken;
        }
        let Some((position, message)) = state.ready(queue).0.pop_first() else { return taken };
        if let Some(session) = state.sessions.get_mut(&number) {
            session.unsettled.insert(position, message.clone());
        }
        taken.push((number, position, message));
    }
}

#[async_trait]
impl Broker for Connection {
    async fn subscribe(
        &self,
        queue: Queue,
        _: &[Topic<'_>],
        prefetch: u16,
    ) -> Result<Deliveries, BrokerError> {
        let (sender, incoming) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        let (server, worker, frozen) = (self.server.clone(), self.worker, self.frozen.clone());
        let connection = Self { server, worker, frozen };
        let consumer = tokio::spawn(deliver(connection, queue, prefetch, sender, stop.clone()));
        Ok(Deliveries::new(incoming, stop, consumer, Arc::default()))
    }

    async fn publish(&self, messages: &[Message<'_>]) -> Published {
        let world = &self.server.world;
        self.answer().await;
        let lost = |receipts| {
            let error = Some(BrokerError::Transient("the simulated link was lost".into()));
            Published { receipts, error }
        };
        if world.strikes(Fault::Publish, 20) {
            world.note(|| "publish fails before".to_owned());
            return lost(vec![Receipt::Unconfirmed; messages.len()]);
        }
        let unknown: BTreeSet<usize> = if world.strikes(Fault::Publish, 20) {
            (0..messages.len()).filter(|_| world.number(0, 1) == 0).collect()
        } else {
            BTreeSet::new()
        };
        let mut receipts: Vec<Receipt> =
            messages.iter().map(|message| self.server.take(message)).collect();
        self.answer().await;
        for index in &unknown {
            receipts[*index] = Receipt::Unconfirmed;
        }
        if unknown.is_empty() { Published { receipts, error: None } } else { lost(receipts) }
    }

    fn reply(&self, _: Reply) {}

    async fn feed(&self, _: FeedStart) -> Result<FeedReader, FeedError> {
        Err(BrokerError::NoQueue.into())
    }

    fn address(&self, queue: &Queue) -> String {
        format!("{queue:?}")
    }

    async fn deferred(&self) -> Result<u64, BrokerError> {
        Ok(self.server.state.lock().delayed as u64)
    }

    async fn depth(&self, queue: Queue) -> Result<Depth, BrokerError> {
        self.answer().await;
        let mut state = self.server.state.lock();
        let messages = u32::try_from(state.ready(&queue).0.len()).unwrap_or(u32::MAX);
        let of_queue = state.sessions.values().filter(|session| session.queue == queue);
        let consumers = u32::try_from(of_queue.count()).unwrap_or(u32::MAX);
        Ok(Depth { messages, consumers })
    }
}
