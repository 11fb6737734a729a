//! A broker in memory that delivers at least once, and fails as a broker may.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use floodgate::broker::{
    Broker, BrokerError, Deliveries, Delivery, Depth, Message, Properties, Published, Queue,
    Receipt, Reply, Settlement,
};
use floodgate::domain::event::{Event, order_key_of};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use super::ledger::Database;
use super::plan::Fault;
use super::world::World;

/// How often a message may fail.
const DELIVERY_LIMIT: u32 = 20;
/// How long a full queue stays full.
const FULL_FOR: Duration = Duration::from_secs(3);

/// The broker itself, whoever is connected to it.
pub(super) struct Server {
    world: Arc<World>,
    database: Arc<Database>,
    state: Mutex<State>,
    /// Something may be delivered.
    changed: Notify,
}

#[derive(Default)]
struct State {
    intents: Line,
    returned: Line,
    /// Messages that wait for their delay.
    delayed: usize,
    dead: Vec<Dead>,
    events: Vec<Event>,
    /// Consumers by number, each with what it has not settled.
    sessions: BTreeMap<u64, Session>,
    next: u64,
    /// Routing keys of events that are refused, and until when.
    full: BTreeMap<String, Duration>,
}

/// A dead letter.
#[derive(Debug, Clone)]
pub(super) struct Dead {
    pub reason: String,
    pub body: String,
}

/// Messages that are ready, by their position.
#[derive(Default)]
struct Line(BTreeMap<u64, Stored>);

#[derive(Clone)]
struct Stored {
    body: Vec<u8>,
    properties: Properties,
    /// How often it came back.
    returns: u32,
}

struct Session {
    worker: usize,
    queue: Queue,
    unsettled: BTreeMap<u64, Stored>,
}

impl State {
    fn line(&mut self, queue: &Queue) -> &mut Line {
        match queue {
            Queue::Returned => &mut self.returned,
            _ => &mut self.intents,
        }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Puts what a session has not settled back to where it was.
    fn end(&mut self, number: u64) {
        let Some(Session { queue, unsettled, .. }) = self.sessions.remove(&number) else { return };
        for (position, message) in unsettled {
            self.put_back(&queue, position, message);
        }
    }

    fn put_back(&mut self, queue: &Queue, position: u64, mut message: Stored) {
        message.returns += 1;
        if message.returns > DELIVERY_LIMIT {
            let body = String::from_utf8_lossy(&message.body).into_owned();
            self.dead.push(Dead { reason: "delivery_limit".to_owned(), body });
        } else {
            self.line(queue).0.insert(position, message);
        }
    }
}

impl Server {
    pub(super) fn new(world: Arc<World>, database: Arc<Database>) -> Self {
        Self { world, database, state: Mutex::default(), changed: Notify::new() }
    }

    /// Takes a message of a producer, who sees it confirmed.
    pub(super) fn post(&self, body: &str) {
        let mut state = self.state.lock();
        let message = Stored { body: body.into(), properties: Properties::default(), returns: 0 };
        for _ in 0..=u8::from(self.world.strikes(Fault::Duplicate, 10)) {
            let position = state.number();
            self.world.note(|| format!("posted {position} {body}"));
            state.intents.0.insert(position, message.clone());
        }
        self.changed.notify_waiters();
    }

    /// Ends every session of a worker: what it has not settled comes again.
    pub(super) fn disconnect(&self, worker: usize) {
        let mut state = self.state.lock();
        let of_worker = state.sessions.iter().filter(|(_, session)| session.worker == worker);
        for number in of_worker.map(|(number, _)| *number).collect::<Vec<_>>() {
            self.world.note(|| format!("session {number} of worker {worker} ends"));
            state.end(number);
        }
        self.changed.notify_waiters();
    }

    /// Whether there is nothing left to do.
    pub(super) fn is_quiet(&self) -> bool {
        let state = self.state.lock();
        let settled = state.sessions.values().all(|session| session.unsettled.is_empty());
        settled && state.intents.0.is_empty() && state.returned.0.is_empty() && state.delayed == 0
    }

    /// Dead letters and events so far.
    pub(super) fn published(&self) -> (Vec<Dead>, Vec<Event>) {
        let state = self.state.lock();
        (state.dead.clone(), state.events.clone())
    }

    fn settle(&self, session: u64, position: u64, settlement: Settlement) {
        let mut state = self.state.lock();
        let Some(found) = state.sessions.get_mut(&session) else { return };
        let Some(message) = found.unsettled.remove(&position) else { return };
        let queue = found.queue.clone();
        self.world.note(|| format!("{settlement:?} {position}"));
        match settlement {
            Settlement::Ack => {}
            Settlement::Requeue => drop(state.line(&queue).0.insert(position, message)),
            Settlement::Reject => state.put_back(&queue, position, message),
        }
        self.changed.notify_waiters();
    }

    fn is_full(&self, state: &mut State, routing_key: &str) -> bool {
        let now = self.world.age();
        if self.world.strikes(Fault::FullQueue, 60) {
            state.full.insert(routing_key.to_owned(), now + FULL_FOR);
        }
        state.full.get(routing_key).is_some_and(|until| *until > now)
    }

    /// Takes a message that a worker has published.
    fn take(self: &Arc<Self>, message: &Message<'_>) -> Receipt {
        let mut state = self.state.lock();
        match message {
            Message::Event(event) => {
                if self.is_full(&mut state, &event.routing_key) {
                    return Receipt::Full;
                }
                self.world.note(|| format!("event {} {}", event.id, event.routing_key));
                self.check(event);
                state.events.push((*event).clone());
            }
            Message::DeadLetter(letter) => {
                let body = String::from_utf8_lossy(&letter.body).into_owned();
                self.world.note(|| format!("dead {} {body}", letter.reason));
                state.dead.push(Dead { reason: letter.reason.to_string(), body });
            }
            Message::Intent { body, properties, delay, .. } => {
                let properties = properties.cloned().unwrap_or_default();
                let message = Stored { body: body.to_vec(), properties, returns: 0 };
                let Some(delay) = delay else {
                    let position = state.number();
                    state.intents.0.insert(position, message);
                    self.changed.notify_waiters();
                    return Receipt::Confirmed;
                };
                if self.is_full(&mut state, "delay") {
                    return Receipt::Full;
                }
                let ms = u64::from(delay.ms());
                self.world.note(|| format!("delayed {ms} {}", String::from_utf8_lossy(body)));
                state.delayed += 1;
                let server = self.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(ms)).await;
                    let mut state = server.state.lock();
                    state.delayed -= 1;
                    let position = state.number();
                    state.returned.0.insert(position, message);
                    server.changed.notify_waiters();
                });
            }
        }
        Receipt::Confirmed
    }

    /// An order's event tells of a decision that is stored, from the first moment on.
    fn check(&self, event: &Event) {
        let Some(key) = order_key_of(&event.data) else { return };
        match self.database.decision(&key) {
            Some(decision) if Event::of(&decision) == *event => {}
            Some(_) => {
                self.world.violation(format!("I5: the event of {key} tells of another decision"))
            }
            None => self.world.violation(format!("I5: {key} has an event before its decision")),
        }
    }
}

/// The broker as a worker sees it.
pub(super) struct Connection {
    pub server: Arc<Server>,
    pub worker: usize,
    /// Until when the worker stands still.
    pub frozen: Arc<Frozen>,
}

/// Until when a worker stands still, as an age of the world.
#[derive(Default)]
pub(super) struct Frozen(pub Mutex<Duration>);

impl Frozen {
    /// Waits as long as the worker stands still.
    pub(super) async fn thawed(&self, world: &World) {
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
        let Some((position, message)) = state.line(queue).0.pop_first() else { return taken };
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
        _: &[&str],
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
        let mut receipts = VecDeque::new();
        for message in messages {
            receipts.push_back(self.server.take(message));
        }
        let mut receipts: Vec<Receipt> = receipts.into();
        self.answer().await;
        for index in &unknown {
            receipts[*index] = Receipt::Unconfirmed;
        }
        if unknown.is_empty() { Published { receipts, error: None } } else { lost(receipts) }
    }

    fn reply(&self, _: Reply) {}

    fn dropped_replies(&self) -> u64 {
        0
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
        let messages = u32::try_from(state.line(&queue).0.len()).unwrap_or(u32::MAX);
        let of_queue = state.sessions.values().filter(|session| session.queue == queue);
        let consumers = u32::try_from(of_queue.count()).unwrap_or(u32::MAX);
        Ok(Depth { messages, consumers })
    }
}
