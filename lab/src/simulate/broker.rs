//! A broker in memory that delivers at least once, and fails as a broker may.

mod connection;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use floodgate::broker::{EventBatch, Message, Properties, Queue, Receipt, Settlement};
use floodgate::domain::event::{Event, order_key_of};
use parking_lot::Mutex;
use tokio::sync::Notify;

pub(super) use self::connection::{Connection, Frozen};
use super::ledger::Database;
use super::plan::Fault;
use super::world::World;

/// How often a message may fail.
const DELIVERY_LIMIT: u32 = 20;
/// How long a full queue stays full.
const FULL_FOR: Duration = Duration::from_secs(3);

/// The broker itself, which connections share.
pub(super) struct Server {
    world: Arc<World>,
    database: Arc<Database>,
    state: Mutex<State>,
    /// Something may be delivered.
    changed: Notify,
}

#[derive(Default)]
struct State {
    intents: Ready,
    returned: Ready,
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
struct Ready(BTreeMap<u64, Stored>);

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
    fn ready(&mut self, queue: &Queue) -> &mut Ready {
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
            self.ready(queue).0.insert(position, message);
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
            Settlement::Requeue => drop(state.ready(&queue).0.insert(position, message)),
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
            Message::Event(event) | Message::EventTo { event, .. } => {
                if self.is_full(&mut state, &event.routing_key) {
                    return Receipt::Full;
                }
                self.world.note(|| format!("event {} {}", event.id, event.routing_key));
                self.check(event);
                state.events.push((*event).clone());
            }
            Message::EventBatch(EventBatch { routing_key, events }) => {
                if self.is_full(&mut state, routing_key) {
                    return Receipt::Full;
                }
                for event in events {
                    self.world.note(|| format!("event {} in {routing_key}", event.id));
                    self.check(event);
                    state.events.push((*event).clone());
                }
            }
            // Workers of the simulation are watched directly.
            Message::Status(_) => {}
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
                self.world.violation(format!("I5: the event of {key} tells of another decision"));
            }
            None => {
                self.world.violation(format!("I5: {key} has an event before its decision"));
            }
        }
    }
}
