//! Verify: what speaks against an order before stock is looked at.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::batch::Batch;
use crate::decision::Reason;
use crate::fault::crash_point;

/// Puts a verdict on the orders of `batch` that waited for longer than `max_age`. Every user is
/// allowed.
pub(super) fn verify(batch: &mut Batch, max_age: Duration, now: DateTime<Utc>) {
    for entry in &mut batch.entries {
        let age = now.signed_duration_since(entry.candidate.at).to_std().unwrap_or_default();
        if age > max_age {
            entry.candidate.verdict = Some(Reason::Expired);
        }
    }
    crash_point("verified");
}
