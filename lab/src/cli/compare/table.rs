//! A report as people read it, within 80 columns.

use std::fmt::Write;

use crate::compare::report::{Conditions, Report, Scenario, Summary};
use floodgate::cli::output;

const LEGEND: &str = "
sold   orders created, of one unit each; over: beyond the stock
under  units left although somebody wanted them
wrong  answers that would have to be different for all to be true: \"bought\"
       beyond the stock, \"sold out\" for each unit left, or to who has an order
early  told \"sold out\" before somebody even asked who then bought
none   buyers without an answer at the time limit
calls  that the user service got
/s     buyers answered a second; p50, p99: how long an answer took, in ms
lock   the longest time anybody was under the lock, in ms
twice  orders of buyers who had one already; none but floodgate knows a repeat
left   the design's own counter afterwards
lost   units neither sold nor left; negative: promised twice
too slow: half of the stock was not sold in time, so that nothing happened
With several runs: in how many of them more was sold than there was, and the
least, median and most units. Other figures are medians; over and lock are the
most of any run.
";

/// Prints everything.
pub(super) fn print(report: &Report) -> anyhow::Result<()> {
    output::text(&text(report)?)
}

fn text(report: &Report) -> anyhow::Result<String> {
    let mut text = String::new();
    let Conditions { stock, buyers, at_once, processes, .. } = report.conditions;
    let round_trip = report.redis_round_trip_ms;
    writeln!(
        text,
        "{stock} units, {buyers} buyers, {at_once} at once, {processes} processes, Redis \
         {round_trip:.1} ms away"
    )?;
    for scenario in Scenario::ALL {
        let mut of_scenario = report.of(scenario).peekable();
        let Some(first) = of_scenario.peek() else { continue };
        let (headings, row) = columns(scenario, first.runs);
        writeln!(text, "\n{}: {}\n{headings}", scenario.name(), scenario.summary())?;
        for summary in of_scenario {
            writeln!(text, "{:<17}{}", summary.design, row(summary))?;
        }
    }
    text.push_str(LEGEND);
    for left_out in &report.left_out {
        writeln!(text, "\nleft out: {left_out}")?;
    }
    Ok(text)
}

/// What is told of `scenario`.
fn columns(scenario: Scenario, runs: usize) -> (&'static str, fn(&Summary) -> String) {
    match scenario {
        Scenario::Fast | Scenario::Slow | Scenario::Incident if runs == 1 => (
            "design            sold  over under wrong early  none calls    /s   p50   p99  lock",
            one_run,
        ),
        Scenario::Fast | Scenario::Slow | Scenario::Incident => (
            "design           oversold in least  med most under wrong early  none    /s  lock",
            many_runs,
        ),
        Scenario::Kill | Scenario::Added | Scenario::KillApi => (
            "design            sold  over under wrong early twice  none  left  lost   p99",
            after_an_event,
        ),
    }
}

fn one_run(summary: &Summary) -> String {
    let Summary { sold, undersold, told_wrong, sold_out_too_early, unserved, .. } = summary;
    let Summary { user_service_calls, answers_per_s, p50_ms, p99_ms, .. } = summary;
    let (over, lock) = (summary.most_oversold(), lock(summary));
    format!(
        "{sold:>5} {over:>5} {undersold:>5} {told_wrong:>5} {sold_out_too_early:>5} {unserved:>5} \
         {user_service_calls:>5} {answers_per_s:>5.0} {p50_ms:>5.0} {p99_ms:>5.0} {lock:>5}"
    )
}

fn many_runs(summary: &Summary) -> String {
    let Summary { undersold, told_wrong, sold_out_too_early, unserved, answers_per_s, .. } =
        summary;
    let times = format!("{} of {}", summary.runs_oversold, summary.runs);
    let least = summary.oversold.first().copied().unwrap_or(0);
    let (median, lock) = (summary.median_oversold(), lock(summary));
    let most = summary.most_oversold();
    format!(
        "{times:>11} {least:>5} {median:>4} {most:>4} {undersold:>5} {told_wrong:>5} \
         {sold_out_too_early:>5} {unserved:>5} {answers_per_s:>5.0} {lock:>5}"
    )
}

fn after_an_event(summary: &Summary) -> String {
    let Summary { sold, undersold, told_wrong, sold_out_too_early, .. } = summary;
    let Summary { second_orders, unserved, p99_ms, .. } = summary;
    let over = summary.most_oversold();
    let units = |units: Option<i64>| units.map_or("-".to_owned(), |units| units.to_string());
    let (left, lost) = (units(summary.left), units(summary.lost));
    let reached = if summary.events_happened < summary.runs { " too slow" } else { "" };
    format!(
        "{sold:>5} {over:>5} {undersold:>5} {told_wrong:>5} {sold_out_too_early:>5} \
         {second_orders:>5} {unserved:>5} {left:>5} {lost:>5} {p99_ms:>5.0}{reached}"
    )
}

fn lock(summary: &Summary) -> String {
    summary.longest_under_lock_ms.map_or("-".to_owned(), |millis| format!("{millis:.0}"))
}
