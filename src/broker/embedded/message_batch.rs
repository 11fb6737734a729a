//! Messages on their way into the file. They go in as one JSON text and one run of bytes.

use std::collections::BTreeMap;

use sqlx::sqlite::SqliteConnection;

use super::store::{json, reserve};
use super::stored;
use crate::broker::Properties;

/// Messages to be stored.
#[derive(Debug, Default)]
pub(super) struct MessageBatch {
    entries: Vec<Entry>,
    /// All bodies, one after the other.
    bodies: Vec<u8>,
}

#[derive(Debug)]
struct Entry {
    queue_id: i64,
    /// Not before this time.
    due_ms: Option<i64>,
    routing_key: String,
    properties: Option<String>,
    start: usize,
    length: usize,
}

impl MessageBatch {
    pub(super) fn push(
        &mut self,
        queue_id: i64,
        due_ms: Option<i64>,
        body: &[u8],
        properties: Properties,
    ) {
        let (start, length) = (self.bodies.len(), body.len());
        self.bodies.extend_from_slice(body);
        let json = stored::to_json(&properties);
        let routing_key = properties.routing_key;
        self.entries.push(Entry { queue_id, due_ms, routing_key, properties: json, start, length });
    }

    /// Adds the messages of `other`, after those that are here.
    pub(super) fn append(&mut self, other: Self) {
        let moved = self.bodies.len();
        self.bodies.extend_from_slice(&other.bodies);
        self.entries.extend(
            other.entries.into_iter().map(|entry| Entry { start: entry.start + moved, ..entry }),
        );
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// When the first of the deferred messages comes back.
    pub(super) fn next_due_ms(&self) -> Option<i64> {
        self.entries.iter().filter_map(|entry| entry.due_ms).min()
    }

    /// Queues that get messages now.
    pub(super) fn queues(&self) -> impl Iterator<Item = i64> + '_ {
        self.entries.iter().filter(|entry| entry.due_ms.is_none()).map(|entry| entry.queue_id)
    }
}

/// Stores messages at the ends of their queues.
pub(super) async fn insert(
    connection: &mut SqliteConnection,
    batch: &MessageBatch,
) -> Result<(), sqlx::Error> {
    let mut counts: BTreeMap<i64, i64> = BTreeMap::new();
    for entry in &batch.entries {
        *counts.entry(entry.queue_id).or_default() += 1;
    }
    let mut positions: BTreeMap<i64, i64> = BTreeMap::new();
    for (queue_id, count) in counts {
        positions.insert(queue_id, reserve(connection, queue_id, count).await?);
    }
    let (mut now, mut later) = (Vec::new(), Vec::new());
    for Entry { queue_id, due_ms, routing_key, properties, start, length } in &batch.entries {
        let position = positions.get_mut(queue_id).map_or(0, |position| {
            *position += 1;
            *position
        });
        // Counted from 1 by SQLite.
        let row = (queue_id, position, start + 1, length, routing_key, properties, due_ms);
        if due_ms.is_some() { later.push(row) } else { now.push(row) }
    }
    // No bytes at all are null to SQLite.
    if !now.is_empty() {
        sqlx::query(
            "insert into messages (queue_id, position, body, routing_key, properties)
             select value ->> 0, value ->> 1, coalesce(substr(?2, value ->> 2, value ->> 3), x''),
                    value ->> 4, value ->> 5
             from json_each(?1)",
        )
        .bind(json(&now))
        .bind(&batch.bodies[..])
        .execute(&mut *connection)
        .await?;
    }
    if !later.is_empty() {
        sqlx::query(
            "insert into delayed (queue_id, position, body, routing_key, properties, due_ms)
             select value ->> 0, value ->> 1, coalesce(substr(?2, value ->> 2, value ->> 3), x''),
                    value ->> 4, value ->> 5, value ->> 6
             from json_each(?1)",
        )
        .bind(json(&later))
        .bind(&batch.bodies[..])
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}
