//! Tests against real servers. Start them first: `eval "$(scripts/services env)"` after
//! `scripts/services up`; `scripts/test` does both. The tests of embedded adapters need none.

mod alerts;
mod announcements;
mod api;
mod audit;
mod commands;
mod contract;
mod dead_letters;
mod deferral;
mod embedded;
mod embedded_up;
mod event_batches;
mod faults;
mod harness;
mod hosts;
mod ledger_faults;
mod machine;
mod metrics;
mod operator_log;
mod outages;
mod page;
mod pause;
mod permissions;
mod poison;
mod redis_faults;
mod restored;
mod server_faults;
mod shards;
mod snapshots;
mod tls;
mod traces;
mod undersell;
mod user_service;
mod vectors;
mod verification;
mod worker;
