//! Connections to the servers, for what the ports do not do.

use floodgate::broker::Queue;
use floodgate::broker::topology::Topology;
use floodgate::domain::order::SaleId;
use floodgate::domain::sale::Sale;
use floodgate_fault_proxy::FaultProxy;
use secrecy::ExposeSecret;

use super::Stage;

/// A connection to Redis.
pub async fn redis(stage: &Stage) -> redis::aio::MultiplexedConnection {
    let url = stage.deployment.app.settings().redis_url.expose_secret();
    let client = redis::Client::open(url).expect("a URL");
    client.get_multiplexed_async_connection().await.expect("Redis")
}

/// A connection to the ledger's database.
pub async fn database(stage: &Stage) -> sqlx::PgConnection {
    let url = stage.deployment.app.settings().database_url.expose_secret();
    <sqlx::PgConnection as sqlx::Connection>::connect(url).await.expect("PostgreSQL")
}

/// The keys of a sale in Redis.
pub fn redis_keys(stage: &Stage, sale: &SaleId) -> [String; 3] {
    let namespace = &stage.deployment.app.settings().namespace;
    ["sale", "deducted", "buyers"].map(|key| format!("{namespace}:{{{sale}}}:{key}"))
}

/// Has Redis lose all it holds of `sales`.
pub async fn forget(stage: &Stage, sales: &[Sale]) {
    let mut redis = redis(stage).await;
    for sale in sales {
        let mut delete = redis::cmd("DEL");
        delete.arg(&redis_keys(stage, &sale.id));
        delete.query_async::<()>(&mut redis).await.expect("DEL");
    }
}

/// A channel of a plain AMQP client.
pub async fn channel(stage: &Stage) -> lapin::Channel {
    let url = stage.deployment.app.settings().amqp_url.expose_secret();
    let connection = lapin::Connection::connect(url, lapin::ConnectionProperties::default());
    connection.await.expect("connect").create_channel().await.expect("channel")
}

/// What goes through `exchange` from now on with a routing key that matches, as a plain AMQP client gets it. Settled by
/// being taken.
pub async fn tap(channel: &lapin::Channel, exchange: &str, routing_key: &str) -> lapin::Consumer {
    use lapin::options::{BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions};
    use lapin::types::FieldTable;

    let exclusive = QueueDeclareOptions { exclusive: true, ..Default::default() };
    let queue =
        channel.queue_declare("".into(), exclusive, FieldTable::default()).await.expect("declare");
    let name = queue.name().clone();
    let (options, none) = (QueueBindOptions::default(), FieldTable::default());
    channel
        .queue_bind(name.clone(), exchange.into(), routing_key.into(), options, none)
        .await
        .expect("bind");
    let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
    channel.basic_consume(name, "".into(), options, FieldTable::default()).await.expect("consume")
}

pub async fn delete_queue(stage: &Stage, queue: Queue) {
    let name = Topology::new(&stage.deployment.app.settings().namespace).queue(&queue);
    let options = lapin::options::QueueDeleteOptions::default();
    channel(stage).await.queue_delete(name.into(), options).await.expect("delete");
}

/// A proxy before the server of a URL, and the URL that leads through it.
pub async fn through_proxy(url: &str) -> (FaultProxy, String) {
    let address = address(url);
    let proxy = FaultProxy::start(address).await.expect("a proxy");
    let through = url.replace(address, &proxy.address().to_string());
    (proxy, through)
}

/// The host and port in a URL.
pub fn address(url: &str) -> &str {
    let after = url.split_once("://").map_or(url, |(_, after)| after);
    let after = after.split_once('@').map_or(after, |(_, after)| after);
    after.split('/').next().unwrap_or(after)
}
