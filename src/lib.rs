//! Order intake for flash sales: never oversells, loses nothing, one decision per order.
//!
//! The modules, in the order in which an order meets them:
//!
//! 1. [`api`] takes it over HTTP and only enqueues it, if it doesn't come by AMQP,
//! 2. [`broker`] delivers a message with one or more intents,
//! 3. [`domain::intent`] parses it into what [`domain::order`] and [`domain::sale`] describe,
//! 4. [`worker`] takes orders through its stages, batch by batch,
//! 5. [`inventory`] proposes an outcome, from counters in Redis,
//! 6. [`verification`] says whether the user may buy, in sales that ask for it,
//! 7. [`ledger`] makes the outcome final, by the rule in [`domain::rules`]: a [`domain::decision`],
//! 8. [`domain::event`] is what subscribers are told, through the broker again, or by the [`webhook_sender`] to [`webhooks`].
//!
//! Beside the path, [`sales`] has what a process knows of sales and what operators do to them, which
//! [`operator_log`] keeps, [`shards`] says which worker takes what, and [`status`] how a deployment does. Around all of it: [`cli`] has the commands, [`app`] builds the adapters from
//! [`config`], [`http`], [`metrics`], [`outage`], [`retry`], [`shutdown`], [`telemetry`] and [`traces`] serve all, [`sqlite`] is the file of an embedded
//! deployment, [`user_service`] stands in for a shop's own, and [`fault`] is for tests.
//!
//! Measurements, and other designs to compare with, are in the package in `lab/`.
//!
//! `ARCHITECTURE.md` has the map and the invariants.

pub mod api;
pub mod app;
pub mod broker;
pub mod cli;
pub mod clock;
pub mod config;
pub mod domain;
pub mod fault;
#[cfg(test)]
mod fuzzing;
mod hosts;
pub mod http;
pub mod inventory;
pub mod ledger;
pub mod metrics;
mod migrations;
pub mod operator_log;
pub mod outage;
pub mod retry;
pub mod sales;
pub mod shards;
pub mod shutdown;
pub mod sqlite;
pub mod status;
pub mod telemetry;
pub mod tls;
pub mod traces;
pub mod user_service;
pub mod verification;
pub mod webhook_sender;
pub mod webhooks;
pub mod worker;
