//! The HTTP edge: takes orders and only enqueues them, shows sales and decisions, and lets operators
//! open, restock and close sales, and say whether users are checked.
//!
//! An order goes through `orders`: who asks (`access`), under which order id (`asked`), is there
//! such a sale ([`crate::sales::cache`]), and then either was it decided already, or, when the server has just
//! made its id, is the sale open. It then goes into the queue. The answer is 202 once the broker has
//! confirmed, or the decision itself for clients that wait for it (`replies`).

mod access;
mod asked;
pub mod auth;
mod batch;
mod client;
mod coalescer;
mod connection;
mod contracts;
mod docs;
mod enqueue;
mod etag;
mod feed;
mod health;
mod limits;
mod metrics;
mod monitor;
mod operate;
mod orders;
mod page;
mod permits;
pub mod problem;
mod rate;
mod recent;
mod replies;
mod requests;
mod sales;
mod server;
mod settings;
mod stream;
mod webhooks;

use std::sync::Arc;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::broker::{Broker, BrokerError};
use crate::ledger::Ledger;
use crate::metrics::Metrics;
use crate::operator_log::Refusals;
use crate::sales::cache::SaleCache;
use crate::sales::operations::Operations;
use crate::status::{StatusBoard, WorkerHealth};
use crate::traces::Traces;
use crate::webhooks::{WebhookSettings, Webhooks};
use auth::TokenVerifier;
use enqueue::Enqueue;
use health::Health;
use limits::Limits;
use orders::Lookup;
use problem::Problems;
use rate::Rate;
use recent::Recent;
use replies::Replies;

pub use contracts::{Contracts, openapi};
pub use monitor::Monitor;
pub use sales::SaleView;
pub use settings::ApiSettings;

/// The API and what it works with.
pub struct Api {
    /// Its settings.
    pub settings: ApiSettings,
    /// Whether users are checked by a service, as far as this process is configured.
    pub has_user_service: bool,
    /// Says who may do what; without it every client may do everything.
    pub token_verifier: Option<TokenVerifier>,
    /// Where orders go.
    pub broker: Arc<dyn Broker>,
    /// What clients, producers and subscribers may rely on.
    pub contracts: Contracts,
    /// What knows of decisions.
    pub ledger: Arc<dyn Ledger>,
    /// What this process knows of sales.
    pub sale_cache: Arc<SaleCache>,
    /// What operators may do.
    pub operations: Operations,
    /// What this process counts.
    pub metrics: Arc<Metrics>,
    /// Where it is recorded what becomes of orders.
    pub traces: Traces,
    /// Whether the worker in this process moves, if there is one.
    pub worker_health: Arc<WorkerHealth>,
    /// What all workers say of themselves.
    pub status: Arc<StatusBoard>,
    /// Where webhooks are registered.
    pub webhooks: Registry,
}

/// Where webhooks are registered.
pub struct Registry {
    /// What keeps them.
    pub store: Arc<dyn Webhooks>,
    /// Where they may be, and what becomes of their secrets.
    pub settings: WebhookSettings,
    /// Whether there is a feed that they get events from.
    pub has_feed: bool,
}

/// What every request may need.
struct State {
    settings: ApiSettings,
    has_user_service: bool,
    token_verifier: Option<TokenVerifier>,
    ledger: Arc<dyn Ledger>,
    sale_cache: Arc<SaleCache>,
    operations: Operations,
    refusals: Arc<Refusals>,
    enqueue: Enqueue,
    lookup: Lookup,
    replies: Arc<Replies>,
    rate: Rate,
    recent: Recent,
    status: Arc<StatusBoard>,
    webhooks: Registry,
    broker: Arc<dyn Broker>,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    traces: Traces,
    contracts: Contracts,
    is_on_loopback: bool,
    worker_health: Arc<WorkerHealth>,
    limits: Limits,
    problems: Arc<Problems>,
    stop: CancellationToken,
}

type Shared = Arc<State>;

impl Api {
    /// Serves on `listener` until `stop`, then answers the requests in flight and returns. Fails when
    /// the broker can't be reached at first.
    pub async fn serve(
        self,
        listener: TcpListener,
        stop: CancellationToken,
    ) -> Result<(), BrokerError> {
        let Self {
            settings,
            has_user_service,
            token_verifier,
            broker,
            contracts,
            ledger,
            sale_cache,
            operations,
            metrics,
            traces,
            worker_health,
            status,
            webhooks,
        } = self;
        let is_on_loopback = listener.local_addr().is_ok_and(|address| address.ip().is_loopback());
        let (replies, receiving) = Replies::listen(broker.as_ref()).await?;
        let health = Arc::new(Health::default());
        let refusals = Arc::new(Refusals::new(operations.journal.clone()));
        let problems = Arc::new(Problems::of(&public_url(&settings, &listener)));
        let state = Arc::new(State {
            enqueue: enqueue::enqueue(broker.clone(), replies.asking(), contracts.limits),
            lookup: orders::lookup(ledger.clone()),
            rate: Rate::of(&settings),
            recent: Recent::default(),
            limits: Limits::of(&settings),
            problems: problems.clone(),
            replies: replies.clone(),
            broker: broker.clone(),
            status,
            webhooks,
            refusals: refusals.clone(),
            health: health.clone(),
            metrics: metrics.clone(),
            traces,
            contracts,
            is_on_loopback,
            worker_health,
            stop: stop.clone(),
            ledger,
            sale_cache,
            operations,
            token_verifier,
            settings,
            has_user_service,
        });
        let _keys = state.token_verifier.clone().map(|token_verifier| {
            AbortOnDropHandle::new(tokio::spawn(token_verifier.keep_up(metrics.clone())))
        });
        let _beside = [
            AbortOnDropHandle::new(tokio::spawn(health.run(broker))),
            AbortOnDropHandle::new(tokio::spawn(rate::forget_buyers(state.clone()))),
        ];
        let receiving = tokio::spawn(replies.run(receiving, stop.clone()));
        let answered = CancellationToken::new();
        let recording = tokio::spawn({
            let answered = answered.clone();
            async move { refusals.run(answered).await }
        });
        server::serve(listener, routes(state.clone()), &state.settings, problems, stop).await;
        // Only now is nothing refused any more.
        answered.cancel();
        // They end with their tokens; one that panicked has nothing left to give.
        let _ = tokio::join!(receiving, recording);
        Ok(())
    }
}

/// Where clients reach the server: as the settings say, or else where it listens.
fn public_url(settings: &ApiSettings, listener: &TcpListener) -> String {
    if !settings.public_url.is_empty() {
        return settings.public_url.clone();
    }
    let address = listener.local_addr().unwrap_or(settings.listen);
    if address.ip().is_unspecified() {
        return format!("http://localhost:{}", address.port());
    }
    format!("http://{address}")
}

fn routes(state: Shared) -> Router {
    let operators = Router::new()
        .route("/v1/sales", post(operate::open))
        .route("/v1/sales/{sale_id}/restock", post(operate::restock))
        .route("/v1/sales/{sale_id}/pause", post(operate::pause))
        .route("/v1/sales/{sale_id}/resume", post(operate::resume))
        .route("/v1/sales/{sale_id}/verification", post(operate::verify))
        .route("/v1/sales/{sale_id}/close", post(operate::close))
        .route("/v1/status/stream", get(stream::status))
        .route("/v1/webhooks", get(webhooks::list).post(webhooks::register))
        .route("/v1/webhooks/{webhook_id}", get(webhooks::show).delete(webhooks::delete))
        .route("/v1/webhooks/{webhook_id}/enable", post(webhooks::enable))
        .route("/v1/webhooks/{webhook_id}/secret", post(webhooks::rotate))
        .route("/v1/webhooks/{webhook_id}/replay", post(webhooks::replays::replay))
        .route("/v1/webhooks/{webhook_id}/deliveries", get(webhooks::deliveries))
        .layer(from_fn_with_state(state.clone(), limits::limited_operators));
    let clients = Router::new()
        .route("/v1/sales", get(sales::list))
        .route("/v1/sales/{sale_id}", get(sales::show))
        .route("/v1/sales/{sale_id}/orders", post(orders::post))
        .route("/v1/sales/{sale_id}/orders:batch", post(batch::of_sale))
        .route("/v1/orders:batch", post(batch::of_all))
        .route("/v1/sales/{sale_id}/orders/{order_id}", get(orders::show))
        .route("/v1/sales/{sale_id}/stream", get(stream::sale))
        .route("/v1/events", get(feed::show))
        .route("/openapi.json", get(contracts::show_openapi))
        .route("/asyncapi.json", get(contracts::show_asyncapi))
        .route("/schemas/{file}", get(contracts::show_schema))
        .route("/docs", get(docs::page))
        .route("/problems/{name}", get(docs::problem))
        .merge(page::routes())
        .fallback(server::not_found)
        .layer(from_fn_with_state(state.clone(), limits::limited));
    clients
        .merge(operators)
        // Asked by orchestrators, which must get an answer also when there is too much to do.
        .route("/livez", get(health::live))
        .route("/readyz", get(health::ready))
        .route("/metrics", get(metrics::show))
        .method_not_allowed_fallback(server::method_not_allowed)
        .with_state(state)
}
