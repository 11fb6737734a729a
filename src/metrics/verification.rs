//! Metrics of verification.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use prometheus::{Histogram, HistogramTimer, IntGauge};

use super::DependencyMetrics;

/// Metrics of verification.
#[derive(Debug, Clone)]
pub struct VerificationMetrics {
    /// The user service, if there is one.
    pub user_service: Option<DependencyMetrics>,
    pub(super) call_seconds: Histogram,
    pub(super) open_breakers: IntGauge,
}

/// Whether one breaker is open. Clones are of the same one.
#[derive(Debug, Clone)]
pub struct BreakerMetrics(Arc<BreakerState>);

#[derive(Debug)]
struct BreakerState {
    is_open: AtomicBool,
    open_breakers: IntGauge,
}

impl VerificationMetrics {
    /// Measures a call until the timer is dropped.
    pub fn time_call(&self) -> HistogramTimer {
        self.call_seconds.start_timer()
    }

    /// Those of another breaker, which is closed.
    pub fn breaker(&self) -> BreakerMetrics {
        let open_breakers = self.open_breakers.clone();
        BreakerMetrics(Arc::new(BreakerState { is_open: AtomicBool::new(false), open_breakers }))
    }
}

impl BreakerMetrics {
    /// The breaker is open, or it is not.
    pub fn set_open(&self, is_open: bool) {
        let state = &self.0;
        if state.is_open.swap(is_open, Ordering::Relaxed) != is_open {
            state.open_breakers.add(if is_open { 1 } else { -1 });
        }
    }
}

impl Drop for BreakerState {
    fn drop(&mut self) {
        if *self.is_open.get_mut() {
            self.open_breakers.dec();
        }
    }
}
