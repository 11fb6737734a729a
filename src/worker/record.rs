//! Record: make the proposals final in the ledger, and amend the inventory where it says otherwise.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::batch::{Entry, Parked, PutOff};
use super::propose::{ProposedBatch, ProposedEntry, Source, conflict};
use super::tally::Tally;
use crate::decision::Decision;
use crate::fault::crash_point;
use crate::inventory::{Amendment, Inventory};
use crate::ledger::{Ledger, LedgerError, Proposed, Recorded};
use crate::order::{OrderId, SaleId};
use crate::retry::Backoff;
use crate::sale::SoldOut;

/// Reason of a dead letter that the ledger can't store, whatever is tried.
pub const UNDECIDABLE: &str = "undecidable";

/// A batch whose decisions are final.
pub(super) struct DecidedBatch {
    pub decided: Vec<(Entry, Decision)>,
    pub sold_out: Vec<SoldOut>,
    pub parked: Vec<Parked>,
    pub put_off: Vec<PutOff>,
}

/// Records batches.
pub(super) struct Recorder {
    pub ledger: Arc<dyn Ledger>,
    pub inventory: Arc<dyn Inventory>,
    pub tally: Arc<Tally>,
}

type Finals = HashMap<OrderId, Result<Final, String>>;

/// What the ledger holds for an order id.
struct Final {
    decision: Decision,
    known: bool,
    /// Units sold of the sale that the recorded proposal was for, if the ledger told.
    sold: Option<(SaleId, u32)>,
}

impl Recorder {
    /// Makes the decisions of `batch` final. Returns only when they are, however long the ledger
    /// is away.
    pub(super) async fn record(&self, batch: ProposedBatch) -> DecidedBatch {
        let ProposedBatch { entries, mut parked, put_off, source } = batch;
        let (finals, sold_out) = self.finals(&entries).await;
        crash_point("recorded");
        let mut decided = Vec::with_capacity(entries.len());
        let mut amendments = Vec::new();
        let mut counted = HashSet::with_capacity(entries.len());
        for ProposedEntry { entry, decision, deducted, repeat: _ } in entries {
            match &finals[&decision.order.id] {
                Ok(last) => {
                    if source == Source::Inventory {
                        amendments.extend(amendment(&decision, deducted, last));
                    }
                    if last.decision.order == decision.order {
                        let repeat = last.known || !counted.insert(&last.decision.order.id);
                        self.tally.decided(&last.decision, repeat);
                        decided.push((entry, last.decision.clone()));
                    } else {
                        parked.push(conflict(entry));
                    }
                }
                Err(detail) => parked.push(entry.park(UNDECIDABLE, detail.clone())),
            }
        }
        if !amendments.is_empty()
            && let Err(error) = self.inventory.amend(&amendments).await
        {
            // The ledger goes on being right; what the inventory keeps wrong is reconciled later.
            tracing::warn!(%error, orders = amendments.len(), "can't amend the inventory");
        }
        crash_point("amended");
        DecidedBatch { decided, sold_out, parked, put_off }
    }

    /// What the ledger holds for each order id of the batch, and the sales that are sold out. Where
    /// an id comes twice, its first order is the one recorded.
    async fn finals(&self, entries: &[ProposedEntry]) -> (Finals, Vec<SoldOut>) {
        let mut firsts: HashSet<&OrderId> = HashSet::with_capacity(entries.len());
        let proposals: Vec<Proposed<'_>> = entries
            .iter()
            .filter(|proposed| firsts.insert(&proposed.decision.order.id))
            .map(|proposed| Proposed {
                decision: &proposed.decision,
                submitted_at: proposed.entry.candidate.at,
                repeat: proposed.repeat,
            })
            .collect();
        let mut sold_out = Vec::new();
        if proposals.is_empty() {
            return (Finals::new(), sold_out);
        }
        let answers = self.persist(&proposals, &mut sold_out).await;
        let finals = proposals.iter().zip(answers).map(|(proposed, answer)| {
            let last = answer.map(|recorded| match recorded {
                Recorded::AsProposed => {
                    Final { decision: proposed.decision.clone(), known: false, sold: None }
                }
                Recorded::Instead { decision, known, sold } => {
                    let sale = proposed.decision.order.sale_id.clone();
                    Final { decision, known, sold: Some((sale, sold)) }
                }
            });
            (proposed.decision.order.id.clone(), last)
        });
        (finals.collect(), sold_out)
    }

    /// Records until it has worked. A batch that the ledger refuses is halved, so that one order
    /// it can't take doesn't keep the others from being decided.
    async fn persist(
        &self,
        proposals: &[Proposed<'_>],
        sold_out: &mut Vec<SoldOut>,
    ) -> Vec<Result<Recorded, String>> {
        let mut backoff = Backoff::step();
        loop {
            match self.ledger.record(proposals).await {
                Ok(recording) => {
                    sold_out.extend(recording.sold_out);
                    return recording.answers.into_iter().map(Ok).collect();
                }
                Err(error @ LedgerError::Transient(_)) => {
                    let delay = backoff.next_delay();
                    tracing::warn!(%error, ?delay, orders = proposals.len(), "can't record");
                    tokio::time::sleep(delay).await;
                }
                Err(LedgerError::Permanent(error)) => {
                    let (left, right) = proposals.split_at(proposals.len() / 2);
                    if left.is_empty() {
                        tracing::error!(%error, "the ledger refuses an order");
                        return vec![Err(error.to_string())];
                    }
                    let mut answers = Box::pin(self.persist(left, sold_out)).await;
                    answers.extend(Box::pin(self.persist(right, sold_out)).await);
                    return answers;
                }
            }
        }
    }
}

/// What the inventory has to be told, when the ledger's answer isn't what it proposed: another
/// outcome; or an order it has deducted anew because it had forgotten that it was decided.
fn amendment(proposed: &Decision, deducted: bool, last: &Final) -> Option<Amendment> {
    let same_order = last.decision.order == proposed.order;
    let same_answer = same_order && last.decision.outcome == proposed.outcome;
    // Known is not enough: another batch may have recorded the same deduction first, or an earlier
    // try of this one whose reply was lost. Both bear a time that is not before this proposal's.
    let deducted_again = deducted && last.known && last.decision.decided_at < proposed.decided_at;
    if same_answer && !deducted_again {
        return None;
    }
    let sale = &proposed.order.sale_id;
    let sold = last.sold.as_ref().filter(|(asked, _)| asked == sale);
    Some(Amendment {
        proposed: proposed.order.clone(),
        answer: (last.decision.order.sale_id == *sale).then(|| last.decision.clone()),
        sold: sold.map(|(_, units)| *units),
    })
}
