//! The client for other services over HTTP: the user service, an identity provider, webhooks' endpoints, floodgate's API.

use std::time::Duration;

use chrono::{DateTime, Utc};
use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{Client, ClientBuilder};

/// Chooses the cryptography of every client in this process: the library leaves that open.
pub fn choose_cryptography() {
    // If there is a default already, it is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// A client, to be given its limits. It follows no redirects.
pub fn client() -> ClientBuilder {
    choose_cryptography();
    Client::builder().redirect(Policy::none())
}

/// `Retry-After` in either of its forms, seconds or a date (RFC 9110, section 10.2.3).
pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = DateTime::parse_from_rfc2822(text).ok()?;
    Some(date.signed_duration_since(Utc::now()).to_std().unwrap_or_default())
}

/// What is wrong, with its causes and without the URL, which may hold a secret.
pub fn explain(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_read_in_both_forms() {
        let read = |text: &str| {
            let value = text.parse().expect("a header's value");
            retry_after(&HeaderMap::from_iter([(RETRY_AFTER, value)]))
        };
        assert_eq!(read("7"), Some(Duration::from_secs(7)));
        assert_eq!(read("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        assert!(read("Tue, 31 Dec 2999 23:59:59 GMT") > Some(Duration::from_hours(24)));
        for none in ["", "-1", "soon", "1.5"] {
            assert_eq!(read(none), None, "{none:?}");
        }
    }
}
