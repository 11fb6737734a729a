//! TLS as libpq's `sslmode` has it (<https://www.postgresql.org/docs/current/libpq-ssl.html>), where the library
//! differs: `require` with a CA verifies the certificate, and `prefer` and `allow` try both ways.

use secrecy::{ExposeSecret, SecretString};
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{Connection, PgConnection, PgPool};
use url::Url;

use super::sqlstate;

/// What a connection to `url` is made with.
pub(super) fn options(url: &SecretString) -> Result<PgConnectOptions, sqlx::Error> {
    let options: PgConnectOptions = url.expose_secret().parse()?;
    let has_ca = url.expose_secret().parse().is_ok_and(|url: Url| {
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

/// Has `pool`, which was made with `options`, connect in the way that works from now on. May be called again
/// when it has failed or was given up.
pub(super) async fn settle(pool: &PgPool, options: &PgConnectOptions) -> Result<(), sqlx::Error> {
    let Some([first, second]) = ways(options) else { return Ok(()) };
    pool.set_connect_options(first.clone());
    let refusal = match pool.acquire().await {
        Err(error) if is_refusal(&error) => error,
        connected => return connected.map(drop),
    };
    pool.set_connect_options(second.clone());
    if pool.acquire().await.is_err() {
        pool.set_connect_options(first);
        return Err(refusal);
    }
    warn(&second, &refusal);
    Ok(())
}

/// A connection, made in the way that works.
pub(super) async fn connect(options: PgConnectOptions) -> Result<PgConnection, sqlx::Error> {
    let Some([first, second]) = ways(&options) else {
        return PgConnection::connect_with(&options).await;
    };
    let refusal = match PgConnection::connect_with(&first).await {
        Err(error) if is_refusal(&error) => error,
        connected => return connected,
    };
    let Ok(connection) = PgConnection::connect_with(&second).await else { return Err(refusal) };
    warn(&second, &refusal);
    Ok(connection)
}

fn warn(way: &PgConnectOptions, error: &sqlx::Error) {
    if matches!(way.get_ssl_mode(), PgSslMode::Disable) {
        tracing::warn!(%error, "PostgreSQL without TLS, as sslmode=prefer allows: TLS failed");
    }
}

/// Whether the other way may work: TLS failed, for instance because of a certificate that can't be read, or the
/// server refused the login (class 28 of PostgreSQL's error codes), as its `pg_hba.conf` can for one of the ways.
fn is_refusal(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Tls(_) => true,
        sqlx::Error::Io(error) => error.kind() == std::io::ErrorKind::InvalidData,
        error => sqlstate(error).is_some_and(|code| code.starts_with("28")),
    }
}
