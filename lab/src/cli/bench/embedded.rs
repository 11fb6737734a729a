//! An embedded deployment against one on servers.

use std::path::PathBuf;

use secrecy::SecretString;

use super::report::{PER_SECOND, Report};
use super::run::{Runner, WORKER};
use super::{Size, needs_servers};
use crate::cli::load::Load;
use floodgate::app::temp_deployment::TempDeployment;

pub(super) async fn measure(
    servers: &TempDeployment,
    config: Option<PathBuf>,
    size: Size,
) -> anyhow::Result<Report> {
    needs_servers(servers, "--embedded")?;
    let mut settings = servers.app.settings().clone();
    for url in [&mut settings.amqp_url, &mut settings.redis_url, &mut settings.database_url] {
        *url = SecretString::default();
    }
    let name = settings.namespace.clone();
    let embedded = TempDeployment::create(&settings, &name).await?;
    let measured = both(servers, &embedded, config, size).await;
    embedded.app.close().await;
    let removed = embedded.remove().await;
    let report = measured?;
    removed?;
    Ok(report)
}

async fn both(
    servers: &TempDeployment,
    embedded: &TempDeployment,
    config: Option<PathBuf>,
    size: Size,
) -> anyhow::Result<Report> {
    let mut report = Report::of_path(servers, size).await?;
    let (orders, per_message, rounds) = size;
    let mut on_servers = Runner::new(servers, config.clone()).await?;
    let mut in_file = Runner::new(embedded, config).await?;
    let mut measured = [Vec::new(), Vec::new()];
    for round in 0..rounds {
        eprintln!("round {} of {rounds}", round + 1);
        let load = Load::new(round, orders);
        for ((deployment, runner), rates) in
            [(servers, &mut on_servers), (embedded, &mut in_file)].into_iter().zip(&mut measured)
        {
            load.open_sales(deployment).await?;
            let rate = runner.throughput(&load, per_message.into(), WORKER).await?.orders_per_s;
            rates.push(rate);
        }
    }
    on_servers.end().await;
    in_file.end().await;
    let [on_servers, in_file] = measured;
    report.figure("whole path on servers", PER_SECOND, &on_servers);
    report.figure("whole path embedded", PER_SECOND, &in_file);
    report.ratio("embedded / servers", &in_file, &on_servers);
    Ok(report)
}
