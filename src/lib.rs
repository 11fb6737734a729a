//! Order intake for flash sales: never oversells, loses nothing, one decision per order id.
//!
//! The modules, in the order in which an order meets them:
//!
//! 1. [`broker`] hands over a message with one or more intents,
//! 2. [`intent`] takes it apart, into what [`order`] and [`sale`] describe,
//! 3. [`worker`] takes orders through its stages, batch by batch,
//! 4. [`inventory`] proposes an outcome, from counters in Redis,
//! 5. [`ledger`] makes it final: a [`decision`],
//! 6. [`event`] is what subscribers get to know of it, through the broker again.
//!
//! Around them: [`sqlite`] is the one file of a deployment without servers, [`cli`] is what people call, [`app`] puts the parts together as [`config`] says,
//! [`retry`], [`shutdown`] and [`telemetry`] serve all, [`fault`] is for tests.
//!
//! `ARCHITECTURE.md` has the map and the invariants.

pub mod app;
pub mod broker;
pub mod cli;
pub mod config;
pub mod decision;
pub mod event;
pub mod fault;
pub mod intent;
pub mod inventory;
pub mod ledger;
pub mod order;
pub mod retry;
pub mod sale;
pub mod shutdown;
pub mod sqlite;
pub mod telemetry;
pub mod worker;
