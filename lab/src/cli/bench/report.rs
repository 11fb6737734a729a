//! What a bench has found, and on what.

use std::fmt::Display;
use std::io::Write;
use std::time::Instant;

use anyhow::Context;
use serde_json::{Map, Value, json};

use super::{Size, median};
use floodgate::app::temp_deployment::TempDeployment;
use floodgate::cli::output;

/// One thing that was measured, with a value for each round.
pub(super) struct Figure {
    name: String,
    unit: &'static str,
    rounds: Vec<f64>,
}

/// One figure over another: of the medians, and the least and the greatest of any round.
struct Ratio {
    name: String,
    value: f64,
    rounds: Vec<f64>,
}

/// What was measured. The first ratio is the one that the bench is about.
#[derive(Default)]
pub(super) struct Report {
    /// What was measured how.
    about: Vec<(&'static str, String)>,
    figures: Vec<Figure>,
    ratios: Vec<Ratio>,
}

impl Report {
    /// A report that begins with the machine and the servers.
    pub(super) async fn of(deployment: &TempDeployment) -> anyhow::Result<Self> {
        let mut report = Self::default();
        report.about("cores", std::thread::available_parallelism()?);
        report.about("fsync", format!("{:.1} ms", fsync_ms()?));
        if deployment.mode() == "embedded" {
            report.about("servers", "none, embedded");
        } else {
            for finding in Box::pin(deployment.app.check()).await.into_iter().take(3) {
                let found = finding.found?;
                let version = found.split(';').next().unwrap_or_default();
                report.about(finding.what, version);
            }
        }
        Ok(report)
    }

    /// The same, of a bench of the whole path.
    pub(super) async fn of_path(
        deployment: &TempDeployment,
        (orders, per_message, _): Size,
    ) -> anyhow::Result<Self> {
        let mut report = Self::of(deployment).await?;
        report.about("orders", orders);
        report.about("intents a message", per_message);
        report.about("events", deployment.app.settings().events.publish.name());
        Ok(report)
    }

    pub(super) fn about(&mut self, what: &'static str, value: impl Display) {
        self.about.push((what, value.to_string()));
    }

    /// Adds a figure, if there is a value of it.
    pub(super) fn figure(&mut self, name: impl Into<String>, unit: &'static str, rounds: &[f64]) {
        if !rounds.is_empty() {
            self.figures.push(Figure { name: name.into(), unit, rounds: rounds.to_vec() });
        }
    }

    /// Adds what `over` is in terms of `under`, which were measured in turns.
    pub(super) fn ratio(&mut self, name: impl Into<String>, over: &[f64], under: &[f64]) {
        let rounds = over.iter().zip(under).map(|(over, under)| over / under).collect();
        let value = median(over) / median(under);
        self.ratios.push(Ratio { name: name.into(), value, rounds });
    }

    /// Its JSON: `about`, `figures` and `ratios` by name, and `ratio`.
    pub(super) fn json(&self) -> Value {
        let about: Map<_, _> =
            self.about.iter().map(|(what, value)| ((*what).to_owned(), json!(value))).collect();
        let figures: Map<_, _> = self.figures.iter().map(Figure::json).collect();
        let ratios: Map<_, _> = self
            .ratios
            .iter()
            .map(|ratio| {
                let (least, greatest) = range(&ratio.rounds);
                let value = json!({ "median": ratio.value, "least": least, "greatest": greatest });
                (ratio.name.clone(), value)
            })
            .collect();
        let first = self.ratios.first().map(|ratio| ratio.value);
        json!({ "ratio": first, "about": about, "figures": figures, "ratios": ratios })
    }

    /// Names and values, figures before ratios.
    pub(super) fn rows(&self) -> Vec<[String; 3]> {
        let figures = self.figures.iter().map(|Figure { name, unit, rounds }| {
            let (least, greatest) = range(rounds);
            let spread = format!("{} to {}", rounded(least), rounded(greatest));
            [name.clone(), format!("{} {unit}", rounded(median(rounds))), spread]
        });
        let ratios = self.ratios.iter().map(|Ratio { name, value, rounds }| {
            let (least, greatest) = range(rounds);
            [name.clone(), format!("{value:.2}"), format!("{least:.2} to {greatest:.2}")]
        });
        figures.chain(ratios).collect()
    }

    /// What it was measured on, in a line.
    pub(super) fn line(&self) -> String {
        let about = self.about.iter().map(|(what, value)| format!("{what} {value}"));
        about.collect::<Vec<_>>().join(", ")
    }

    pub(super) fn print(&self) -> anyhow::Result<()> {
        for (what, value) in &self.about {
            output::text(&format!("{what}: {value}\n"))?;
        }
        output::text("\n")?;
        output::table(["measured", "median", "rounds"], self.rows())?;
        output::text(&format!("\n{}", self.chart()))
    }

    /// Bars for the figures in orders a second.
    fn chart(&self) -> String {
        const WIDTH: f64 = 30.0;
        let rates: Vec<(&str, f64)> = self
            .figures
            .iter()
            .filter(|figure| figure.unit == PER_SECOND)
            .map(|figure| (figure.name.as_str(), median(&figure.rounds)))
            .collect();
        let most = rates.iter().map(|(_, rate)| *rate).fold(1.0, f64::max);
        let names = rates.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let bar = |(name, rate): (&str, f64)| {
            let length = super::run::whole((rate / most * WIDTH).round());
            format!("{name:<names$} {}\n", "█".repeat(length.max(1)))
        };
        rates.into_iter().map(bar).collect()
    }
}

/// The unit that charts are of.
pub(super) const PER_SECOND: &str = "orders/s";

impl Figure {
    fn json(&self) -> (String, Value) {
        let Self { name, unit, rounds } = self;
        let (least, greatest) = range(rounds);
        let value = json!({
            "unit": unit, "median": median(rounds), "least": least, "greatest": greatest, "rounds": rounds,
        });
        (name.clone(), value)
    }
}

fn range(rounds: &[f64]) -> (f64, f64) {
    let least = rounds.iter().copied().fold(f64::INFINITY, f64::min);
    (least, rounds.iter().copied().fold(f64::NEG_INFINITY, f64::max))
}

/// To three digits or a whole number, whichever has more.
fn rounded(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// What it costs to have 4 KiB on the disk, in milliseconds: the median of 50.
fn fsync_ms() -> anyhow::Result<f64> {
    let mut file = tempfile::tempfile().context("a file to measure fsync with")?;
    let mut times = Vec::new();
    for _ in 0..50 {
        file.write_all(&[0; 4096])?;
        let begun = Instant::now();
        file.sync_data()?;
        times.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    Ok(median(&times))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_has_medians_and_their_spread() {
        let mut report = Report::default();
        report.about("cores", 2);
        report.figure("relay", PER_SECOND, &[1000.0, 2000.0, 4000.0]);
        report.figure("nothing", "ms", &[]);
        report.figure("whole path", PER_SECOND, &[3000.0, 1000.0, 2000.0]);
        report.ratio("whole path / relay", &[3000.0, 1000.0, 2000.0], &[1000.0, 2000.0, 4000.0]);
        let json = report.json();
        assert_eq!(json["ratio"], 1.0);
        assert_eq!(json["ratios"]["whole path / relay"]["least"], 0.5);
        assert_eq!(json["figures"]["relay"]["rounds"][2], 4000.0);
        let rows = report.rows();
        assert_eq!(rows[0], ["relay", "2000 orders/s", "1000 to 4000"]);
        assert_eq!(rows[2], ["whole path / relay", "1.00", "0.50 to 3.00"]);
        assert_eq!(report.chart().lines().count(), 2);
    }
}
