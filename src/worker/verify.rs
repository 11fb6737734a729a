//! Verify: what speaks against an order before stock is looked at.
//!
//! Users are checked beside the path of the others: an order that waits for its check holds up no
//! other one, and goes on in the order in which checks come back. Nobody is checked for a sale that
//! is known to be sold out, because the answer would be the same.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::task::JoinSet;

use super::Clock;
use super::batch::{Batch, Entry};
use crate::decision::Reason;
use crate::fault::crash_point;
use crate::retry::Backoff;
use crate::verification::{Verdict, Verifier};
use crate::watch::SaleWatch;

/// Gives orders their verdicts.
pub(super) struct Verification {
    pub verifier: Option<Arc<dyn Verifier>>,
    pub watch: Arc<SaleWatch>,
    pub clock: Clock,
    pub max_age: Duration,
    /// Checks made at the same time.
    pub at_once: usize,
    /// In queue order.
    pub waiting: VecDeque<Entry>,
    pub checking: JoinSet<Entry>,
}

impl Verification {
    /// Puts a verdict on the orders of `batch` that are too old, and takes those out of it whose
    /// users are to be checked first; [`Verification::next`] gives them back.
    pub(super) fn sift(&mut self, batch: &mut Batch, now: DateTime<Utc>) {
        for entry in &mut batch.entries {
            if age(entry, now) > self.max_age {
                entry.candidate.verdict = Some(Reason::Expired);
            }
        }
        if self.verifier.is_some() {
            let (through, waiting): (Vec<_>, Vec<_>) =
                batch.entries.drain(..).partition(|entry| self.needs_no_check(entry));
            batch.entries = through;
            self.watch.note(waiting.iter().map(|entry| &entry.candidate.order.sale_id));
            self.waiting.extend(waiting);
        }
        crash_point("verified");
    }

    /// Orders whose users are checked; waits until there are some, for ever if none waits. Dropping
    /// the future loses nothing.
    pub(super) async fn next(&mut self) -> Batch {
        let mut batch = Batch::default();
        loop {
            self.start(&mut batch.entries);
            while let Some(checked) = self.checking.try_join_next() {
                batch.entries.push(unwrapped(checked));
            }
            if !batch.entries.is_empty() {
                return batch;
            }
            match self.checking.join_next().await {
                Some(checked) => batch.entries.push(unwrapped(checked)),
                None => std::future::pending().await,
            }
        }
    }

    /// Lets go of the orders whose checks have not begun: they go back to the queue.
    pub(super) fn give_up(&mut self) {
        self.waiting.clear();
    }

    /// Whether checks are under way.
    pub(super) fn is_checking(&self) -> bool {
        !self.checking.is_empty()
    }

    fn needs_no_check(&self, entry: &Entry) -> bool {
        entry.candidate.verdict.is_some() || self.watch.is_sold_out(&entry.candidate.order.sale_id)
    }

    /// Begins as many checks as there is room for. Orders that need none any more go to `through`.
    fn start(&mut self, through: &mut Vec<Entry>) {
        let Some(verifier) = &self.verifier else { return };
        while self.checking.len() < self.at_once {
            let Some(entry) = self.waiting.pop_front() else { return };
            if self.needs_no_check(&entry) {
                through.push(entry);
                continue;
            }
            let (verifier, watch, clock) =
                (verifier.clone(), self.watch.clone(), self.clock.clone());
            let max_age = self.max_age;
            self.checking.spawn(async move {
                check(entry, verifier.as_ref(), &watch, &|entry| age(entry, clock()) > max_age)
                    .await
            });
        }
    }
}

/// Asks until there is a verdict, or none is needed any more. That nobody answers is no verdict.
async fn check(
    mut entry: Entry,
    verifier: &dyn Verifier,
    watch: &SaleWatch,
    is_too_old: &(dyn Fn(&Entry) -> bool + Sync),
) -> Entry {
    let mut backoff = Backoff::step();
    loop {
        match verifier.verify(&entry.candidate.order).await {
            Ok(Verdict::Allowed) => return entry,
            Ok(Verdict::Denied) => {
                entry.candidate.verdict = Some(Reason::UserDenied);
                return entry;
            }
            Err(error) => {
                let order_id = &entry.candidate.order.id;
                tracing::debug!(%error, %order_id, "no verdict, asking again");
            }
        }
        if watch.is_sold_out(&entry.candidate.order.sale_id) {
            return entry;
        }
        if is_too_old(&entry) {
            entry.candidate.verdict = Some(Reason::Expired);
            return entry;
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
}

fn age(entry: &Entry, now: DateTime<Utc>) -> Duration {
    now.signed_duration_since(entry.candidate.at).to_std().unwrap_or_default()
}

/// A check that panicked holds a delivery that nobody settles: the process ends, and the broker
/// delivers to somebody else.
fn unwrapped(checked: Result<Entry, tokio::task::JoinError>) -> Entry {
    match checked {
        Ok(entry) => entry,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => unreachable!("checks are aborted only with the set that holds them"),
        },
    }
}
