//! Reading requests: JSON bodies and the headers that orders may have.

use std::str::FromStr;
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody as _};
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::{DeserializeOwned, IgnoredAny};

use super::Shared;
use super::problem::{Problem, ProblemType};
use crate::domain::order::{OrderId, OrderKey, SaleId};
use crate::domain::trace::TraceContext;

/// The most characters of an `Idempotency-Key`.
const MAX_KEY_CHARS: usize = 255;

/// A body that has arrived within this time is not a slow one.
const AT_ONCE: Duration = Duration::from_millis(250);

/// An id in the path.
pub(super) struct Id<T>(pub T);

impl<T: FromStr<Err: Into<Problem>>> FromRequestParts<Shared> for Id<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Shared) -> Result<Self, Problem> {
        match Path::<String>::from_request_parts(parts, api).await {
            Ok(Path(text)) => text.parse().map(Self).map_err(Into::into),
            Err(_) => Err(ProblemType::Invalid.because("the id in the path is not UTF-8")),
        }
    }
}

/// The order that the path names, by its sale and its id.
pub(super) struct OrderPath(pub OrderKey);

impl FromRequestParts<Shared> for OrderPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Shared) -> Result<Self, Problem> {
        match Path::<(String, String)>::from_request_parts(parts, api).await {
            Ok(Path((sale_id, order_id))) => Ok(Self(OrderKey {
                sale_id: SaleId::parse(sale_id)?,
                order_id: OrderId::parse(order_id)?,
            })),
            Err(_) => Err(ProblemType::Invalid.because("an id in the path is not UTF-8")),
        }
    }
}

/// A JSON object as the body, no larger than the settings allow.
pub(super) struct Json<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Shared> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, api: &Shared) -> Result<Self, Problem> {
        let max_bytes = api.settings.max_body_bytes;
        let bytes = body(request, api, &["application/json"], max_bytes).await?;
        parse(&bytes).map(Self)
    }
}

/// The body of a request, of one of the media types `accepted` and of up to `max_bytes`.
pub(super) async fn body(
    request: Request,
    api: &Shared,
    accepted: &[&str],
    max_bytes: usize,
) -> Result<Bytes, Problem> {
    let client = super::limits::client(&request);
    let (parts, body) = request.into_parts();
    let content_type = parts.headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    if !content_type.is_some_and(|content_type| is_one_of(accepted, content_type))
        || parts.headers.contains_key(header::CONTENT_ENCODING)
    {
        return Err(ProblemType::UnsupportedMediaType
            .because(format!("accepted: Content-Type: {}, not compressed", accepted[0])));
    }
    let mut reading = std::pin::pin!(read(body, max_bytes));
    if let Ok(bytes) = tokio::time::timeout(AT_ONCE, &mut reading).await {
        return bytes;
    }
    let _slow = api.limits.slow_body(client)?;
    let read = tokio::time::timeout(api.settings.request_timeout, reading).await;
    read.unwrap_or_else(|_| Err(ProblemType::Timeout.because("the body did not arrive in time")))
}

/// The object that `bytes` are, and nothing else.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let bad_json = |error: serde_json::Error| ProblemType::BadJson.because(error.to_string());
    // The library would read an array as well, its elements being the fields in their order.
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        serde_json::from_slice::<IgnoredAny>(bytes).map_err(bad_json)?;
        return Err(ProblemType::Invalid.because("the body is JSON, but not an object"));
    }
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let kind =
            if error.inner().is_data() { ProblemType::Invalid } else { ProblemType::BadJson };
        kind.because(error.to_string())
    })?;
    reader.end().map_err(bad_json)?;
    Ok(value)
}

/// The media type without its parameters. `charset=utf-8` is what JSON is in any case (RFC 8259).
fn is_one_of(accepted: &[&str], content_type: &[u8]) -> bool {
    let kind = content_type.split(|&byte| byte == b';').next().unwrap_or_default().trim_ascii();
    accepted.iter().any(|accepted| kind.eq_ignore_ascii_case(accepted.as_bytes()))
}

async fn read(body: Body, max_bytes: usize) -> Result<Bytes, Problem> {
    let too_large =
        || Err(ProblemType::TooLarge.because(format!("accepted: up to {max_bytes} bytes")));
    // A length that is announced need not be waited for.
    if usize::try_from(body.size_hint().lower()).map_or(true, |bytes| bytes > max_bytes) {
        return too_large();
    }
    match Limited::new(body, max_bytes).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => too_large(),
        Err(_) => Err(ProblemType::BadJson.because("the body ended too early")),
    }
}

/// The header `Idempotency-Key`: a string of RFC 9651, or its text without quotes. 1 to 255 visible
/// ASCII characters.
pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = single(headers, "idempotency-key")? else { return Ok(None) };
    let value = value.trim();
    let key = match value.strip_prefix('"') {
        Some(rest) => unquoted(rest),
        None => Some(value.to_owned()),
    };
    let accepted = |key: &String| {
        (1..=MAX_KEY_CHARS).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic())
    };
    match key.filter(accepted) {
        Some(key) => Ok(Some(key)),
        None => Err(ProblemType::BadHeader.because(format!(
            "Idempotency-Key is not accepted; accepted: 1 to {MAX_KEY_CHARS} visible ASCII characters, \
             with or without quotes"
        ))),
    }
}

/// The text of a string of RFC 9651 section 3.3.3, of which `rest` follows the opening quote. `None`
/// when it is malformed.
fn unquoted(rest: &str) -> Option<String> {
    let mut text = String::with_capacity(rest.len());
    let mut characters = rest.chars();
    loop {
        match characters.next()? {
            '"' => return characters.as_str().is_empty().then_some(text),
            '\\' => text.push(characters.next().filter(|next| matches!(next, '"' | '\\'))?),
            character => text.push(character),
        }
    }
}

/// The wait asked for by `Prefer: wait=N`, RFC 7240 section 4.3. Other preferences are let be, and
/// so is a wait that is no number: preferences may be ignored.
pub(super) fn wait(headers: &HeaderMap) -> Option<Duration> {
    let values = headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok());
    let preferences = values.flat_map(|value| value.split(','));
    for preference in preferences {
        let token = preference.split(';').next().unwrap_or_default();
        if let Some((name, value)) = token.split_once('=')
            && name.trim().eq_ignore_ascii_case("wait")
        {
            return value.trim().trim_matches('"').parse().ok().map(Duration::from_secs);
        }
    }
    None
}

/// Whether the client asks for server-sent events.
pub(super) fn wants_events(headers: &HeaderMap) -> bool {
    let mut accepted = headers.get_all(header::ACCEPT).iter();
    accepted.any(|value| value.to_str().is_ok_and(|text| text.contains("text/event-stream")))
}

/// The trace that the client says.
pub(super) fn trace(headers: &HeaderMap) -> Option<TraceContext> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    TraceContext::parse(text("traceparent")?, text("tracestate"))
}

fn single<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, Problem> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    if values.next().is_some() {
        return Err(ProblemType::BadHeader.because(format!("{name} is given more than once")));
    }
    first.map(|value| value.to_str()).transpose().map_err(|_| {
        ProblemType::BadHeader.because(format!("{name} has a character that is not ASCII"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn an_idempotency_key_is_a_text_with_or_without_quotes() {
        let key = |values: &[&str]| idempotency_key(&headers("idempotency-key", values));
        let long = "x".repeat(255);
        for (good, text) in [
            ("\"o-1\"", "o-1"),
            ("o-1", "o-1"),
            (" o-1 ", "o-1"),
            (r#""a\"b\\c""#, r#"a"b\c"#),
            (r#"a"b\c"#, r#"a"b\c"#),
            ("!/~%20", "!/~%20"),
            (&long, &long),
        ] {
            assert_eq!(key(&[good]).unwrap().unwrap(), text, "{good}");
        }
        assert!(key(&[]).unwrap().is_none());
        for bad in [
            &[""][..],
            &["\"\""],
            &["a b"],
            &["\"a b\""],
            &["\"a"],
            &["\"a\"b"],
            &["\"a\\\""],
            &["\"a\\b\""],
            &["\"a\"; x=1"],
            &["a\tb"],
            &["a", "b"],
            &[&"x".repeat(256)],
        ] {
            assert_eq!(key(bad).unwrap_err().problem_type(), ProblemType::BadHeader, "{bad:?}");
        }
    }

    #[test]
    fn a_wait_is_found_among_other_preferences() {
        let wait = |values: &[&str]| wait(&headers("prefer", values)).map(|wait| wait.as_secs());
        assert_eq!(wait(&["wait=5"]), Some(5));
        assert_eq!(wait(&["respond-async, Wait = 10"]), Some(10));
        assert_eq!(wait(&["respond-async", "wait=\"3\"; x=1"]), Some(3));
        assert_eq!(wait(&["respond-async", "handling=lenient"]), None);
        assert_eq!(wait(&["wait=soon"]), None);
        assert_eq!(wait(&["wait=-1"]), None);
    }
}
