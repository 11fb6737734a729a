//! A user service in memory.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use floodgate::domain::order::{Order, SaleId, UserId};
use floodgate::verification::{Verdict, Verifier, VerifierError};
use parking_lot::Mutex;

use super::plan::Fault;
use super::world::World;

/// Every third user is denied.
pub(super) struct Users {
    world: Arc<World>,
    /// Whom it has allowed, in which sale.
    allowed: Mutex<BTreeSet<(SaleId, UserId)>>,
}

impl Users {
    pub(super) fn new(world: Arc<World>) -> Self {
        Self { world, allowed: Mutex::default() }
    }

    /// Whether it denies a user whenever it is asked.
    pub(super) fn denies(user: &UserId) -> bool {
        user.as_str().bytes().map(u32::from).sum::<u32>() % 3 == 0
    }

    /// Whether it was asked about a user, and has allowed it.
    pub(super) fn has_allowed(&self, sale: &SaleId, user: &UserId) -> bool {
        self.allowed.lock().contains(&(sale.clone(), user.clone()))
    }
}

#[async_trait]
impl Verifier for Users {
    async fn verify(&self, order: &Order) -> Result<Verdict, VerifierError> {
        let world = &self.world;
        let most = if world.strikes(Fault::SlowUserService, 4) { 15_000 } else { 200 };
        tokio::time::sleep(Duration::from_millis(world.number(1, most))).await;
        if world.strikes(Fault::UserService, 4) {
            return Err(VerifierError::Unavailable("simulated".into()));
        }
        if world.strikes(Fault::UserService, 10) {
            let retry_after = (world.number(0, 1) == 0).then(|| Duration::from_secs(2));
            return Err(VerifierError::Busy { retry_after });
        }
        world.note(|| format!("asked about {} in {}", order.user_id, order.sale_id));
        if Self::denies(&order.user_id) {
            return Ok(Verdict::Denied);
        }
        self.allowed.lock().insert((order.sale_id.clone(), order.user_id.clone()));
        Ok(Verdict::Allowed)
    }
}
