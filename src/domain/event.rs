//! Events: what subscribers get to know of decisions and sales, as `CloudEvents` 1.0.

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;

use crate::domain::decision::{Decision, Reason};
use crate::domain::order::{Order, OrderId, OrderKey, Quantity, SaleId, UserId};
use crate::domain::sale::{Announcement, Restock, SoldOut};
use crate::domain::trace::TraceContext;

/// One event, in the terms of `CloudEvents` 1.0; the broker's adapter binds it to the wire.
///
/// The same cause always gives the same event, to the byte of its data, so that a repeat is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// `id`: derived from the order or the sale that the event is about, unique for the source:
    /// `order:<sale>:<order>`, `sale:<sale>:sold_out:<version>` or
    /// `sale:<sale>:restocked:<adjustment>`. A sale id has no colon, so no two causes share an id.
    pub id: String,
    /// `type`: reverse DNS, versioned.
    pub kind: &'static str,
    /// `subject`: `<sale>/<order>` for an order, the sale id for a sale.
    pub subject: String,
    /// `time`: when it happened, RFC 3339 with milliseconds.
    pub time: DateTime<Utc>,
    /// Where it goes: `order.<outcome>.<sale>`, `sale.sold_out.<sale>` or `sale.restocked.<sale>`.
    pub routing_key: String,
    /// `data`: a JSON object.
    pub data: Vec<u8>,
    /// `traceparent` and `tracestate`: the trace of its order, if there is one. The only attributes that another event
    /// of the same cause may have otherwise.
    pub trace: Option<TraceContext>,
}

/// The data of an order's event.
#[derive(Serialize)]
struct Data<'a> {
    #[serde(flatten)]
    order: &'a Order,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    decided_at: String,
}

/// `time` as RFC 3339 in UTC with milliseconds, the form of every time floodgate writes.
pub fn rfc3339(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

const SALE_SOLD_OUT: &str = "dev.floodgate.sale.sold_out.v1";
const SALE_RESTOCKED: &str = "dev.floodgate.sale.restocked.v1";

/// The type of the event of an order.
fn order_kind(outcome: &str) -> &'static str {
    match outcome {
        "created" => "dev.floodgate.order.created.v1",
        "sold_out" => "dev.floodgate.order.sold_out.v1",
        _ => "dev.floodgate.order.rejected.v1",
    }
}

impl Event {
    /// The event that tells of `decision`.
    pub fn of(decision: &Decision) -> Self {
        let (order, outcome) = (decision.order.key(), decision.outcome.name());
        Self::of_order(&order, outcome, decision.decided_at, decision_json(decision))
    }

    /// Whether it tells of `sale`, or of an order from it.
    pub fn is_of(&self, sale: &SaleId) -> bool {
        self.subject.split('/').next() == Some(sale.as_str())
    }

    /// The event that has `data`, without its trace. `None` when it is the data of none.
    pub fn of_data(data: &[u8]) -> Option<Self> {
        #[derive(serde::Deserialize)]
        struct Told<'a> {
            order_id: Option<String>,
            sale_id: String,
            outcome: Option<&'a str>,
            decided_at: Option<&'a str>,
            version: Option<u32>,
            adjustment_id: Option<String>,
            sold_out_at: Option<&'a str>,
            restocked_at: Option<&'a str>,
        }
        // The library does not look at text that nobody asks for.
        let told: Told<'_> = serde_json::from_str(std::str::from_utf8(data).ok()?).ok()?;
        let sale_id = SaleId::parse(told.sale_id).ok()?;
        let at = told.decided_at.or(told.sold_out_at).or(told.restocked_at)?;
        let time = DateTime::parse_from_rfc3339(at).ok()?.to_utc();
        let data = data.to_vec();
        match (told.outcome, told.sold_out_at, told.adjustment_id) {
            (Some(outcome), ..) => {
                let order_id = OrderId::parse(told.order_id?).ok()?;
                Some(Self::of_order(&OrderKey { sale_id, order_id }, outcome, time, data))
            }
            (None, Some(_), _) => {
                let version = told.version?;
                Some(Self::of_sale("sold_out", SALE_SOLD_OUT, &sale_id, &version, time, data))
            }
            (None, None, Some(id)) => {
                Some(Self::of_sale("restocked", SALE_RESTOCKED, &sale_id, &id, time, data))
            }
            (None, None, None) => None,
        }
    }

    /// The event that tells of `announcement`.
    pub fn announcing(announcement: &Announcement) -> Self {
        match announcement {
            Announcement::SoldOut(sold_out) => Self::sold_out(sold_out),
            Announcement::Restocked(restock) => Self::restocked(restock),
        }
    }

    /// The event that tells that a sale has no unit left.
    pub fn sold_out(sold_out: &SoldOut) -> Self {
        let SoldOut { sale_id, version, stock, at } = sold_out;
        let data = serde_json::json!({
            "sale_id": sale_id, "version": version, "stock": stock, "sold_out_at": rfc3339(*at),
        });
        Self::of_sale("sold_out", SALE_SOLD_OUT, sale_id, version, *at, data.to_string().into())
    }

    /// The event that tells that a sale has got more units.
    pub fn restocked(restock: &Restock) -> Self {
        let Restock { adjustment_id, sale_id, units, version, stock, at } = restock;
        let data = serde_json::json!({
            "sale_id": sale_id, "version": version, "stock": stock,
            "adjustment_id": adjustment_id, "units": units, "restocked_at": rfc3339(*at),
        });
        Self::of_sale(
            "restocked",
            SALE_RESTOCKED,
            sale_id,
            adjustment_id,
            *at,
            data.to_string().into(),
        )
    }

    /// An event about an order.
    fn of_order(order: &OrderKey, outcome: &str, time: DateTime<Utc>, data: Vec<u8>) -> Self {
        let OrderKey { sale_id, order_id } = order;
        Self {
            id: format!("order:{sale_id}:{order_id}"),
            kind: order_kind(outcome),
            subject: order.to_string(),
            time,
            routing_key: format!("order.{outcome}.{sale_id}"),
            data,
            trace: None,
        }
    }

    /// An event about a sale: `what` happened, told apart from other times by `which`.
    fn of_sale(
        what: &str,
        kind: &'static str,
        sale_id: &SaleId,
        which: &dyn std::fmt::Display,
        time: DateTime<Utc>,
        data: Vec<u8>,
    ) -> Self {
        Self {
            id: format!("sale:{sale_id}:{what}:{which}"),
            kind,
            subject: sale_id.to_string(),
            time,
            routing_key: format!("sale.{what}.{sale_id}"),
            data,
            trace: None,
        }
    }
}

/// The sale and version in the data of a sale's event, or nothing when it isn't one.
pub fn sale_version_of(data: &[u8]) -> Option<(SaleId, u32)> {
    #[derive(serde::Deserialize)]
    struct Id {
        sale_id: String,
        version: u32,
    }
    let Id { sale_id, version } = serde_json::from_slice(data).ok()?;
    Some((SaleId::parse(sale_id).ok()?, version))
}

/// The order that the data of an order's event, a reply or an intent is about. `None` when the data
/// names no order.
pub fn order_key_of(data: &[u8]) -> Option<OrderKey> {
    #[derive(serde::Deserialize)]
    struct Ids {
        sale_id: String,
        order_id: String,
    }
    let Ids { sale_id, order_id } = serde_json::from_slice(data).ok()?;
    Some(OrderKey {
        sale_id: SaleId::parse(sale_id).ok()?,
        order_id: OrderId::parse(order_id).ok()?,
    })
}

/// The order that the data of an order's event or a reply is about, with its contents. `None` when it is no such
/// data.
pub fn order_of(data: &[u8]) -> Option<Order> {
    #[derive(serde::Deserialize)]
    struct Told {
        order_id: String,
        sale_id: String,
        user_id: String,
        quantity: i64,
    }
    let Told { order_id, sale_id, user_id, quantity } = serde_json::from_slice(data).ok()?;
    Some(Order {
        id: OrderId::parse(order_id).ok()?,
        sale_id: SaleId::parse(sale_id).ok()?,
        user_id: UserId::parse(user_id).ok()?,
        quantity: Quantity::new(quantity)?,
    })
}

/// The order that the data of an order's event is about, and its outcome. `None` when it is no such data.
pub fn outcome_of(data: &[u8]) -> Option<(OrderKey, String)> {
    #[derive(serde::Deserialize)]
    struct Told {
        outcome: String,
    }
    let Told { outcome } = serde_json::from_slice(data).ok()?;
    Some((order_key_of(data)?, outcome))
}

/// Where in the feed of events to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeedStart {
    /// With the oldest that is kept.
    Oldest,
    /// After this place.
    After(u64),
    /// With what was published at that time, or a little before.
    Since(DateTime<Utc>),
}

/// A decision as the JSON object that events carry and commands print.
pub fn decision_json(decision: &Decision) -> Vec<u8> {
    let data = Data {
        order: &decision.order,
        outcome: decision.outcome.name(),
        reason: decision.outcome.reason().map(Reason::name),
        decided_at: rfc3339(decision.decided_at),
    };
    serde_json::to_vec(&data).unwrap_or_else(|error| unreachable!("strings and numbers: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::decision::Outcome;

    fn rejected(order_id: &str, sale_id: &str) -> Decision {
        Decision {
            order: Order {
                id: OrderId::parse(order_id).unwrap(),
                sale_id: SaleId::parse(sale_id).unwrap(),
                user_id: UserId::parse("u").unwrap(),
                quantity: Quantity::new(2).unwrap(),
            },
            outcome: Outcome::Rejected(Reason::PurchaseLimit),
            submitted_at: DateTime::from_timestamp_millis(1_795_680_000_000).unwrap(),
            decided_at: DateTime::from_timestamp_millis(1_795_680_000_123).unwrap(),
            version: 1,
            sold: 0,
        }
    }

    #[test]
    fn an_event_is_derived_from_the_decision_alone() {
        let decision = rejected("o-1", "bottles");
        let event = Event::of(&decision);
        assert_eq!(event.id, "order:bottles:o-1");
        assert_eq!(event.subject, "bottles/o-1");
        assert_eq!(event.routing_key, "order.rejected.bottles");
        assert_eq!(
            String::from_utf8(event.data.clone()).unwrap(),
            r#"{"order_id":"o-1","sale_id":"bottles","user_id":"u","quantity":2,"outcome":"rejected","reason":"purchase_limit","decided_at":"2026-11-26T08:00:00.123Z"}"#
        );
        assert_eq!(Event::of(&decision), event);
        assert_eq!(Event::of_data(&event.data), Some(event.clone()));
        assert_eq!(order_key_of(&event.data), Some(decision.order.key()));
        assert_eq!(order_of(&event.data), Some(decision.order.clone()));
        assert_eq!(outcome_of(&event.data), Some((decision.order.key(), "rejected".into())));
    }

    #[test]
    fn the_same_order_id_in_another_sale_is_another_event() {
        let ids = [("a:b", "s"), ("b", "s"), ("a:b", "t"), ("s:a:b", "s")]
            .map(|(order_id, sale_id)| Event::of(&rejected(order_id, sale_id)).id);
        assert_eq!(ids, ["order:s:a:b", "order:s:b", "order:t:a:b", "order:s:s:a:b"]);
    }

    #[test]
    fn data_without_both_ids_is_about_no_order() {
        for data in [
            "",
            "[]",
            r#"{"order_id":"o"}"#,
            r#"{"sale_id":"s"}"#,
            r#"{"order_id":"o","sale_id":"a.b"}"#,
            r#"{"order_id":7,"sale_id":"s"}"#,
        ] {
            assert_eq!(order_key_of(data.as_bytes()), None, "{data}");
        }
    }

    #[test]
    fn a_sale_is_told_of_by_its_version_and_by_its_adjustment() {
        let at = DateTime::from_timestamp_millis(1_795_680_000_123).unwrap();
        let sale_id = SaleId::parse("bottles").unwrap();
        let sold_out = SoldOut { sale_id: sale_id.clone(), version: 2, stock: 9, at };
        let event = Event::sold_out(&sold_out);
        assert_eq!(event.id, "sale:bottles:sold_out:2");
        assert_eq!(event.routing_key, "sale.sold_out.bottles");
        assert_eq!(Event::of_data(&event.data), Some(event.clone()));
        assert_eq!(sale_version_of(&event.data), Some((sale_id.clone(), 2)));
        let restock = Restock {
            adjustment_id: crate::domain::order::AdjustmentId::parse("delivery-7").unwrap(),
            units: Quantity::new(5).unwrap(),
            version: 3,
            stock: 14,
            sale_id: sale_id.clone(),
            at,
        };
        let event = Event::restocked(&restock);
        assert_eq!(event.id, "sale:bottles:restocked:delivery-7");
        assert_eq!(event.routing_key, "sale.restocked.bottles");
        assert_eq!(Event::of_data(&event.data), Some(event.clone()));
        assert_eq!(sale_version_of(&event.data), Some((sale_id, 3)));
        assert_eq!(Event::restocked(&restock), event, "a repeat is the same to the byte");
    }
}
