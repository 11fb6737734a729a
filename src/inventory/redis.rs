//! The inventory on Redis: one script call for each sale of a batch, all in one pipeline.

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use deadpool_redis::{Connection, Manager, Pool, Runtime};
use redis::io::tcp::TcpSettings;
use redis::{AsyncConnectionConfig, Cmd, IntoConnectionInfo, RedisResult, Script, Value};
use secrecy::{ExposeSecret, SecretString};

use super::{Amendment, Correction, Inventory, InventoryError, Proposal, Proposals};
use crate::config::InventorySettings;
use crate::decision::{Decision, Outcome, Reason};
use crate::order::{Candidate, Clearance, Order, SaleId};
use crate::sale::SaleState;

/// The one-letter answers of `decide.lua`.
const ANSWERS: [(char, Outcome); 7] = [
    ('c', Outcome::Created),
    ('s', Outcome::SoldOut),
    ('d', Outcome::Rejected(Reason::UserDenied)),
    ('l', Outcome::Rejected(Reason::PurchaseLimit)),
    ('n', Outcome::Rejected(Reason::NotOpen)),
    ('x', Outcome::Rejected(Reason::Closed)),
    ('e', Outcome::Rejected(Reason::Expired)),
];

/// [`Inventory`] on Redis 6.2 or newer. Redis must not evict keys (`maxmemory-policy noeviction`).
pub struct RedisInventory {
    pool: Pool,
    namespace: String,
    keep_after_close: Duration,
    decide: Script,
    amend: Script,
    prime: Script,
    correct: Script,
}

/// The keys of one sale. The sale is their hash tag, so that they live in one slot of a cluster.
struct Keys {
    sale: String,
    decisions: String,
    buyers: String,
}

impl RedisInventory {
    /// An inventory at `url` with up to `connections` connections. Connects when it is first used.
    pub fn new(
        url: &SecretString,
        namespace: &str,
        settings: &InventorySettings,
        connections: usize,
    ) -> Result<Self, InventoryError> {
        let timeout = settings.timeout();
        // Requests are small and each waits for its answer: Nagle's algorithm would hold them back.
        let tcp = TcpSettings::default().set_nodelay(true);
        let server =
            url.expose_secret().into_connection_info().map_err(unavailable)?.set_tcp_settings(tcp);
        let limits = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(timeout))
            .set_response_timeout(Some(timeout));
        let manager = Manager::new_with_config(server, limits).map_err(unavailable)?;
        let pool = Pool::builder(manager)
            .max_size(connections)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(timeout))
            .create_timeout(Some(timeout))
            .recycle_timeout(Some(timeout))
            .build()
            .map_err(unavailable)?;
        Ok(Self {
            pool,
            namespace: namespace.to_owned(),
            keep_after_close: settings.keep_after_close(),
            decide: Script::new(include_str!("lua/decide.lua")),
            amend: Script::new(include_str!("lua/amend.lua")),
            prime: Script::new(include_str!("lua/prime.lua")),
            correct: Script::new(include_str!("lua/correct.lua")),
        })
    }

    /// Bytes of Redis's memory that a sale takes.
    pub async fn usage(&self, sale: &SaleId) -> Result<u64, InventoryError> {
        let mut connection = self.pool.get().await.map_err(unavailable)?;
        let Keys { sale, decisions, buyers } = self.keys(sale);
        let mut pipe = redis::pipe();
        for key in [sale, decisions, buyers] {
            // Of every entry, not of a sample.
            pipe.cmd("MEMORY").arg("USAGE").arg(key).arg("SAMPLES").arg(0);
        }
        let bytes: Vec<Option<u64>> =
            pipe.query_async(&mut connection).await.map_err(unavailable)?;
        Ok(bytes.into_iter().flatten().sum())
    }

    /// Deletes every key of the namespace.
    pub async fn remove(&self) -> Result<(), InventoryError> {
        let mut connection = self.pool.get().await.map_err(unavailable)?;
        let pattern = format!("{}:{{*", self.namespace);
        let mut cursor = 0_u64;
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(1000);
            let (next, keys): (u64, Vec<String>) =
                scan.query_async(&mut connection).await.map_err(unavailable)?;
            if !keys.is_empty() {
                let mut unlink = redis::cmd("UNLINK");
                unlink.arg(&keys);
                unlink.query_async::<()>(&mut connection).await.map_err(unavailable)?;
            }
            if next == 0 {
                return Ok(());
            }
            cursor = next;
        }
    }

    fn keys(&self, sale: &SaleId) -> Keys {
        let prefix = format!("{}:{{{sale}}}", self.namespace);
        Keys {
            sale: format!("{prefix}:sale"),
            decisions: format!("{prefix}:decisions"),
            buyers: format!("{prefix}:buyers"),
        }
    }

    /// Calls `script` once for each of `calls` in one pipeline. A script the server doesn't have
    /// is loaded, and the calls that missed it, which did nothing, are repeated.
    async fn call(&self, script: &Script, calls: &[Cmd]) -> Result<Vec<Value>, InventoryError> {
        if calls.is_empty() {
            return Ok(Vec::new());
        }
        let mut connection = self.pool.get().await.map_err(unavailable)?;
        let mut results = pipeline(&mut connection, calls.iter()).await?;
        let missed: Vec<usize> =
            (0..results.len()).filter(|&i| is_no_script(&results[i])).collect();
        if !missed.is_empty() {
            script.load_async(&mut connection).await.map_err(unavailable)?;
            let again = pipeline(&mut connection, missed.iter().map(|&i| &calls[i])).await?;
            for (place, result) in missed.into_iter().zip(again) {
                results[place] = result;
            }
        }
        results.into_iter().collect::<RedisResult<_>>().map_err(unavailable)
    }

    /// When the keys of a sale may go: a while after it closes, or never.
    fn expires_at(&self, closes_at: Option<DateTime<Utc>>) -> i64 {
        closes_at
            .map_or(0, |closes| (closes.max(Utc::now()) + self.keep_after_close).timestamp_millis())
    }
}

async fn pipeline<'c>(
    connection: &mut Connection,
    calls: impl Iterator<Item = &'c Cmd>,
) -> Result<Vec<RedisResult<Value>>, InventoryError> {
    let mut pipe = redis::pipe();
    pipe.ignore_errors();
    for call in calls {
        pipe.add_command(call.clone());
    }
    pipe.query_async(connection).await.map_err(unavailable)
}

fn is_no_script(result: &RedisResult<Value>) -> bool {
    result.as_ref().is_err_and(|error| error.code() == Some("NOSCRIPT"))
}

fn evalsha(script: &Script, keys: &[&str]) -> Cmd {
    let mut call = redis::cmd("EVALSHA");
    call.arg(script.get_hash()).arg(keys.len()).arg(keys);
    call
}

fn unavailable(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> InventoryError {
    InventoryError(error.into())
}

fn unexpected(what: &str, got: &dyn std::fmt::Debug) -> InventoryError {
    unavailable(format!("{what} answered {got:?}"))
}

/// What makes two orders with one id the same order, within a sale.
fn contents(order: &Order) -> String {
    format!("{}:{}", order.quantity.get(), order.user_id)
}

fn letter(outcome: Outcome) -> char {
    ANSWERS.iter().find(|(_, known)| *known == outcome).map_or('?', |(letter, _)| *letter)
}

fn proposal(answer: char) -> Result<Proposal, InventoryError> {
    match answer {
        '!' => return Ok(Proposal::Conflict),
        '?' => return Ok(Proposal::Unchecked),
        _ => {}
    }
    let fresh = answer.is_ascii_lowercase();
    ANSWERS
        .iter()
        .find(|(letter, _)| letter.eq_ignore_ascii_case(&answer))
        .map(|&(_, outcome)| Proposal::Decided { outcome, fresh })
        .ok_or_else(|| unexpected("decide.lua", &answer))
}

/// Groups `items` by sale, keeping their order within each: the sales, and the places of each.
fn by_sale<'a>(sales: impl Iterator<Item = &'a SaleId>) -> Vec<(&'a SaleId, Vec<usize>)> {
    let mut groups: Vec<(&SaleId, Vec<usize>)> = Vec::new();
    let mut found: HashMap<&SaleId, usize> = HashMap::new();
    for (place, sale) in sales.enumerate() {
        let group = *found.entry(sale).or_insert_with(|| {
            groups.push((sale, Vec::new()));
            groups.len() - 1
        });
        groups[group].1.push(place);
    }
    groups
}

fn decide_call(script: &Script, keys: &Keys, orders: &[Candidate], places: &[usize]) -> Cmd {
    let mut call = evalsha(script, &[&keys.sale, &keys.decisions, &keys.buyers]);
    for &place in places {
        let Candidate { order, at, clearance } = &orders[place];
        let clearance = match clearance {
            Clearance::Unchecked => String::new(),
            Clearance::Given => "+".to_owned(),
            Clearance::Refused(reason) => letter(Outcome::Rejected(*reason)).to_string(),
        };
        call.arg(order.id.as_str()).arg(contents(order)).arg(at.timestamp_millis()).arg(clearance);
    }
    call
}

#[async_trait]
impl Inventory for RedisInventory {
    async fn propose(&self, orders: &[Candidate]) -> Result<Proposals, InventoryError> {
        let groups = by_sale(orders.iter().map(|candidate| &candidate.order.sale_id));
        let calls: Vec<Cmd> = groups
            .iter()
            .map(|(sale, places)| decide_call(&self.decide, &self.keys(sale), orders, places))
            .collect();
        let results = self.call(&self.decide, &calls).await?;
        let mut answers = vec![Proposal::Absent; orders.len()];
        let mut left = HashMap::with_capacity(groups.len());
        for ((sale, places), answer) in groups.into_iter().zip(results) {
            if answer == Value::Nil {
                continue;
            }
            let (stock, letters): (i64, String) =
                redis::from_redis_value(answer).map_err(unavailable)?;
            if letters.len() != places.len() {
                return Err(unexpected("decide.lua", &letters));
            }
            for (place, letter) in places.into_iter().zip(letters.chars()) {
                answers[place] = proposal(letter)?;
            }
            left.insert(sale.clone(), u32::try_from(stock).unwrap_or(0));
        }
        Ok(Proposals { answers, left })
    }

    async fn amend(&self, amendments: &[Amendment]) -> Result<(), InventoryError> {
        let calls: Vec<Cmd> = by_sale(amendments.iter().map(|entry| &entry.proposed.sale_id))
            .iter()
            .map(|(sale, places)| {
                let keys = self.keys(sale);
                let mut call = evalsha(&self.amend, &[&keys.sale, &keys.decisions, &keys.buyers]);
                let sold = places.iter().filter_map(|&place| amendments[place].sold).max();
                call.arg(sold.map(|units| units.to_string()).unwrap_or_default());
                for &place in places {
                    let Amendment { proposed, answer, .. } = &amendments[place];
                    let answer = answer.as_ref().map(|Decision { order, outcome, .. }| {
                        format!("{}{}", letter(*outcome), contents(order))
                    });
                    call.arg(proposed.id.as_str())
                        .arg(contents(proposed))
                        .arg(answer.unwrap_or_default());
                }
                call
            })
            .collect();
        self.call(&self.amend, &calls).await.map(drop)
    }

    async fn prime(&self, sales: &[SaleState]) -> Result<(), InventoryError> {
        let ms = |time: Option<DateTime<Utc>>| {
            time.map(|time| time.timestamp_millis().to_string()).unwrap_or_default()
        };
        let calls: Vec<Cmd> = sales
            .iter()
            .map(|state| {
                let sale = &state.sale;
                let mut call = evalsha(&self.prime, &[&self.keys(&sale.id).sale]);
                call.arg(sale.stock)
                    .arg(state.sold)
                    .arg(state.version)
                    .arg(sale.per_user_limit.map(|limit| limit.to_string()).unwrap_or_default())
                    .arg(ms(sale.opens_at))
                    .arg(ms(sale.closes_at))
                    .arg(if sale.verification { "1" } else { "" })
                    .arg(self.expires_at(sale.closes_at));
                call
            })
            .collect();
        self.call(&self.prime, &calls).await.map(drop)
    }

    async fn remaining(&self, sales: &[SaleId]) -> Result<Vec<Option<u32>>, InventoryError> {
        if sales.is_empty() {
            return Ok(Vec::new());
        }
        let mut connection = self.pool.get().await.map_err(unavailable)?;
        let mut pipe = redis::pipe();
        for sale in sales {
            pipe.hget(self.keys(sale).sale, "stock");
        }
        pipe.query_async(&mut connection).await.map_err(unavailable)
    }

    async fn correct(&self, corrections: &[Correction]) -> Result<Vec<bool>, InventoryError> {
        let calls: Vec<Cmd> = corrections
            .iter()
            .map(|correction| {
                let keys = self.keys(&correction.sale_id);
                let mut call = evalsha(&self.correct, &[&keys.sale]);
                call.arg(correction.seen).arg(correction.actual);
                call
            })
            .collect();
        let answers = self.call(&self.correct, &calls).await?;
        Ok(answers.into_iter().map(|answer| answer == Value::Int(1)).collect())
    }
}
