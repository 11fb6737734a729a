//! Where a set of keys is, and reading it: a file, or a URL.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::header::ACCEPT;
use reqwest::{Client, StatusCode, Url};

use crate::http;

/// The largest set that is read, in bytes.
const MAX_BYTES: usize = 256 * 1024;
/// How long a server may take for its whole answer.
const TIME_LIMIT: Duration = Duration::from_secs(5);

/// Where a set of keys is.
#[derive(Clone)]
pub(super) enum Location {
    /// A file on this machine.
    File(PathBuf),
    /// A URL, and what asks it.
    Url(Client, Url),
}

/// Why `jwt_jwks` says nothing about where the keys are.
#[derive(Debug, thiserror::Error)]
pub enum InvalidLocation {
    /// Keys that come in plain text can be replaced on the way.
    #[error(
        "jwt_jwks is a URL that is not accepted; accepted: https://, or http:// to this machine"
    )]
    Scheme,
    /// It begins as a URL does.
    #[error("jwt_jwks is no URL: {0}")]
    NoUrl(Box<dyn std::error::Error + Send + Sync>),
    /// There is no certificate to verify a server with.
    #[error("jwt_jwks can't be asked over TLS: {}", root(.0))]
    NoClient(reqwest::Error),
}

/// Why a set of keys can't be read. Shows no URL, which may hold a password.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// The file can't be read.
    #[error("{} can't be read: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// No answer came, or none in time.
    #[error("no answer: {}", root(.0))]
    NoAnswer(reqwest::Error),
    /// The answer is no success.
    #[error("it answered {0}")]
    Status(StatusCode),
    /// It is larger than any set of keys.
    #[error("it is larger than {MAX_BYTES} bytes")]
    TooLarge,
}

impl Location {
    /// The location that `jwt_jwks` names.
    pub(super) fn parse(text: &str) -> Result<Self, InvalidLocation> {
        if !text.contains("://") {
            return Ok(Self::File(PathBuf::from(text)));
        }
        let url = Url::parse(text).map_err(|error| InvalidLocation::NoUrl(error.into()))?;
        let is_plain = match url.scheme() {
            "https" => false,
            "http" if url.host_str().is_some_and(is_loopback) => true,
            _ => return Err(InvalidLocation::Scheme),
        };
        let client = http::client()
            .timeout(TIME_LIMIT)
            // Minutes pass between two questions; a connection would not last so long.
            .pool_max_idle_per_host(0);
        // In plain text nothing may leave this machine, and no certificate is needed.
        let client = if is_plain { client.no_proxy().tls_certs_only([]) } else { client };
        let client = client.build().map_err(InvalidLocation::NoClient)?;
        Ok(Self::Url(client, url))
    }

    /// Reads what is there.
    pub(super) async fn read(&self) -> Result<Vec<u8>, Unreadable> {
        match self {
            Self::File(path) => {
                let path = path.clone();
                let reading = tokio::task::spawn_blocking(move || read_file(&path)).await;
                reading.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
            }
            Self::Url(client, url) => fetch(client, url).await,
        }
    }
}

/// Names no URL, which may hold a password.
impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Url(..) => f.write_str("Url"),
        }
    }
}

fn is_loopback(host: &str) -> bool {
    let host = host.trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Reads the file at `path`.
pub(super) fn read_file(path: &Path) -> Result<Vec<u8>, Unreadable> {
    let mut bytes = Vec::new();
    let read = File::open(path)
        .and_then(|file| file.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes))
        .map_err(|error| Unreadable::File { path: path.to_owned(), error })?;
    if read > MAX_BYTES { Err(Unreadable::TooLarge) } else { Ok(bytes) }
}

async fn fetch(client: &Client, url: &Url) -> Result<Vec<u8>, Unreadable> {
    let no_answer = |error: reqwest::Error| Unreadable::NoAnswer(error.without_url());
    // RFC 7517 section 8.5.2; some servers know it only as JSON.
    let asking =
        client.get(url.clone()).header(ACCEPT, "application/jwk-set+json, application/json");
    let mut response = asking.send().await.map_err(no_answer)?;
    if response.status() != StatusCode::OK {
        return Err(Unreadable::Status(response.status()));
    }
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(no_answer)? {
        if bytes.len() + chunk.len() > MAX_BYTES {
            return Err(Unreadable::TooLarge);
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// The error at the root of `error`, which says what happened; those around it say where.
fn root(error: &reqwest::Error) -> String {
    let mut root: &dyn std::error::Error = error;
    while let Some(source) = root.source() {
        root = source;
    }
    root.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_a_path_or_a_url_that_nobody_on_the_way_can_change() {
        for path in ["keys.json", "/etc/keys/..data/jwks", "http", "C:keys"] {
            assert!(
                matches!(Location::parse(path), Ok(Location::File(found)) if found == Path::new(path))
            );
        }
        for url in [
            "https://id.example/keys",
            "HTTPS://id.example",
            "http://localhost:8080/k",
            "http://127.0.0.1/",
            "http://[::1]:1/",
        ] {
            assert!(matches!(Location::parse(url), Ok(Location::Url(..))), "{url}");
        }
        for url in [
            "http://id.example/keys",
            "http://localhost.evil.example/",
            "http://10.0.0.1/",
            "http://127.0.0.1@evil.example/",
            "file:///etc/keys",
            "ftp://localhost/keys",
        ] {
            assert!(matches!(Location::parse(url), Err(InvalidLocation::Scheme)), "{url}");
        }
        assert!(matches!(Location::parse("https://"), Err(InvalidLocation::NoUrl(_))));
        let shown = format!("{:?}", Location::parse("https://me:hush@id.example/").unwrap());
        assert_eq!(shown, "Url");
    }

    #[test]
    fn a_file_is_read_up_to_a_size() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        std::fs::write(&path, vec![b' '; MAX_BYTES]).unwrap();
        assert_eq!(read_file(&path).unwrap().len(), MAX_BYTES);
        std::fs::write(&path, vec![b' '; MAX_BYTES + 1]).unwrap();
        assert!(matches!(read_file(&path), Err(Unreadable::TooLarge)));
        assert!(matches!(read_file(folder.path()), Err(Unreadable::File { .. })));
    }
}
