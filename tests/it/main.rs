//! Tests against real servers. Start them first: `eval "$(scripts/services env)"` after
//! `scripts/services up`; `scripts/test` does both.

mod commands;
mod contract;
mod dead_letters;
mod faults;
mod harness;
mod page;
mod scripts_model;
mod worker;
