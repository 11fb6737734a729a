//! A check: asking the user service about one user, as often as is worth while.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Breaker, Failed, Verdict, Verifier, VerifierError};
use crate::domain::order::{Order, SaleId, UserId};
use crate::metrics::VerificationMetrics;
use crate::retry::Backoff;

/// A check that has ended.
pub(super) struct Checked {
    pub sale_id: SaleId,
    pub user_id: UserId,
    pub begun: Instant,
    pub answer: Answer,
}

pub(super) enum Answer {
    Verdict(Verdict),
    /// The user service wants to be left alone, for so long if it says so.
    Busy(Option<Duration>),
    /// None for this user, though it is there.
    Unanswerable,
    /// None, however often it was asked. Says what came instead at last.
    Silence(String),
    /// The breaker is open. Says what came before, if anything was tried.
    Shut(Option<String>),
}

/// What a check needs.
pub(super) struct Check {
    pub verifier: Arc<dyn Verifier>,
    pub breaker: Breaker,
    pub metrics: VerificationMetrics,
    pub attempts: u32,
    /// No more attempts.
    pub ending: CancellationToken,
}

impl Check {
    /// Asks for the user of `order`.
    pub(super) async fn of(self, order: Order) -> Checked {
        let begun = Instant::now();
        let answer = self.ask(&order).await;
        Checked { sale_id: order.sale_id, user_id: order.user_id, begun, answer }
    }

    async fn call(&self, order: &Order) -> Result<Verdict, VerifierError> {
        let timer = self.metrics.time_call();
        let answered = self.verifier.verify(order).await;
        drop(timer);
        match (&self.metrics.user_service, &answered) {
            (Some(user_service), Err(VerifierError::Unavailable(_))) => user_service.failed(),
            (Some(user_service), _) => user_service.answered(),
            (None, _) => {}
        }
        answered
    }

    async fn ask(&self, order: &Order) -> Answer {
        let mut backoff = Backoff::step();
        let mut last = None;
        for attempt in 1..=self.attempts {
            match self.breaker.call(self.call(order)).await {
                Ok(verdict) => return Answer::Verdict(verdict),
                Err(Failed::Refused) => return Answer::Shut(last),
                Err(Failed::Called(VerifierError::Busy { retry_after })) => {
                    return Answer::Busy(retry_after);
                }
                Err(Failed::Called(error @ VerifierError::Unanswerable(_))) => {
                    tracing::warn!(%error, order_id = %order.id, "no verdict");
                    return Answer::Unanswerable;
                }
                Err(Failed::Called(error)) => {
                    tracing::debug!(%error, order_id = %order.id, attempt, "no verdict");
                    last = Some(error.to_string());
                }
            }
            if self.ending.is_cancelled() {
                break;
            }
            if attempt < self.attempts {
                tokio::time::sleep(backoff.next_delay()).await;
            }
        }
        Answer::Silence(last.unwrap_or_default())
    }
}
