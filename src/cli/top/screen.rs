//! What `floodgate top` shows.

use std::collections::VecDeque;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Paragraph, Row, Sparkline, Table};

use crate::status::{Overview, WorkerState, WorkerView};

/// Seconds that the lines are of.
const MAX_POINTS: usize = 300;

/// The last minutes.
#[derive(Default)]
pub(super) struct Course {
    rate: VecDeque<u64>,
    waiting: VecDeque<u64>,
}

impl Course {
    pub(super) fn add(&mut self, overview: &Overview) {
        for (line, value) in [
            (&mut self.rate, overview.per_second.values().sum::<f64>().round()),
            (&mut self.waiting, waiting(overview) as f64),
        ] {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            line.push_back(value.max(0.0) as u64);
            if line.len() > MAX_POINTS {
                line.pop_front();
            }
        }
    }
}

fn waiting(overview: &Overview) -> u64 {
    ["intents", "returned"].iter().filter_map(|queue| overview.queues.get(*queue)).sum()
}

pub(super) fn draw(frame: &mut Frame<'_>, overview: &Overview, course: &Course) {
    let servers = u16::try_from(overview.dependencies.len()).unwrap_or(0).max(1) + 2;
    let [head, figures, lines, middle, workers] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(4),
        Constraint::Length(6),
        Constraint::Length(servers.max(5)),
        Constraint::Min(3),
    ])
    .areas(frame.area());
    frame.render_widget(headline(overview), head);
    frame.render_widget(figures_of(overview), figures);
    let [rate, waits] = Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).areas(lines);
    line(frame, rate, "decisions a second", &course.rate);
    line(frame, waits, "messages that wait", &course.waiting);
    let [answers, dead] =
        Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).areas(middle);
    frame.render_widget(servers_of(overview), answers);
    frame.render_widget(dead_letters_of(overview), dead);
    frame.render_widget(workers_of(&overview.workers), workers);
}

fn headline(overview: &Overview) -> Line<'static> {
    let time = overview.at.format("%H:%M:%S UTC").to_string();
    Line::from(vec![
        Span::from(format!("floodgate  {time}  q ends  ")).bold(),
        Span::from(overview.alarm.clone().unwrap_or_default()).red().bold(),
    ])
}

fn figures_of(overview: &Overview) -> Paragraph<'static> {
    let count = |code: &str| overview.decisions.get(code).copied().unwrap_or_default();
    let (created, sold_out) = (count("created"), count("sold_out"));
    let rejected = overview.decisions.values().sum::<u64>() - created - sold_out;
    let (p50, p99) = overview
        .latency
        .map_or(("-".to_owned(), "-".to_owned()), |latency| (time(latency.p50), time(latency.p99)));
    let wait = overview.wait_s.map_or("can't be told".to_owned(), time);
    let queue = |name: &str| overview.queues.get(name).copied().unwrap_or_default();
    let rate: f64 = overview.per_second.values().sum();
    Paragraph::new(vec![
        Line::from(format!(
            "decided {rate:.0}/s   created {created}   sold out {sold_out}   rejected {rejected}"
        )),
        Line::from(format!("decided in  half {p50}   nearly all {p99}")),
        Line::from(format!(
            "waiting {}   oldest {}   to wait {wait}",
            waiting(overview),
            time(overview.oldest_s),
        )),
        Line::from(format!(
            "deferred {}   dead letters {}",
            queue("deferred"),
            queue("dead_letters")
        )),
    ])
}

fn line(frame: &mut Frame<'_>, area: Rect, title: &'static str, values: &VecDeque<u64>) {
    let room = usize::from(area.width.saturating_sub(2));
    let shown: Vec<u64> = values.iter().skip(values.len().saturating_sub(room)).copied().collect();
    let peak = shown.iter().max().copied().unwrap_or_default();
    let block = Block::bordered().title(format!(" {title}, peak {peak} "));
    frame.render_widget(Sparkline::default().block(block).data(shown).cyan(), area);
}

fn servers_of(overview: &Overview) -> Paragraph<'static> {
    let lines = overview.dependencies.iter().map(|(server, answering)| {
        if answering.down == 0 {
            return Line::from(format!("{server}: answers"));
        }
        let all = answering.up + answering.down;
        Line::from(format!("{server}: no answer for {} of {all} workers", answering.down)).red()
    });
    Paragraph::new(lines.collect::<Vec<_>>()).block(Block::bordered().title(" servers "))
}

fn dead_letters_of(overview: &Overview) -> Paragraph<'static> {
    let published = overview.dead_letters.iter().filter(|(_, count)| **count > 0);
    let mut reasons: Vec<(&String, &u64)> = published.collect();
    reasons.sort_by(|one, other| other.1.cmp(one.1));
    let lines = reasons.into_iter().map(|(reason, count)| Line::from(format!("{reason}: {count}")));
    let block = Block::bordered().title(" dead letters, by reason ");
    Paragraph::new(lines.collect::<Vec<_>>()).block(block)
}

fn workers_of(workers: &[WorkerView]) -> Table<'static> {
    let rows = workers.iter().map(|worker| {
        let state = match worker.state {
            WorkerState::Silent => format!("silent for {}", time(worker.silent_s)),
            WorkerState::Running => "running".to_owned(),
            WorkerState::Idle => "takes no orders".to_owned(),
            WorkerState::Gone | WorkerState::Ended => "gone".to_owned(),
        };
        let is_silent = worker.state == WorkerState::Silent;
        let style = if is_silent { Style::new().red() } else { Style::new() };
        let cells = [
            format!("{} {}", worker.host, worker.process),
            worker.version.clone(),
            state,
            format!("{:.0}/s", worker.drain_rate),
            worker.in_flight.to_string(),
            time(worker.oldest_s),
        ];
        Row::new(cells.map(Cell::from)).style(style)
    });
    let widths = [
        Constraint::Fill(3),
        Constraint::Length(9),
        Constraint::Fill(3),
        Constraint::Length(8),
        Constraint::Length(9),
        Constraint::Length(8),
    ];
    let head = Row::new(["worker", "version", "state", "orders", "in flight", "oldest"]).bold();
    let title = format!(" workers: {} ", workers.len());
    Table::new(rows, widths).header(head).block(Block::bordered().title(title))
}

fn time(seconds: f64) -> String {
    match seconds {
        ..1.0 => format!("{:.0} ms", seconds * 1e3),
        1.0..90.0 => format!("{seconds:.1} s"),
        _ => format!("{:.0} min", seconds / 60.0),
    }
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;

    fn overview() -> Overview {
        let worker = WorkerView {
            worker: "w".into(),
            host: "pod-1".into(),
            process: 7,
            version: "0.2.0".into(),
            state: WorkerState::Running,
            silent_s: 0.2,
            in_flight: 12,
            oldest_s: 0.03,
            drain_rate: 950.0,
        };
        let (host, state) = ("pod-2".into(), WorkerState::Silent);
        let frozen = WorkerView { host, state, silent_s: 12.0, ..worker.clone() };
        serde_json::from_value(serde_json::json!({
            "at": "2026-11-27T08:00:00Z", "alarm": "Not answering: Redis",
            "decisions": { "created": 100, "sold_out": 900, "expired": 5 },
            "per_second": { "sold_out": 950.0 },
            "latency": { "p50": 0.016, "p99": 1.25 },
            "queues": { "intents": 4000, "returned": 2, "deferred": 3, "dead_letters": 8 },
            "oldest_s": 12.0, "drain_rate": 950.0, "ahead": 4026, "settled": 1005, "wait_s": 4.2,
            "dead_letters": { "bad_json": 7, "unknown_sale": 1 },
            "paused": {},
            "dependencies": {
                "PostgreSQL": { "up": 2, "down": 0 }, "Redis": { "up": 1, "down": 1 },
            },
            "workers": [worker, frozen],
        }))
        .unwrap()
    }

    #[test]
    fn it_fits_a_terminal_of_80_columns() {
        let (overview, mut course) = (overview(), Course::default());
        for _ in 0..3 {
            course.add(&overview);
        }
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
        terminal.draw(|frame| draw(frame, &overview, &course)).unwrap();
        insta::assert_snapshot!(terminal.backend());
    }

    #[test]
    fn a_terminal_without_room_is_no_failure() {
        for (width, height) in [(1, 1), (10, 3), (40, 8)] {
            let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
            terminal.draw(|frame| draw(frame, &overview(), &Course::default())).unwrap();
        }
    }
}
