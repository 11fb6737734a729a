//! Faults of every kind, drawn from a seed, against a whole deployment under a steady load, and a check that every
//! promise was kept.
//!
//! - [`plan`] draws the faults,
//! - [`demand`] has the orders, [`producers`] send them by both ways, [`noise`] what is wrong among them,
//! - [`crew`] has the processes of floodgate, and [`servers`] the servers, whose links go through fault proxies,
//! - [`book`] keeps what was confirmed and what a subscriber was told, and [`verdict`] compares it with the ledger.

pub mod book;
pub mod crew;
pub mod demand;
pub mod noise;
pub mod plan;
pub mod producers;
pub mod run;
pub mod servers;
pub mod verdict;
