//! Refused requests, counted, so that many of them are few entries.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::{Action, Entry, Journal, Operator};
use crate::domain::order::SaleId;

/// How often what was counted is written down.
pub const FLUSH_EVERY: Duration = Duration::from_secs(10);
/// The most refusals told apart between two writes. The others are summed, for each action.
pub const MAX_DISTINCT: usize = 100;

/// The actor and origin of refusals that are summed.
const OTHERS: &str = "others";

/// What was refused.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Refusal {
    /// Who asked, as far as is known.
    pub actor: String,
    /// From where.
    pub origin: String,
    /// For what.
    pub action: Action,
    /// Of which sale.
    pub sale_id: Option<SaleId>,
    /// Why it was refused.
    pub reason: String,
}

/// Counts refusals, and writes them down every [`FLUSH_EVERY`].
pub struct Refusals {
    journal: Journal,
    counted: Mutex<HashMap<Refusal, Counted>>,
}

struct Counted {
    times: u64,
    /// The request of the first of them.
    request_id: Option<String>,
}

impl Refusals {
    /// Counts refusals for `journal`.
    pub fn new(journal: Journal) -> Self {
        Self { journal, counted: Mutex::default() }
    }

    /// Counts one.
    pub fn count(&self, refusal: Refusal, request_id: Option<String>) {
        let mut counted = self.counted.lock();
        let (key, request_id) = if counted.len() < MAX_DISTINCT || counted.contains_key(&refusal) {
            (refusal, request_id)
        } else {
            (Refusal::others(refusal.action), None)
        };
        counted.entry(key).or_insert(Counted { times: 0, request_id }).times += 1;
    }

    /// Writes down what was counted until `stop`, and then what is left.
    pub async fn run(&self, stop: CancellationToken) {
        let mut flush = tokio::time::interval(FLUSH_EVERY);
        flush.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = flush.tick() => self.flush().await,
                () = stop.cancelled() => break,
            }
        }
        self.flush().await;
    }

    async fn flush(&self) {
        let counted = {
            let mut counted = self.counted.lock();
            std::mem::take(&mut *counted)
        };
        let entries: Vec<Entry> = counted.into_iter().map(entry).collect();
        self.journal.record(&entries).await;
    }
}

impl Refusal {
    /// What stands for refusals that are not told apart.
    fn others(action: Action) -> Self {
        let (actor, origin, reason) = (OTHERS.into(), OTHERS.into(), OTHERS.into());
        Self { actor, origin, action, sale_id: None, reason }
    }
}

fn entry((refusal, counted): (Refusal, Counted)) -> Entry {
    let Refusal { actor, origin, action, sale_id, reason } = refusal;
    let Counted { times, request_id } = counted;
    let by = Operator { actor, origin, request_id };
    Entry::new(&by, action, sale_id, &format!("refused, count {times}: {reason}"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use async_trait::async_trait;

    use super::*;
    use crate::operator_log::{OperatorLog, OperatorLogError, Wanted};

    /// Keeps what was written, one list for each write.
    #[derive(Default)]
    struct Writes(Mutex<Vec<Vec<Entry>>>);

    #[async_trait]
    impl OperatorLog for Writes {
        async fn record(&self, entries: &[Entry]) -> Result<(), OperatorLogError> {
            self.0.lock().push(entries.to_vec());
            Ok(())
        }

        async fn entries(&self, _: &Wanted) -> Result<Vec<Entry>, OperatorLogError> {
            Ok(Vec::new())
        }
    }

    fn refusal(origin: &str, action: Action) -> Refusal {
        let (actor, reason) = ("unknown".into(), "the token has expired".into());
        Refusal { actor, origin: origin.into(), action, sale_id: None, reason }
    }

    fn counting() -> (Arc<Writes>, Arc<Refusals>) {
        let writes = Arc::new(Writes::default());
        (writes.clone(), Arc::new(Refusals::new(Journal::new(Some(writes)))))
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_one_entry_every_ten_seconds() {
        let (writes, refusals) = counting();
        let stop = CancellationToken::new();
        let running = tokio::spawn({
            let (refusals, stop) = (refusals.clone(), stop.clone());
            async move { refusals.run(stop).await }
        });
        tokio::task::yield_now().await;
        for n in 0..35 {
            let id = Some(format!("r-{n}"));
            refusals.count(refusal("192.0.2.1", Action::TokenRefused), id);
            tokio::time::sleep(Duration::from_millis(999)).await;
        }
        stop.cancel();
        running.await.unwrap();
        let writes = writes.0.lock();
        let details: Vec<&str> = writes.iter().map(|write| write[0].detail.as_str()).collect();
        let of = |times: u32| format!("refused, count {times}: the token has expired");
        assert_eq!(details, [of(11), of(10), of(10), of(4)]);
        assert!(writes.iter().all(|write| write.len() == 1));
        assert_eq!(writes[0][0].request_id.as_deref(), Some("r-0"));
    }

    #[tokio::test]
    async fn what_is_too_various_is_summed() {
        let (writes, refusals) = counting();
        for n in 0..250 {
            refusals.count(refusal(&format!("192.0.2.{n}"), Action::TokenRefused), None);
            refusals.count(refusal("192.0.2.0", Action::Forbidden), None);
        }
        refusals.count(refusal("198.51.100.1", Action::Forbidden), Some("r".into()));
        refusals.flush().await;
        refusals.flush().await;
        let writes = writes.0.lock();
        let [entries] = writes.as_slice() else { panic!("{} writes", writes.len()) };
        assert_eq!(entries.len(), MAX_DISTINCT + 2);
        let others = |action| {
            let mut found = entries.iter().filter(|e| e.origin == OTHERS && e.action == action);
            found.next().map(|entry| (entry.detail.as_str(), entry.request_id.as_deref()))
        };
        assert_eq!(others(Action::TokenRefused), Some(("refused, count 151: others", None)));
        assert_eq!(others(Action::Forbidden), Some(("refused, count 1: others", None)));
        let kept =
            entries.iter().find(|e| e.origin == "192.0.2.0" && e.action == Action::Forbidden);
        assert!(kept.is_some_and(|entry| entry.detail.contains("count 250")));
    }
}
