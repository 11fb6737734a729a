//! The statements of the queues. Sets go in as one JSON text, so that each is prepared once.

use serde::Serialize;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{Row as _, SqliteExecutor};

use super::routing::Binding;
use super::stored;
use crate::broker::Properties;

/// Why RabbitMQ says that a message was dead-lettered that came back too often.
const DELIVERY_LIMIT: &str = "delivery_limit";

/// A message in a queue.
#[derive(Debug, Clone)]
pub(super) struct Row {
    /// Where it stands.
    pub position: i64,
    pub body: Vec<u8>,
    pub properties: Properties,
    /// It came back before.
    pub redelivered: bool,
}

/// `set` as a statement takes it.
pub(super) fn json(set: &impl Serialize) -> String {
    serde_json::to_string(set).unwrap_or_else(|error| unreachable!("strings and numbers: {error}"))
}

/// The number of the queue called `name`, if it is there.
pub(super) async fn queue_id(
    executor: impl SqliteExecutor<'_>,
    name: &str,
) -> Result<Option<i64>, sqlx::Error> {
    sqlx::query_scalar("select queue_id from queues where name = ?1")
        .bind(name)
        .fetch_optional(executor)
        .await
}

/// Makes the queue called `name` unless it is there, and returns its number.
pub(super) async fn make_queue(
    connection: &mut SqliteConnection,
    name: &str,
) -> Result<i64, sqlx::Error> {
    // An update that changes nothing makes it return the row that was there.
    sqlx::query_scalar(
        "insert into queues (name) values (?1)
         on conflict (name) do update set name = excluded.name returning queue_id",
    )
    .bind(name)
    .fetch_one(connection)
    .await
}

/// Has the queue get what is bound to.
pub(super) async fn bind(
    connection: &mut SqliteConnection,
    queue_id: i64,
    binding: &Binding,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "insert into bindings (queue_id, kind, routing_key) values (?1, ?2, ?3)
         on conflict do nothing",
    )
    .bind(queue_id)
    .bind(&binding.kind)
    .bind(&binding.routing_key)
    .execute(connection)
    .await
    .map(drop)
}

/// Every binding: number and name of the queue, and what it is bound to.
pub(super) async fn bindings(
    executor: impl SqliteExecutor<'_>,
) -> Result<Vec<(i64, String, Binding)>, sqlx::Error> {
    let rows: Vec<(i64, String, String, String)> = sqlx::query_as(
        "select queue_id, name, kind, routing_key from bindings join queues using (queue_id)",
    )
    .fetch_all(executor)
    .await?;
    let binding =
        |(queue_id, name, kind, routing_key)| (queue_id, name, Binding { kind, routing_key });
    Ok(rows.into_iter().map(binding).collect())
}

/// Reserves the next `count` positions of a queue; returns the one before the first.
pub(super) async fn reserve(
    connection: &mut SqliteConnection,
    queue_id: i64,
    count: i64,
) -> Result<i64, sqlx::Error> {
    let last: i64 = sqlx::query_scalar(
        "update queues set last_position = last_position + ?2 where queue_id = ?1 returning last_position",
    )
    .bind(queue_id)
    .bind(count)
    .fetch_one(connection)
    .await?;
    Ok(last - count)
}

/// When the next deferred message comes back, in milliseconds since 1970.
pub(super) async fn next_due_ms(
    executor: impl SqliteExecutor<'_>,
) -> Result<Option<i64>, sqlx::Error> {
    sqlx::query_scalar("select min(due_ms) from delayed").fetch_one(executor).await
}

/// Deferred messages whose time has not come.
pub(super) async fn delayed(executor: impl SqliteExecutor<'_>) -> Result<u64, sqlx::Error> {
    let count: i64 = sqlx::query_scalar("select count(*) from delayed").fetch_one(executor).await?;
    Ok(count.cast_unsigned())
}

/// Moves the messages whose time has come to the ends of their queues, and names the queues.
pub(super) async fn move_due(
    connection: &mut SqliteConnection,
    now_ms: i64,
) -> Result<Vec<i64>, sqlx::Error> {
    let due: Vec<(i64, i64)> = sqlx::query_as(
        "select queue_id, count(*) from delayed where due_ms <= ?1 group by queue_id",
    )
    .bind(now_ms)
    .fetch_all(&mut *connection)
    .await?;
    for &(queue_id, count) in &due {
        let position = reserve(&mut *connection, queue_id, count).await?;
        sqlx::query(
            "insert into messages (queue_id, position, routing_key, body, properties)
             select queue_id, ?3 + row_number() over (order by due_ms, position), routing_key, body,
                    properties
             from delayed where queue_id = ?1 and due_ms <= ?2",
        )
        .bind(queue_id)
        .bind(now_ms)
        .bind(position)
        .execute(&mut *connection)
        .await?;
        sqlx::query("delete from delayed where queue_id = ?1 and due_ms <= ?2")
            .bind(queue_id)
            .bind(now_ms)
            .execute(&mut *connection)
            .await?;
    }
    Ok(due.into_iter().map(|(queue_id, _)| queue_id).collect())
}

/// The first `most` messages of a queue after a position.
pub(super) async fn after(
    executor: impl SqliteExecutor<'_>,
    queue_id: i64,
    position: i64,
    most: usize,
) -> Result<Vec<Row>, sqlx::Error> {
    let rows = sqlx::query(
        "select position, routing_key, body, properties, returns > 0 from messages
         where queue_id = ?1 and position > ?2 order by position limit ?3",
    )
    .bind(queue_id)
    .bind(position)
    .bind(i64::try_from(most).unwrap_or(i64::MAX))
    .fetch_all(executor)
    .await?;
    rows.iter().map(row).collect()
}

/// The messages of a queue at `positions`, in order.
pub(super) async fn at(
    executor: impl SqliteExecutor<'_>,
    queue_id: i64,
    positions: &[i64],
) -> Result<Vec<Row>, sqlx::Error> {
    let rows = sqlx::query(
        "select position, routing_key, body, properties, returns > 0 from messages
         where queue_id = ?1 and position in (select value from json_each(?2)) order by position",
    )
    .bind(queue_id)
    .bind(json(&positions))
    .fetch_all(executor)
    .await?;
    rows.iter().map(row).collect()
}

fn row(row: &SqliteRow) -> Result<Row, sqlx::Error> {
    let properties: Option<&str> = row.try_get(3)?;
    let properties = stored::from_json(row.try_get(1)?, properties);
    let properties = properties.map_err(|error| sqlx::Error::Decode(error.into()))?;
    let (position, body, redelivered) = (row.try_get(0)?, row.try_get(2)?, row.try_get(4)?);
    Ok(Row { position, body, properties, redelivered })
}

/// Messages of a queue after a position.
pub(super) async fn count_after(
    executor: impl SqliteExecutor<'_>,
    queue_id: i64,
    position: i64,
) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("select count(*) from messages where queue_id = ?1 and position > ?2")
        .bind(queue_id)
        .bind(position)
        .fetch_one(executor)
        .await
}

/// Forgets messages that are done.
pub(super) async fn delete(
    connection: &mut SqliteConnection,
    queue_id: i64,
    positions: &[i64],
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "delete from messages
         where queue_id = ?1 and position in (select value from json_each(?2))",
    )
    .bind(queue_id)
    .bind(json(&positions))
    .execute(connection)
    .await
    .map(drop)
}

/// Forgets the oldest messages of a queue: those that were sent before a time, in seconds since 1970, and those that are
/// more than `most` bytes with all that came after them.
pub(super) async fn trim(
    connection: &mut SqliteConnection,
    queue_id: i64,
    sent_before_s: i64,
    most: i64,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "delete from messages where queue_id = ?1 and position <= (
            select max(position) from (
                select position, json_extract(properties, '$.timestamp_s') as sent_s,
                       sum(length(body)) over (order by position desc) as bytes
                from messages where queue_id = ?1)
            where sent_s < ?2 or bytes > ?3)",
    )
    .bind(queue_id)
    .bind(sent_before_s)
    .bind(most)
    .execute(connection)
    .await
    .map(drop)
}

/// The position of the last message that a queue got.
pub(super) async fn last_position(
    executor: impl SqliteExecutor<'_>,
    queue_id: i64,
) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("select last_position from queues where queue_id = ?1")
        .bind(queue_id)
        .fetch_one(executor)
        .await
}

/// The position of the last message that was sent before a time, in seconds since 1970.
pub(super) async fn before(
    executor: impl SqliteExecutor<'_>,
    queue_id: i64,
    sent_before_s: i64,
) -> Result<Option<i64>, sqlx::Error> {
    sqlx::query_scalar(
        "select max(position) from messages
         where queue_id = ?1 and json_extract(properties, '$.timestamp_s') < ?2",
    )
    .bind(queue_id)
    .bind(sent_before_s)
    .fetch_one(executor)
    .await
}

/// How often messages of a queue may come back, and where they go when they do more often.
#[derive(Debug, Clone, Copy)]
pub(super) struct ReturnLimit {
    pub returns: u32,
    pub dead_letters: i64,
}

/// Counts that messages came back unsettled. Returns the positions of those that went to the dead
/// letters for it.
pub(super) async fn came_back(
    connection: &mut SqliteConnection,
    queue_id: i64,
    positions: &[i64],
    limit: Option<ReturnLimit>,
) -> Result<Vec<i64>, sqlx::Error> {
    let positions = json(&positions);
    sqlx::query(
        "update messages set returns = returns + 1
         where queue_id = ?1 and position in (select value from json_each(?2))",
    )
    .bind(queue_id)
    .bind(&positions)
    .execute(&mut *connection)
    .await?;
    let Some(ReturnLimit { returns, dead_letters }) = limit else { return Ok(Vec::new()) };
    let dead: Vec<i64> = sqlx::query_scalar(
        "select position from messages
         where queue_id = ?1 and position in (select value from json_each(?2)) and returns > ?3",
    )
    .bind(queue_id)
    .bind(&positions)
    .bind(returns)
    .fetch_all(&mut *connection)
    .await?;
    if !dead.is_empty() {
        let detail = format!("it came back to the queue more than {returns} times");
        dead_letter(&mut *connection, queue_id, &dead, dead_letters, &detail).await?;
        delete(connection, queue_id, &dead).await?;
    }
    Ok(dead)
}

/// Puts copies of messages among the dead letters.
async fn dead_letter(
    connection: &mut SqliteConnection,
    queue_id: i64,
    positions: &[i64],
    dead_letters: i64,
    detail: &str,
) -> Result<(), sqlx::Error> {
    let count = i64::try_from(positions.len()).unwrap_or(i64::MAX);
    let position = reserve(&mut *connection, dead_letters, count).await?;
    sqlx::query(
        "insert into messages (queue_id, position, routing_key, body, properties)
         select ?3, ?4 + row_number() over (order by position), routing_key, body,
                json_set(coalesce(properties, '{}'), '$.dead',
                         json_object('reason', ?5, 'detail', ?6, 'at', ?7))
         from messages where queue_id = ?1 and position in (select value from json_each(?2))",
    )
    .bind(queue_id)
    .bind(json(&positions))
    .bind(dead_letters)
    .bind(position)
    .bind(DELIVERY_LIMIT)
    .bind(detail)
    .bind(crate::domain::event::rfc3339(chrono::Utc::now()))
    .execute(connection)
    .await
    .map(drop)
}

/// Records the greatest position that was delivered, or 0 when no message is unsettled.
pub(super) async fn set_delivered(
    connection: &mut SqliteConnection,
    queue_id: i64,
    position: i64,
) -> Result<(), sqlx::Error> {
    sqlx::query("update queues set delivered = ?2 where queue_id = ?1")
        .bind(queue_id)
        .bind(position)
        .execute(connection)
        .await
        .map(drop)
}

/// The messages that were unsettled when their process ended.
pub(super) async fn left_unsettled(
    connection: &mut SqliteConnection,
    queue_id: i64,
) -> Result<Vec<i64>, sqlx::Error> {
    sqlx::query_scalar(
        "select position from messages
         where queue_id = ?1 and position <= (select delivered from queues where queue_id = ?1)",
    )
    .bind(queue_id)
    .fetch_all(connection)
    .await
}
