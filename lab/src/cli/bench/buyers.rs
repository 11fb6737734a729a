//! Buyers of a bench, and the service that knows them.

use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::cli::load::CHUNK;
use crate::disruption::Disruption;
use floodgate::broker::{Broker, Message};
use floodgate::domain::intent;
use floodgate::domain::order::{Order, OrderId, Quantity, SaleId, UserId};
use floodgate::user_service::{Behaviour, Counts, UserService, serve};

/// A user service, and where it is.
pub(super) struct Users {
    pub service: Arc<UserService>,
    pub url: String,
    _serving: AbortOnDropHandle<std::io::Result<()>>,
}

impl Users {
    /// Starts one on a free port. It ends when it is dropped.
    pub(super) async fn start(behaviour: Behaviour) -> anyhow::Result<Self> {
        Self::disrupted(behaviour, Disruption::default()).await
    }

    /// The same, with what goes wrong.
    pub(super) async fn disrupted(
        behaviour: Behaviour,
        disruption: Disruption,
    ) -> anyhow::Result<Self> {
        let service = Arc::new(UserService::new(behaviour));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let stop = CancellationToken::new();
        let routes = disruption.around(service.clone().routes(stop.clone()), stop.clone());
        let serving = tokio::spawn(serve(listener, routes, stop));
        Ok(Self { service, url, _serving: AbortOnDropHandle::new(serving) })
    }

    /// What it was asked and has answered.
    pub(super) fn counts(&self) -> Counts {
        self.service.counts()
    }
}

/// Publishes orders, one in each message.
pub(super) async fn publish(
    broker: &dyn Broker,
    orders: impl Iterator<Item = Order>,
) -> anyhow::Result<()> {
    let now = chrono::Utc::now();
    let orders: Vec<Order> = orders.collect();
    for chunk in orders.chunks(CHUNK) {
        let bodies: Vec<Vec<u8>> = chunk.iter().map(|order| intent::to_json(order, now)).collect();
        let messages: Vec<Message<'_>> = chunk
            .iter()
            .zip(&bodies)
            .map(|(order, body)| Message::intent(order.sale_id.as_str(), body))
            .collect();
        broker.publish(&messages).await.all()?;
    }
    Ok(())
}

/// One unit for a user who orders nothing else.
pub(super) fn order(sale: &SaleId, number: u32) -> Order {
    let fields = (
        OrderId::parse(format!("{sale}:{number:08}")),
        UserId::parse(format!("user-{number:08}")),
        Quantity::new(1),
    );
    let (Ok(id), Ok(user_id), Some(quantity)) = fields else { unreachable!("fixed form") };
    Order { id, sale_id: sale.clone(), user_id, quantity }
}
