//! What the inventory holds, against the ledger.
//!
//! Hints may be wrong for a moment and the ledger corrects them, so only what stays wrong is told of. While
//! orders are decided, nothing can be read at one moment in both: then only what no moment explains is wrong.

use std::time::Duration;

use futures_util::{StreamExt, stream};

use super::{Finding, PAGE};
use crate::app::Audited;
use crate::domain::decision::Outcome;
use crate::domain::erasure::is_token;
use crate::domain::order::{Order, OrderId, SaleId, UserId};
use crate::domain::sale::{SaleState, Watermark};
use crate::inventory::{Held, HeldSale, Holdings};
use crate::ledger::{Books, MAX_DISCREPANCIES};

/// How often something wrong is looked at again, and after how long: an amendment may be on its way.
const LOOKS: usize = 3;
const PAUSE: Duration = Duration::from_millis(200);
/// Sales looked at at the same time.
const AT_ONCE: usize = 8;

/// What was compared.
pub(super) struct Hints {
    pub seen: String,
    pub findings: Vec<Finding>,
}

pub(super) async fn compare(
    holdings: &dyn Holdings,
    audited: &Audited,
    sales: &[SaleState],
    scope: Option<&SaleId>,
) -> anyhow::Result<Hints> {
    let (mut held, mut in_flight, mut findings) = (0, 0, Vec::new());
    let settled = sales.iter().map(|state| settled(holdings, audited, &state.sale.id));
    let mut looks = stream::iter(settled).buffered(AT_ONCE);
    while let Some(look) = looks.next().await {
        let look = look?;
        held += u64::from(look.is_held);
        in_flight += look.in_flight;
        findings.extend(look.wrong);
    }
    for sale in holdings.sales().await? {
        let in_scope = scope.is_none_or(|scope| scope.as_str() == sale);
        if in_scope && !sales.iter().any(|state| state.sale.id.as_str() == sale) {
            findings.push(wrong(&sale, "sale", "is held, but the ledger has no such sale"));
        }
    }
    let seen = format!("{held} of {} sales held, {in_flight} orders in flight", sales.len());
    Ok(Hints { seen, findings })
}

fn wrong(sale: &str, about: impl Into<String>, detail: impl Into<String>) -> Finding {
    Finding::new("hints", sale, about, detail)
}

/// A look at one sale.
#[derive(Default)]
struct Look {
    is_held: bool,
    /// Orders deducted for that the ledger has not created.
    in_flight: u64,
    wrong: Vec<Finding>,
}

/// Looks again at what is wrong.
async fn settled(
    holdings: &dyn Holdings,
    audited: &Audited,
    sale: &SaleId,
) -> anyhow::Result<Look> {
    let mut looks = 1;
    loop {
        let look = look(holdings, audited, sale).await?;
        if look.wrong.is_empty() || looks == LOOKS {
            return Ok(look);
        }
        looks += 1;
        tokio::time::sleep(PAUSE).await;
    }
}

async fn look(holdings: &dyn Holdings, audited: &Audited, sale: &SaleId) -> anyhow::Result<Look> {
    let committed = holdings.watermark(sale).await?;
    let Some(before) = state(audited, sale).await? else { return Ok(Look::default()) };
    let told = |found: Vec<Wrong>| {
        let tell = |(about, detail)| wrong(sale.as_str(), about, detail);
        found.into_iter().map(tell).collect()
    };
    let mut found: Vec<Wrong> = lost(committed, &before).into_iter().collect();
    // What it has deducted for is compared with decisions, and those are in a file.
    if before.archived {
        return Ok(Look { wrong: told(found), ..Look::default() });
    }
    let held = match holdings.held(sale).await? {
        None => return Ok(Look { wrong: told(found), ..Look::default() }),
        Some(Held::Damaged(how)) => {
            found.push(("sale".to_owned(), format!("is damaged: {how}")));
            return Ok(Look { is_held: true, wrong: told(found), ..Look::default() });
        }
        Some(Held::Sale(held)) => held,
    };
    let created = deducted_of_created(holdings, audited.books.as_ref(), sale).await?;
    let in_flight = held.deducted.saturating_sub(created.unwrap_or(held.deducted));
    let over_limit = buyers(holdings, audited, sale, &held).await?;
    let again = holdings.held(sale).await?;
    let Some(after) = state(audited, sale).await? else { return Ok(Look::default()) };
    let is_quiet = before == after && again == Some(Held::Sale(held.clone()));
    found.extend(against(&held, &before, &after));
    if is_quiet && created.is_some() {
        found.extend(exactly(&held, &after, in_flight));
        found.extend(over_limit.into_iter().filter(|_| in_flight == 0));
    }
    Ok(Look { is_held: true, in_flight, wrong: told(found) })
}

async fn state(audited: &Audited, sale: &SaleId) -> anyhow::Result<Option<SaleState>> {
    Ok(audited.ledger.sales(Some(std::slice::from_ref(sale))).await?.pop())
}

type Wrong = (String, String);

/// What no moment between `before` and `after` explains.
fn against(held: &HeldSale, before: &SaleState, after: &SaleState) -> Vec<Wrong> {
    let HeldSale { version, sold, left, .. } = held;
    let mut wrong = Vec::new();
    let is_newer = (*version, *sold) > (i64::from(after.version), i64::from(after.sold));
    if is_newer {
        wrong.push(format!(
            "is held at version {version} with {sold} units sold; the ledger is at version {} with {}",
            after.version, after.sold
        ));
    }
    // Redis is not told of a restock, a closing, a switching or a pause before it matters, so it may be at an older
    // version, which never has more units.
    let most = before.remaining().max(after.remaining());
    if *left > i64::from(most) {
        wrong.push(format!("has {left} units left in Redis, {most} in the ledger"));
    }
    wrong.into_iter().map(|detail| ("sale".to_owned(), detail)).collect()
}

/// What the ledger, read after `committed`, has lost of it.
fn lost(committed: Option<Watermark>, state: &SaleState) -> Option<Wrong> {
    let committed = committed?;
    let detail = format!(
        "version {} and {} units sold were committed, the ledger has {} and {}: it was restored from a backup",
        committed.version, committed.sold, state.version, state.sold
    );
    committed.is_lost_in(Watermark::of(state)).then(|| ("sale".to_owned(), detail))
}

/// What does not agree while nothing happens.
fn exactly(held: &HeldSale, state: &SaleState, in_flight: u64) -> Vec<Wrong> {
    let sale = &state.sale;
    if held.version != i64::from(state.version) {
        return Vec::new();
    }
    let mut wrong = Vec::new();
    let definition =
        (held.per_user_limit, held.opens_at_ms, held.closes_at_ms, held.verification, held.paused);
    let expected = (
        sale.per_user_limit.map(i64::from),
        sale.opens_at.map(|at| at.timestamp_millis()),
        sale.closes_at.map(|at| at.timestamp_millis()),
        sale.verification,
        state.paused.is_some(),
    );
    if definition != expected {
        wrong.push(format!(
            "has limit, opening, closing, verification and pause {definition:?} in Redis, {expected:?} in the ledger"
        ));
    }
    let (left, remaining) = (held.left, i64::from(state.remaining()));
    let deducted = remaining - left;
    // Each order in flight has at least one unit.
    let fewest = i64::try_from(in_flight).unwrap_or(i64::MAX);
    if (0..fewest).contains(&deducted) || (fewest == 0 && deducted > 0) {
        wrong.push(format!(
            "has {left} units left in Redis and {remaining} in the ledger, with {in_flight} orders in flight"
        ));
    }
    wrong.into_iter().map(|detail| ("sale".to_owned(), detail)).collect()
}

/// How many of the created orders of a sale it has deducted for. `None`: some are stored under a token, and it knows
/// the user's own id.
async fn deducted_of_created(
    holdings: &dyn Holdings,
    books: &dyn Books,
    sale: &SaleId,
) -> anyhow::Result<Option<u64>> {
    let mut after: Option<OrderId> = None;
    let mut count = 0;
    loop {
        let page = books.decided(sale, after.as_ref(), PAGE).await?;
        let Some(last) = page.last() else { return Ok(Some(count)) };
        after = Some(last.order.id.clone());
        let created = page.into_iter().filter(|decision| decision.outcome == Outcome::Created);
        let created: Vec<Order> = created.map(|decision| decision.order).collect();
        if created.iter().any(|order| is_token(&order.user_id)) {
            return Ok(None);
        }
        count += holdings.deducted(&created).await?;
    }
}

/// Buyers with more units than the ledger has given them. Fewer are no mistake: what was bought before the
/// sale was loaded is not counted.
async fn buyers(
    holdings: &dyn Holdings,
    audited: &Audited,
    sale: &SaleId,
    held: &HeldSale,
) -> anyhow::Result<Vec<Wrong>> {
    let mut wrong = Vec::new();
    if held.per_user_limit.is_none() {
        return Ok(wrong);
    }
    let mut cursor = 0;
    loop {
        let (next, page) = holdings.buyers(sale, cursor).await?;
        let mut counted: Vec<(UserId, i64)> = Vec::new();
        for (user, units) in page {
            match (UserId::parse(user.as_str()), units.parse()) {
                (Ok(user), Ok(units)) => counted.push((user, units)),
                _ => wrong.push((format!("buyer {user}"), format!("has {units:?} units in Redis"))),
            }
        }
        let keys: Vec<(&SaleId, &UserId)> = counted.iter().map(|(user, _)| (sale, user)).collect();
        let given = audited.books.units(&keys).await?;
        for (user, units) in &counted {
            let given = given.get(&(sale.clone(), user.clone())).copied().unwrap_or(0);
            if *units > i64::from(given) {
                let detail = format!("has {units} units in Redis, {given} in the ledger");
                wrong.push((format!("buyer {user}"), detail));
            }
        }
        wrong.truncate(MAX_DISCREPANCIES + 1);
        cursor = next;
        if cursor == 0 {
            return Ok(wrong);
        }
    }
}
