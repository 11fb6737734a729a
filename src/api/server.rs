//! Connections, and what holds for every request: limits, host, headers.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use ipnet::IpNet;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tower_http::cors::{AllowOrigin, CorsLayer};
use tracing::Instrument;
use uuid::Uuid;

use super::Shared;
use super::client::Client;
use super::connection::Connection;
use super::limits::{self, SPARE_CONNECTIONS, Spare};
use super::permits::Permits;
use super::problem::{Problem, ProblemType, Problems};
use super::settings::ApiSettings;

/// How long a client may take over the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// The most header lines of a request.
const MAX_HEADERS: usize = 64;
/// What a request may take beyond the time that its body may take and the calls to servers, so that
/// whichever of them is slow can be named.
pub(super) const SPARE: Duration = Duration::from_secs(1);
/// A pause when no connection can be accepted, for instance for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Names a request, in its answer and in the log. Many proxies send it.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const MAX_REQUEST_ID: usize = 128;
/// Headers of requests and of answers that pages of other sites may use.
const ASKED: [&str; 7] = [
    "authorization",
    "content-type",
    "idempotency-key",
    "if-none-match",
    "last-event-id",
    "prefer",
    "x-request-id",
];
const ANSWERED: [&str; 9] = [
    "etag",
    "location",
    "preference-applied",
    "ratelimit",
    "ratelimit-policy",
    "retry-after",
    "www-authenticate",
    "x-request-id",
    "date",
];
/// How long browsers may remember what is allowed.
const PREFLIGHT_AGE: Duration = Duration::from_mins(10);
/// What a problem keeps of the answer that it completes.
const KEPT: [HeaderName; 4] = [
    header::ALLOW,
    header::CONNECTION,
    HeaderName::from_static("ratelimit"),
    HeaderName::from_static("ratelimit-policy"),
];

/// What every answer says: the page loads nothing from elsewhere and is shown in no frame.
const HEADERS: [(HeaderName, HeaderValue); 3] = [
    (
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
             img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        ),
    ),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
];

/// A service that tells each request where it comes from.
struct Addressed {
    routes: TowerToHyperService<Router>,
    peer: IpAddr,
    trusted: Arc<[IpNet]>,
    spare: Spare,
}

impl Service<hyper::Request<Incoming>> for Addressed {
    type Response = Response;
    type Error = Infallible;
    type Future = <TowerToHyperService<Router> as Service<hyper::Request<Incoming>>>::Future;

    fn call(&self, mut request: hyper::Request<Incoming>) -> Self::Future {
        let client = Client::of(self.peer, request.headers(), &self.trusted);
        request.extensions_mut().insert(client);
        request.extensions_mut().insert(self.spare);
        self.routes.call(request)
    }
}

/// Accepts connections until `stop`, then lets those that are open finish the requests in flight,
/// for as long as the settings allow.
pub(super) async fn serve(
    listener: TcpListener,
    routes: Router,
    settings: &ApiSettings,
    problems: Arc<Problems>,
    stop: CancellationToken,
) {
    let is_for_others = !settings.cors_origins.is_empty();
    let routes = if is_for_others { routes.layer(cors(settings)) } else { routes };
    let routes = routes.layer(from_fn_with_state(problems.clone(), finish));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_headers(MAX_HEADERS)
        .max_buf_size(settings.max_header_bytes);
    let open = GracefulShutdown::new();
    let permits = Arc::new(Semaphore::new(settings.max_connections + SPARE_CONNECTIONS));
    let of_address = Permits::new(settings.max_connections_per_address);
    let trusted: Arc<[IpNet]> = settings.trusted_proxies.clone().into();
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &permits) => accepted,
            () = stop.cancelled() => break,
        };
        let Some((stream, peer, permit)) = accepted else { continue };
        // A trusted proxy has connections for all its clients.
        let is_proxy = trusted.iter().any(|network| network.contains(&peer));
        let held = of_address.take(&Client(peer).key());
        if held.is_none() && !is_proxy {
            tracing::debug!(%peer, "connection closed: too many from this address");
            continue;
        }
        let spare = Spare(permits.available_permits() < SPARE_CONNECTIONS);
        let (connection, late) = Connection::new(stream, problems.clone());
        let (routes, trusted) = (TowerToHyperService::new(routes.clone()), trusted.clone());
        let service = Addressed { routes, peer, trusted, spare };
        let connection = open.watch(http.serve_connection(TokioIo::new(connection), service));
        tokio::spawn(async move {
            // Otherwise a client has broken off or speaks no HTTP, which is no business of ours.
            let mut connection = std::pin::pin!(connection);
            if connection.as_mut().await.is_err_and(|error| error.is_timeout()) {
                late.tell();
            }
            drop((held, permit));
        });
    }
    drop(listener);
    if tokio::time::timeout(settings.drain_deadline, open.shutdown()).await.is_err() {
        tracing::warn!("some requests were not answered before the deadline");
    }
}

async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> Option<(TcpStream, IpAddr, OwnedSemaphorePermit)> {
    let permit = permits.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, peer)) => {
            // Answers are small, and each is waited for. Where it can't be set they only come later.
            let _ = stream.set_nodelay(true);
            Some((stream, peer.ip().to_canonical(), permit))
        }
        Err(error) => {
            tracing::warn!(%error, "can't accept a connection");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

/// Refuses requests for other hosts.
pub(super) fn for_this_server(api: &Shared, request: &Request) -> Result<(), Problem> {
    let hosts = request.headers().get_all(header::HOST).iter().count();
    if hosts > 1 {
        // RFC 9112 section 3.2.
        return Err(ProblemType::BadHeader.because("Host is given more than once"));
    }
    if api.token_verifier.is_none() {
        for_this_machine(request.uri(), request.headers(), &api.settings.cors_origins)?;
    }
    Ok(())
}

/// Lets pages of the sites that the settings name use the API (the Fetch standard, "CORS protocol").
/// Nothing is to be sent without being asked for, such as a cookie, so no credentials are allowed.
fn cors(settings: &ApiSettings) -> CorsLayer {
    let origins = settings.cors_origins.iter().filter_map(|origin| origin.parse().ok());
    CorsLayer::new()
        .allow_origin(AllowOrigin::list(origins))
        .allow_methods([Method::GET, Method::POST])
        .allow_headers(ASKED.map(HeaderName::from_static))
        .expose_headers(ANSWERED.map(HeaderName::from_static))
        .max_age(PREFLIGHT_AGE)
}

/// Refuses requests that pages of other sites can make people's browsers send to their own machine,
/// where without a key every client may do everything.
fn for_this_machine(uri: &Uri, headers: &HeaderMap, sites: &[String]) -> Result<(), Problem> {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let host = uri.authority().map(Authority::as_str).or(text(header::HOST)).unwrap_or_default();
    if !is_loopback(host) {
        return Err(
            ProblemType::Misdirected.because("accepted: Host: localhost, 127.0.0.1 or [::1]")
        );
    }
    // Browsers name the page's site whenever it is another one, and with every POST (the Fetch
    // standard, "append a request Origin header"). Other clients don't send it.
    let is_own = |origin: &str| {
        let name = origin.strip_prefix("http://");
        name.is_some_and(|name| name.eq_ignore_ascii_case(host))
            || sites.iter().any(|site| site == origin)
    };
    if headers.contains_key(header::ORIGIN) && !text(header::ORIGIN).is_some_and(is_own) {
        return Err(
            ProblemType::CrossOrigin.because(format!("accepted: no Origin, or http://{host}"))
        );
    }
    Ok(())
}

/// Lets only requests through that this machine sends to itself.
pub(super) async fn local(request: Request, next: Next) -> Result<Response, Problem> {
    for_this_machine(request.uri(), request.headers(), &[])?;
    Ok(next.run(request).await)
}

/// Whether the name that the client knows the server by is one of the loopback interface. A web
/// page that has its own name resolve to 127.0.0.1 is told from one that people opened themselves.
fn is_loopback(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let name = authority.host().trim_matches(['[', ']']);
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Completes answers: problems get their body, and all get the headers that all have. What is logged
/// meanwhile names the request.
async fn finish(
    State(problems): State<Arc<Problems>>,
    mut request: Request,
    next: Next,
) -> Result<Response, Infallible> {
    let path = request.uri().path().to_owned();
    let id = request_id(request.headers());
    request.headers_mut().insert(REQUEST_ID, id.clone());
    let client = limits::client(&request);
    let span = tracing::error_span!("request", request_id = id.to_str().ok(), client = %client.0);
    let mut response = next.run(request).instrument(span).await;
    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        let kept = KEPT.map(|name| (response.headers_mut().remove(&name), name));
        response = problems.response(problem, &path);
        let kept = kept.into_iter().filter_map(|(value, name)| Some((name, value?)));
        response.headers_mut().extend(kept);
    }
    let headers = response.headers_mut();
    headers.extend(HEADERS);
    headers.insert(REQUEST_ID, id);
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    Ok(response)
}

/// The id that the client, or a proxy, gave the request, if it is one that can stand in a log; else a
/// new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let accepted = |id: &&HeaderValue| {
        let characters = |byte: &u8| byte.is_ascii_alphanumeric() || b"._:-".contains(byte);
        (1..=MAX_REQUEST_ID).contains(&id.len()) && id.as_bytes().iter().all(characters)
    };
    headers.get(REQUEST_ID).filter(accepted).cloned().unwrap_or_else(|| {
        HeaderValue::try_from(Uuid::now_v7().to_string())
            .unwrap_or_else(|error| unreachable!("hexadecimal digits: {error}"))
    })
}

pub(super) async fn not_found(uri: Uri) -> Problem {
    ProblemType::NotFound
        .because(format!("there is nothing at {}; /docs has all paths", uri.path()))
}

pub(super) async fn method_not_allowed() -> Problem {
    ProblemType::MethodNotAllowed.because("the path exists, but has no such method")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_the_loopback_interface_are_for_it() {
        for good in ["localhost", "LOCALHOST:8080", "127.0.0.1:1", "[::1]:8080", "127.1.2.3"] {
            assert!(is_loopback(good), "{good}");
        }
        for bad in ["", "shop.example", "localhost.evil.example:8080", "10.0.0.1", "[fe80::1]"] {
            assert!(!is_loopback(bad), "{bad}");
        }
    }

    #[test]
    fn pages_of_others_are_told_by_their_origin() {
        let kind = |origin: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            headers.insert("host", HeaderValue::from_static("LocalHost:8080"));
            headers.extend(origin.map(|o| (header::ORIGIN, HeaderValue::from_static(o))));
            for_this_machine(&Uri::from_static("/"), &headers, &["https://shop.example".to_owned()])
                .err()
                .map(|problem| problem.problem_type())
        };
        for good in [None, Some("http://localhost:8080"), Some("https://shop.example")] {
            assert_eq!(kind(good), None, "{good:?}");
        }
        for bad in ["null", "", "http://localhost", "http://evil.example:8080", "localhost:8080"] {
            assert_eq!(kind(Some(bad)), Some(ProblemType::CrossOrigin), "{bad}");
        }
        assert!(
            for_this_machine(&Uri::from_static("/"), &HeaderMap::new(), &[]).is_err(),
            "no host"
        );
    }
}
