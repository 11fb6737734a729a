//! Whether a server is available: one log line when it becomes unavailable, one when it is back, and its metrics.

use std::fmt::Display;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use crate::metrics::DependencyMetrics;

/// An outage lasts at least so long: calls that were under way when it began may still succeed.
const SETTLING: Duration = Duration::from_secs(1);

/// Follows whether a server is available, by what becomes of the calls to it.
#[derive(Debug)]
pub struct Outage {
    metrics: DependencyMetrics,
    /// Whether there is one. Read by every call that works.
    is_on: AtomicBool,
    begun: Mutex<Option<Begun>>,
}

#[derive(Debug)]
struct Begun {
    at: Instant,
    failed_calls: u64,
}

impl Outage {
    /// For the server of `metrics`, which is available as far as is known.
    pub fn new(metrics: DependencyMetrics) -> Self {
        Self { metrics, is_on: AtomicBool::new(false), begun: Mutex::new(None) }
    }

    /// Notes what became of a call. `is_outage` tells whether an error means that the server is unavailable.
    pub fn noted<T, E: Display>(
        &self,
        result: Result<T, E>,
        is_outage: impl FnOnce(&E) -> bool,
    ) -> Result<T, E> {
        match &result {
            Ok(_) => self.answered(),
            Err(error) if is_outage(error) => self.failed(error),
            Err(_) => {}
        }
        result
    }

    /// A call has failed, because the server can't be reached or does not answer.
    pub fn failed(&self, error: &dyn Display) {
        self.metrics.failed();
        let (mut begun, server) = (self.begun(), self.server());
        if let Some(begun) = begun.as_mut() {
            begun.failed_calls += 1;
            tracing::debug!(server, %error, "still unavailable");
            return;
        }
        *begun = Some(Begun { at: Instant::now(), failed_calls: 1 });
        self.is_on.store(true, Ordering::Relaxed);
        tracing::warn!(server, %error, "unavailable; calls are repeated until it is back");
    }

    /// A call has worked.
    pub fn answered(&self) {
        if !self.is_on.load(Ordering::Relaxed) {
            return;
        }
        let mut begun = self.begun();
        if begun.as_ref().is_some_and(|begun| begun.at.elapsed() < SETTLING) {
            return;
        }
        if let Some(Begun { at, failed_calls }) = begun.take() {
            self.is_on.store(false, Ordering::Relaxed);
            let seconds = at.elapsed().as_secs_f64();
            self.metrics.answered();
            tracing::info!(server = self.server(), seconds, failed_calls, "available again");
        }
    }

    fn server(&self) -> &'static str {
        self.metrics.dependency.name()
    }

    fn begun(&self) -> MutexGuard<'_, Option<Begun>> {
        self.begun.lock()
    }
}
