//! A webhook.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde::{Serialize, Serializer};

use super::{Secret, Target};
use crate::domain::digest::digest;
use crate::domain::event::FeedStart;
use crate::domain::order::{OrderId, SaleId};

/// Begins every id.
const PREFIX: &str = "wh-";
/// Hex digits that follow.
const DIGITS: usize = 32;

/// Names a webhook: derived from where it goes and for which sale, so that registering it again makes no second one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WebhookId([u8; DIGITS]);

/// A text that is no webhook's id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("webhook_id is not accepted; accepted: {PREFIX} and {DIGITS} digits of 0-9 a-f")]
pub struct NoWebhookId;

impl WebhookId {
    /// Of the webhook that goes to `target` for `sale`, or for all.
    pub fn of(target: &Target, sale: Option<&SaleId>) -> Self {
        let sale = sale.map_or("", SaleId::as_str);
        let digest = digest([target.url().as_str().as_bytes(), sale.as_bytes()]);
        Self::of_digits(&digest).unwrap_or_else(|NoWebhookId| unreachable!("hex digits"))
    }

    fn of_digits(text: &str) -> Result<Self, NoWebhookId> {
        let digits: [u8; DIGITS] = text.as_bytes().try_into().map_err(|_| NoWebhookId)?;
        let is_hex = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if digits.iter().all(is_hex) { Ok(Self(digits)) } else { Err(NoWebhookId) }
    }
}

impl FromStr for WebhookId {
    type Err = NoWebhookId;

    fn from_str(text: &str) -> Result<Self, NoWebhookId> {
        Self::of_digits(text.strip_prefix(PREFIX).ok_or(NoWebhookId)?)
    }
}

impl TryFrom<String> for WebhookId {
    type Error = NoWebhookId;

    fn try_from(text: String) -> Result<Self, NoWebhookId> {
        text.parse()
    }
}

impl fmt::Display for WebhookId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PREFIX)?;
        self.0.iter().try_for_each(|&digit| write!(f, "{}", char::from(digit)))
    }
}

impl Serialize for WebhookId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A subscriber that gets events by HTTP requests.
#[derive(Debug, Clone)]
pub struct Webhook {
    /// Names it.
    pub id: WebhookId,
    /// Where requests go.
    pub target: Target,
    /// The sale whose events it gets; `None`: all.
    pub sale_id: Option<SaleId>,
    /// What requests are signed with, the newest first.
    pub secrets: Vec<Secret>,
    /// When it was registered.
    pub created_at: DateTime<Utc>,
    /// Where in the feed to go on.
    pub start: FeedStart,
    /// A sale that is sent again from the ledger, and how far that has come.
    pub replay: Option<Replay>,
    /// Its health.
    pub status: Status,
    /// Another one after each change that requests make to it, and when it is registered again.
    pub revision: i32,
    /// Who sends for it, as far as this was read with a claim.
    pub claimed_by: Option<String>,
}

/// Decisions of a sale that are sent again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replay {
    /// The sale.
    pub sale_id: SaleId,
    /// The last order that was sent.
    pub after: Option<OrderId>,
}

/// The health of a webhook.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// Since when no request was accepted, if the last one was not.
    pub failing_since: Option<DateTime<Utc>>,
    /// Since when nothing is sent any more.
    pub disabled_at: Option<DateTime<Utc>>,
    /// Why it fails, or is disabled.
    pub reason: Option<String>,
    /// When events were found to be removed from the feed before they were sent.
    pub missed_at: Option<DateTime<Utc>>,
    /// Deliveries that are tried again.
    pub waiting: u64,
    /// Deliveries that were given up, as far as they are kept.
    pub given_up: u64,
}

impl Status {
    /// One word: `active`, `failing` or `disabled`.
    pub fn name(&self) -> &'static str {
        match self {
            Self { disabled_at: Some(_), .. } => "disabled",
            Self { failing_since: Some(_), .. } => "failing",
            _ => "active",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::webhooks::Networks;

    #[test]
    fn an_id_stands_for_the_target_and_the_sale() {
        let target = |url: &str| Target::parse(url, &Networks::default()).unwrap();
        let (sale, a) = (SaleId::parse("s").unwrap(), target("https://a.example/"));
        let id = WebhookId::of(&a, None);
        assert_eq!(WebhookId::of(&target("https://a.example"), None), id);
        assert_ne!(WebhookId::of(&a, Some(&sale)), id);
        assert_ne!(WebhookId::of(&target("https://b.example"), None), id);
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in ["", "wh-", "wh-0", &id.to_string().to_uppercase()] {
            assert_eq!(bad.parse::<WebhookId>(), Err(NoWebhookId), "{bad}");
        }
    }
}
