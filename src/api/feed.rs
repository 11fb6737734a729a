//! The event feed: events from any place on, at once, when they come, or as server-sent events.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::{Query, State};
use axum::http::HeaderMap;
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, Stream, StreamExt};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::time::Instant;
use utoipa::ToSchema;

use super::Shared;
use super::access::Access;
use super::client::Client;
use super::contracts::problems::EventProblems;
use super::limits::holding;
use super::problem::{Problem, ProblemType};
use super::requests;
use super::stream::{KEEP_ALIVE, RETRY, last_event_id};
use crate::broker::{Broker, BrokerError, Fed, FeedError, FeedReader};
use crate::domain::event::{Event, FeedStart};
use crate::domain::event_batch::{events_of, structured_json};
use crate::domain::order::SaleId;
use crate::retry::Backoff;

/// Events in one answer, if nothing else is asked for, and at most.
const DEFAULT_LIMIT: u16 = 100;
const MAX_LIMIT: u16 = 1000;
/// No message for so long is taken for the end of the feed.
const IDLE: Duration = Duration::from_millis(250);
/// Messages looked at for one answer that leaves out other sales.
const MAX_SCANNED: usize = 10_000;

/// Which events to show.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    after: Option<u64>,
    sale: Option<String>,
    limit: Option<u16>,
}

/// Events of the feed.
#[derive(Serialize, ToSchema)]
pub(super) struct EventPage {
    /// CloudEvents, in structured mode. At least once each: leave repeats out by `id`
    #[schema(value_type = Vec<Object>)]
    events: Vec<Box<RawValue>>,
    /// The place to go on after; missing while there was no event at all
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = u64, required = false)]
    next: Option<u64>,
}

/// Read events
///
/// What was published, from a place of the feed on: decisions, and what happened to sales. Without `after` from the
/// oldest that is kept. Ask again with `after` as `next` says. With `Prefer: wait=N` the answer waits up to N seconds
/// for the first event.
///
/// With `Accept: text/event-stream` events come as they happen, each with its type, as server-sent events. A client that
/// comes back with `Last-Event-ID` goes on there.
#[utoipa::path(
    get, path = "/v1/events", tag = "Events", operation_id = "readEvents",
    security(("bearerAuth" = [])),
    params(
        ("after" = Option<u64>, Query, description = "Only events after this place"),
        ("sale" = Option<String>, Query, description = "Only events of this sale and its orders", pattern = "^[A-Za-z0-9_-]{1,64}$"),
        ("limit" = Option<u16>, Query, description = "About the most events in the answer: 1 to 1000, 100 if left out", minimum = 1, maximum = 1000),
        ("Prefer" = Option<String>, Header, nullable = false, description = "`wait=N`: wait up to N seconds for the first event", example = "wait=20"),
        ("Last-Event-ID" = Option<String>, Header, nullable = false, pattern = "^[0-9]{1,18}$", description = "The id of the last event that the client got: the place to go on after, whatever `after` says"),
    ),
    responses(
        (status = 200, description = "Events in the order in which they were published", content(
            (EventPage = "application/json"), (String = "text/event-stream"),
        )),
        EventProblems,
    ),
)]
pub(super) async fn show(
    State(api): State<Shared>,
    Extension(client): Extension<Client>,
    access: Access,
    wanted: Result<Query<Wanted>, axum::extract::rejection::QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    access.must_read_events()?;
    let Query(Wanted { after, sale, limit }) =
        wanted.map_err(|error| ProblemType::Invalid.because(error.body_text()))?;
    let limit = limit.unwrap_or(DEFAULT_LIMIT);
    if !(1..=MAX_LIMIT).contains(&limit) {
        let detail = format!("limit is {limit}; accepted: 1 to {MAX_LIMIT}");
        return Err(ProblemType::Invalid.because(detail));
    }
    let sale = sale.map(SaleId::parse).transpose()?;
    let last = last_event_id(&headers).map(|id| {
        id.parse().map_err(|_| {
            ProblemType::Invalid.because("Last-Event-ID is none of this feed: accepted: a number")
        })
    });
    // A browser comes back with the URL that it began with.
    let after = last.transpose()?.or(after);
    let room = api.limits.follower(client)?;
    let start = after.map_or(FeedStart::Oldest, FeedStart::After);
    let reader = api.broker.feed(start).await.map_err(unreadable)?;
    let source = api.contracts.topology.event_source();
    let feed = Feed { broker: api.broker.clone(), reader, place: start, sale, source };
    if requests::wants_events(&headers) {
        let events = feed.follow().take_until(api.stop.clone().cancelled_owned());
        let events = Sse::new(holding(events.map(Ok::<_, Infallible>), room));
        return Ok(events.keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response());
    }
    let wait = requests::wait(&headers).unwrap_or_default().min(api.settings.max_wait);
    let page = feed.page(after, usize::from(limit), wait).await?;
    Ok(axum::Json(page).into_response())
}

pub(super) fn unreadable(error: FeedError) -> Problem {
    match error {
        FeedError::NotKept => ProblemType::NotKept.because("older events were removed"),
        FeedError::Broker(BrokerError::NoQueue) => {
            ProblemType::NoFeed.because("feed.enabled is false")
        }
        error @ FeedError::Broker(_) => {
            tracing::debug!(%error, "the feed can't be read");
            ProblemType::BrokerUnavailable.because("the feed can't be read for now")
        }
    }
}

/// The feed as a client wants it.
struct Feed {
    broker: Arc<dyn Broker>,
    reader: FeedReader,
    /// Where to read on.
    place: FeedStart,
    sale: Option<SaleId>,
    source: String,
}

impl Feed {
    /// What comes next of the wanted: its place, and the events there, of which there may be none.
    async fn next(&mut self) -> Result<(u64, Vec<Event>), FeedError> {
        let Fed { offset, body } = self.reader.next().await?;
        self.place = FeedStart::After(offset);
        let events = events_of(&body).unwrap_or_default();
        let is_wanted = |event: &Event| self.sale.as_ref().is_none_or(|sale| event.is_of(sale));
        Ok((offset, events.into_iter().filter(is_wanted).collect()))
    }

    /// About `limit` events, for the first of which `wait` may pass.
    async fn page(
        mut self,
        after: Option<u64>,
        limit: usize,
        wait: Duration,
    ) -> Result<EventPage, Problem> {
        let first_by = Instant::now() + wait.max(IDLE);
        let mut page = EventPage { events: Vec::new(), next: after };
        for _ in 0..MAX_SCANNED {
            let by = if page.events.is_empty() { first_by } else { Instant::now() + IDLE };
            let Ok(next) = tokio::time::timeout_at(by, self.next()).await else { break };
            let (offset, events) = next.map_err(unreadable)?;
            page.next = Some(offset);
            let texts = events
                .iter()
                .map(|event| serde_json::from_slice(&structured_json(event, &self.source)));
            page.events.extend(texts.filter_map(Result::ok));
            if page.events.len() >= limit {
                break;
            }
        }
        Ok(page)
    }

    /// The same, however long the broker is unavailable: a browser does not come back after the 503 that it would get.
    async fn next_available(&mut self) -> Result<(u64, Vec<Event>), FeedError> {
        let mut backoff = Backoff::reconnect();
        let mut next = self.next().await;
        while let Err(error) = &next
            && error.is_transient()
        {
            tracing::debug!(%error, "the feed can't be read on, trying again");
            tokio::time::sleep(backoff.next_delay()).await;
            next = match self.broker.feed(self.place).await {
                Ok(reader) => {
                    self.reader = reader;
                    self.next().await
                }
                Err(error) => Err(error),
            };
        }
        next
    }

    /// Events as they come, until the feed does not have the next ones any more.
    fn follow(self) -> impl Stream<Item = sse::Event> + Send {
        let messages = stream::unfold(self, |mut feed| async move {
            let (offset, events) = feed.next_available().await.ok()?;
            let mut told: Vec<sse::Event> = events
                .iter()
                .map(|event| {
                    let text =
                        String::from_utf8(structured_json(event, &feed.source)).unwrap_or_default();
                    sse::Event::default().event(event.kind).data(text).retry(RETRY)
                })
                .collect();
            // The place is passed with the last event there: a client that has not got it gets all of them again.
            if let Some(last) = told.pop() {
                told.push(last.id(offset.to_string()));
            }
            Some((stream::iter(told), feed))
        });
        messages.flatten()
    }
}
