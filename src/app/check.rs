//! What `floodgate check` looks at: can everything be reached, and is it set up.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use tokio::net::TcpStream;
use url::Url;

use super::App;
use crate::config::Server;

/// What was found of one thing.
#[derive(Debug)]
pub struct Finding {
    /// The thing.
    pub what: &'static str,
    /// What it is, or what is wrong with it.
    pub found: Result<String>,
    /// What to do if something is wrong.
    pub remedy: String,
}

/// Whether the server's certificate was not accepted, or this client's.
fn is_about_certificates(error: &anyhow::Error) -> bool {
    format!("{error:#}").contains("certificate")
}

/// Says of an error which server it is from, and which settings it is about.
pub(super) fn of_server<T, E: Into<anyhow::Error>>(
    server: Server,
    result: Result<T, E>,
) -> Result<T> {
    result.map_err(|error| {
        let (error, prefix) = (error.into(), server.prefix());
        let settings = if is_about_certificates(&error) {
            format!("{prefix}CA_FILE, {prefix}CLIENT_CERT_FILE, {prefix}CLIENT_KEY_FILE")
        } else {
            format!("{prefix}URL")
        };
        error.context(format!("{} ({settings})", server.name()))
    })
}

/// What was found of a server, and what to do if something is wrong with it.
fn finding_of(server: Server, found: Result<String>, remedy: &'static str) -> Finding {
    let prefix = server.prefix();
    let remedy = match &found {
        Err(error) if is_about_certificates(error) => {
            format!("see {prefix}CA_FILE, {prefix}CLIENT_CERT_FILE and {prefix}CLIENT_KEY_FILE")
        }
        _ => format!("see that it runs and that {prefix}URL is right{remedy}"),
    };
    Finding { what: server.name(), found, remedy }
}

impl App {
    /// Looks at every part of the deployment. Makes queues and exchanges that are missing, as a worker does
    /// when it starts, and changes nothing else.
    pub async fn check(&self) -> Vec<Finding> {
        let finding =
            |what, found, remedy: &str| Finding { what, found, remedy: remedy.to_owned() };
        let mut findings = if self.settings.is_embedded() {
            let file = self.check_file().await;
            vec![finding(
                "file",
                file,
                "set FLOODGATE_EMBEDDED__FILE to a file that can be written",
            )]
        } else {
            let (broker, inventory, ledger) =
                tokio::join!(self.check_broker(), self.check_inventory(), self.check_ledger());
            vec![
                finding_of(Server::Amqp, broker, ""),
                finding_of(Server::Redis, inventory, ""),
                finding_of(
                    Server::Database,
                    ledger,
                    ", and once it answers run: floodgate migrate",
                ),
            ]
        };
        let (users, tokens) = tokio::join!(self.check_verifier(), self.check_tokens());
        let remedy = "see that it runs and that FLOODGATE_VERIFICATION__URL is right";
        findings.push(finding("user service", users, remedy));
        findings.push(finding(
            "tokens",
            tokens,
            "correct FLOODGATE_API__JWT_SECRET, FLOODGATE_API__JWT_PUBLIC_KEY or FLOODGATE_API__JWT_JWKS",
        ));
        findings
    }

    async fn check_file(&self) -> Result<String> {
        self.embedded().await?;
        Ok(format!("embedded, on {}", self.settings.embedded.file.display()))
    }

    async fn check_broker(&self) -> Result<String> {
        let broker = self.rabbitmq()?;
        let version = broker.version().await?;
        broker.check().await.with_context(|| format!("RabbitMQ {version}"))?;
        Ok(format!("{version}; exchanges and queues are declared"))
    }

    async fn check_inventory(&self) -> Result<String> {
        let inventory = self.redis(1)?;
        let version = inventory.version().await?;
        inventory.check().await.with_context(|| format!("Redis {version}"))?;
        Ok(format!("{version}; the script for hints runs"))
    }

    async fn check_ledger(&self) -> Result<String> {
        let ledger = self.postgres()?;
        let version = ledger.version().await?;
        let missing = async {
            ledger.check().await?;
            ledger.missing_privileges().await
        };
        let missing = missing.await.with_context(|| format!("PostgreSQL {version}"))?;
        if !missing.is_empty() {
            let mut tables: BTreeMap<String, Vec<String>> = BTreeMap::new();
            for (table, privilege) in missing {
                tables.entry(table).or_default().push(privilege);
            }
            let grants = tables
                .into_iter()
                .map(|(table, privileges)| format!("grant {} on {table}", privileges.join(", ")));
            let grants = grants.collect::<Vec<_>>().join("; ");
            bail!("PostgreSQL {version}: a worker may not do all it has to; {grants}");
        }
        Ok(format!("{version}; the schema is this version's, with the privileges it needs"))
    }

    async fn check_verifier(&self) -> Result<String> {
        if self.verifier()?.is_none() {
            return Ok("none; orders of sales that check their users wait".to_owned());
        }
        let url = &self.settings.verification.url;
        let address = Url::parse(url)
            .ok()
            .and_then(|url| Some(format!("{}:{}", url.host_str()?, url.port_or_known_default()?)));
        // A call would count there, so there is only a connection.
        let connecting = TcpStream::connect(address.context("it has no host")?);
        let connected = tokio::time::timeout(self.settings.verification.timeout, connecting).await;
        connected.context("no connection in time")?.with_context(|| url.clone())?;
        Ok(format!("{url}; connected to, not called"))
    }

    async fn check_tokens(&self) -> Result<String> {
        let Some(token_verifier) = self.token_verifier()? else {
            return Ok("none; every user of this machine may order and operate".to_owned());
        };
        let keys = token_verifier.read_keys().await?;
        Ok(if self.settings.api.jwt_jwks.is_empty() {
            "needed by the API".to_owned()
        } else {
            format!("needed by the API; usable keys in the set: {keys}")
        })
    }
}
