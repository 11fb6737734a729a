//! A report as a picture: units oversold in the incident, and buyers answered at a slow user check.

use super::Technique;
use super::report::{Conditions, Report, Scenario, Summary};
use super::svg::{Anchor, Font, Svg};

const WIDTH: f64 = 900.0;
const MARGIN: f64 = 28.0;
/// Where rows begin, and how high one is.
const TOP: f64 = 148.0;
const ROW: f64 = 46.0;
/// The left panel: dots for the units oversold, and room for words beside them.
const OVERSOLD: Panel = Panel { from: 336.0, to: 540.0 };
/// The right panel: bars for buyers answered a second.
const RATE: Panel = Panel { from: 694.0, to: 822.0 };

const INK: &str = "#1f2430";
const SOFT: &str = "#5b6472";
const GRID: &str = r##"stroke="#e3e6eb" stroke-width="1""##;
const GOOD: &str = "#0f766e";
const BAD: &str = "#b42318";
const PLAIN: &str = "#8a94a3";

/// Where a panel is, from left to right.
struct Panel {
    from: f64,
    to: f64,
}

impl Panel {
    fn at(&self, share: f64) -> f64 {
        self.from + (self.to - self.from) * share.clamp(0.0, 1.0)
    }
}

/// There is nothing to draw.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a chart needs runs of the incident or of the slow user service")]
pub struct NothingToDraw;

/// Draws `report` as SVG.
pub fn draw(report: &Report) -> Result<String, NothingToDraw> {
    let designs: Vec<Technique> = Technique::ALL
        .into_iter()
        .filter(|&design| report.summaries.iter().any(|summary| summary.design == design))
        .collect();
    let (incident, slow) =
        (by_design(report, Scenario::Incident), by_design(report, Scenario::Slow));
    if !has(report, Scenario::Incident) && !has(report, Scenario::Slow) {
        return Err(NothingToDraw);
    }
    let height = TOP + ROW * designs.len() as f64 + 44.0;
    let mut svg = Svg::new(WIDTH, height);
    let look = r##"rx="10" fill="#ffffff" stroke="#d5dae1""##;
    svg.rect((0.5, 0.5), (WIDTH - 1.0, height - 1.0), look);
    heading(&mut svg, report);
    let most = report.of(Scenario::Incident).map(Summary::most_oversold).max().unwrap_or(0);
    let fastest = report.of(Scenario::Slow).map(|slow| slow.answers_per_s).fold(10.0, f64::max);
    let axes = Axes { units: ceiling(most), decades: fastest.log10().ceil() };
    axes.draw(&mut svg, report, TOP + ROW * designs.len() as f64);
    let mut told = Vec::new();
    for (row, &design) in designs.iter().enumerate() {
        let middle = TOP + ROW * (row as f64 + 0.5);
        name(&mut svg, design, middle);
        if let Some(summary) = incident(design) {
            told.push(format!("{design}: {}", dots(&mut svg, &axes, summary, middle)));
        }
        if let Some(summary) = slow(design) {
            bar(&mut svg, &axes, summary, middle);
        }
    }
    let title = "Units oversold in the incident, and buyers answered a second at a slow user check";
    Ok(svg.finish(title, &format!("Oversold in the incident. {}.", told.join("; "))))
}

fn has(report: &Report, scenario: Scenario) -> bool {
    report.of(scenario).next().is_some()
}

fn by_design<'a>(
    report: &'a Report,
    scenario: Scenario,
) -> impl Fn(Technique) -> Option<&'a Summary> {
    move |design| report.of(scenario).find(|summary| summary.design == design)
}

fn heading(svg: &mut Svg, report: &Report) {
    let Conditions { stock, buyers, at_once, processes, .. } = report.conditions;
    let title = Font { size: 20.0, bold: true, colour: INK };
    svg.text((MARGIN, 42.0), Anchor::Start, title, "The same sale, by each design");
    let soft = Font { size: 13.0, bold: false, colour: SOFT };
    let conditions = format!(
        "{stock} units, {buyers} buyers, {at_once} of them at once, {processes} processes, Redis \
         {:.1} ms away",
        report.redis_round_trip_ms
    );
    svg.text((MARGIN, 64.0), Anchor::Start, soft, &conditions);
    let panel = Font { size: 14.0, bold: true, colour: INK };
    if has(report, Scenario::Incident) {
        svg.text((OVERSOLD.from, 98.0), Anchor::Start, panel, "Units oversold in the incident");
        let how = "the user check hangs past the lock's life; a dot a run";
        svg.text((OVERSOLD.from, 115.0), Anchor::Start, soft, how);
    }
    if has(report, Scenario::Slow) {
        svg.text((RATE.from, 98.0), Anchor::Start, panel, "Answers a second");
        svg.text((RATE.from, 115.0), Anchor::Start, soft, "at a user check of 50 ms");
    }
}

struct Axes {
    /// At the right end of the left panel, a power of ten.
    units: u32,
    /// Powers of ten in the right one.
    decades: f64,
}

impl Axes {
    fn units_at(&self, units: u32) -> f64 {
        // One unit is to be seen beside a thousand, and zero has no logarithm.
        OVERSOLD.at(f64::from(units + 1).log10() / f64::from(self.units + 1).log10())
    }

    fn rate_at(&self, per_s: f64) -> f64 {
        RATE.at(per_s.max(1.0).log10() / self.decades)
    }

    fn draw(&self, svg: &mut Svg, report: &Report, bottom: f64) {
        let font = Font { size: 11.0, bold: false, colour: SOFT };
        let mut mark = |x: f64, label: &str| {
            svg.line((x, TOP - 4.0), (x, bottom), GRID);
            svg.text((x, bottom + 17.0), Anchor::Middle, font, label);
        };
        if has(report, Scenario::Incident) {
            mark(self.units_at(0), "0");
            let mut units = 1;
            while units <= self.units {
                mark(self.units_at(units), &short(units.into()));
                units *= 10;
            }
        }
        let mut rate = if has(report, Scenario::Slow) { 1.0 } else { f64::INFINITY };
        while rate <= 10_f64.powf(self.decades) {
            mark(self.rate_at(rate), &short(rate));
            rate *= 10.0;
        }
    }
}

fn name(svg: &mut Svg, design: Technique, middle: f64) {
    let ours = design == Technique::Floodgate;
    if ours {
        let look = r##"rx="6" fill="#0f766e" fill-opacity="0.08""##;
        svg.rect((14.0, middle - ROW / 2.0 + 1.0), (WIDTH - 28.0, ROW - 2.0), look);
    }
    let colour = if ours { GOOD } else { INK };
    let font = Font { size: 14.0, bold: true, colour };
    svg.text((MARGIN, middle - 2.0), Anchor::Start, font, design.name());
    let soft = Font { size: 11.5, bold: false, colour: SOFT };
    svg.text((MARGIN, middle + 14.0), Anchor::Start, soft, design.summary());
}

/// Draws one dot for each run, and returns what it says beside them.
fn dots(svg: &mut Svg, axes: &Axes, summary: &Summary, middle: f64) -> String {
    let (most, never) = (summary.most_oversold(), summary.runs_oversold == 0);
    let colour = if summary.design == Technique::Floodgate { GOOD } else { PLAIN };
    for (number, &units) in summary.oversold.iter().enumerate() {
        // Beside each other, so that equal ones are seen to be many.
        let aside = (number % 5) as f64 * 4.0 - 8.0;
        let colour = if units > 0 { BAD } else { colour };
        let look = format!(r#"fill="{colour}" fill-opacity="0.45""#);
        svg.circle((axes.units_at(units), middle + aside), 3.5, &look);
    }
    let runs = summary.runs;
    let (first, second) = if never {
        ("never".to_owned(), format!("in {runs} runs"))
    } else {
        let least = summary.oversold.first().copied().unwrap_or(0);
        let range = if least == most { most.to_string() } else { format!("{least} to {most}") };
        (range, format!("in {} of {runs} runs", summary.runs_oversold))
    };
    let colour = match (never, summary.design) {
        (false, _) => BAD,
        (true, Technique::Floodgate) => GOOD,
        (true, _) => INK,
    };
    let x = OVERSOLD.to + 16.0;
    let bold = Font { size: 12.0, bold: true, colour };
    svg.text((x, middle - 2.0), Anchor::Start, bold, &first);
    let soft = Font { size: 11.5, bold: false, colour: SOFT };
    svg.text((x, middle + 14.0), Anchor::Start, soft, &second);
    format!("{first} {second}")
}

fn bar(svg: &mut Svg, axes: &Axes, summary: &Summary, middle: f64) {
    let ours = summary.design == Technique::Floodgate;
    let colour = if ours { GOOD } else { PLAIN };
    let end = axes.rate_at(summary.answers_per_s);
    let look = format!(r#"rx="2" fill="{colour}""#);
    svg.rect((RATE.from, middle - 7.0), (end - RATE.from, 14.0), &look);
    let font = Font { size: 12.0, bold: true, colour: if ours { GOOD } else { INK } };
    let label = thousands(summary.answers_per_s);
    svg.text((end + 6.0, middle + 4.5), Anchor::Start, font, &label);
}

/// A power of ten, ten or more, that `units` don't exceed.
fn ceiling(units: u32) -> u32 {
    let mut end = 10_u32;
    while end < units && end < 1_000_000 {
        end *= 10;
    }
    end
}

/// For an axis.
fn short(number: f64) -> String {
    if number < 1000.0 { format!("{number:.0}") } else { format!("{:.0}k", number / 1e3) }
}

/// Without a fraction, in groups of three digits.
fn thousands(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut grouped = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_has_a_row_for_each_design_and_words_for_who_cant_see_it() {
        let chart = draw(&crate::compare::report::sample()).unwrap();
        for word in ["<title", "<desc", "setnx-as-told: 0 to 7 in 3 of 4 runs", "never"] {
            assert!(chart.contains(word), "{word}: {chart}");
        }
        assert_eq!(chart.matches("<circle").count(), 5, "one for each run");
        assert!(!chart.contains("script"));
    }

    #[test]
    fn a_chart_of_nothing_is_an_error() {
        let mut report = crate::compare::report::sample();
        report.summaries.clear();
        assert_eq!(draw(&report), Err(NothingToDraw));
    }

    #[test]
    fn numbers_are_written_for_people() {
        for (number, text) in
            [(0.4, "0"), (12.0, "12"), (999.9, "1,000"), (1_234_567.0, "1,234,567")]
        {
            assert_eq!(thousands(number), text);
        }
    }

    #[test]
    fn an_axis_ends_at_a_round_number_that_holds_all() {
        for (units, end) in [(0, 10), (10, 10), (11, 100), (900, 1000), (1001, 10_000)] {
            assert_eq!(ceiling(units), end, "{units}");
        }
        assert_eq!([1.0, 100.0, 1000.0, 10_000.0].map(short), ["1", "100", "1k", "10k"]);
    }
}
