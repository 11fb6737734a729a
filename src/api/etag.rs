//! Answers that a client which has them already need not get again (RFC 9110 sections 8.8.3 and 13.1.2).

use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::domain::digest::digest;

/// JSON with its `ETag`, or 304 when it is what the client has by its `If-None-Match`. It may be kept, but
/// not used without asking.
pub(super) fn json(body: Vec<u8>, request: &HeaderMap) -> Response {
    let tag = format!("\"{}\"", digest([body.as_slice()]));
    let known = request.get_all(header::IF_NONE_MATCH).iter();
    let mut known = known.flat_map(|tags| tags.to_str().unwrap_or_default().split(','));
    let is_known = known.any(|known| matches_weakly(known, &tag));
    let kept = HeaderValue::from_static("private, no-cache");
    let mut response = if is_known {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        let kind = [(header::CONTENT_TYPE, "application/json")];
        (kind, Bytes::from(body)).into_response()
    };
    response.headers_mut().insert(header::CACHE_CONTROL, kept);
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

/// Whether `known` is `tag`, or any. A proxy that compresses answers may have made it a weak one.
fn matches_weakly(known: &str, tag: &str) -> bool {
    let known = known.trim();
    known == "*" || known.strip_prefix("W/").unwrap_or(known) == tag
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(known: &str) -> u16 {
        let mut headers = HeaderMap::new();
        headers.insert(header::IF_NONE_MATCH, HeaderValue::from_str(known).unwrap());
        json(b"{}".to_vec(), &headers).status().as_u16()
    }

    #[test]
    fn what_is_known_is_not_sent_again() {
        let first = json(b"{}".to_vec(), &HeaderMap::new());
        assert_eq!(first.status(), 200);
        let tag = first.headers()["etag"].to_str().unwrap();
        for known in [tag, &format!("W/{tag}"), &format!("\"other\", {tag}"), "*"] {
            assert_eq!(status(known), 304, "{known}");
        }
        for other in ["\"other\"", tag.trim_matches('"'), ""] {
            assert_eq!(status(other), 200, "{other}");
        }
    }
}
