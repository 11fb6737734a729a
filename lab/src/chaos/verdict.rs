//! Whether every promise was kept: the run's book against the ledger.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Context;
use floodgate::app::Audited;
use floodgate::app::temp_deployment::TempDeployment;
use floodgate::broker::{Broker, Queue};
use floodgate::domain::event::decision_json;
use floodgate::ledger::{Discrepancy, Ledger};
use secrecy::ExposeSecret;
use serde::Serialize;
use sqlx::{Connection, PgConnection};

use super::book::Book;
use super::demand::Demand;
use super::noise::WORD;
use super::servers::each_host;

/// Orders that are looked up at once.
const PAGE: u32 = 1000;
/// No dead letter for so long means that there are no more.
const NO_MORE_AFTER: Duration = Duration::from_secs(2);
/// How long what was given back at the end may take to be in its queue again.
const QUIET_AFTER: Duration = Duration::from_secs(1);

/// What was promised and not kept. All but the first two are zero, or something is broken.
#[derive(Debug, Default, Serialize)]
pub struct Verdict {
    /// Orders that were confirmed.
    pub accepted: u32,
    /// Orders with a decision, of which a subscriber was told.
    pub decided: u32,
    /// Orders accepted without a decision or without its event, and messages that were no orders and are no dead letters.
    pub lost: u32,
    /// Decisions that differ from another one of the same order.
    pub doubled: u32,
    /// Units sold that were not there, and units beyond the limit of a buyer.
    pub oversold: u32,
    /// Orders refused although the sale or the buyer's limit had room, and units that nobody got.
    pub wrongly_refused: u32,
    /// What was left behind when all was done: messages in floodgate's queues, announcements, open transactions,
    /// processes that did not end well.
    pub leaked: u32,
    /// What the audit found.
    pub discrepancies: u32,
}

impl Verdict {
    /// Nothing is broken.
    pub fn is_good(&self) -> bool {
        let Self { lost, doubled, oversold, wrongly_refused, leaked, discrepancies, .. } = *self;
        [lost, doubled, oversold, wrongly_refused, leaked, discrepancies] == [0; 6]
    }
}

/// Judges a run that is over. `undrained` processes did not end well.
pub async fn judge(
    deployment: &TempDeployment,
    demand: Demand,
    book: &Book,
    undrained: u32,
) -> anyhow::Result<Verdict> {
    tokio::time::sleep(QUIET_AFTER).await;
    let Audited { books, ledger, .. } = deployment.app.audited().await?;
    let counts = book.counts();
    let mut verdict = Verdict {
        accepted: counts.accepted,
        decided: counts.decided,
        doubled: counts.doubled,
        leaked: undrained,
        ..Verdict::default()
    };
    compare(ledger.as_ref(), demand, book, &mut verdict).await?;
    ask_database(deployment, counts.accepted > demand.orders * 2 / 3, &mut verdict).await?;
    let broker = deployment.app.broker().await?;
    for queue in [Queue::Intents, Queue::Returned] {
        verdict.leaked += broker.depth(queue).await?.messages;
    }
    verdict.leaked += u32::try_from(broker.deferred().await?)?;
    verdict.leaked += u32::try_from(ledger.unpublished(None).await?.len())?;
    verdict.lost += missing(broker.as_ref(), book.poisoned()).await?;
    let balance = books.balance(None).await?;
    for Discrepancy { sale_id, about, detail, .. } in &balance.discrepancies {
        tracing::error!(%sale_id, %about, %detail, "the books do not balance");
    }
    verdict.discrepancies = u32::try_from(balance.discrepancies.len())?;
    Ok(verdict)
}

/// Each order of the book with its decision in the ledger.
async fn compare(
    ledger: &dyn Ledger,
    demand: Demand,
    book: &Book,
    verdict: &mut Verdict,
) -> anyhow::Result<()> {
    for first in (0..demand.orders).step_by(PAGE as usize) {
        let numbers: Vec<u32> = (first..(first + PAGE).min(demand.orders)).collect();
        let orders: Vec<_> = numbers.iter().map(|&number| demand.order(number).key()).collect();
        for (number, decision) in numbers.into_iter().zip(ledger.decisions(&orders).await?) {
            let Some(decision) = decision else {
                verdict.lost += u32::from(book.is_accepted(number));
                continue;
            };
            match book.was_told(number, &decision_json(&decision)) {
                Some(true) => {}
                Some(false) => verdict.doubled += 1,
                None => verdict.lost += 1,
            }
        }
    }
    Ok(())
}

/// Units of decisions beyond the stock of their sale.
const OVERSOLD: &str = "
    select coalesce(sum(greatest(units - stock, 0)), 0)::bigint
    from sales join (select sale_id, sum(quantity) as units from decisions where outcome = 'c' group by sale_id) sold
        using (sale_id)";
/// Units of decisions beyond the limit of their buyer.
const BEYOND_LIMIT: &str = "
    select coalesce(sum(greatest(units - per_user_limit, 0)), 0)::bigint
    from sales join (select sale_id, user_id, sum(quantity) as units from decisions where outcome = 'c'
        group by sale_id, user_id) bought using (sale_id)
    where per_user_limit is not null";
/// Refusals for want of units, for which there were enough: by the stock of the version they name, and the units sold
/// at their turn.
const NOT_SOLD_OUT: &str = "
    with stocks as (
        select sale_id, 1 as version, stock - (select coalesce(sum(units), 0) from announcements a
            where a.sale_id = s.sale_id and adjustment_id <> '') as stock from sales s
        union all select sale_id, version, stock from announcements where adjustment_id <> '')
    select count(*) from decisions d where outcome = 's' and quantity <= (select stock from stocks
        where stocks.sale_id = d.sale_id and stocks.version <= d.version order by version desc limit 1) - sold";
/// Refusals because of a limit that the buyer's units had not reached even at the end.
const WITHIN_LIMIT: &str = "
    with bought as (
        select sale_id, user_id, sum(quantity) as units from decisions where outcome = 'c' group by sale_id, user_id)
    select count(*) from decisions d join sales using (sale_id) left join bought using (sale_id, user_id)
    where outcome = 'l' and quantity + coalesce(units, 0) <= per_user_limit";
/// Refusals for a reason that no order of a run gives.
const FOR_NO_REASON: &str = "select count(*) from decisions where outcome not in ('c', 's', 'l')";
/// Units that nobody got, of sales that more was asked for of than they had.
const LEFT: &str = "select coalesce(sum(stock - sold), 0)::bigint from sales";
const OPEN_TRANSACTIONS: &str = "
    select count(*) from pg_stat_activity
    where datname = current_database() and state like 'idle in transaction%'";

async fn ask_database(
    deployment: &TempDeployment,
    is_enough: bool,
    verdict: &mut Verdict,
) -> anyhow::Result<()> {
    let url = deployment.app.settings().database_url.expose_secret();
    let mut database = primary(url).await.context("no PostgreSQL that can be written to")?;
    let mut count = async |query: &'static str| {
        let count: i64 = sqlx::query_scalar(query).fetch_one(&mut database).await?;
        anyhow::Ok(u32::try_from(count)?)
    };
    verdict.oversold = count(OVERSOLD).await? + count(BEYOND_LIMIT).await?;
    verdict.wrongly_refused =
        count(NOT_SOLD_OUT).await? + count(WITHIN_LIMIT).await? + count(FOR_NO_REASON).await?;
    if is_enough {
        verdict.wrongly_refused += count(LEFT).await?;
    }
    verdict.leaked += count(OPEN_TRANSACTIONS).await?;
    Ok(database.close().await?)
}

/// The host that can be written to.
async fn primary(url: &str) -> Option<PgConnection> {
    for url in each_host(url) {
        let Ok(mut database) = PgConnection::connect(&url).await else { continue };
        let is_standby = sqlx::query_scalar("select pg_is_in_recovery()");
        if let Ok(false) = is_standby.fetch_one(&mut database).await {
            return Some(database);
        }
    }
    None
}

/// How many of `words` are in no dead letter.
async fn missing(broker: &dyn Broker, mut words: BTreeSet<String>) -> anyhow::Result<u32> {
    let mut letters = broker.consume(Queue::DeadLetters, 1000).await?;
    while let Ok(Some(letter)) = tokio::time::timeout(NO_MORE_AFTER, letters.next()).await {
        if let Some(word) = word_in(&String::from_utf8_lossy(&letter.body)) {
            words.remove(word);
        }
        letter.ack();
    }
    letters.stop();
    letters.finished().await;
    Ok(u32::try_from(words.len())?)
}

/// The word that a body which is no order is known by.
fn word_in(body: &str) -> Option<&str> {
    let word = &body[body.find(WORD)?..];
    let ends = |c: char| !c.is_ascii_digit() && c != '-';
    let end = word[WORD.len()..].find(ends).map_or(word.len(), |end| WORD.len() + end);
    Some(&word[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_that_is_no_order_is_known_by_its_word() {
        assert_eq!(word_in(r#"{"order_id":"poison-17-3","quantity":0}"#), Some("poison-17-3"));
        assert_eq!(word_in("poison-1-20"), Some("poison-1-20"));
        assert_eq!(word_in("{}"), None);
    }
}
