//! What every adapter of a port must do. Each suite is written against the port alone, and runs on
//! each adapter.

mod archive;
mod broker;
mod changes;
mod erasure;
mod inventory;
mod ledger;
mod operator_log;
mod returned;
mod webhooks;

/// A durable subscriber that a test may make; removed after it.
const SUBSCRIBER: &str = "contract";

/// Runs the tests of a suite on the adapter for real servers. `$port` takes it from a stage.
macro_rules! on_real_servers {
    ($port:expr; $($test:ident),* $(,)?) => {
        mod on_real_servers {
            $(
                #[tokio::test]
                async fn $test() {
                    let stage = crate::harness::Stage::new("contract").await;
                    super::$test($port(&stage)).await;
                    let left_over = floodgate::broker::Queue::Subscriber(super::super::SUBSCRIBER.into());
                    crate::harness::delete_queue(&stage, left_over).await;
                    stage.remove().await;
                }
            )*
        }
    };
}
use on_real_servers;

/// Runs the tests of a suite on the ledger as it is on a distributed PostgreSQL, each transaction about one sale.
macro_rules! on_a_distributed_ledger {
    ($port:expr; $($test:ident),* $(,)?) => {
        mod on_a_distributed_ledger {
            $(
                #[tokio::test]
                async fn $test() {
                    let distributed = |settings: &mut floodgate::config::Settings| settings.ledger.distributed = true;
                    let stage = crate::harness::Stage::with("contract", distributed).await;
                    super::$test($port(&stage)).await;
                    stage.remove().await;
                }
            )*
        }
    };
}
use on_a_distributed_ledger;

/// Runs the tests of a suite on the embedded adapter, each in a file of its own. `$port` takes it
/// from what is embedded.
macro_rules! on_embedded {
    ($port:expr; $($test:ident),* $(,)?) => {
        mod on_embedded {
            $(
                #[tokio::test]
                async fn $test() {
                    let embedded = crate::harness::embedded::Embedded::new().await;
                    super::$test($port(&embedded)).await;
                }
            )*
        }
    };
}
use on_embedded;

/// Runs the tests of a suite on every ledger.
macro_rules! on_every_ledger {
    ($($test:ident),* $(,)?) => {
        super::on_every_adapter!(
            real: |stage: &crate::harness::Stage| stage.ledger.clone();
            embedded: |embedded: &crate::harness::embedded::Embedded| embedded.ledger.clone();
            $($test),*
        );
        super::on_a_distributed_ledger!(|stage: &crate::harness::Stage| stage.ledger.clone(); $($test),*);
    };
}
use on_every_ledger;

/// Runs the tests of a suite on every ledger with what moves decisions out of it.
macro_rules! on_every_archive {
    ($($test:ident),* $(,)?) => {
        super::on_every_adapter!(
            real: |stage: &crate::harness::Stage| stage.retention.clone();
            embedded: |embedded: &crate::harness::embedded::Embedded| embedded.retention.clone();
            $($test),*
        );
        super::on_a_distributed_ledger!(|stage: &crate::harness::Stage| stage.retention.clone(); $($test),*);
    };
}
use on_every_archive;

/// Runs the tests of a suite on every adapter of a port.
macro_rules! on_every_adapter {
    (real: $real:expr; embedded: $embedded:expr; $($test:ident),* $(,)?) => {
        super::on_real_servers!($real; $($test),*);
        super::on_embedded!($embedded; $($test),*);
    };
}
use on_every_adapter;
