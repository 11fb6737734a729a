//! Connections, and what holds for every request: limits, host, headers.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Uri, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::Response;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::problem::{Kind, Problem};
use super::requests;
use crate::config::ApiSettings;

/// How long a client may take over the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// The most header lines of a request.
const MAX_HEADERS: usize = 64;
/// What a request may take beyond the time that its body may take and the calls to servers, so that
/// whichever of them is slow can be named.
const SPARE: Duration = Duration::from_secs(1);
/// A pause when no connection can be accepted, for instance for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

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

/// Accepts connections until `stop`, then lets those that are open finish what they have in hand,
/// for as long as the settings allow.
pub(super) async fn serve(
    listener: TcpListener,
    routes: Router,
    settings: &ApiSettings,
    stop: CancellationToken,
) {
    let routes = routes.layer(from_fn(finish));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_headers(MAX_HEADERS)
        .max_buf_size(settings.max_header_bytes);
    let open = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(settings.max_connections));
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &places) => accepted,
            () = stop.cancelled() => break,
        };
        let Some((stream, place)) = accepted else { continue };
        let service = TowerToHyperService::new(routes.clone());
        let connection = open.watch(http.serve_connection(TokioIo::new(stream), service));
        tokio::spawn(async move {
            // A client that breaks off or speaks no HTTP is no business of ours.
            let _ = connection.await;
            drop(place);
        });
    }
    drop(listener);
    if tokio::time::timeout(settings.drain_deadline(), open.shutdown()).await.is_err() {
        tracing::warn!("some requests were not answered before the deadline");
    }
}

async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> Option<(tokio::net::TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => {
            // Answers are small, and each is waited for. Where it can't be set they only come later.
            let _ = stream.set_nodelay(true);
            Some((stream, place))
        }
        Err(error) => {
            tracing::warn!(%error, "can't accept a connection");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

/// Puts limits around `routes`.
pub(super) fn layered(routes: Router<Shared>, state: &Shared) -> Router<Shared> {
    routes.layer(from_fn_with_state(state.clone(), limited))
}

/// Refuses what is too much or meant for somebody else, and what takes too long.
async fn limited(State(api): State<Shared>, request: Request, next: Next) -> Response {
    match within_limits(&api, request, next).await {
        Ok(response) => response,
        Err(problem) => axum::response::IntoResponse::into_response(problem),
    }
}

async fn within_limits(api: &Shared, request: Request, next: Next) -> Result<Response, Problem> {
    let hosts = request.headers().get_all(header::HOST).iter().count();
    if hosts > 1 {
        // RFC 9112 section 3.2.
        return Err(Kind::BadHeader.because("Host is given more than once"));
    }
    if api.gate.is_none() {
        for_this_machine(request.uri(), request.headers())?;
    }
    let Ok(_place) = api.in_flight.try_acquire() else {
        let limit = api.settings.api.max_in_flight;
        return Err(Kind::Overloaded.because(format!("more than {limit} requests are in hand")));
    };
    let settings = &api.settings.api;
    let wait = requests::wait(request.headers()).unwrap_or_default().min(settings.max_wait());
    tokio::time::timeout(settings.request_timeout() + wait + SPARE, next.run(request))
        .await
        .map_err(|_| Kind::NoAnswer.because("the server has given the request up"))
}

/// Refuses requests that pages of other sites can make people's browsers send to their own machine,
/// where without a key everybody may do everything.
fn for_this_machine(uri: &Uri, headers: &HeaderMap) -> Result<(), Problem> {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let host = uri.authority().map(Authority::as_str).or(text(header::HOST)).unwrap_or_default();
    if !is_loopback(host) {
        return Err(Kind::Misdirected.because("accepted: Host: localhost, 127.0.0.1 or [::1]"));
    }
    // Browsers name the page's site whenever it is another one, and with every POST (the Fetch
    // standard, "append a request Origin header"). Nobody else sends it.
    let foreign = headers.contains_key(header::ORIGIN)
        && text(header::ORIGIN)
            .and_then(|origin| origin.strip_prefix("http://"))
            .is_none_or(|origin| !origin.eq_ignore_ascii_case(host));
    if foreign {
        return Err(Kind::CrossOrigin.because(format!("accepted: no Origin, or http://{host}")));
    }
    Ok(())
}

/// Whether the name that the client knows the server by is one of the loopback interface. A web
/// page that has its own name resolve to 127.0.0.1 is told from one that people opened themselves.
fn is_loopback(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let name = authority.host().trim_matches(['[', ']']);
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Completes answers: problems get their body, and all get the headers that all have.
async fn finish(request: Request, next: Next) -> Result<Response, Infallible> {
    let path = request.uri().path().to_owned();
    let mut response = next.run(request).await;
    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        let allow = response.headers_mut().remove(header::ALLOW);
        response = problem.render(&path);
        response.headers_mut().extend(allow.map(|allow| (header::ALLOW, allow)));
    }
    let headers = response.headers_mut();
    headers.extend(HEADERS);
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    Ok(response)
}

pub(super) async fn not_found(uri: Uri) -> Problem {
    Kind::NotFound.because(format!("there is nothing at {}; /docs has all paths", uri.path()))
}

pub(super) async fn method_not_allowed() -> Problem {
    Kind::MethodNotAllowed.because("the path exists, but has no such method")
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
            for_this_machine(&Uri::from_static("/"), &headers).err().map(|problem| problem.kind())
        };
        for good in [None, Some("http://localhost:8080")] {
            assert_eq!(kind(good), None, "{good:?}");
        }
        for bad in ["null", "", "http://localhost", "http://evil.example:8080", "localhost:8080"] {
            assert_eq!(kind(Some(bad)), Some(Kind::CrossOrigin), "{bad}");
        }
        assert!(for_this_machine(&Uri::from_static("/"), &HeaderMap::new()).is_err(), "no host");
    }
}
