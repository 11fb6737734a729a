//! Webhooks on PostgreSQL.

use async_trait::async_trait;

use super::PostgresLedger;
use crate::ledger::webhooks as statements;

use crate::webhooks::{
    Delivery, DeliveryState, Round, Webhook, WebhookChange, WebhookError, WebhookId, WebhookQueue,
    Webhooks,
};

#[async_trait]
impl Webhooks for PostgresLedger {
    async fn register(&self, webhook: &Webhook) -> Result<bool, WebhookError> {
        let registering = async |db: &mut _| statements::register(db, webhook).await;
        self.run(registering).await.map_err(WebhookError::new)
    }

    async fn webhooks(&self, id: Option<WebhookId>) -> Result<Vec<Webhook>, WebhookError> {
        let reading = self.run(async |db| statements::webhooks(db, id).await).await;
        reading.map_err(WebhookError::new)
    }

    async fn change(&self, webhook: &Webhook, change: WebhookChange) -> Result<bool, WebhookError> {
        let changing = async |db: &mut _| statements::change(db, webhook, change).await;
        self.run(changing).await.map_err(WebhookError::new)
    }

    async fn delete(&self, id: WebhookId) -> Result<bool, WebhookError> {
        let deleting = async |db: &mut _| statements::delete(db, id).await;
        self.run(deleting).await.map_err(WebhookError::new)
    }

    async fn deliveries(
        &self,
        id: WebhookId,
        state: Option<DeliveryState>,
        limit: u32,
    ) -> Result<Vec<Delivery>, WebhookError> {
        let reading = self.run(async |db| statements::deliveries(db, id, state, limit).await).await;
        reading.map_err(WebhookError::new)
    }
}

#[async_trait]
impl WebhookQueue for PostgresLedger {
    async fn claim(
        &self,
        sender: &str,
        until_ms: i64,
        now_ms: i64,
    ) -> Result<Vec<Webhook>, WebhookError> {
        let claiming = async |db: &mut _| statements::claim(db, sender, until_ms, now_ms).await;
        self.run(claiming).await.map_err(WebhookError::new)
    }

    async fn release(&self, sender: &str) -> Result<(), WebhookError> {
        let releasing = async |db: &mut _| statements::release(db, sender).await;
        self.run(releasing).await.map_err(WebhookError::new)
    }

    async fn due(
        &self,
        id: WebhookId,
        now_ms: i64,
        limit: u32,
    ) -> Result<Vec<Delivery>, WebhookError> {
        let reading = self.run(async |db| statements::due(db, id, now_ms, limit).await).await;
        reading.map_err(WebhookError::new)
    }

    async fn record(&self, sender: &str, round: Round<'_>) -> Result<Option<u64>, WebhookError> {
        let recording = async |db: &mut _| statements::record(db, sender, round).await;
        self.run(recording).await.map_err(WebhookError::new)
    }

    async fn forget(&self, id: WebhookId, keep: u32) -> Result<(), WebhookError> {
        let forgetting = async |db: &mut _| statements::forget(db, id, keep).await;
        self.run(forgetting).await.map_err(WebhookError::new)
    }
}
