//! What every adapter of a port must do. Each suite is written against the port alone, and runs on
//! each adapter.

mod broker;
mod inventory;
mod ledger;

/// A durable subscriber that a test may make; removed after it.
const SUBSCRIBER: &str = "contract";

/// Runs the tests of a suite on the adapter for real servers. `$port` takes it from a stage.
macro_rules! on_real_servers {
    ($port:expr; $($test:ident),* $(,)?) => {
        mod on_real_servers {
            $(
                #[tokio::test]
                async fn $test() {
                    let stage = crate::harness::Stage::new(stringify!($test)).await;
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
