//! A circuit breaker: after many failures calls are not even tried for a while. The only file that
//! knows the library for it.

use std::future::Future;
use std::time::Duration;

use recloser::{AsyncRecloser, Error, Recloser};

use super::VerifierError;
use crate::metrics::BreakerMetrics;

/// The share of failures among the last calls that opens it.
const TOO_MANY: f32 = 0.5;
/// Calls let through after a pause before it is judged again.
const PROBES: usize = 3;

/// Counts failures of calls, and refuses calls when too many have failed. Clones share the count.
#[derive(Debug, Clone)]
pub struct Breaker {
    recloser: AsyncRecloser,
    metrics: BreakerMetrics,
}

/// Why a call gave nothing.
#[derive(Debug)]
pub enum Failed {
    /// The breaker is open: the call was not made.
    Refused,
    /// The call was made.
    Called(VerifierError),
}

impl Breaker {
    /// A breaker that opens for `pause` when half of the last `calls` calls have failed.
    pub fn new(calls: usize, pause: Duration, metrics: BreakerMetrics) -> Self {
        let recloser = Recloser::custom()
            .error_rate(TOO_MANY)
            .closed_len(calls)
            .half_open_len(PROBES)
            .open_wait(pause)
            .build();
        Self { recloser: recloser.into(), metrics }
    }

    /// Makes `call`, if it is to be made.
    pub async fn call<T>(
        &self,
        call: impl Future<Output = Result<T, VerifierError>>,
    ) -> Result<T, Failed> {
        // A service that asks for patience is not broken.
        let is_failure = |error: &VerifierError| matches!(error, VerifierError::Unavailable(_));
        let called = self.recloser.call_with(is_failure, call).await;
        match &called {
            Ok(_) => self.metrics.set_open(false),
            Err(Error::Rejected) => self.metrics.set_open(true),
            // It says no sooner whether that was one too many.
            Err(Error::Inner(_)) => {}
        }
        called.map_err(|error| match error {
            Error::Rejected => Failed::Refused,
            Error::Inner(error) => Failed::Called(error),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    async fn call(breaker: &Breaker, result: Result<(), VerifierError>) -> bool {
        !matches!(breaker.call(async { result }).await, Err(Failed::Refused))
    }

    fn breaker() -> Breaker {
        Breaker::new(4, Duration::from_hours(1), Metrics::new().verification(false).breaker())
    }

    fn failure() -> Result<(), VerifierError> {
        Err(VerifierError::Unavailable("broken".into()))
    }

    #[tokio::test]
    async fn it_opens_after_failures() {
        let breaker = breaker();
        for _ in 0..5 {
            assert!(call(&breaker, failure()).await);
        }
        assert!(!call(&breaker, Ok(())).await, "it is open");
    }

    #[tokio::test]
    async fn success_and_patience_keep_it_closed() {
        let breaker = breaker();
        for _ in 0..20 {
            assert!(call(&breaker, Err(VerifierError::Busy { retry_after: None })).await);
            assert!(call(&breaker, Ok(())).await);
        }
    }
}
