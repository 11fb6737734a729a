//! The statements that only SQLite has. It takes the JSON text of a set apart itself (its page on
//! `json_each`).

use std::collections::HashMap;

use sqlx::sqlite::SqliteConnection;
use sqlx::{AssertSqlSafe, query, query_as};

use crate::domain::decision::Decision;
use crate::domain::order::SaleId;
use crate::domain::sale::SaleState;
use crate::ledger::rows::{self, letter, waited_ms};
use crate::ledger::statements::{AnyRow, SALE, Sql, json_text};

impl Sql for SqliteConnection {
    fn set(_: &str, columns: &str) -> String {
        let columns = columns.split(',').map(str::trim);
        let columns: Vec<_> = columns.map(|name| format!("value ->> '{name}' as {name}")).collect();
        format!("(select {} from json_each($1))", columns.join(", "))
    }

    fn bytes(name: &str) -> String {
        format!("unhex(substr({name}, 3))")
    }

    async fn write(&mut self, sql: String, set: String) -> Result<(), sqlx::Error> {
        query(AssertSqlSafe(sql)).bind(set).execute(self).await.map(drop)
    }

    async fn read<R: AnyRow>(&mut self, sql: String, set: String) -> Result<Vec<R>, sqlx::Error> {
        query_as(AssertSqlSafe(sql)).bind(set).fetch_all(self).await
    }
}

/// Those of `ids` that exist, or all.
pub(super) async fn sales(
    db: &mut SqliteConnection,
    ids: Option<&[&SaleId]>,
) -> Result<HashMap<SaleId, SaleState>, sqlx::Error> {
    let from = match ids {
        // Read from left to right.
        Some(_) => "json_each($1) cross join sales on sale_id = value",
        None => "sales where $1 = 'null'",
    };
    rows::sales(db.read(format!("select {SALE} from {from}"), json_text(&ids)).await?)
}

/// Stores decisions. Their sets are arrays of values, which are taken apart faster than objects.
pub(super) async fn insert_decisions(
    db: &mut SqliteConnection,
    decisions: &[&Decision],
) -> Result<(), sqlx::Error> {
    let rows = decisions.iter().map(|decision| {
        let Decision { order, outcome, decided_at, version, sold, .. } = decision;
        let (outcome, waited_ms) = (letter(*outcome), waited_ms(decision));
        let (key, buyer) = ((&order.sale_id, &order.id), (&order.user_id, order.quantity));
        (key.0, key.1, buyer.0, buyer.1, outcome, waited_ms, decided_at, version, sold)
    });
    let sql =
        "insert into decisions (sale_id, order_id, user_id, quantity, outcome, waited_ms, decided_at,
                version, sold)
         select value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5,
                value ->> 6, value ->> 7, value ->> 8
         from json_each($1)";
    db.write(sql.to_owned(), json_text(&rows.collect::<Vec<_>>())).await
}

/// Writes how much of `sales` is sold.
pub(super) async fn update_sold(
    db: &mut SqliteConnection,
    sales: &[&SaleState],
) -> Result<(), sqlx::Error> {
    let set = SqliteConnection::set("sales", SALE);
    let sql = format!(
        "update sales set sold = i.sold, sold_out_at = i.sold_out_at from {set} i
         where sales.sale_id = i.sale_id"
    );
    db.write(sql, json_text(&sales)).await
}
