//! What messages and answers look like.

use utoipa::ToSchema;

/// Ids in paths.
#[derive(ToSchema)]
#[schema(value_type = String, pattern = "^[A-Za-z0-9_-]{1,64}$", example = "bottles")]
#[allow(dead_code, reason = "only its schema is used")]
pub(in crate::api) struct SaleIdParam(String);

#[derive(ToSchema)]
#[schema(value_type = String, pattern = r"^(?!\.{1,2}$)[A-Za-z0-9._:-]{1,64}$", example = "o-536365")]
#[allow(dead_code, reason = "only its schema is used")]
pub(in crate::api) struct OrderIdParam(String);

#[derive(ToSchema)]
#[schema(value_type = String, pattern = "^wh-[0-9a-f]{32}$")]
#[allow(dead_code, reason = "only its schema is used")]
pub(in crate::api) struct WebhookIdParam(String);

/// How a webhook does.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
#[allow(dead_code, reason = "only its schema is used")]
pub(in crate::api) enum WebhookStateName {
    Active,
    Failing,
    Disabled,
}

/// What has become of a delivery.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
#[allow(dead_code, reason = "only its schema is used")]
pub(in crate::api) enum DeliveryStateName {
    Delivered,
    Waiting,
    GivenUp,
}

/// What a sale is doing.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
#[allow(dead_code, reason = "only its schema is used")]
pub(in crate::api) enum PhaseName {
    NotOpen,
    Open,
    Paused,
    SoldOut,
    Closed,
}

/// How an operator may pause a sale. `refuse`: orders are rejected as paused. `hold`: they wait, and grow no older
/// meanwhile.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
#[allow(dead_code, reason = "only its schema is used")]
pub(in crate::api) enum PauseModeName {
    Refuse,
    Hold,
}

/// How a sale is paused.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
#[allow(dead_code, reason = "only its schema is used")]
pub(in crate::api) enum PausedName {
    Refuse,
    Hold,
    Restored,
}

/// What is decided of an order.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
#[allow(dead_code, reason = "only its schema is used")]
pub(in crate::api) enum OutcomeName {
    Created,
    SoldOut,
    Rejected,
}

/// Why an order is rejected.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
#[allow(dead_code, reason = "only its schema is used")]
pub(in crate::api) enum ReasonName {
    UserDenied,
    PurchaseLimit,
    NotOpen,
    Closed,
    Paused,
    Expired,
}

/// The final answer to an order.
#[derive(ToSchema)]
#[schema(as = Decision)]
#[allow(
    dead_code,
    reason = "only its schema is used; decisions are written by crate::domain::event"
)]
pub(in crate::api) struct DecisionView {
    #[schema(inline, value_type = OrderIdParam)]
    order_id: String,
    #[schema(inline, value_type = SaleIdParam)]
    sale_id: String,
    #[schema(pattern = r"^(?!\.{1,2}$)[A-Za-z0-9._:-]{1,64}$", example = "u-17850")]
    user_id: String,
    #[schema(minimum = 1, maximum = 1_000_000, example = 1)]
    quantity: u32,
    #[schema(inline)]
    outcome: OutcomeName,
    #[schema(inline, value_type = ReasonName, required = false)]
    reason: Option<ReasonName>,
    #[schema(format = DateTime)]
    decided_at: String,
}
