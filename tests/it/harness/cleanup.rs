//! What tests leave on the servers when they fail, and the end of it.

use std::path::Path;

use floodgate::app::temp_deployment::TempDeployment;
use floodgate::config::Settings;
use secrecy::ExposeSecret;
use sqlx::Connection;
use tokio::sync::OnceCell;

use super::{Stage, settings};

/// Removes a deployment when the test that made it panics.
pub struct Cleanup {
    pub settings: Box<Settings>,
    pub name: String,
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let (settings, name) = (self.settings.clone(), self.name.clone());
        // The runtime of the test can't wait for anything now.
        let removing = std::thread::spawn(move || {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            runtime.enable_all().build()?.block_on(remove(&settings, &name))
        });
        if let Ok(Err(error)) = removing.join() {
            eprintln!("{} is left behind: {error:#}", self.name);
        }
    }
}

async fn remove(settings: &Settings, name: &str) -> anyhow::Result<()> {
    TempDeployment::existing(settings, name)?.remove().await
}

/// Removes what processes left behind that have ended without cleaning up, once for this process.
pub async fn sweep(settings: &Settings) {
    static SWEPT: OnceCell<()> = OnceCell::const_new();
    SWEPT.get_or_init(|| remove_leftovers(settings)).await;
}

async fn remove_leftovers(settings: &Settings) {
    for name in leftovers(settings).await.expect("PostgreSQL") {
        // Another process may be removing it too.
        if let Err(error) = Box::pin(remove(settings, &name)).await {
            eprintln!("{name} is left behind: {error:#}");
        }
    }
}

/// Deployments of processes that have ended.
async fn leftovers(settings: &Settings) -> Result<Vec<String>, sqlx::Error> {
    let mut connection = sqlx::PgConnection::connect(settings.database_url.expose_secret()).await?;
    let names =
        sqlx::query_scalar("select datname::text from pg_database where datname like 'test-%'");
    let mut names: Vec<String> = names.fetch_all(&mut connection).await?;
    names.retain(|name| {
        // As `unique` makes them: test-WHAT-PROCESS-NUMBER.
        let process = name.rsplit('-').nth(1).unwrap_or_default();
        process.parse::<u32>().is_ok() && !Path::new("/proc").join(process).exists()
    });
    Ok(names)
}

async fn is_there(settings: &Settings, name: &str) -> bool {
    let url = settings.database_url.expose_secret();
    let mut connection = sqlx::PgConnection::connect(url).await.expect("PostgreSQL");
    let found = sqlx::query_scalar("select exists (select from pg_database where datname = $1)");
    found.bind(name).fetch_one(&mut connection).await.expect("an answer")
}

#[tokio::test]
async fn a_test_that_panics_leaves_nothing_behind() {
    let (tell, told) = std::sync::mpsc::channel();
    let failing = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let stage = Stage::new("panics").await;
            tell.send(stage.deployment.app.settings().namespace.clone()).expect("a listener");
            panic!("as a failing assertion does");
        });
    });
    assert!(failing.join().is_err());
    let name = told.recv().expect("a name");
    assert!(!is_there(&settings(), &name).await);
}

#[tokio::test]
async fn what_a_killed_process_left_behind_is_removed() {
    let mut process = std::process::Command::new("true").spawn().expect("true runs");
    process.wait().expect("it ends");
    let settings = settings();
    let name = format!("test-killed-{}-0", process.id());
    Box::pin(TempDeployment::create(&settings, &name)).await.expect("servers");
    assert!(is_there(&settings, &name).await);
    remove_leftovers(&settings).await;
    assert!(!is_there(&settings, &name).await);
}
