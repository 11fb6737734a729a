//! The verifier's port: may this user buy?

mod http;

use async_trait::async_trait;

use crate::order::Order;

pub use http::HttpVerifier;

/// Somebody who knows the users. Slow, and at times away; never asked while anything is held that
/// others wait for.
#[async_trait]
pub trait Verifier: Send + Sync {
    /// Whether the user of `order` may have it.
    async fn verify(&self, order: &Order) -> Result<Verdict, VerifierError>;
}

/// What a verifier says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The user may buy, if there is stock.
    Allowed,
    /// The user may not.
    Denied,
}

/// The verifier gave no verdict, which says nothing about the user.
#[derive(Debug, thiserror::Error)]
#[error("user service unavailable: {0}")]
pub struct VerifierError(#[source] pub Box<dyn std::error::Error + Send + Sync>);
