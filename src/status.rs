//! How a deployment does: what waits in its queues, and what its workers say of themselves.

mod board;
mod depths;
mod health;
mod overview;
mod teller;
mod worker_status;

pub use board::StatusBoard;
pub use depths::{Depths, ShardDepth, watch_depths};
pub use health::WorkerHealth;
pub use overview::{Latency, Overview, WorkerView};
pub use teller::tell;
pub use worker_status::{LatencyBucket, WorkerName, WorkerState, WorkerStatus};
