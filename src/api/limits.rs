//! What one client may have at once, and what is kept for operators and probes.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::stream::{Stream, StreamExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Shared;
use super::client::Client;
use super::permits::{Permit, Permits};
use super::problem::{Problem, ProblemType};
use super::requests;
use crate::api::ApiSettings;
use crate::domain::order::UserId;

/// Requests of operators that are worked on when there is no room for others.
const OPERATORS_IN_FLIGHT: usize = 16;
/// Connections beyond the limit, for probes and operators only.
pub(super) const SPARE_CONNECTIONS: usize = 64;

/// What is counted.
pub(super) struct Limits {
    in_flight: Semaphore,
    operators: Semaphore,
    streams: Arc<Semaphore>,
    /// Requests in flight by address.
    requests: Arc<Permits<IpAddr>>,
    /// Bodies that have not arrived at once, by address.
    slow_bodies: Arc<Permits<IpAddr>>,
    /// Open streams by address.
    followers: Arc<Permits<IpAddr>>,
    /// Requests in flight and open streams by buyer.
    buyers: Arc<Permits<UserId>>,
    max_in_flight: usize,
}

/// Whether a request came over a connection that is kept for probes and operators.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spare(pub bool);

/// An open stream of one client.
pub(super) struct Follower {
    _one: OwnedSemaphorePermit,
    _of_address: Permit<IpAddr>,
}

impl Limits {
    pub(super) fn of(settings: &ApiSettings) -> Self {
        Self {
            in_flight: Semaphore::new(settings.max_in_flight),
            operators: Semaphore::new(OPERATORS_IN_FLIGHT),
            streams: Arc::new(Semaphore::new(settings.max_streams)),
            requests: Permits::new(settings.max_in_flight_per_address),
            slow_bodies: Permits::new(settings.max_slow_bodies_per_address),
            followers: Permits::new(settings.max_streams_per_address),
            buyers: Permits::new(settings.max_in_flight_per_buyer),
            max_in_flight: settings.max_in_flight,
        }
    }

    /// Room for a body that does not arrive at once.
    pub(super) fn slow_body(&self, client: Client) -> Result<Permit<IpAddr>, Problem> {
        permit(&self.slow_bodies, &client.key(), "bodies arriving slowly", "address")
    }

    /// Room for a request or a stream of a buyer.
    pub(super) fn buyer(&self, buyer: &UserId) -> Result<Permit<UserId>, Problem> {
        permit(&self.buyers, buyer, "requests and streams", "buyer")
    }

    /// Room for a stream.
    pub(super) fn follower(&self, client: Client) -> Result<Follower, Problem> {
        let of_address = permit(&self.followers, &client.key(), "streams", "address")?;
        match self.streams.clone().try_acquire_owned() {
            Ok(one) => Ok(Follower { _one: one, _of_address: of_address }),
            Err(_) => Err(ProblemType::Overloaded.because("no more streams can be opened for now")),
        }
    }

    fn overloaded(&self) -> Problem {
        let limit = self.max_in_flight;
        ProblemType::Overloaded.because(format!("more than {limit} requests are in flight"))
    }
}

fn permit<K: std::hash::Hash + Eq + Clone>(
    permits: &Arc<Permits<K>>,
    key: &K,
    what: &str,
    whose: &str,
) -> Result<Permit<K>, Problem> {
    permits.take(key).ok_or_else(|| {
        let limit = permits.limit();
        ProblemType::TooManyAtOnce
            .because(format!("accepted: {limit} {what} at once from one {whose}"))
    })
}

/// Holds `room` for as long as `events` is listened to.
pub(super) fn holding<S: Stream>(
    events: S,
    room: impl Send + 'static,
) -> impl Stream<Item = S::Item> {
    events.map(move |event| {
        let _ = &room;
        event
    })
}

/// Limits requests that every client may send.
pub(super) async fn limited(
    State(api): State<Shared>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    super::server::for_this_server(&api, &request)?;
    if is_spare(&request) {
        let problem = ProblemType::Overloaded.because("no more connections are taken for now");
        return Ok(([(header::CONNECTION, "close")], problem).into_response());
    }
    let client = client(&request);
    let _of_address = permit(&api.limits.requests, &client.key(), "requests in flight", "address")?;
    let _permit = api.limits.in_flight.try_acquire().map_err(|_| api.limits.overloaded())?;
    in_time(&api, request, next).await
}

/// Limits requests of operators: a permit is kept for them.
pub(super) async fn limited_operators(
    State(api): State<Shared>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    super::server::for_this_server(&api, &request)?;
    let limits = &api.limits;
    let permit = limits.in_flight.try_acquire().or_else(|_| limits.operators.try_acquire());
    let _permit = permit.map_err(|_| limits.overloaded())?;
    in_time(&api, request, next).await
}

/// Gives a request up that takes too long.
async fn in_time(api: &Shared, request: Request, next: Next) -> Result<Response, Problem> {
    let settings = &api.settings;
    let wait = requests::wait(request.headers()).unwrap_or_default().min(settings.max_wait);
    tokio::time::timeout(settings.request_timeout + wait + super::server::SPARE, next.run(request))
        .await
        .map_err(|_| ProblemType::NoAnswer.because("the server has given the request up"))
}

fn is_spare(request: &Request) -> bool {
    request.extensions().get().is_some_and(|Spare(spare)| *spare)
}

/// Where a request comes from, which the server has added to it.
pub(super) fn client(request: &Request) -> Client {
    let client = request.extensions().get().copied();
    client.unwrap_or_else(|| unreachable!("the server adds it to every request"))
}
