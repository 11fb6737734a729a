//! Units that leave the ledger with the orders they were sold by, and come back with them.

use std::collections::{BTreeMap, HashSet};

use serde_json::json;

use super::row::row;
use super::statements::{Sql, json_text};
use crate::domain::decision::{Decision, Outcome};
use crate::domain::erasure::ErasureKey;
use crate::domain::order::{SaleId, UserId};

row! {
    struct Token {
        token: UserId as String,
    }
}

/// Units of the buyers of created orders.
fn units_of<'a>(decisions: &[&'a Decision]) -> BTreeMap<&'a UserId, u32> {
    let mut units = BTreeMap::new();
    for decision in decisions.iter().filter(|decision| decision.outcome == Outcome::Created) {
        *units.entry(&decision.order.user_id).or_default() += decision.order.quantity.get();
    }
    units
}

/// Takes units of created orders from their buyers.
pub(super) async fn subtract_units<C: Sql>(
    db: &mut C,
    sale: &SaleId,
    decisions: &[&Decision],
    key: &ErasureKey,
) -> Result<(), sqlx::Error> {
    let units = units_of(decisions);
    // Of a user whose id is being replaced they are the token's already.
    let set = C::set("erased_buyers", "token");
    let sql = format!(
        "select e.token from erased_buyers e
         where e.sale_id = '{sale}' and e.token in (select i.token from {set} i)"
    );
    let tokens = units.keys().map(|user| json!({ "token": key.token(user) }));
    let erased: Vec<Token> = db.read(sql, json_text(&tokens.collect::<Vec<_>>())).await?;
    let erased: HashSet<UserId> = erased.into_iter().map(|Token { token }| token).collect();
    let mut by_buyer: BTreeMap<UserId, u32> = BTreeMap::new();
    for (user, units) in units {
        let token = Some(key.token(user)).filter(|token| erased.contains(token));
        *by_buyer.entry(token.unwrap_or_else(|| user.clone())).or_default() += units;
    }
    let set = C::set("buyers", "user_id, units");
    let rows = by_buyer.iter().map(|(user, units)| json!({ "user_id": user, "units": units }));
    let rows = json_text(&rows.collect::<Vec<_>>());
    let update = format!(
        "update buyers set units = buyers.units - i.units from {set} i
         where buyers.sale_id = '{sale}' and buyers.user_id = i.user_id"
    );
    db.write(update, rows.clone()).await?;
    let delete = format!(
        "delete from buyers where sale_id = '{sale}' and units = 0
             and user_id in (select i.user_id from {set} i)"
    );
    db.write(delete, rows).await
}

/// Gives buyers the units of their created orders.
pub(super) async fn add_units<C: Sql>(
    db: &mut C,
    sale: &SaleId,
    decisions: &[&Decision],
    limit: u32,
) -> Result<(), sqlx::Error> {
    let columns = "sale_id, user_id, units, unit_limit";
    let set = C::set("buyers", columns);
    let sql = format!(
        "insert into buyers ({columns}) select {columns} from {set} i where true
         on conflict (sale_id, user_id) do update set units = buyers.units + excluded.units"
    );
    let rows = units_of(decisions).into_iter().map(|(user, units)| {
        json!({ "sale_id": sale, "user_id": user, "units": units, "unit_limit": limit })
    });
    db.write(sql, json_text(&rows.collect::<Vec<_>>())).await
}
