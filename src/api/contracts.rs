//! What producers, subscribers and clients may rely on, for machines: OpenAPI of the API, AsyncAPI of what goes over
//! RabbitMQ, and a JSON Schema of each kind of message.

mod asyncapi;
mod messages;
mod openapi;
pub(super) mod problems;
pub(super) mod schemas;

use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Map, Value};

use super::Shared;
use super::problem::{Problem, ProblemType};
use crate::broker::topology::Topology;
use crate::domain::intent::Limits;

pub(super) use openapi::described;
pub use openapi::openapi;

/// What the documents say of a deployment.
#[derive(Debug, Clone)]
pub struct Contracts {
    /// The names of exchanges and queues.
    pub topology: Topology,
    /// Bounds on one message with orders.
    pub limits: Limits,
    /// How often a message may come back before it becomes a dead letter.
    pub delivery_limit: u32,
}

impl Contracts {
    /// The description of the API of a server with a key, OpenAPI 3.1.
    pub fn openapi(&self) -> Value {
        described(true)
    }

    /// The description of what goes over RabbitMQ, AsyncAPI 3.0.
    pub fn asyncapi(&self) -> Value {
        asyncapi::document(self)
    }

    /// The names of all schemas.
    pub fn schema_names(&self) -> Vec<String> {
        self.schemas().into_iter().map(|(name, _)| name).collect()
    }

    /// A schema as a standalone document, JSON Schema 2020-12. `None`: there is none with this name.
    pub fn schema(&self, name: &str) -> Option<Value> {
        messages::alone(&self.schemas(), name)
    }

    fn schemas(&self) -> Map<String, Value> {
        messages::schemas(self.limits)
    }
}

pub(super) async fn show_openapi(State(api): State<Shared>) -> Json<Value> {
    Json(described(api.token_verifier.is_some()))
}

pub(super) async fn show_asyncapi(State(api): State<Shared>) -> Json<Value> {
    Json(api.contracts.asyncapi())
}

pub(super) async fn show_schema(
    State(api): State<Shared>,
    Path(file): Path<String>,
) -> Result<Json<Value>, Problem> {
    let schema = file.strip_suffix(".json").and_then(|name| api.contracts.schema(name));
    schema.map(Json).ok_or_else(|| {
        let names = api.contracts.schema_names().join(".json, ");
        ProblemType::NotFound.because(format!("accepted: {names}.json"))
    })
}
