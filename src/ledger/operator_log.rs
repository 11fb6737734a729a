//! The statements and rows of the operators' log, the same in every database.

use chrono::{DateTime, Utc};
use serde_json::json;

use super::row::row;
use super::statements::{Sql, json_text};
use crate::domain::order::SaleId;
use crate::operator_log::{Entry, EntryId, Wanted};

/// The columns of [`EntryRow`], which are also the names of the fields of [`Entry`].
const COLUMNS: &str = "id, at, actor, action, sale_id, detail, origin, request_id";

row! {
    /// A row of `operator_log`.
    struct EntryRow {
        id: String,
        at: DateTime<Utc>,
        actor: String,
        action: String,
        sale_id: Option<String>,
        detail: String,
        origin: String,
        request_id: Option<String>,
    }
}

impl TryFrom<EntryRow> for Entry {
    type Error = sqlx::Error;

    fn try_from(row: EntryRow) -> Result<Self, sqlx::Error> {
        let EntryRow { id, at, actor, action, sale_id, detail, origin, request_id } = row;
        Ok(Self {
            id: id.parse().map_err(unexpected)?,
            at,
            actor,
            action: action.parse().map_err(unexpected)?,
            sale_id: sale_id.map(SaleId::parse).transpose().map_err(unexpected)?,
            detail,
            origin,
            request_id,
        })
    }
}

/// A value in the database that this version cannot have written.
fn unexpected(error: impl std::error::Error + Send + Sync + 'static) -> sqlx::Error {
    sqlx::Error::Decode(error.into())
}

/// Stores entries.
pub(super) async fn insert<C: Sql>(db: &mut C, entries: &[Entry]) -> Result<(), sqlx::Error> {
    if entries.is_empty() {
        return Ok(());
    }
    let set = C::set("operator_log", COLUMNS);
    let sql = format!("insert into operator_log ({COLUMNS}) select {COLUMNS} from {set} i");
    db.write(sql, json_text(&entries)).await
}

/// The entries wanted, newest first.
pub(super) async fn entries<C: Sql>(
    db: &mut C,
    wanted: &Wanted,
) -> Result<Vec<Entry>, sqlx::Error> {
    let Wanted { limit, before, sale_id } = wanted;
    // Each bound is read once, so that the index gives the rows in their order, up to the limit.
    let set = C::set("operator_log", "id, sale_id");
    let of_sale = match sale_id {
        Some(_) => format!("and sale_id = (select i.sale_id from {set} i)"),
        None => String::new(),
    };
    let sql = format!(
        "select {COLUMNS} from operator_log
         where id < (select i.id from {set} i) {of_sale} order by id desc limit {limit}"
    );
    let bounds = [json!({ "id": before.unwrap_or(EntryId::MAX), "sale_id": sale_id })];
    let rows: Vec<EntryRow> = db.read(sql, json_text(&bounds)).await?;
    rows.into_iter().map(TryInto::try_into).collect()
}
