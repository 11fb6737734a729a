//! The inventory on Redis: one script call for each sale of a batch, all in one pipeline.

mod holdings;
mod server;

use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use chrono::{DateTime, Utc};
use redis::{Arg, AsyncCommands, Cmd, RedisError, RedisResult, Script, Value};
use secrecy::{ExposeSecret, SecretString};
use xxhash_rust::xxh3::Xxh3;

use super::{Amendment, Inventory, InventoryError, InventorySettings, Proposal};
use crate::domain::decision::Hint;
use crate::domain::order::{Candidate, Eligibility, Order, SaleId};
use crate::domain::sale::{SaleState, Watermark};
use crate::tls::Tls;
use server::{Limits, Link, Server};

/// [`Inventory`] on Redis 6.2 or newer. Redis must not evict keys (`maxmemory-policy noeviction`).
pub struct RedisInventory {
    server: Server,
    namespace: String,
    keep_after_close: Duration,
    deduct: Lua,
    amend: Lua,
    commit: Lua,
}

/// The keys of what is held of a sale: its counters, the orders it has deducted for, and its buyers.
type Keys = [String; 3];

impl RedisInventory {
    /// An inventory at `url` with up to `connections` connections. Connects when it is first used.
    pub fn new(
        url: &SecretString,
        namespace: &str,
        settings: &InventorySettings,
        connections: usize,
        tls: Tls,
    ) -> Result<Self, InventoryError> {
        let limits = Limits { connections, timeout: settings.timeout };
        let server = Server::at(url.expose_secret(), limits, tls).map_err(unavailable)?;
        Ok(Self {
            server,
            namespace: namespace.to_owned(),
            keep_after_close: settings.keep_after_close,
            deduct: Lua::new(include_str!("lua/deduct.lua")),
            amend: Lua::new(include_str!("lua/amend.lua")),
            commit: Lua::new(include_str!("lua/commit.lua")),
        })
    }

    /// Bytes of Redis's memory that a sale takes, and the orders that it has deducted for.
    pub async fn usage(&self, sale: &SaleId) -> Result<(u64, u64), InventoryError> {
        let mut connection = self.connection().await?;
        let keys = self.keys(sale);
        let mut pipe = redis::pipe();
        for key in &keys {
            // Of every entry, not of a sample.
            pipe.cmd("MEMORY").arg("USAGE").arg(key).arg("SAMPLES").arg(0);
        }
        pipe.scard(&keys[1]);
        let answers: Vec<Option<u64>> =
            pipe.query_async(&mut connection).await.map_err(unavailable)?;
        let orders = answers.last().copied().flatten().unwrap_or(0);
        let bytes = answers.iter().rev().skip(1).flatten().sum();
        Ok((bytes, orders))
    }

    /// The version of the server.
    pub async fn version(&self) -> Result<String, InventoryError> {
        let mut connection = self.connection().await?;
        let mut info = redis::cmd("INFO");
        info.arg("server");
        let info = connection.any(info).await.map_err(unavailable)?;
        let info: redis::InfoDict = redis::from_redis_value(info).map_err(unavailable)?;
        Ok(info.get("redis_version").unwrap_or_default())
    }

    /// Fails unless the script for hints runs: it is called for no order, with a name that no sale can have.
    pub async fn check(&self) -> Result<(), InventoryError> {
        let call = self.deduct_call(".", &[], &[], Duration::ZERO);
        for result in self.call(&self.deduct, &[call]).await? {
            result.map_err(unavailable)?;
        }
        Ok(())
    }

    /// Deletes every key of the namespace.
    pub async fn remove(&self) -> Result<(), InventoryError> {
        let mut connection = self.connection().await?;
        let pattern = format!("{}:{{*", self.namespace);
        let keys = connection.keys(&pattern).await.map_err(unavailable)?;
        for keys in keys.chunks(1000) {
            connection.unlink::<_, ()>(keys).await.map_err(unavailable)?;
        }
        Ok(())
    }

    fn keys(&self, sale: &(impl Display + ?Sized)) -> Keys {
        ["sale", "deducted", "buyers"].map(|what| self.key(sale, what))
    }

    /// The key of how far a sale is committed.
    fn committed_key(&self, sale: &(impl Display + ?Sized)) -> String {
        self.key(sale, "committed")
    }

    /// The sale is the hash tag of all its keys, so that they live in one slot of a cluster.
    fn key(&self, sale: &(impl Display + ?Sized), what: &str) -> String {
        format!("{}:{{{sale}}}:{what}", self.namespace)
    }

    /// A call of the script for hints.
    fn deduct_call(
        &self,
        sale: &(impl Display + ?Sized),
        orders: &[&Candidate],
        indexes: &[usize],
        max_age: Duration,
    ) -> Cmd {
        let [counters, deducted, buyers] = self.keys(sale);
        let keys = [counters, deducted, buyers, self.committed_key(sale)];
        let mut call = evalsha(&self.deduct, &keys);
        call.arg(u64::try_from(max_age.as_millis()).unwrap_or(u64::MAX));
        for &index in indexes {
            let Candidate { order, submitted_at, eligibility } = orders[index];
            let eligibility = match eligibility {
                Eligibility::Unchecked => "",
                Eligibility::Eligible => "+",
                Eligibility::Denied => "-",
            };
            call.arg(digest(order))
                .arg(order.user_id.as_str())
                .arg(order.quantity.get())
                .arg(ms(*submitted_at))
                .arg(eligibility);
        }
        call
    }

    async fn connection(&self) -> Result<Link, InventoryError> {
        self.server.connection().await
    }

    /// Does `calls` of `script`, each of which is about one sale. Those that reach a server which does not have
    /// it, which did nothing, are repeated with the script itself. Fails as a whole when
    /// a server cannot do its work; what is wrong with the keys of one sale is that call's error.
    async fn call(
        &self,
        script: &Lua,
        calls: &[Cmd],
    ) -> Result<Vec<RedisResult<Value>>, InventoryError> {
        if calls.is_empty() {
            return Ok(Vec::new());
        }
        let mut connection = self.connection().await?;
        let results = call_on(&mut connection, script, calls).await.and_then(|results| {
            let mut errors = results.iter().filter_map(|result| result.as_ref().err());
            errors.find(|error| !is_of_keys(error)).cloned().map_or(Ok(results), Err)
        });
        results.map_err(|error| {
            self.server.failed(connection, &error);
            unavailable(error)
        })
    }

    /// Deletes what is held of sales whose keys are damaged, so that they are loaded again.
    async fn forget(&self, sales: &[&SaleId]) -> Result<(), InventoryError> {
        if sales.is_empty() {
            return Ok(());
        }
        let mut connection = self.connection().await?;
        let unlinking = sales.iter().map(|sale| Cmd::unlink(&self.keys(sale)));
        let results = connection.each(unlinking).await.map_err(unavailable)?;
        results.into_iter().try_for_each(|result| result.map(drop)).map_err(unavailable)
    }

    /// Amends sales, and loads those not held if so asked.
    async fn write(&self, amendments: &[Amendment], load: bool) -> Result<(), InventoryError> {
        let calls: Vec<Cmd> =
            amendments.iter().map(|amendment| self.amend_call(amendment, load)).collect();
        let results = self.call(&self.amend, &calls).await?;
        results.into_iter().try_for_each(|result| result.map(drop)).map_err(unavailable)
    }

    fn amend_call(&self, amendment: &Amendment, load: bool) -> Cmd {
        let Amendment { state, buyers, orders } = amendment;
        let sale = &state.sale;
        let mut call = evalsha(&self.amend, &self.keys(&sale.id));
        call.arg(if load { "1" } else { "" })
            .arg(state.version)
            .arg(state.sold)
            .arg(sale.stock)
            .arg(sale.per_user_limit.map(|limit| limit.to_string()).unwrap_or_default())
            .arg(ms(sale.opens_at))
            .arg(ms(sale.closes_at))
            .arg(if sale.verification { "1" } else { "" })
            .arg(if state.paused.is_some() { "1" } else { "" })
            .arg(self.expires_at(sale.closes_at))
            .arg(buyers.len());
        for (user, units) in buyers {
            call.arg(user.as_str()).arg(units);
        }
        for (order, granted) in orders {
            call.arg(if *granted { "1" } else { "" }).arg(digest(order));
        }
        call
    }

    /// When the keys of a sale may go: a while after it closes, or never.
    fn expires_at(&self, closes_at: Option<DateTime<Utc>>) -> i64 {
        closes_at
            .map_or(0, |closes| (closes.max(Utc::now()) + self.keep_after_close).timestamp_millis())
    }
}

/// A script, and what servers that have it know it by.
struct Lua {
    text: &'static str,
    hash: Script,
}

impl Lua {
    fn new(text: &'static str) -> Self {
        Self { text, hash: Script::new(text) }
    }

    /// A call of it by its hash, made into one that brings it along, which a server keeps.
    fn brought(&self, call: &Cmd) -> Cmd {
        let mut eval = redis::cmd("EVAL");
        eval.arg(self.text);
        for arg in call.args_iter().skip(2) {
            if let Arg::Simple(arg) = arg {
                eval.arg(arg);
            }
        }
        eval
    }
}

async fn call_on(
    connection: &mut Link,
    script: &Lua,
    calls: &[Cmd],
) -> RedisResult<Vec<RedisResult<Value>>> {
    let mut results = connection.each(calls.iter().cloned()).await?;
    let missed: Vec<usize> = (0..results.len()).filter(|&i| is_no_script(&results[i])).collect();
    if !missed.is_empty() {
        let again = missed.iter().map(|&i| script.brought(&calls[i]));
        let again = connection.each(again).await?;
        for (index, result) in missed.into_iter().zip(again) {
            results[index] = result;
        }
    }
    Ok(results)
}

fn is_no_script(result: &RedisResult<Value>) -> bool {
    result.as_ref().is_err_and(|error| error.code() == Some("NOSCRIPT"))
}

/// Whether an error is about what a sale's keys hold, a wrong type or no number, and not about the
/// server. Redis 6.2 reports every error within a script as `ERR`, with the original in its text.
fn is_of_keys(error: &RedisError) -> bool {
    const OF_THE_SERVER: [&str; 6] =
        ["READONLY", "OOM", "LOADING", "MISCONF", "MASTERDOWN", "NOREPLICAS"];
    let text = error.to_string();
    matches!(error.code(), Some("WRONGTYPE" | "ERR"))
        && !OF_THE_SERVER.iter().any(|code| text.contains(code))
}

fn evalsha(script: &Lua, keys: &[String]) -> Cmd {
    let mut call = redis::cmd("EVALSHA");
    call.arg(script.hash.get_hash()).arg(keys.len()).arg(keys);
    call
}

fn unavailable(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> InventoryError {
    InventoryError(error.into())
}

fn ms(time: Option<DateTime<Utc>>) -> String {
    time.map(|time| time.timestamp_millis().to_string()).unwrap_or_default()
}

/// What Redis knows an order by: 64 bits of its id and contents in eleven characters, so that an order
/// takes no more memory for a long id. Should two orders of a sale ever share it, a hint is wrong.
fn digest(order: &Order) -> String {
    let mut hash = Xxh3::new();
    for part in [order.id.as_str(), order.user_id.as_str()] {
        hash.update(part.as_bytes());
        hash.update(&[0]);
    }
    hash.update(&order.quantity.get().to_be_bytes());
    BASE64_STANDARD_NO_PAD.encode(hash.digest().to_be_bytes())
}

/// The answer of `deduct.lua` for `orders` orders: nothing when the sale is not held, and how far it is committed.
fn proposal(
    answer: Value,
    orders: usize,
) -> Result<(Option<Vec<Hint>>, Option<Watermark>), InventoryError> {
    let (letters, version, sold): (Option<String>, String, String) =
        redis::from_redis_value(answer).map_err(unavailable)?;
    let watermark = watermark(&version, &sold);
    let Some(letters) = letters else { return Ok((None, watermark)) };
    let hints = letters.bytes().map(|letter| match letter {
        b'g' => Some(Hint::Granted),
        b'r' => Some(Hint::Refused),
        _ => None,
    });
    match hints.collect::<Option<Vec<_>>>() {
        Some(hints) if hints.len() == orders => Ok((Some(hints), watermark)),
        _ => Err(unavailable(format!("deduct.lua answered {letters:?} for {orders} orders"))),
    }
}

/// What is kept of how far a sale is committed.
fn watermark(version: &str, sold: &str) -> Option<Watermark> {
    Some(Watermark { version: version.parse().ok()?, sold: sold.parse().ok()? })
}

#[async_trait]
impl Inventory for RedisInventory {
    async fn propose(
        &self,
        orders: &[&Candidate],
        max_age: Duration,
    ) -> Result<Proposal, InventoryError> {
        let mut groups: BTreeMap<&SaleId, Vec<usize>> = BTreeMap::new();
        for (index, candidate) in orders.iter().enumerate() {
            groups.entry(&candidate.order.sale_id).or_default().push(index);
        }
        let calls: Vec<Cmd> = groups
            .iter()
            .map(|(sale, indexes)| self.deduct_call(sale, orders, indexes, max_age))
            .collect();
        let results = self.call(&self.deduct, &calls).await?;
        let mut answers = vec![None; orders.len()];
        let mut watermarks = HashMap::new();
        let mut damaged = Vec::new();
        for ((sale, indexes), result) in groups.into_iter().zip(results) {
            match result {
                Ok(answer) => {
                    let (hints, watermark) = proposal(answer, indexes.len())?;
                    for (index, hint) in indexes.iter().zip(hints.into_iter().flatten()) {
                        answers[*index] = Some(hint);
                    }
                    watermarks.extend(watermark.map(|mark| (sale.clone(), mark)));
                }
                Err(error) => {
                    tracing::warn!(%sale, %error, "the sale's keys in Redis are damaged: loading it again");
                    damaged.push(sale);
                }
            }
        }
        self.forget(&damaged).await?;
        Ok(Proposal { hints: answers, watermarks })
    }

    async fn committed(&self, sales: &[SaleState]) -> Result<(), InventoryError> {
        let call = |state: &SaleState| {
            let mut call = evalsha(&self.commit, &[self.committed_key(&state.sale.id)]);
            call.arg(state.version).arg(state.sold).arg(self.expires_at(state.sale.closes_at));
            call
        };
        let calls: Vec<Cmd> = sales.iter().map(call).collect();
        let results = self.call(&self.commit, &calls).await?;
        results.into_iter().try_for_each(|result| result.map(drop)).map_err(unavailable)
    }

    async fn watermark(&self, sale: &SaleId) -> Result<Option<Watermark>, InventoryError> {
        let mut connection = self.connection().await?;
        let reading = connection.hmget(self.committed_key(sale), &["version", "sold"]);
        let (version, sold): (Option<String>, Option<String>) =
            reading.await.map_err(unavailable)?;
        Ok(watermark(&version.unwrap_or_default(), &sold.unwrap_or_default()))
    }

    async fn amend(&self, amendments: &[Amendment]) -> Result<(), InventoryError> {
        self.write(amendments, false).await
    }

    async fn prime(&self, sales: &[SaleState]) -> Result<(), InventoryError> {
        self.write(&sales.iter().cloned().map(Amendment::of).collect::<Vec<_>>(), true).await
    }
}
