//! A shop: one process that sells by one of the designs. To buyers it speaks as floodgate's API does.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::designs::{Design, Told};
use super::store::Store;
use floodgate::domain::order::{Order, OrderId, Quantity, SaleId, UserId};
use floodgate::verification::{Verdict, Verifier};

/// The times of the articles, scaled or not.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// The life of a lock.
    pub lock: Duration,
    /// How long a lock is polled for.
    pub acquire: Duration,
}

/// What a design works with in one process.
pub struct Shop {
    /// Stock, lock and orders.
    pub store: Store,
    /// The other servers of Redlock.
    pub others: Vec<Store>,
    /// The user service.
    pub users: Arc<dyn Verifier>,
    /// What is sold.
    pub sale_id: SaleId,
    /// How long things last.
    pub times: Times,
    /// The longest time that this process was under the lock, in microseconds.
    pub longest_under_lock: AtomicU64,
}

/// Why a purchase failed.
#[derive(Debug, thiserror::Error)]
pub enum ShopError {
    /// Redis gave no answer.
    #[error("Redis: {0}")]
    Redis(#[from] redis::RedisError),
    /// The user service gave no answer in time.
    #[error(transparent)]
    Users(#[from] floodgate::verification::VerifierError),
    /// The user may not buy.
    #[error("this user may not buy")]
    Denied,
    /// The request names nobody who could buy.
    #[error("not a buyer: {0}")]
    Buyer(#[from] floodgate::domain::order::InvalidId),
}

impl Shop {
    /// Asks the user service about `buyer`, and waits for its answer.
    pub(super) async fn check_user(&self, buyer: &str) -> Result<(), ShopError> {
        let order = Order {
            id: OrderId::parse(format!("o-{buyer}"))?,
            sale_id: self.sale_id.clone(),
            user_id: UserId::parse(buyer)?,
            quantity: Quantity::ONE,
        };
        match self.users.verify(&order).await? {
            Verdict::Allowed => Ok(()),
            Verdict::Denied => Err(ShopError::Denied),
        }
    }

    /// Takes the time from now, with the lock acquired, until the value is dropped.
    pub(super) fn under_lock(&self) -> UnderLock<'_> {
        UnderLock { longest: &self.longest_under_lock, since: Instant::now() }
    }
}

/// Somebody is under the lock.
pub(super) struct UnderLock<'a> {
    longest: &'a AtomicU64,
    since: Instant,
}

impl Drop for UnderLock<'_> {
    fn drop(&mut self) {
        let micros = u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.longest.fetch_max(micros, Ordering::Relaxed);
    }
}

/// What a shop knows of its own work.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Stats {
    /// The longest time under the lock, in milliseconds.
    pub longest_under_lock_ms: f64,
    /// The stock left in this process, where a design keeps it there.
    pub left: Option<i64>,
}

struct Counter {
    shop: Shop,
    design: Box<dyn Design>,
    purchases: TaskTracker,
}

#[derive(Deserialize)]
struct Request {
    user_id: String,
}

/// Sells on `listener` until `closing`.
pub async fn serve(
    shop: Shop,
    design: Box<dyn Design>,
    listener: TcpListener,
    closing: CancellationToken,
) -> io::Result<()> {
    let counter = Arc::new(Counter { shop, design, purchases: TaskTracker::new() });
    let routes = Router::new()
        .route("/v1/sales/{sale_id}/orders", post(buy))
        .route("/stats", get(stats))
        .with_state(counter);
    let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
    axum::serve(listener, routes).with_graceful_shutdown(closing.cancelled_owned()).await
}

/// A purchase runs to its end even if its buyer hangs up, as it would in a thread of a real shop.
async fn buy(State(counter): State<Arc<Counter>>, Json(request): Json<Request>) -> Response {
    let seller = counter.clone();
    let purchase = counter
        .purchases
        .spawn(async move { seller.design.buy(&seller.shop, &request.user_id).await });
    match purchase.await {
        Ok(Ok(Told::Bought)) => Json(json!({ "outcome": "created" })).into_response(),
        Ok(Ok(Told::SoldOut)) => StatusCode::GONE.into_response(),
        Ok(Ok(Told::Busy)) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        Ok(Err(error)) => (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Answers once no purchase is under way any more.
async fn stats(State(counter): State<Arc<Counter>>) -> Json<Stats> {
    counter.purchases.close();
    counter.purchases.wait().await;
    let micros = counter.shop.longest_under_lock.load(Ordering::Relaxed);
    let left = counter.design.left();
    Json(Stats { longest_under_lock_ms: micros as f64 / 1e3, left })
}
