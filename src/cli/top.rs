//! `floodgate top`.

mod screen;

use std::io::{IsTerminal, stdout};
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use tokio::sync::watch;

use super::output;
use crate::app::App;
use crate::shutdown;
use crate::status::Overview;
use screen::{Course, draw};

/// How long a key may wait to be noticed.
const KEYS_EVERY: Duration = Duration::from_millis(100);
/// Statuses come each second; after so long those of all workers are here.
const ALL_HEARD: Duration = Duration::from_millis(2500);

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  floodgate top\n  floodgate top --json\n\n\
    Shows each second what the workers do, what waits, and which servers answer. It\n\
    listens at the broker only, so it works while the others are unavailable. q ends\n\
    it.")]
pub(super) struct Top {
    /// Print how it goes once, as JSON, instead
    #[arg(long)]
    json: bool,
}

impl Top {
    pub(super) async fn run(self, app: &App) -> anyhow::Result<()> {
        let board = app.status_board().await?;
        if self.json {
            tokio::time::sleep(ALL_HEARD).await;
            let overview = board.now().clone();
            return output::json(&overview);
        }
        if !stdout().is_terminal() {
            bail!("top needs a terminal; top --json prints once");
        }
        let stop = shutdown::on_signal()?;
        let mut terminal = ratatui::try_init()?;
        let watching = watch(&mut terminal, board.follow());
        let watched = tokio::select! {
            watched = watching => watched,
            () = stop.cancelled() => Ok(()),
        };
        ratatui::try_restore()?;
        watched
    }
}

/// Shows each overview until a key says that it is enough.
async fn watch(
    terminal: &mut ratatui::DefaultTerminal,
    mut overviews: watch::Receiver<Overview>,
) -> anyhow::Result<()> {
    let mut course = Course::default();
    loop {
        if overviews.has_changed()? {
            course.add(&overviews.borrow_and_update());
        }
        let overview = overviews.borrow().clone();
        terminal.draw(|frame| draw(frame, &overview, &course))?;
        while event::poll(Duration::ZERO)? {
            if let Event::Key(key) = event::read()?
                && key.kind == KeyEventKind::Press
                && (matches!(key.code, KeyCode::Char('q') | KeyCode::Esc)
                    || key.code == KeyCode::Char('c')
                        && key.modifiers.contains(KeyModifiers::CONTROL))
            {
                return Ok(());
            }
        }
        tokio::time::sleep(KEYS_EVERY).await;
    }
}
