//! Ships what was sold: processes the event of each order once.
//!
//! `AMQP_URL` and `DATABASE_URL` (PostgreSQL) name the servers, `EXCHANGE` the exchange (floodgate.events).

use std::env::var;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Connection, ConnectionProperties};
use sqlx::{Connection as _, PgConnection};

const TABLES: &str = "
    create table if not exists inbox (event_id text primary key);
    create table if not exists shipments (sale_id text, order_id text, user_id text, quantity int)";
/// Does what the event asks for, unless that was done before. It is one statement, and so one transaction.
const SHIP: &str = "
    with seen as (insert into inbox values ($1) on conflict do nothing returning 1)
    insert into shipments select d->>'sale_id', d->>'order_id', d->>'user_id', (d->>'quantity')::int
        from (select convert_from($2, 'UTF8')::jsonb as d) event, seen";

async fn consume(exchange: &str, queue: &str) -> anyhow::Result<()> {
    let mut database = PgConnection::connect(&var("DATABASE_URL")?).await?;
    sqlx::raw_sql(TABLES).execute(&mut database).await?;
    let connection =
        Connection::connect(&var("AMQP_URL")?, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare(queue.into(), durable, arguments).await?;
    let (binding, none) = (QueueBindOptions::default(), FieldTable::default());
    let (exchange, key) = (exchange.into(), "order.created.*".into());
    channel.queue_bind(queue.into(), exchange, key, binding, none).await?;
    channel.basic_qos(100, BasicQosOptions::default()).await?;
    let (options, none) = (BasicConsumeOptions::default(), FieldTable::default());
    let mut events = channel.basic_consume(queue.into(), "".into(), options, none).await?;
    while let Some(event) = events.next().await {
        let event = event?;
        let id = event.properties.message_id().as_ref().map(ShortString::as_str);
        sqlx::query(SHIP).bind(id).bind(&event.data).execute(&mut database).await?;
        // Only now: what is not acknowledged comes again.
        event.ack(BasicAckOptions::default()).await?;
    }
    anyhow::bail!("the queue is gone")
}

#[tokio::main]
async fn main() {
    let exchange = var("EXCHANGE").unwrap_or_else(|_| "floodgate.events".into());
    let queue = var("QUEUE").unwrap_or_else(|_| "shipping".into());
    while let Err(error) = consume(&exchange, &queue).await {
        eprintln!("trying again: {error:#}");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
