//! Reading requests: JSON bodies and the headers that orders may have.

use std::str::FromStr;
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody as _};
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::{DeserializeOwned, Error as _, IgnoredAny};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::Shared;
use super::problem::{Problem, ProblemType};
use crate::domain::order::{InvalidId, OrderId, OrderKey, SaleId};
use crate::domain::trace::TraceContext;

/// The most characters of an `Idempotency-Key`.
const MAX_KEY_CHARS: usize = 255;

/// A body that has arrived within this time is not a slow one.
const AT_ONCE: Duration = Duration::from_millis(250);

/// An id in the path.
pub(super) struct Id<T>(pub T);

impl<T: FromStr<Err = InvalidId>> FromRequestParts<Shared> for Id<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Shared) -> Result<Self, Problem> {
        match Path::<String>::from_request_parts(parts, api).await {
            Ok(Path(text)) => Ok(Self(text.parse()?)),
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

/// Characters of a number that are repeated in an error.
const MAX_NUMBER_CHARS: usize = 40;

/// A whole number, also one that is written like `1.0` or `1e3`: JSON has one kind of numbers only, and to
/// JSON Schema that is an integer too. Read exactly, so that 0.99999999999999999999 is not 1.
#[derive(Debug)]
pub(super) struct Whole<T>(pub T);

impl<'de, T: TryFrom<i64>> Deserialize<'de> for Whole<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = <&RawValue>::deserialize(deserializer)?.get();
        let whole = whole_number(number).and_then(|whole| T::try_from(whole).ok());
        whole.map(Self).ok_or_else(|| {
            let shown: String = number.chars().take(MAX_NUMBER_CHARS).collect();
            D::Error::custom(format!("{shown} is no whole number in range"))
        })
    }
}

/// The value of a JSON number (RFC 8259 section 6), if it is whole.
fn whole_number(text: &str) -> Option<i64> {
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let fraction = fraction.trim_end_matches('0');
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let power = exponent.parse::<i64>().ok()?.checked_sub(i64::try_from(fraction.len()).ok()?)?;
    let scale = 10_i128.checked_pow(u32::try_from(power.unsigned_abs()).ok()?);
    let value = match (digits, scale) {
        (0, _) => 0,
        (_, Some(scale)) if power >= 0 => digits.checked_mul(scale)?,
        (_, Some(scale)) if digits % scale == 0 => digits / scale,
        _ => return None,
    };
    i64::try_from(value).ok()
}

/// A JSON object as the body, no larger than the settings allow.
pub(super) struct Json<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Shared> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, api: &Shared) -> Result<Self, Problem> {
        let client = super::limits::client(&request);
        let (parts, body) = request.into_parts();
        let content_type = parts.headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
        if !content_type.is_some_and(is_json)
            || parts.headers.contains_key(header::CONTENT_ENCODING)
        {
            return Err(ProblemType::UnsupportedMediaType
                .because("accepted: Content-Type: application/json, not compressed"));
        }
        let settings = &api.settings;
        let mut reading = std::pin::pin!(read(body, settings.max_body_bytes));
        if let Ok(bytes) = tokio::time::timeout(AT_ONCE, &mut reading).await {
            return parse(&bytes?).map(Self);
        }
        let _slow = api.limits.slow_body(client)?;
        match tokio::time::timeout(settings.request_timeout, reading).await {
            Ok(bytes) => parse(&bytes?).map(Self),
            Err(_) => Err(ProblemType::Timeout.because("the body did not arrive in time")),
        }
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
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
fn is_json(content_type: &[u8]) -> bool {
    let kind = content_type.split(|&byte| byte == b';').next().unwrap_or_default();
    kind.trim_ascii().eq_ignore_ascii_case(b"application/json")
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
    fn a_whole_number_is_one_however_it_is_written() {
        let whole = |text: &str| serde_json::from_str::<Whole<u32>>(text).map(|whole| whole.0).ok();
        for (text, value) in [
            ("0", 0),
            ("-0.0", 0),
            ("7.0", 7),
            ("4294967295", u32::MAX),
            ("1e3", 1000),
            ("20e-1", 2),
            ("0e999", 0),
        ] {
            assert_eq!(whole(text), Some(value), "{text}");
        }
        for bad in [
            "1.5",
            "-1",
            "4294967296",
            "1e300",
            "18446744073709551615",
            "\"1\"",
            "null",
            "0.99999999999999999999",
            "1.00000000000000000001",
            "1e-1",
            "1e99999999999",
            "{}",
            "true",
        ] {
            assert_eq!(whole(bad), None, "{bad}");
        }
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
