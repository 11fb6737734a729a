//! All measurements, written into a page.

use std::path::PathBuf;

use anyhow::{Context, ensure};

use super::{Bench, Measured};
use crate::cli::bench::report::Report;
use floodgate::app::App;

/// What a table of the page begins and ends with.
const BEGIN: &str = "<!-- figures of ";
const END: &str = "<!-- end of figures -->";

/// Changes a bench with default arguments into the one that measures something.
type Change = fn(&mut Bench);

/// Each measurement by the name that its place in the page has, with its arguments.
const MEASUREMENTS: [(&str, Change); 10] = [
    ("bench", |_| ()),
    ("bench --batch 32", |bench| bench.batch = 32),
    ("bench --batch 32 --event-batches", batched),
    ("bench --embedded --batch 32 --event-batches", |bench| {
        batched(bench);
        bench.embedded = true;
    }),
    ("bench --hot --batch 32 --event-batches", |bench| {
        batched(bench);
        bench.hot = true;
    }),
    ("bench --api", |bench| bench.api = true),
    ("bench --crowd", |bench| bench.crowd = true),
    ("bench --peers --batch 32 --event-batches", |bench| {
        batched(bench);
        bench.peers = true;
    }),
    ("bench --scale --batch 32 --event-batches", |bench| {
        batched(bench);
        bench.scale = true;
    }),
    ("bench --deep 10000000 --batch 32 --event-batches", |bench| {
        batched(bench);
        bench.deep = Some(10_000_000);
    }),
];

fn batched(bench: &mut Bench) {
    (bench.batch, bench.event_batches) = (32, true);
}

/// Takes every measurement, and writes each into the page as soon as it is taken.
pub(super) async fn run(app: &App, config: Option<PathBuf>, given: &Bench) -> anyhow::Result<()> {
    let path = &given.file;
    let read = || std::fs::read_to_string(path).with_context(|| path.display().to_string());
    for (name, _) in MEASUREMENTS {
        place(&read()?, name)?;
    }
    for (name, change) in MEASUREMENTS {
        eprintln!("{name}");
        let mut bench = Bench { all: None, ..given.clone() };
        change(&mut bench);
        let Measured::Report(report) = Box::pin(bench.measured(app, config.clone())).await? else {
            continue;
        };
        let page = filled(&read()?, name, &table(&report, bench.rounds))?;
        std::fs::write(path, page).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// Where the table of a measurement is in the page.
fn place(page: &str, name: &str) -> anyhow::Result<std::ops::Range<usize>> {
    let mark = format!("{BEGIN}{name} -->\n");
    let begin =
        page.find(&mark).with_context(|| format!("the page has no line {}", mark.trim()))?;
    let begin = begin + mark.len();
    let length = page[begin..].find(END).with_context(|| format!("the page has no line {END}"))?;
    ensure!(
        !page[begin..begin + length].contains(BEGIN),
        "the page has no line {END} after {name}"
    );
    Ok(begin..begin + length)
}

fn filled(page: &str, name: &str, table: &str) -> anyhow::Result<String> {
    let mut filled = page.to_owned();
    filled.replace_range(place(page, name)?, table);
    Ok(filled)
}

/// The table of a report, in Markdown.
fn table(report: &Report, rounds: u16) -> String {
    let on = report.line();
    let rows = report
        .rows()
        .into_iter()
        .map(|[name, median, spread]| format!("| {name} | {median} | {spread} |\n"));
    format!(
        "\nMedian and range of {rounds} rounds. {on}.\n\n| measured | median | rounds |\n|---|---|---|\n{}\n",
        rows.collect::<String>()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_takes_the_place_of_the_one_before() {
        let page = "a\n<!-- figures of bench -->\nold\n<!-- end of figures -->\nb\n\
                    <!-- figures of bench --api -->\n<!-- end of figures -->\n";
        let filled = filled(page, "bench", "new\n").unwrap();
        assert_eq!(filled, page.replace("old", "new"));
        assert_eq!(place(page, "bench --api").unwrap().len(), 0);
        assert!(place(page, "bench --hot").unwrap_err().to_string().contains("--hot"));
    }

    #[test]
    fn the_page_of_this_repository_has_a_place_for_each() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/benchmarks.md");
        let page = std::fs::read_to_string(path).unwrap();
        for (name, _) in MEASUREMENTS {
            place(&page, name).unwrap();
        }
    }
}
