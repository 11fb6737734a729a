//! Reading requests: JSON bodies and the headers that orders may have.

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

use std::time::Duration;

use super::Shared;
use super::problem::{Kind, Problem};
use crate::order::OrderId;

/// A JSON body, no larger than the settings allow.
pub(super) struct Json<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Shared> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, api: &Shared) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        let content_type = parts.headers.get(header::CONTENT_TYPE).map(|value| value.as_bytes());
        if !content_type.is_some_and(is_json)
            || parts.headers.contains_key(header::CONTENT_ENCODING)
        {
            return Err(Kind::UnsupportedMediaType
                .because("accepted: Content-Type: application/json, not compressed"));
        }
        let bytes = read(body, api.settings.api.max_body_bytes).await?;
        let mut reader = serde_json::Deserializer::from_slice(&bytes);
        let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
            let kind = if error.inner().is_data() { Kind::Invalid } else { Kind::BadJson };
            kind.because(error.to_string())
        })?;
        reader.end().map_err(|error| Kind::BadJson.because(error.to_string()))?;
        Ok(Self(value))
    }
}

/// The media type without its parameters. `charset=utf-8` is what JSON is in any case (RFC 8259).
fn is_json(content_type: &[u8]) -> bool {
    let kind = content_type.split(|&byte| byte == b';').next().unwrap_or_default();
    kind.trim_ascii().eq_ignore_ascii_case(b"application/json")
}

async fn read(body: Body, max_bytes: usize) -> Result<axum::body::Bytes, Problem> {
    match Limited::new(body, max_bytes).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            Err(Kind::TooLarge.because(format!("accepted: up to {max_bytes} bytes")))
        }
        Err(_) => Err(Kind::BadJson.because("the body ended too early")),
    }
}

/// The header `Idempotency-Key`, a string of RFC 9651 or the same without quotes; it is an order id.
pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<Option<OrderId>, Problem> {
    let Some(value) = single(headers, "idempotency-key")? else { return Ok(None) };
    let text = value.trim();
    let text = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    match OrderId::parse(text) {
        Ok(id) => Ok(Some(id)),
        Err(invalid) => Err(Kind::BadHeader.because(format!(
            "Idempotency-Key becomes the order id: {invalid}, with or without quotes"
        ))),
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

fn single<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, Problem> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    if values.next().is_some() {
        return Err(Kind::BadHeader.because(format!("{name} is given more than once")));
    }
    first
        .map(|value| value.to_str())
        .transpose()
        .map_err(|_| Kind::BadHeader.because(format!("{name} has a character that is not ASCII")))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn headers(name: &'static str, values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn an_idempotency_key_is_an_order_id_with_or_without_quotes() {
        let key = |values: &[&str]| idempotency_key(&headers("idempotency-key", values));
        for good in ["\"o-1\"", "o-1", " o-1 "] {
            assert_eq!(key(&[good]).unwrap().unwrap().as_str(), "o-1", "{good}");
        }
        assert!(key(&[]).unwrap().is_none());
        for bad in [&["\"\""][..], &["a b"], &["\"a"], &["a", "b"], &[&"x".repeat(65)]] {
            assert_eq!(key(bad).unwrap_err().kind(), Kind::BadHeader, "{bad:?}");
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
