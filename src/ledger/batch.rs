//! A batch on its way through a ledger's transaction.

use std::collections::{BTreeMap, HashMap};

use super::{Decided, Proposed};
use crate::domain::decision::{Decision, Hint, Outcome};
use crate::domain::order::{Candidate, Eligibility, SaleId, UserId};
use crate::domain::rules::{Answer, State, Until};
use crate::domain::sale::{Announcement, PauseMode, SaleState, SoldOut, Watermark};

/// The orders of a batch, with the answers they have so far.
pub(super) struct Batch<'a> {
    orders: &'a [Proposed<'a>],
    answers: Vec<Option<Answer>>,
    /// The indexes of each sale's orders, in queue order.
    indexes: BTreeMap<&'a SaleId, Vec<usize>>,
    decided: Decided,
    /// The tokens of users whose id was replaced, under which their orders are stored.
    erased: Erased,
}

/// Tokens by the users they replace.
pub(super) type Erased = HashMap<(SaleId, UserId), UserId>;

/// What a transaction has to write.
pub struct Changes<'a> {
    /// New decisions, by sale and order id.
    pub decisions: Vec<&'a Decision>,
    /// Sales that have sold units.
    pub sales: Vec<&'a SaleState>,
    /// Buyers who got units of a sale with a limit: their units now, and the limit.
    pub buyers: Vec<(&'a SaleId, &'a UserId, u32, u32)>,
    /// Sales that have sold their last unit.
    pub announcements: Vec<Announcement>,
}

impl<'a> Batch<'a> {
    pub(super) fn new(orders: &'a [Proposed<'a>]) -> Self {
        let mut indexes: BTreeMap<&SaleId, Vec<usize>> = BTreeMap::new();
        for (index, proposed) in orders.iter().enumerate() {
            indexes.entry(&proposed.candidate.order.sale_id).or_default().push(index);
        }
        let answers = vec![None; orders.len()];
        Self { orders, answers, indexes, decided: Decided::default(), erased: Erased::new() }
    }

    /// All its sales, by id.
    pub(super) fn sales(&self) -> Vec<&'a SaleId> {
        self.indexes.keys().copied().collect()
    }

    /// Its sales with an order that is probably granted, and the others, both by id.
    pub(super) fn sales_by_hint(&self) -> (Vec<&'a SaleId>, Vec<&'a SaleId>) {
        let is_granted = |index: &usize| self.orders[*index].hint == Some(Hint::Granted);
        self.sales().into_iter().partition(|sale| self.indexes[sale].iter().any(is_granted))
    }

    /// The orders of `sales`.
    pub(super) fn orders_of<'b>(
        &'b self,
        sales: &'b [&'a SaleId],
    ) -> impl Iterator<Item = &'a Candidate> + 'b {
        sales.iter().flat_map(|sale| &self.indexes[sale]).map(|index| self.orders[*index].candidate)
    }

    /// Holds those of `sales`, read just now, that know less than was committed before.
    pub(super) fn hold_restored(&mut self, sales: &mut HashMap<SaleId, SaleState>) {
        for (id, indexes) in &self.indexes {
            let mark = indexes.first().and_then(|index| self.orders[*index].watermark);
            match (mark, sales.get_mut(*id)) {
                // One that is held already stays so.
                (Some(mark), Some(state))
                    if state.paused != Some(PauseMode::Restored)
                        && mark.is_lost_in(Watermark::of(state)) =>
                {
                    self.decided.lost.insert((*id).clone());
                    state.paused = Some(PauseMode::Restored);
                }
                _ => {}
            }
        }
    }

    /// Decides the orders of `sales` by `state`, which has read all of them. May be done again with
    /// what a lock shows.
    pub(super) fn decide(&mut self, sales: &[&'a SaleId], mut state: State) {
        for sale in sales {
            for index in &self.indexes[sale] {
                let Proposed { candidate, watermark, .. } = self.orders[*index];
                self.answers[*index] = Some(match (state.decide(candidate), watermark) {
                    (Answer::UnknownSale, Some(_)) => {
                        self.decided.lost.insert((*sale).clone());
                        let submitted_at = candidate.submitted_at.unwrap_or(state.now);
                        Answer::Undecided { until: Until::Resumed, submitted_at }
                    }
                    (answer, _) => answer,
                });
            }
        }
        self.erased.extend(state.erased);
        self.decided.sales.extend(state.sales);
        self.decided.units.extend(state.units);
    }

    /// Those of `sales`, just decided, that would sell units, which takes a lock.
    pub(super) fn selling(&self, sales: &[&'a SaleId]) -> Vec<&'a SaleId> {
        let sells = |index: &usize| {
            let new = self.answers[*index].as_ref().and_then(Answer::new_decision);
            new.is_some_and(|decision| decision.outcome == Outcome::Created)
        };
        let selling = sales.iter().filter(|sale| self.indexes[*sale].iter().any(sells));
        selling.copied().collect()
    }

    /// Whether any of its orders was decided before.
    pub(super) fn has_repeats(&self) -> bool {
        self.answers.iter().flatten().any(|answer| match answer {
            Answer::Decided { is_new, .. } => !is_new,
            Answer::Conflict => true,
            Answer::UnknownSale | Answer::Undecided { .. } => false,
        })
    }

    pub(super) fn changes(&self) -> Changes<'_> {
        let new = self.answers.iter().flatten().filter_map(Answer::new_decision);
        let mut decisions: Vec<&Decision> = new.collect();
        let sold = decisions.iter().filter(|decision| decision.outcome == Outcome::Created);
        let (mut sales, mut buyers) = (BTreeMap::new(), BTreeMap::new());
        for Decision { order, .. } in sold {
            let Some(state) = self.decided.sales.get(&order.sale_id) else { continue };
            sales.insert(&order.sale_id, state);
            if let Some(limit) = state.sale.per_user_limit {
                let buyer = (order.sale_id.clone(), order.user_id.clone());
                let units = self.decided.units.get(&buyer).copied().unwrap_or(0);
                buyers.insert((&order.sale_id, &order.user_id), (units, limit));
            }
        }
        let sales: Vec<&SaleState> = sales.into_values().collect();
        let announcements = sales.iter().filter_map(|state| sold_out(state)).collect();
        let buyers = buyers.into_iter();
        let buyers = buyers.map(|((sale, user), (units, limit))| (sale, user, units, limit));
        decisions.sort_unstable_by_key(|decision| (&decision.order.sale_id, &decision.order.id));
        Changes { decisions, sales, buyers: buyers.collect(), announcements }
    }

    /// What became of the batch. Its answers name the users that its orders name.
    pub(super) fn finish(self) -> Decided {
        let Self { orders, answers, mut decided, erased, .. } = self;
        // Every order belongs to a sale, and every sale was decided.
        decided.answers = answers.into_iter().flatten().collect();
        if erased.is_empty() {
            return decided;
        }
        for (answer, proposed) in decided.answers.iter_mut().zip(orders) {
            if let Answer::Decided { decision, .. } = answer {
                decision.order.user_id.clone_from(&proposed.candidate.order.user_id);
            }
        }
        for ((sale, user), token) in erased {
            if let Some(units) = decided.units.get(&(sale.clone(), token)).copied() {
                decided.units.insert((sale, user), units);
            }
        }
        decided
    }
}

fn sold_out(state: &SaleState) -> Option<Announcement> {
    Some(Announcement::SoldOut(SoldOut {
        sale_id: state.sale.id.clone(),
        version: state.version,
        stock: state.sold,
        at: state.sold_out_at?,
    }))
}

/// The tokens that the users of `orders` would have, in sales in which a user's id may be replaced.
pub(super) fn tokens<'a>(
    sales: &HashMap<SaleId, SaleState>,
    orders: impl Iterator<Item = &'a Candidate>,
) -> Erased {
    let mut tokens = Erased::new();
    for Candidate { order, .. } in orders {
        let key = sales.get(&order.sale_id).and_then(|state| state.erasure_key.as_ref());
        if let Some(key) = key {
            let buyer = (order.sale_id.clone(), order.user_id.clone());
            tokens.entry(buyer).or_insert_with(|| key.token(&order.user_id));
        }
    }
    tokens
}

/// The buyers among `orders`, as they are stored, whose units count, because their sale has a limit. Sorted, each
/// once.
pub(super) fn limited<'a>(
    sales: &HashMap<SaleId, SaleState>,
    orders: impl Iterator<Item = &'a Candidate>,
    erased: &'a Erased,
) -> Vec<(&'a SaleId, &'a UserId)> {
    let is_limited =
        |id: &SaleId| sales.get(id).is_some_and(|state| state.sale.per_user_limit.is_some());
    let as_stored = |Candidate { order, .. }: &'a Candidate| {
        if erased.is_empty() {
            return (&order.sale_id, &order.user_id);
        }
        let token = erased.get(&(order.sale_id.clone(), order.user_id.clone()));
        (&order.sale_id, token.unwrap_or(&order.user_id))
    };
    let buyers = orders.map(as_stored);
    let mut buyers: Vec<_> = buyers.filter(|(sale, _)| is_limited(sale)).collect();
    buyers.sort_unstable();
    buyers.dedup();
    buyers
}

/// Whether the orders of a sale may be archived.
pub(super) fn is_archived(sales: &HashMap<SaleId, SaleState>, sale: &SaleId) -> bool {
    sales.get(sale).is_some_and(|state| state.archived)
}

/// Whether an order of one of `sales` may stay undecided, as far as the sale is concerned. Only one that has
/// no decision yet does so in truth, so it has to be looked up.
pub(super) fn may_wait(sales: &HashMap<SaleId, SaleState>, candidate: &Candidate) -> bool {
    sales.get(&candidate.order.sale_id).is_some_and(|state| {
        state.paused.is_some_and(PauseMode::holds)
            || state.sale.verification && candidate.eligibility == Eligibility::Unchecked
    })
}
