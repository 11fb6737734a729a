//! Counting what came out of a sale: units, and what buyers were told.

use std::collections::HashMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The last thing that a buyer was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Final {
    /// A unit is theirs.
    Bought,
    /// There is none left.
    SoldOut,
}

/// One buyer's answer. Times are since the beginning of the sale.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Who.
    pub buyer: String,
    /// What they were told.
    pub told: Final,
    /// When they asked first.
    pub asked: Duration,
    /// When they were told.
    pub answered: Duration,
}

/// What is known once a sale is over.
#[derive(Debug, Clone, Copy)]
pub struct Sold<'a> {
    /// Units there were.
    pub stock: u32,
    /// People who wanted one.
    pub buyers: u32,
    /// What buyers were told; nothing of those who gave up.
    pub answers: &'a [Answer],
    /// The buyer of each order in the shop's table of orders, of one unit each.
    pub orders: &'a [String],
    /// How long buyers came.
    pub took: Duration,
}

/// What came out.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Counts {
    /// Orders created, of one unit each.
    pub sold: u32,
    /// Of them, those for which there is no unit.
    pub oversold: u32,
    /// Units that were left although somebody wanted them.
    pub undersold: u32,
    /// Answers that would have to be different for all to be true: "bought" beyond the stock, "sold out"
    /// for each unit that was left, and "sold out" to buyers who have an order.
    pub told_wrong: u32,
    /// Buyers who were told "sold out" before somebody even asked who then bought.
    pub sold_out_too_early: u32,
    /// Orders of buyers who had one already.
    pub second_orders: u32,
    /// Buyers without an answer at the time limit.
    pub unserved: u32,
    /// Buyers answered a second.
    pub answers_per_s: f64,
    /// Orders created a second, until the last one.
    pub orders_per_s: f64,
    /// How long buyers waited for their answer, half of them and 99 % at most, in milliseconds.
    pub p50_ms: f64,
    /// See `p50_ms`.
    pub p99_ms: f64,
}

/// Counts.
pub fn count(sold: Sold<'_>) -> Counts {
    let Sold { stock, buyers, answers, orders, took } = sold;
    let mut units: HashMap<&str, u32> = HashMap::new();
    for buyer in orders {
        *units.entry(buyer).or_default() += 1;
    }
    let told = |what: Final| answers.iter().filter(move |answer| answer.told == what);
    let has_order = |answer: &&Answer| units.contains_key(answer.buyer.as_str());
    let created = number(orders.len());
    let left = stock.saturating_sub(created);
    let denied_own_order = number(told(Final::SoldOut).filter(has_order).count());
    let refused = number(told(Final::SoldOut).count()) - denied_own_order;
    let bought = number(told(Final::Bought).count());
    let last_to_ask = told(Final::Bought).map(|answer| answer.asked).max().unwrap_or_default();
    let last_to_buy = told(Final::Bought).map(|answer| answer.answered).max().unwrap_or(took);
    let mut waits: Vec<f64> =
        answers.iter().map(|answer| millis(answer.answered.saturating_sub(answer.asked))).collect();
    waits.sort_by(f64::total_cmp);
    Counts {
        sold: created,
        oversold: created.saturating_sub(stock),
        undersold: stock.min(buyers).saturating_sub(created),
        told_wrong: bought.saturating_sub(stock) + refused.min(left) + denied_own_order,
        sold_out_too_early: number(
            told(Final::SoldOut).filter(|answer| answer.answered < last_to_ask).count(),
        ),
        second_orders: units.values().map(|units| units - 1).sum(),
        unserved: buyers.saturating_sub(number(answers.len())),
        answers_per_s: rate(answers.len(), took),
        orders_per_s: rate(orders.len(), last_to_buy),
        p50_ms: percentile(&waits, 50),
        p99_ms: percentile(&waits, 99),
    }
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn rate(count: usize, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { count as f64 / time.as_secs_f64() }
}

/// In milliseconds.
pub fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The value that `percent` of `sorted` values don't exceed, by nearest rank; 0 if there are none.
pub fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(buyer: &str, told: Final, asked: u64, answered: u64) -> Answer {
        let (asked, answered) = (Duration::from_millis(asked), Duration::from_millis(answered));
        Answer { buyer: buyer.to_owned(), told, asked, answered }
    }

    fn counted(stock: u32, buyers: u32, answers: &[Answer], orders: &[&str]) -> Counts {
        let orders: Vec<String> = orders.iter().map(|&buyer| buyer.to_owned()).collect();
        let took = Duration::from_secs(2);
        count(Sold { stock, buyers, answers, orders: &orders, took })
    }

    #[test]
    fn a_sale_as_it_should_be_has_nothing_wrong() {
        let answers = [
            answer("a", Final::Bought, 0, 10),
            answer("b", Final::Bought, 0, 20),
            answer("c", Final::SoldOut, 10, 30),
            answer("d", Final::SoldOut, 20, 50),
        ];
        let counts = counted(2, 4, &answers, &["a", "b"]);
        assert_eq!((counts.sold, counts.oversold, counts.undersold), (2, 0, 0));
        assert_eq!((counts.told_wrong, counts.sold_out_too_early, counts.unserved), (0, 0, 0));
        assert!((counts.answers_per_s - 2.0).abs() < 1e-9);
        assert!((counts.orders_per_s - 100.0).abs() < 1e-9, "until the last was sold");
        assert!((counts.p50_ms - 20.0).abs() < 1e-9 && (counts.p99_ms - 30.0).abs() < 1e-9);
    }

    #[test]
    fn bought_beyond_the_stock_is_wrong() {
        let answers = [
            answer("a", Final::Bought, 0, 1),
            answer("b", Final::Bought, 0, 1),
            answer("c", Final::Bought, 0, 1),
        ];
        let counts = counted(1, 3, &answers, &["a", "b", "c"]);
        assert_eq!((counts.sold, counts.oversold, counts.told_wrong), (3, 2, 2));
    }

    #[test]
    fn sold_out_is_wrong_once_for_each_unit_that_was_left() {
        let sold_out = |buyer| answer(buyer, Final::SoldOut, 0, 1);
        let answers = [sold_out("a"), sold_out("b"), sold_out("c")];
        let counts = counted(2, 5, &answers, &[]);
        assert_eq!((counts.undersold, counts.told_wrong, counts.unserved), (2, 2, 2));
        let counts = counted(7, 5, &answers, &[]);
        assert_eq!((counts.undersold, counts.told_wrong), (5, 3), "five wanted one");
    }

    #[test]
    fn who_has_an_order_and_is_told_sold_out_is_told_wrong() {
        let answers = [answer("a", Final::SoldOut, 0, 1), answer("b", Final::Bought, 0, 1)];
        let counts = counted(2, 2, &answers, &["a", "b"]);
        assert_eq!((counts.undersold, counts.told_wrong), (0, 1));
    }

    #[test]
    fn sold_out_while_others_still_come_and_buy_is_too_early() {
        let answers = [
            answer("a", Final::SoldOut, 0, 5),
            answer("b", Final::SoldOut, 0, 15),
            answer("c", Final::Bought, 10, 20),
        ];
        assert_eq!(counted(1, 3, &answers, &["c"]).sold_out_too_early, 1);
    }

    #[test]
    fn a_second_order_of_a_buyer_is_counted() {
        let answers = [answer("a", Final::Bought, 0, 1)];
        let counts = counted(2, 2, &answers, &["a", "a"]);
        assert_eq!((counts.sold, counts.second_orders, counts.unserved), (2, 1, 1));
    }

    #[test]
    fn a_percentile_is_one_of_the_values() {
        assert!((percentile(&[], 50) - 0.0).abs() < 1e-9);
        let values: Vec<f64> = (1..=200).map(f64::from).collect();
        for (percent, expected) in [(50, 100.0), (99, 198.0), (100, 200.0), (0, 1.0)] {
            assert!((percentile(&values, percent) - expected).abs() < 1e-9, "{percent}");
        }
    }
}
