//! Entries of the operators' log.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde::{Serialize, Serializer};
use uuid::{Builder, Uuid};

use crate::domain::event::rfc3339;
use crate::domain::order::SaleId;

/// The most characters of each text; the rest is cut. The tables have the same bounds.
const MAX_ACTOR: usize = 128;
const MAX_DETAIL: usize = 512;
const MAX_ORIGIN: usize = 64;
const MAX_REQUEST_ID: usize = 128;

macro_rules! actions {
    ($($(#[$doc:meta])* $action:ident, $name:literal;)*) => {
        /// What was done, or tried.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Action { $($(#[$doc])* $action,)* }

        impl Action {
            /// Every action.
            pub const ALL: &[Self] = &[$(Self::$action,)*];

            /// Its name in the log.
            pub fn name(self) -> &'static str {
                match self { $(Self::$action => $name,)* }
            }
        }
    };
}

actions! {
    /// A sale was opened.
    Opened, "opened";
    /// Units were added to a sale.
    Restocked, "restocked";
    /// A sale was closed.
    Closed, "closed";
    /// The users of a sale are checked from then on, or not any more.
    VerificationSwitched, "verification_switched";
    /// A sale was paused, or paused otherwise than before.
    Paused, "paused";
    /// A paused sale was resumed.
    Resumed, "resumed";
    /// A sale goes on with a ledger that had lost what it had committed.
    LedgerAccepted, "ledger_accepted";
    /// Dead letters were sent back to be decided.
    Redriven, "redriven";
    /// Dead letters were deleted.
    Purged, "purged";
    /// Hints of a sale did not agree with the ledger, and were deleted.
    HintsDeleted, "hints_deleted";
    /// A webhook was registered.
    WebhookRegistered, "webhook_registered";
    /// A webhook was deleted.
    WebhookDeleted, "webhook_deleted";
    /// A webhook was enabled.
    WebhookEnabled, "webhook_enabled";
    /// A webhook has another secret.
    WebhookSecretMade, "webhook_secret_made";
    /// Events are sent to a webhook again.
    WebhookReplayed, "webhook_replayed";
    /// Decisions of a sale moved to a file.
    Archived, "archived";
    /// Decisions of a sale came back from a file.
    Restored, "restored";
    /// A user's id was replaced.
    UserErased, "user_erased";
    /// The intake was divided into another number of shards.
    Divided, "divided";
    /// A request came with a token that is not accepted.
    TokenRefused, "token_refused";
    /// A request came with a good token that lacks the scope for it.
    Forbidden, "forbidden";
}

/// A text that names nothing in the operators' log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no {what}")]
pub struct NotKnown {
    text: String,
    what: &'static str,
}

impl FromStr for Action {
    type Err = NotKnown;

    fn from_str(text: &str) -> Result<Self, NotKnown> {
        let found = Self::ALL.iter().copied().find(|action| action.name() == text);
        found.ok_or_else(|| NotKnown { text: text.to_owned(), what: "action" })
    }
}

impl Serialize for Action {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// Names an entry, and says when it was made: a UUID of version 7, which begins with the milliseconds
/// since 1970 (RFC 9562 section 5.7). As text, ids are in the order of their times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct EntryId(Uuid);

impl EntryId {
    /// After every other.
    pub const MAX: Self = Self(Uuid::max());

    fn new() -> Self {
        Self(Uuid::now_v7())
    }

    /// The first that an entry of that time could have.
    pub fn first_at(time: DateTime<Utc>) -> Self {
        // An id has no room for times before 1970, when there were no entries either.
        let ms = u64::try_from(time.timestamp_millis()).unwrap_or_default();
        Self(Builder::from_unix_timestamp_millis(ms, &[0; 10]).into_uuid())
    }

    /// When it was made, to the millisecond.
    fn time(self) -> DateTime<Utc> {
        let (seconds, nanos) = self.0.get_timestamp().map_or((0, 0), |time| time.to_unix());
        let seconds = i64::try_from(seconds).unwrap_or_default();
        DateTime::from_timestamp(seconds, nanos).unwrap_or_default()
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for EntryId {
    type Err = NotKnown;

    fn from_str(text: &str) -> Result<Self, NotKnown> {
        let id = Uuid::try_parse(text).ok().filter(|id| id.get_version_num() == 7);
        id.map(Self).ok_or_else(|| NotKnown { text: text.to_owned(), what: "entry id" })
    }
}

impl Serialize for EntryId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Who acts, and from where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operator {
    /// Who: a token's `sub`, or a login name and its host.
    pub actor: String,
    /// The client's address, or `cli`.
    pub origin: String,
    /// What the client calls its request.
    pub request_id: Option<String>,
}

/// One thing that was done or tried. Its field names are those of the table's columns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Names it.
    pub id: EntryId,
    /// When.
    #[serde(serialize_with = "as_rfc3339")]
    pub at: DateTime<Utc>,
    /// Who.
    pub actor: String,
    /// What.
    pub action: Action,
    /// To which sale, if to one.
    pub sale_id: Option<SaleId>,
    /// With which values, and what became of it.
    pub detail: String,
    /// From where.
    pub origin: String,
    /// In which request, if the client has named it.
    pub request_id: Option<String>,
}

impl Entry {
    /// `by` did `action` just now.
    pub fn new(by: &Operator, action: Action, sale_id: Option<SaleId>, detail: &str) -> Self {
        let id = EntryId::new();
        Self {
            id,
            at: id.time(),
            actor: bounded(&by.actor, MAX_ACTOR),
            action,
            sale_id,
            detail: bounded(detail, MAX_DETAIL),
            origin: bounded(&by.origin, MAX_ORIGIN),
            request_id: by.request_id.as_deref().map(|id| bounded(id, MAX_REQUEST_ID)),
        }
    }
}

fn as_rfc3339<S: Serializer>(time: &DateTime<Utc>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&rfc3339(*time))
}

/// At most `max` characters of `text`, with an ellipsis for the rest. PostgreSQL's `text` holds no zero
/// character.
fn bounded(text: &str, max: usize) -> String {
    let characters = || text.chars().filter(|c| *c != '\0');
    if characters().count() <= max {
        return characters().collect();
    }
    characters().take(max - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(actor: &str, detail: &str) -> Entry {
        let by = Operator { actor: actor.into(), origin: "o".into(), request_id: None };
        Entry::new(&by, Action::Opened, None, detail)
    }

    #[test]
    fn texts_are_bounded() {
        let entry = entry(&"é".repeat(200), "a\0b");
        assert_eq!(entry.actor.chars().count(), MAX_ACTOR);
        assert!(entry.actor.ends_with("é…"), "{}", entry.actor);
        assert_eq!(entry.detail, "ab");
        assert_eq!(bounded(&"x".repeat(64), 64), "x".repeat(64));
    }

    #[test]
    fn ids_are_in_the_order_of_their_times() {
        let before = EntryId::first_at(Utc::now());
        let (first, second) = (entry("a", "").id, entry("a", "").id);
        assert!(before < first && first < second && second < EntryId::MAX);
        assert!(before.to_string() < first.to_string() && first.to_string() < second.to_string());
        assert!(EntryId::first_at(first.time()) <= first);
        assert!(EntryId::first_at(first.time() + chrono::TimeDelta::milliseconds(1)) > first);
        assert_eq!(first.to_string().parse(), Ok(first));
        assert!("2026".parse::<EntryId>().is_err());
    }

    #[test]
    fn an_action_has_one_name() {
        for action in Action::ALL {
            assert_eq!(action.name().parse(), Ok(*action));
        }
        assert!("Opened".parse::<Action>().is_err());
    }
}
