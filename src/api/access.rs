//! Who asks, and what they may do.

use axum::extract::{FromRequestParts, MatchedPath};
use axum::http::header;
use axum::http::request::Parts;
use chrono::Utc;

use super::Shared;
use super::auth::{
    self, ADMIN_SCOPE, EVENTS_SCOPE, METRICS_SCOPE, Principal, RETRY_AFTER, SUBMIT_SCOPE,
};
use super::client::Client;
use super::permits::Permit;
use super::problem::{Problem, ProblemType};
use super::recent::Recent;
use super::server::REQUEST_ID;
use crate::domain::order::{OrderKey, SaleId, UserId};
use crate::operator_log::{Action, Operator, Refusal};

/// Who sends the request. Without a key there are no tokens, and every client that can reach the loopback
/// interface may do everything.
pub(super) struct Access {
    principal: Option<Principal>,
    /// What a buyer holds of the requests it may have in flight, this one.
    _request: Option<Permit<UserId>>,
}

/// An operator, as the operators' log names one. Others are refused before the body of the request is
/// read.
pub(super) struct AsOperator(pub Operator);

/// Who may order for others. The rest is refused before the body of the request is read.
pub(super) struct AsService(pub Access);

impl FromRequestParts<Shared> for AsService {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Shared) -> Result<Self, Problem> {
        let access = Access::from_request_parts(parts, api).await?;
        if access.chooses_order_ids() { Ok(Self(access)) } else { Err(lacks(SUBMIT_SCOPE, "this")) }
    }
}

impl FromRequestParts<Shared> for AsOperator {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Shared) -> Result<Self, Problem> {
        let Access { principal, .. } = Access::from_request_parts(parts, api).await?;
        let is_operator = principal.as_ref().is_none_or(|principal| principal.admin);
        let actor = match principal {
            None => "a user of this machine".to_owned(),
            Some(Principal { subject: Some(subject), .. }) => subject.to_string(),
            Some(Principal { admin: true, .. }) => format!("scope {ADMIN_SCOPE} without sub"),
            Some(_) => "token without sub".to_owned(),
        };
        let (origin, request_id) = (origin(parts), request_id(parts));
        if is_operator {
            return Ok(Self(Operator { actor, origin, request_id }));
        }
        let path = parts.extensions.get::<MatchedPath>().map_or("", MatchedPath::as_str);
        let reason = format!("{} {path} needs the scope {ADMIN_SCOPE}", parts.method);
        let sale_id = sale_id(parts.uri.path());
        let refusal = Refusal { actor, origin, action: Action::Forbidden, sale_id, reason };
        api.refusals.count(refusal, request_id);
        Err(lacks(ADMIN_SCOPE, "this"))
    }
}

/// The sale that a path is about.
fn sale_id(path: &str) -> Option<SaleId> {
    let id = path.strip_prefix("/v1/sales/")?.split('/').next()?;
    SaleId::parse(id).ok()
}

/// Where the request comes from.
fn origin(parts: &Parts) -> String {
    let client = parts.extensions.get::<Client>();
    client.map_or_else(|| "unknown".to_owned(), |client| client.0.to_string())
}

/// What the answer calls the request.
fn request_id(parts: &Parts) -> Option<String> {
    parts.headers.get(REQUEST_ID)?.to_str().ok().map(str::to_owned)
}

impl FromRequestParts<Shared> for Access {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Shared) -> Result<Self, Problem> {
        let Some(token_verifier) = &api.token_verifier else {
            return Ok(Self { principal: None, _request: None });
        };
        let mut tokens = parts.headers.get_all(header::AUTHORIZATION).iter();
        let token = tokens.next().map(|value| value.to_str().unwrap_or_default());
        if tokens.next().is_some() {
            return Err(ProblemType::BadHeader.because("Authorization is given more than once"));
        }
        let principal = token_verifier
            .verify(token, Utc::now())
            .map_err(|refusal| refused_token(api, parts, &refusal))?;
        // A client that acts for many buyers is limited by its address only.
        let buyer = principal.subject.as_ref().filter(|_| !principal.submit && !principal.admin);
        let request = buyer.map(|buyer| api.limits.buyer(buyer)).transpose()?;
        Ok(Self { principal: Some(principal), _request: request })
    }
}

/// The answer to a request whose token is not accepted. One that has a token is counted for the operators' log.
fn refused_token(api: &Shared, parts: &Parts, refusal: &auth::Refusal) -> Problem {
    if *refusal == auth::Refusal::NoKeys {
        return ProblemType::KeysUnavailable.because(refusal.to_string()).retry_after(RETRY_AFTER);
    }
    if *refusal != auth::Refusal::Missing {
        let counted = Refusal {
            actor: "unknown".to_owned(),
            origin: origin(parts),
            action: Action::TokenRefused,
            sale_id: None,
            reason: refusal.to_string(),
        };
        api.refusals.count(counted, request_id(parts));
    }
    ProblemType::Unauthorized.because(refusal.to_string()).challenge(refusal.challenge())
}

impl Access {
    /// Refuses those who may not read metrics.
    pub(super) fn must_scrape(&self) -> Result<(), Problem> {
        match &self.principal {
            Some(principal) if !principal.metrics && !principal.admin => {
                Err(lacks(METRICS_SCOPE, "this"))
            }
            _ => Ok(()),
        }
    }

    /// Refuses those who may not read the feed.
    pub(super) fn must_read_events(&self) -> Result<(), Problem> {
        match &self.principal {
            Some(principal) if !principal.events && !principal.admin => {
                Err(lacks(EVENTS_SCOPE, "this"))
            }
            _ => Ok(()),
        }
    }

    /// The buyer of an order: who asks, or, for a service that may order for others, whom it names.
    pub(super) fn buyer(&self, named: Option<String>) -> Result<UserId, Problem> {
        let named = named.map(UserId::parse).transpose()?;
        let Some(principal) = &self.principal else {
            return named.ok_or_else(|| ProblemType::Invalid.because("user_id is missing"));
        };
        match (named, principal.subject.as_ref()) {
            (Some(named), _) if principal.submit => Ok(named),
            (Some(named), Some(subject)) if named == *subject => Ok(named),
            (None, Some(subject)) => Ok(subject.clone()),
            (Some(_), _) => Err(lacks(SUBMIT_SCOPE, "user_id is not the token's sub, and this")),
            (None, None) => {
                Err(ProblemType::Invalid.because("user_id is missing, and the token has no sub"))
            }
        }
    }

    /// Whether the order ids of a sale are this client's to choose: those of clients that act for many
    /// buyers are. An operator without the scope for that is treated as a buyer.
    pub(super) fn chooses_order_ids(&self) -> bool {
        self.principal.as_ref().is_none_or(|principal| principal.submit)
    }

    /// Whether `order` was taken lately, and that may be shown.
    pub(super) fn may_see_taken(&self, recent: &Recent, order: &OrderKey) -> bool {
        recent.buyer_of(order).is_some_and(|buyer| {
            self.principal.as_ref().is_none_or(|principal| {
                let is_own = |subject| recent.buyer(subject) == buyer;
                principal.admin
                    || principal.submit
                    || principal.subject.as_ref().is_some_and(is_own)
            })
        })
    }

    /// Whether what is about a buyer may be shown, whom `is_buyer` knows.
    pub(super) fn may_see(&self, is_buyer: impl Fn(&UserId) -> bool) -> bool {
        self.principal.as_ref().is_none_or(|principal| {
            principal.admin || principal.submit || principal.subject.as_ref().is_some_and(is_buyer)
        })
    }
}

/// The refusal of a token that is good, but has not the scope for `what`. RFC 6750 section 3.1.
fn lacks(scope: &str, what: &str) -> Problem {
    let challenge = format!("Bearer error=\"insufficient_scope\", scope=\"{scope}\"");
    ProblemType::Forbidden.because(format!("{what} needs the scope {scope}")).challenge(challenge)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_for_operators_and_who_has_the_scope() {
        let token = |admin, metrics| {
            let principal =
                Principal { subject: None, admin, submit: true, metrics, events: false };
            Access { principal: Some(principal), _request: None }
        };
        assert!(token(true, false).must_scrape().is_ok());
        assert!(token(false, true).must_scrape().is_ok());
        let refused = token(false, false).must_scrape().expect_err("no scope");
        assert_eq!(refused.problem_type(), ProblemType::Forbidden);
    }
}
