//! Which server, and how: of several hosts the one that can be written to, and TLS as libpq's `sslmode` has it
//! (<https://www.postgresql.org/docs/current/libpq-ssl.html>), where the library differs: `require` with a CA
//! verifies the certificate, and `prefer` and `allow` try both ways.

use std::io;
use std::time::{Duration, Instant};

use futures_util::future::select_ok;
use parking_lot::Mutex;
use secrecy::{ExposeSecret, SecretString};
use sqlx::postgres::{PgConnectOptions, PgPool, PgSslMode};
use sqlx::{Connection, PgConnection};
use url::Url;

use super::sqlstate;
use crate::hosts;

/// The server behind a URL.
#[derive(Debug)]
pub(super) struct Server {
    /// How to connect to each of its hosts.
    hosts: Vec<PgConnectOptions>,
    /// When it was last found how to connect, unless that is to be found again.
    found_at: Mutex<Option<Instant>>,
    finding: tokio::sync::Mutex<()>,
}

impl Server {
    /// The server at `url`, to be connected to as `how` has it.
    pub(super) fn at(
        url: &SecretString,
        how: impl Fn(PgConnectOptions) -> PgConnectOptions,
    ) -> Result<Self, sqlx::Error> {
        let options = hosts::each(url.expose_secret()).into_iter().map(|url| options(&url));
        let hosts = options.map(|options| options.map(&how)).collect::<Result<_, _>>()?;
        Ok(Self { hosts, found_at: Mutex::default(), finding: tokio::sync::Mutex::default() })
    }

    /// How to connect until more is known.
    pub(super) fn first(&self) -> PgConnectOptions {
        self.hosts.first().cloned().unwrap_or_default()
    }

    /// A connection to the host that can be written to, and how it was made.
    pub(super) async fn connect(&self) -> Result<(PgConnection, PgConnectOptions), sqlx::Error> {
        if let [only] = self.hosts.as_slice() {
            return connect(only).await;
        }
        // All at once, because one that is cut off does not answer.
        let connecting = self.hosts.iter().map(|host| Box::pin(connect_to_primary(host)));
        select_ok(connecting).await.map(|(connected, _)| connected)
    }

    /// Has the connections that `pool` makes from now on go to the host that can be written to, in the way that
    /// works. May be called again when it has failed or was given up. Of several hosts none is waited for longer than
    /// `limit`: which one is the primary may be another one by then.
    pub(super) async fn settle(&self, pool: &PgPool, limit: Duration) -> Result<(), sqlx::Error> {
        let is_open = || self.has_choice() || self.hosts.iter().any(|host| ways(host).is_some());
        if self.found_at.lock().is_some() || !is_open() {
            return Ok(());
        }
        let _finding = self.finding.lock().await;
        if self.found_at.lock().is_none() {
            let connecting = Box::pin(self.connect());
            let (connection, options) = if self.has_choice() {
                let connected = tokio::time::timeout(limit, connecting).await;
                connected.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??
            } else {
                connecting.await?
            };
            pool.set_connect_options(options);
            *self.found_at.lock() = Some(Instant::now());
            // It works as it is: the pool makes the next one.
            drop(connection);
        }
        Ok(())
    }

    /// Whether there are several hosts.
    pub(super) fn has_choice(&self) -> bool {
        self.hosts.len() > 1
    }

    /// Work that was begun at `begun` has failed in a way that another host might not: it is looked for again.
    pub(super) fn failed(&self, begun: Instant) {
        let mut found_at = self.found_at.lock();
        if self.has_choice() && found_at.is_some_and(|at| at <= begun) {
            *found_at = None;
        }
    }

    /// Whether a connection that is `age` old was made since it was last found how.
    pub(super) fn is_of(&self, age: Duration) -> bool {
        self.found_at.lock().is_some_and(|at| age <= at.elapsed())
    }
}

/// What a connection to a URL with one host is made with.
fn options(url: &str) -> Result<PgConnectOptions, sqlx::Error> {
    let options: PgConnectOptions = url.parse()?;
    let has_ca = url.parse().is_ok_and(|url: Url| {
        url.query_pairs()
            .any(|(name, _)| matches!(&*name, "sslrootcert" | "ssl-root-cert" | "ssl-ca"))
    });
    let verifies = has_ca && matches!(options.get_ssl_mode(), PgSslMode::Require);
    Ok(if verifies { options.ssl_mode(PgSslMode::VerifyCa) } else { options })
}

/// The two ways to connect that the URL leaves open, in the order in which they are tried; `None` if it leaves
/// none open.
fn ways(options: &PgConnectOptions) -> Option<[PgConnectOptions; 2]> {
    let modes = match options.get_ssl_mode() {
        PgSslMode::Prefer => [PgSslMode::Prefer, PgSslMode::Disable],
        PgSslMode::Allow => [PgSslMode::Disable, PgSslMode::Require],
        _ => return None,
    };
    Some(modes.map(|mode| options.clone().ssl_mode(mode)))
}

async fn connect_to_primary(
    options: &PgConnectOptions,
) -> Result<(PgConnection, PgConnectOptions), sqlx::Error> {
    let (mut connection, options) = connect(options).await?;
    let read_only = sqlx::query_scalar::<_, String>("show transaction_read_only");
    if read_only.fetch_one(&mut connection).await? == "on" {
        let problem = format!("{} can only be read", options.get_host());
        return Err(io::Error::other(problem).into());
    }
    Ok((connection, options))
}

/// A connection, made in the way that works, and that way.
async fn connect(
    options: &PgConnectOptions,
) -> Result<(PgConnection, PgConnectOptions), sqlx::Error> {
    let Some([first, second]) = ways(options) else {
        return PgConnection::connect_with(options).await.map(|made| (made, options.clone()));
    };
    let refusal = match PgConnection::connect_with(&first).await {
        Err(error) if is_refusal(&error) => error,
        connected => return connected.map(|made| (made, first)),
    };
    let Ok(connection) = PgConnection::connect_with(&second).await else { return Err(refusal) };
    if matches!(second.get_ssl_mode(), PgSslMode::Disable) {
        tracing::warn!(error = %refusal, "PostgreSQL without TLS, as sslmode=prefer allows: TLS failed");
    }
    Ok((connection, second))
}

/// Whether the other way may work: TLS failed, for instance because of a certificate that can't be read, or the
/// server refused the login (class 28 of PostgreSQL's error codes), as its `pg_hba.conf` can for one of the ways.
fn is_refusal(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Tls(_) => true,
        sqlx::Error::Io(error) => error.kind() == io::ErrorKind::InvalidData,
        error => sqlstate(error).is_some_and(|code| code.starts_with("28")),
    }
}
