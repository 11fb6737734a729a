//! TLS as libpq's `sslmode` has it (<https://www.postgresql.org/docs/current/libpq-ssl.html>), where the library
//! differs: `require` with a CA verifies the certificate, and `prefer` and `allow` try both ways.

use secrecy::{ExposeSecret, SecretString};
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{Connection, PgConnection};
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

/// Whether it takes a connection to know if there will be TLS.
pub(super) fn is_open(options: &PgConnectOptions) -> bool {
    matches!(options.get_ssl_mode(), PgSslMode::Prefer | PgSslMode::Allow)
}

/// A connection, and what others like it are made with.
pub(super) async fn connect(
    options: PgConnectOptions,
) -> Result<(PgConnection, PgConnectOptions), sqlx::Error> {
    let (first, second) = match options.get_ssl_mode() {
        PgSslMode::Prefer => (PgSslMode::Prefer, PgSslMode::Disable),
        PgSslMode::Allow => (PgSslMode::Disable, PgSslMode::Require),
        _ => return Ok((PgConnection::connect_with(&options).await?, options)),
    };
    let first = options.clone().ssl_mode(first);
    let error = match PgConnection::connect_with(&first).await {
        Ok(connection) => return Ok((connection, first)),
        Err(error) if is_refusal(&error) => error,
        Err(error) => return Err(error),
    };
    let second = options.ssl_mode(second);
    match PgConnection::connect_with(&second).await {
        Ok(connection) => {
            if matches!(second.get_ssl_mode(), PgSslMode::Disable) {
                tracing::warn!(%error, "PostgreSQL without TLS, as sslmode=prefer allows: TLS failed");
            }
            Ok((connection, second))
        }
        Err(other) => {
            tracing::debug!(error = %other, "PostgreSQL refused the other way too");
            Err(error)
        }
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
