//! What floodgate is about: orders, sales, and how they are decided. No I/O, nothing asynchronous.

pub mod decision;
pub mod digest;
pub mod erasure;
pub mod event;
pub mod event_batch;
pub mod intent;
pub mod order;
pub mod rules;
pub mod sale;
pub mod trace;
mod watermark;
pub mod whole;
