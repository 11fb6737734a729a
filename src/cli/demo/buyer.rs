//! Buyers, as impatient as people are.

use std::time::{Duration, Instant};

use anyhow::bail;
use serde::Deserialize;

use crate::cli::client::{Answer, ApiClient};
use crate::domain::order::{OrderId, OrderKey, SaleId};

/// How long a buyer waits for a decision in one request, in seconds.
const WAIT_S: u32 = 5;
/// How long an impatient buyer waits before clicking again.
const IMPATIENT: Duration = Duration::from_millis(40);
/// The pause after an answer that says to try again later, or after none.
const PAUSE: Duration = Duration::from_millis(50);
/// A buyer who has no answer by then has found a defect.
const PATIENCE: Duration = Duration::from_mins(2);

/// One who wants a bottle, known by a number that makes out the character.
pub(super) struct Buyer {
    number: u32,
    order: OrderKey,
    /// A second order of some, who try to get more than one.
    greedy: Option<OrderKey>,
}

/// The decision that a buyer was told, about one order.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Told {
    pub outcome: String,
    pub reason: Option<String>,
}

/// One order, from the first click to the answer.
#[derive(Debug)]
pub(super) struct Bought {
    pub order: OrderKey,
    pub user_id: String,
    pub told: Told,
    /// The server said 202 to it at least once.
    pub accepted: bool,
    pub waited: Duration,
    /// Copies of it that were sent at the same time and got the same answer.
    pub duplicates: usize,
    pub retries: usize,
}

/// What a request has led to.
enum Reply {
    Final(Told),
    Accepted,
    Again(Duration),
}

impl Buyer {
    pub(super) fn new(sale_id: &SaleId, number: u32) -> anyhow::Result<Self> {
        let order = |id: String| {
            anyhow::Ok(OrderKey { sale_id: sale_id.clone(), order_id: OrderId::parse(id)? })
        };
        let greedy = (number % 25 == 9).then(|| order(format!("o-{number}-more"))).transpose()?;
        Ok(Self { number, order: order(format!("o-{number}"))?, greedy })
    }

    /// Orders, in one way or another, until there is an answer to each order.
    pub(super) async fn buy(self, client: &ApiClient) -> anyhow::Result<Vec<Bought>> {
        let clicks_twice = self.number % 20 == 7;
        let impatient = self.number % 10 == 3;
        let mut bought = if clicks_twice {
            let (one, other) = tokio::try_join!(
                self.order(&self.order, client, false),
                self.order(&self.order, client, false)
            )?;
            if one.told != other.told {
                bail!("one order got two answers: {:?} and {:?}", one.told, other.told);
            }
            let accepted = one.accepted || other.accepted;
            let retries = one.retries + other.retries;
            vec![Bought { accepted, duplicates: 1, retries, ..one }]
        } else {
            vec![self.order(&self.order, client, impatient).await?]
        };
        if let Some(more) = &self.greedy {
            bought.push(self.order(more, client, false).await?);
        }
        Ok(bought)
    }

    async fn order(
        &self,
        order: &OrderKey,
        client: &ApiClient,
        impatient: bool,
    ) -> anyhow::Result<Bought> {
        let user_id = format!("u-{}", self.number);
        let body = serde_json::json!({ "user_id": user_id, "quantity": 1 }).to_string();
        let (begun, mut retries, mut accepted) = (Instant::now(), 0, false);
        let told = loop {
            if begun.elapsed() > PATIENCE {
                bail!("order {order} has no answer after {PATIENCE:?}");
            }
            let OrderKey { sale_id, order_id } = order;
            let posting = client.post_order(sale_id, body.as_bytes(), Some(order_id), Some(WAIT_S));
            let patience = if impatient && retries == 0 { IMPATIENT } else { PATIENCE };
            // What the server does with a request that was given up is unknown; the order id makes
            // it safe to click again.
            let reply = match tokio::time::timeout(patience, posting).await {
                Ok(Ok(answer)) => reply(&answer)?,
                Ok(Err(_)) | Err(_) => Reply::Again(PAUSE),
            };
            match reply {
                Reply::Final(told) => break told,
                Reply::Accepted => accepted = true,
                Reply::Again(pause) => tokio::time::sleep(pause).await,
            }
            retries += 1;
        };
        let waited = begun.elapsed();
        let order = order.clone();
        Ok(Bought { order, user_id, told, accepted, waited, duplicates: 0, retries })
    }
}

fn reply(answer: &Answer) -> anyhow::Result<Reply> {
    Ok(match answer.status {
        200 => Reply::Final(serde_json::from_slice(&answer.body)?),
        202 => Reply::Accepted,
        429 | 503 => Reply::Again(answer.retry_after.unwrap_or(PAUSE).min(PAUSE)),
        status => bail!("unexpected answer {status}: {}", String::from_utf8_lossy(&answer.body)),
    })
}
