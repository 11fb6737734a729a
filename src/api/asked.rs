//! Orders as clients ask for them, and who chooses their ids.
//!
//! A client that acts for many buyers owns the order ids of a sale: one with the scope
//! `floodgate:submit`, or any client of a server without a key. Its order id is `order_id` in the
//! body, or else its `Idempotency-Key`. Every other token, that of an operator without the scope
//! included, orders for its own `sub` only and chooses no order id: its `Idempotency-Key` names the
//! request among the requests of that buyer for that sale, and the order id is derived from all
//! three. So no buyer can see, take or block the order id of another buyer.

use axum::http::HeaderMap;
use serde::Deserialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::access::Access;
use super::problem::{Problem, ProblemType};
use super::requests;
use crate::domain::digest::digest;
use crate::domain::order::{Order, OrderId, Quantity, SaleId, UserId};
use crate::domain::whole::Whole;

/// Begins every derived order id, so that people can tell it from others.
const DERIVED_PREFIX: &str = "k-";

/// A request to buy.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct OrderRequest {
    /// The buyer; with a token, its `sub` when left out
    #[schema(pattern = r"^(?!\.{1,2}$)[A-Za-z0-9._:-]{1,64}$", example = "u-17850")]
    user_id: Option<String>,
    /// Units wanted
    #[schema(value_type = u32, minimum = 1, maximum = 1_000_000, example = 1)]
    quantity: Whole<i64>,
    /// Makes it safe to send again; the Idempotency-Key if left out, or made by the server. Only from
    /// clients that choose order ids
    #[schema(pattern = r"^(?!\.{1,2}$)[A-Za-z0-9._:-]{1,64}$", example = "o-536365")]
    order_id: Option<String>,
}

impl OrderRequest {
    /// The request of a client that chooses order ids and names the buyer.
    pub(super) fn of(order_id: String, user_id: String, quantity: Whole<i64>) -> Self {
        Self { user_id: Some(user_id), quantity, order_id: Some(order_id) }
    }
}

/// Where the id of an order comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IdOrigin {
    /// The client chose it. The order may have been accepted before.
    Chosen,
    /// It is derived from a buyer's `Idempotency-Key`. The order may have been accepted before.
    Derived,
    /// The server made it for this request. The order cannot have been accepted before.
    Made,
}

/// An order as it was asked for.
#[derive(Debug)]
pub(super) struct Asked {
    pub order: Order,
    pub origin: IdOrigin,
}

impl Asked {
    /// The order that `request` asks for in the name of `access`.
    pub(super) fn read(
        request: OrderRequest,
        sale_id: SaleId,
        headers: &HeaderMap,
        access: &Access,
    ) -> Result<Self, Problem> {
        let user_id = access.buyer(request.user_id)?;
        let Whole(quantity) = request.quantity;
        let quantity = Quantity::new(quantity).ok_or_else(|| {
            ProblemType::Invalid.because(format!(
                "quantity is {quantity}; accepted: a whole number from 1 to {}",
                Quantity::MAX
            ))
        })?;
        let key = requests::idempotency_key(headers)?;
        let given = if access.chooses_order_ids() {
            chosen(request.order_id, key)?.map(|id| (id, IdOrigin::Chosen))
        } else if request.order_id.is_some() {
            return Err(ProblemType::Invalid.because(
                "order_id is not accepted from this token: only clients with the scope floodgate:submit \
                 choose order ids; send an Idempotency-Key to make the request safe to repeat",
            ));
        } else {
            key.map(|key| (derived(&sale_id, &user_id, &key), IdOrigin::Derived))
        };
        let (id, origin) = match given {
            Some(given) => given,
            None => (OrderId::parse(Uuid::now_v7().to_string())?, IdOrigin::Made),
        };
        Ok(Self { order: Order { id, sale_id, user_id, quantity }, origin })
    }
}

/// The order id that a client chose, in the body or by its `Idempotency-Key`.
fn chosen(named: Option<String>, key: Option<String>) -> Result<Option<OrderId>, Problem> {
    let named = named.map(OrderId::parse).transpose()?;
    let key = key.map(OrderId::parse).transpose().map_err(|invalid| {
        ProblemType::BadHeader.because(format!(
            "Idempotency-Key becomes the order id: {invalid}, with or without quotes"
        ))
    })?;
    if let (Some(named), Some(key)) = (&named, &key)
        && named != key
    {
        return Err(ProblemType::IdempotencyMismatch
            .because("order_id and Idempotency-Key differ; give one of them, or the same twice"));
    }
    Ok(named.or(key))
}

/// The order id of a buyer's request: `k-` and a [digest] of the sale id, the user id and the key.
fn derived(sale_id: &SaleId, user_id: &UserId, key: &str) -> OrderId {
    let id = digest([sale_id.as_str(), user_id.as_str(), key].map(str::as_bytes));
    let Ok(id) = OrderId::parse(format!("{DERIVED_PREFIX}{id}")) else {
        unreachable!("fixed form")
    };
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(sale: &str, user: &str, key: &str) -> String {
        let (sale, user) = (SaleId::parse(sale).unwrap(), UserId::parse(user).unwrap());
        derived(&sale, &user, key).to_string()
    }

    #[test]
    fn a_derived_id_is_the_same_in_every_version() {
        // printf '\0\0\0\7bottles\0\0\0\3u-1\0\0\0\5first' | sha256sum
        assert_eq!(id("bottles", "u-1", "first"), "k-a1e5dd5537fec044e51ed15c753118a7");
    }

    #[test]
    fn a_derived_id_depends_on_sale_buyer_and_key() {
        let mut ids = vec![
            id("s", "u", "k"),
            id("t", "u", "k"),
            id("s", "v", "k"),
            id("s", "u", "l"),
            id("s", "u", &"k".repeat(255)),
        ];
        let count = ids.len();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), count);
    }

    #[test]
    fn parts_that_read_the_same_together_are_told_apart_by_their_lengths() {
        assert_ne!(id("s", "ab", "c"), id("s", "a", "bc"));
        assert_ne!(id("ab", "c", "k"), id("a", "bc", "k"));
        assert_ne!(id("a", "b", "c"), id("a", "bc", "-"));
    }
}
