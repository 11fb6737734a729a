//! Who asks, and what they may do.

use axum::extract::FromRequestParts;
use axum::http::header;
use axum::http::request::Parts;
use chrono::Utc;

use super::Shared;
use super::auth::{ADMIN_SCOPE, Caller, RETRY_AFTER, Refusal, SUBMIT_SCOPE};
use super::problem::{Kind, Problem};
use super::shares::Share;
use crate::order::UserId;

/// The one who asks. Without a key there are no tokens, and everybody who can reach the loopback
/// interface may do everything.
pub(super) struct Access {
    caller: Option<Caller>,
    /// What a buyer holds of the requests it may have in flight, this one.
    _request: Option<Share<UserId>>,
}

/// An operator. Everybody else is refused before the body of the request is read.
pub(super) struct Operator;

impl FromRequestParts<Shared> for Operator {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Shared) -> Result<Self, Problem> {
        let access = Access::from_request_parts(parts, api).await?;
        match &access.caller {
            Some(caller) if !caller.admin => Err(lacks(ADMIN_SCOPE, "this")),
            _ => Ok(Self),
        }
    }
}

impl FromRequestParts<Shared> for Access {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Shared) -> Result<Self, Problem> {
        let Some(gate) = &api.gate else { return Ok(Self { caller: None, _request: None }) };
        let mut tokens = parts.headers.get_all(header::AUTHORIZATION).iter();
        let token = tokens.next().map(|value| value.to_str().unwrap_or_default());
        if tokens.next().is_some() {
            return Err(Kind::BadHeader.because("Authorization is given more than once"));
        }
        let caller = gate.verify(token, Utc::now()).map_err(|refusal| match refusal {
            Refusal::NoKeys => {
                Kind::KeysUnavailable.because(refusal.to_string()).retry_after(RETRY_AFTER)
            }
            _ => Kind::Unauthorized.because(refusal.to_string()).challenge(refusal.challenge()),
        })?;
        // A client that acts for many buyers is limited by its address only.
        let buyer = caller.subject.as_ref().filter(|_| !caller.submit && !caller.admin);
        let request = buyer.map(|buyer| api.limits.buyer(buyer)).transpose()?;
        Ok(Self { caller: Some(caller), _request: request })
    }
}

impl Access {
    /// The buyer of an order: who asks, or, for a service that may order for others, whom it names.
    pub(super) fn buyer(&self, named: Option<String>) -> Result<UserId, Problem> {
        let named = named.map(UserId::parse).transpose()?;
        let Some(caller) = &self.caller else {
            return named.ok_or_else(|| Kind::Invalid.because("user_id is missing"));
        };
        match (named, caller.subject.as_ref()) {
            (Some(named), _) if caller.submit => Ok(named),
            (Some(named), Some(subject)) if named == *subject => Ok(named),
            (None, Some(subject)) => Ok(subject.clone()),
            (Some(_), _) => Err(lacks(SUBMIT_SCOPE, "user_id is not the token's sub, and this")),
            (None, None) => {
                Err(Kind::Invalid.because("user_id is missing, and the token has no sub"))
            }
        }
    }

    /// Whether the order ids of a sale are this client's to choose: those of clients that act for many
    /// buyers are. An operator without the scope for that is treated as a buyer.
    pub(super) fn chooses_order_ids(&self) -> bool {
        self.caller.as_ref().is_none_or(|caller| caller.submit)
    }

    /// Whether what is about `user` may be shown.
    pub(super) fn may_see(&self, user: &UserId) -> bool {
        self.caller.as_ref().is_none_or(|caller| {
            caller.admin || caller.submit || caller.subject.as_ref() == Some(user)
        })
    }
}

/// The refusal of a token that is good, but has not the scope for `what`. RFC 6750 section 3.1.
fn lacks(scope: &str, what: &str) -> Problem {
    let challenge = format!("Bearer error=\"insufficient_scope\", scope=\"{scope}\"");
    Kind::Forbidden.because(format!("{what} needs the scope {scope}")).challenge(challenge)
}
