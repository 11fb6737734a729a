//! Order intake for flash sales: never oversells, loses nothing, one decision per order.
//!
//! The modules, in the order in which an order meets them:
//!
//! 1. [`api`] takes it over HTTP and only enqueues it, if it doesn't come by AMQP,
//! 2. [`broker`] hands over a message with one or more intents,
//! 3. [`intent`] takes it apart, into what [`order`] and [`sale`] describe,
//! 4. [`worker`] takes orders through its stages, batch by batch,
//! 5. [`verification`] says whether the user may buy, for those who want that,
//! 6. [`inventory`] proposes an outcome, from counters in Redis or in the process,
//! 7. [`ledger`] makes it final: a [`decision`],
//! 8. [`event`] is what subscribers get to know of it, through the broker again.
//!
//! Beside the path, [`watch`] is what a process knows of sales, and [`operations`] what operators do
//! to them, which [`operator_log`] keeps. Around all of it: [`cli`] is what people call, [`app`] puts the parts together as
//! [`config`] says, [`digest`], [`outage`], [`retry`], [`shutdown`] and [`telemetry`] serve all, [`sqlite`] is the
//! file of an embedded deployment, [`user_service`] stands in for a shop's own, [`compare`] has other designs to
//! measure against, [`fault`] is for tests.
//!
//! `ARCHITECTURE.md` has the map and the invariants.

pub mod announce;
pub mod api;
pub mod app;
pub mod broker;
pub mod cli;
pub mod clock;
pub mod compare;
pub mod config;
pub mod decision;
pub mod digest;
pub mod event;
pub mod fault;
pub mod intent;
pub mod inventory;
pub mod ledger;
pub mod operations;
pub mod operator_log;
pub mod order;
pub mod outage;
pub mod retry;
pub mod rules;
pub mod sale;
pub mod shutdown;
pub mod sqlite;
pub mod telemetry;
pub mod user_service;
pub mod verification;
pub mod watch;
pub mod worker;
