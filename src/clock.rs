//! The clock, as an argument, so that tests and simulations can set it.

use std::sync::Arc;

use chrono::{DateTime, Utc};

/// Tells the time.
pub type Clock = Arc<dyn Fn() -> DateTime<Utc> + Send + Sync>;

/// The clock of the system.
pub fn system() -> Clock {
    Arc::new(Utc::now)
}
