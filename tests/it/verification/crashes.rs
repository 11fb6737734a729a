//! A worker that dies around a check.

use std::sync::Arc;

use floodgate::user_service::{Behaviour, UserService};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::checked_sale;
use crate::harness::check::{self, Totals};
use crate::harness::process::WorkerProcess;
use crate::harness::{Stage, orders};

// The user service has to answer while the test waits for a process.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_around_a_check_loses_nothing_and_denies_nobody() {
    for gap in ["verifying", "verified", "deferred"] {
        let users = Arc::new(UserService::new(Behaviour::default()));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let stop = CancellationToken::new();
        let serving = tokio::spawn(users.clone().serve(listener, stop.clone()));
        let mut stage = Stage::with(gap, |settings| settings.verification.url = url.clone()).await;
        stage.open(checked_sale("s", 100)).await;
        let all = orders("s", 400);
        stage.post_orders(&all).await;
        users.set_failing(gap == "deferred");
        let fail_points = format!("{gap}=2*off->return");
        let doomed = WorkerProcess::with(
            &stage,
            &[
                ("FAILPOINTS", fail_points.as_str()),
                ("FLOODGATE_WORKER__MAX_BATCH", "32"),
                ("FLOODGATE_VERIFICATION__URL", url.as_str()),
            ],
        );
        assert_eq!(doomed.wait(), None, "{gap}: it aborts");
        users.set_failing(false);
        let worker = stage.worker().await;
        let totals = check::settled(&mut stage, &all).await;
        assert_eq!(totals, Totals { created: 100, sold_out: 300, rejected: 0 }, "{gap}");
        worker.stop().await;
        stage.remove().await;
        stop.cancel();
        serving.await.expect("no panic").expect("served");
    }
}
