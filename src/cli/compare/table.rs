//! A report as people read it, within 80 columns.

use std::fmt::Write;

use crate::cli::output;
use crate::compare::Technique;
use crate::compare::report::{Report, Run, Scenario};

/// Prints everything.
pub(super) fn print(report: &Report) -> anyhow::Result<()> {
    output::text(&text(report)?)
}

fn text(report: &Report) -> anyhow::Result<String> {
    let mut text = String::new();
    let Report { stock, buyers, at_once, processes, redis_round_trip_ms, .. } = report;
    writeln!(
        text,
        "{stock} units, {buyers} buyers, {at_once} at once, {processes} processes, Redis \
         {redis_round_trip_ms:.1} ms away"
    )?;
    let mut scenarios: Vec<Scenario> = report.results.iter().map(|run| run.scenario).collect();
    scenarios.dedup();
    for scenario in scenarios {
        writeln!(text, "\n{}: {}", scenario.name(), scenario.summary())?;
        let runs = |design| {
            let of = move |run: &&Run| run.scenario == scenario && run.design == design;
            report.results.iter().filter(of)
        };
        writeln!(text, "{}", HEADINGS)?;
        for design in Technique::ALL {
            for run in runs(design) {
                writeln!(text, "{}", row(run))?;
            }
        }
    }
    for left_out in &report.left_out {
        writeln!(text, "\nleft out: {left_out}")?;
    }
    Ok(text)
}

const HEADINGS: &str =
    "design             sold  over under wrong early  calls    /s   p50   p99  lock  lost";

fn row(run: &Run) -> String {
    let counts = &run.counts;
    let lock = run.longest_under_lock_ms.map_or("-".to_owned(), |millis| format!("{millis:.0}"));
    let lost = run.lost.map_or("-".to_owned(), |lost| lost.to_string());
    format!(
        "{:<17} {:>5} {:>5} {:>5} {:>5} {:>5} {:>6} {:>5.0} {:>5.0} {:>5.0} {lock:>5} {lost:>5}",
        run.design,
        counts.sold,
        counts.oversold,
        counts.undersold,
        counts.told_wrong,
        counts.sold_out_too_early,
        run.user_service_calls,
        counts.answers_per_s,
        counts.p50_ms,
        counts.p99_ms,
    )
}
