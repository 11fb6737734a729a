//! `floodgate bench`.
use clap::Args;
use crate::app::App;
#[derive(Debug, Args)]
pub(super) struct Bench {}
#[derive(Debug, Args)]
pub(super) struct Relay {}
impl Bench { pub(super) async fn run(self, _app: &App) -> anyhow::Result<()> { Ok(()) } }
impl Relay { pub(super) async fn run(self, _app: &App) -> anyhow::Result<()> { Ok(()) } }
