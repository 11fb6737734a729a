//! Verify: have the users checked of orders that the ledger would create, in sales that ask for it.

use super::batch::{Batch, Deferred, Entry};
use super::decide::Seen;
use super::wait::{age, delay};
use crate::clock::Clock;
use crate::domain::order::{Eligibility, Order};
use crate::fault::crash_point;
use crate::verification::{Outcomes, Verdict, Verifiable, Verification};

/// Takes orders to [`Verification`] and back.
pub(super) struct Verify {
    pub verification: Verification<Entry>,
    /// The time, for delays only.
    pub clock: Clock,
}

impl Verifiable for Entry {
    fn order(&self) -> &Order {
        &self.candidate.order
    }
}

impl Verify {
    /// Takes over the orders whose users are to be checked, and begins checks. To be called after each
    /// batch that the ledger has seen, even if there are none: it brings what is left of the sales.
    pub(super) fn take(&mut self, Seen { unchecked, left, settled, .. }: Seen) {
        for (sale, user) in settled {
            self.verification.settle(&sale, &user);
        }
        self.verification.update_left(&left);
        for entry in unchecked {
            let left = left.get(&entry.candidate.order.sale_id).copied();
            self.verification.enter(entry, left);
        }
        self.verification.start();
        crash_point("verifying");
    }

    /// Orders whose users are checked, and others that need not wait for it any more; waits until
    /// there are some. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Batch {
        let Outcomes { checked, deferred } = self.verification.next().await;
        let now = (self.clock)();
        let entries = checked.into_iter().map(|(mut entry, verdict)| {
            if let Some(traced) = &mut entry.traced {
                traced.event("verified", [("verdict", format!("{verdict:?}"))]);
            }
            entry.candidate.eligibility = match verdict {
                None => Eligibility::Unchecked,
                Some(Verdict::Allowed) => Eligibility::Eligible,
                Some(Verdict::Denied) => Eligibility::Denied,
            };
            entry
        });
        let deferred = deferred.into_iter().map(|(entry, wait)| {
            let delay = delay(wait, age(&entry, now));
            Deferred::order(entry, delay)
        });
        Batch { entries: entries.collect(), deferred: deferred.collect(), ..Batch::default() }
    }

    /// Returns the orders whose checks have not begun to the queue.
    pub(super) fn give_up(&mut self) {
        for entry in self.verification.give_up() {
            entry.handle.requeue();
        }
    }

    /// Whether anything is to come from [`Verify::next`].
    pub(super) fn is_working(&self) -> bool {
        self.verification.is_working()
    }
}
