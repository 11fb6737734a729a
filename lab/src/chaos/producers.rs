//! Those who order: even numbers over AMQP, odd ones over HTTP, at a steady rate, each until it is confirmed.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use floodgate::broker::{Broker, Message};
use floodgate::cli::client::ApiClient;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::book::Book;
use super::demand::Demand;

/// How often a share is sent.
const SHARE: Duration = Duration::from_millis(50);
/// Messages in one publish at most.
const CHUNK: usize = 1000;
/// Requests at a time.
const CLIENTS: u32 = 16;
/// How long a client waits for its answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Until an order that was not confirmed is sent again.
const AGAIN_AFTER: Duration = Duration::from_millis(200);
/// One of so many orders is sent twice.
const TWICE: u32 = 20;

/// Who orders.
#[derive(Clone)]
pub struct Producers {
    pub demand: Demand,
    pub book: Arc<Book>,
    /// Orders a second, of both ways together.
    pub rate: u32,
    /// No more orders are made.
    pub stop: CancellationToken,
}

impl Producers {
    /// Sends orders until it is stopped, and what is not confirmed then until it is.
    pub async fn run(self, broker: Arc<dyn Broker>, api: SocketAddr) -> anyhow::Result<()> {
        let begun = Instant::now();
        let client = ApiClient::new(api, ANSWER_WITHIN)?;
        let mut sending = JoinSet::new();
        sending.spawn(self.clone().over_amqp(broker, begun));
        let next = Arc::new(AtomicU32::new(0));
        for _ in 0..CLIENTS {
            sending.spawn(self.clone().over_http(client.clone(), next.clone(), begun));
        }
        while let Some(ended) = sending.join_next().await {
            ended?;
        }
        Ok(())
    }

    /// How many orders are due.
    fn due(&self, begun: Instant) -> u32 {
        let due = begun.elapsed().as_millis() * u128::from(self.rate) / 1000;
        u32::try_from(due).unwrap_or(u32::MAX).min(self.demand.orders)
    }

    fn is_over(&self, number: u32) -> bool {
        number >= self.demand.orders || self.stop.is_cancelled()
    }

    async fn over_amqp(self, broker: Arc<dyn Broker>, begun: Instant) {
        let (mut due, mut waiting) = (0, VecDeque::new());
        while !self.is_over(due) || !waiting.is_empty() {
            let by_now = if self.stop.is_cancelled() { due } else { self.due(begun) };
            let twice =
                |n: u32| std::iter::repeat_n(n, if n.is_multiple_of(TWICE) { 2 } else { 1 });
            waiting.extend((due..by_now).filter(|n| n % 2 == 0).flat_map(twice));
            due = by_now;
            let numbers: Vec<u32> = waiting.drain(..waiting.len().min(CHUNK)).collect();
            let bodies: Vec<_> = numbers
                .iter()
                .map(|&n| (self.demand.order(n).sale_id, self.demand.body(n, true)))
                .collect();
            let messages: Vec<_> =
                bodies.iter().map(|(sale, body)| Message::intent(sale.as_str(), body)).collect();
            let published = broker.publish(&messages).await;
            let mut again = Vec::new();
            for (number, receipt) in numbers.into_iter().zip(published.receipts) {
                if receipt.is_done() {
                    self.book.accepted(number);
                } else {
                    again.push(number);
                }
            }
            let has_failed = !again.is_empty();
            for number in again.into_iter().rev() {
                waiting.push_front(number);
            }
            if has_failed {
                tokio::time::sleep(AGAIN_AFTER).await;
            } else if waiting.len() < CHUNK {
                tokio::time::sleep(SHARE).await;
            }
        }
    }

    async fn over_http(self, client: ApiClient, next: Arc<AtomicU32>, begun: Instant) {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed) * 2 + 1;
            while self.due(begun) <= number {
                if self.is_over(number) {
                    return;
                }
                tokio::time::sleep(SHARE).await;
            }
            let (sale, body) = (self.demand.order(number).sale_id, self.demand.body(number, false));
            let mut left = if number % TWICE == 1 { 2 } else { 1 };
            while left > 0 {
                let answer = client.post_order(&sale, &body, None, None).await;
                if answer.is_ok_and(|answer| matches!(answer.status, 200 | 202)) {
                    self.book.accepted(number);
                    left -= 1;
                } else {
                    tokio::time::sleep(AGAIN_AFTER).await;
                }
            }
        }
    }
}
