//! Server-sent events, of the WHATWG HTML standard: the state of a sale, and how the deployment does.

use std::convert::Infallible;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use chrono::Utc;
use futures_util::stream::{Stream, StreamExt};
use serde::Serialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::access::AsOperator;
use super::client::Client;
use super::contracts::problems::{SaleProblems, StatusStreamProblems};
use super::limits::{Follower, holding};
use super::problem::Problem;
use super::requests::Id;
use super::sales::{SaleView, unknown};
use crate::domain::event::rfc3339;
use crate::domain::order::SaleId;
use crate::domain::sale::SaleState;

/// A connection that says nothing for so long may be taken for dead by something on the way.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// When clients whose connection breaks come back.
pub(super) const RETRY: Duration = Duration::from_secs(2);
/// A sale that sells fast is not told unit by unit.
const NOT_FASTER_THAN: Duration = Duration::from_millis(100);

/// Follow a sale
///
/// An event `sale` with the sale as JSON at once, and at every change. Each event has the whole state, so
/// nothing is missed by missing events: a client that comes back with `Last-Event-ID` gets the state as it
/// is now, unless that is the one it has.
#[utoipa::path(
    get, path = "/v1/sales/{sale_id}/stream", tag = "Sales", operation_id = "followSale",
    params(
        ("sale_id" = inline(super::contracts::schemas::SaleIdParam), Path, description = "The sale"),
        ("Last-Event-ID" = Option<String>, Header, nullable = false, description = "The id of the last event that the client got"),
    ),
    responses(
        (status = 200, description = "Events, for as long as the client listens", content_type = "text/event-stream"),
        SaleProblems,
    ),
)]
pub(super) async fn sale(
    State(api): State<Shared>,
    Extension(client): Extension<Client>,
    Id(id): Id<SaleId>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Problem> {
    let mut states = api.sale_cache.follow(&id).await?.ok_or_else(|| unknown(&id))?;
    states.mark_changed();
    let room = api.limits.follower(client)?;
    let events = changes(states).map(|state: SaleState| {
        // Whether it is open changes with the time as well, which clients know by its window.
        let id = format!("{}-{}", state.version, state.sold);
        (id, event("sale", &SaleView::of(&state, Utc::now())))
    });
    Ok(respond(api.stop.clone(), after(last_event_id(&headers), events), room))
}

/// Follow how the deployment does
///
/// An event `status` each second, as JSON: `decisions` and `per_second` by outcome or reason, `latency`, messages in
/// `queues`, `oldest_s`, `drain_rate`, `wait_s`, `dead_letters` by reason, `dependencies` with how many workers get
/// answers, and the `workers`. It is what `floodgate top --json` prints.
#[utoipa::path(
    get, path = "/v1/status/stream", tag = "Operators", operation_id = "followStatus",
    security(("bearerAuth" = [])),
    params(
        ("Last-Event-ID" = Option<String>, Header, nullable = false, description = "The id of the last event that the client got"),
    ),
    responses(
        (status = 200, description = "Events, for as long as the client listens", content_type = "text/event-stream"),
        StatusStreamProblems,
    ),
)]
pub(super) async fn status(
    State(api): State<Shared>,
    _: AsOperator,
    Extension(client): Extension<Client>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Problem> {
    let room = api.limits.follower(client)?;
    let events = changes(api.status.follow()).map(|now| (rfc3339(now.at), event("status", &now)));
    Ok(respond(api.stop.clone(), after(last_event_id(&headers), events), room))
}

/// The values of a watch from now on, each at its latest. Ends with the watch.
fn changes<T: Clone + Send + Sync + 'static>(
    receiver: watch::Receiver<T>,
) -> impl Stream<Item = T> + Send {
    futures_util::stream::unfold(receiver, |mut receiver| async move {
        receiver.changed().await.ok()?;
        let value = receiver.borrow_and_update().clone();
        Some((value, receiver))
    })
}

fn event(name: &str, data: &impl Serialize) -> Event {
    let data = serde_json::to_string(data)
        .unwrap_or_else(|error| unreachable!("strings and numbers: {error}"));
    Event::default().event(name).data(data)
}

/// The id of the last event that the client got before its connection broke.
pub(super) fn last_event_id(headers: &HeaderMap) -> Option<String> {
    headers.get("last-event-id").and_then(|id| id.to_str().ok()).map(str::to_owned)
}

/// `events` with their ids, without a first one that the client has already.
fn after(
    last: Option<String>,
    events: impl Stream<Item = (String, Event)> + Send + 'static,
) -> impl Stream<Item = Event> + Send + 'static {
    let events = events.enumerate().filter(move |(number, (id, _))| {
        std::future::ready(*number > 0 || last.as_ref() != Some(id))
    });
    events.map(|(_, (id, event))| event.id(id).retry(RETRY))
}

/// The events, paced, until the server stops. `room` is held meanwhile.
fn respond(
    stop: CancellationToken,
    events: impl Stream<Item = Event> + Send + 'static,
    room: Follower,
) -> Sse<impl Stream<Item = Result<Event, Infallible>> + Send> {
    let paced = events.then(|event| async move {
        tokio::time::sleep(NOT_FASTER_THAN).await;
        Ok(event)
    });
    let events = paced.take_until(stop.cancelled_owned());
    Sse::new(holding(events, room)).keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
}
