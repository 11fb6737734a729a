//! `floodgate audit`.

mod events;
mod hints;

use std::collections::BTreeMap;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::operator::operator;
use super::{dead_letters, output};
use crate::app::{App, Audited};
use crate::broker::{Broker, Queue};
use crate::domain::order::SaleId;
use crate::domain::sale::SaleState;
use crate::ledger::{Balance, Book, Discrepancy, MAX_DISCREPANCIES};
use crate::operator_log::{Action, Entry};
use crate::shards::Division;
use crate::status::Depths;

/// Decisions read at once.
const PAGE: u32 = 1000;

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  floodgate audit\n  floodgate audit bottles --json\n  \
    floodgate audit --events mail.orders\n\n\
    Changes nothing without --fix, and may run beside workers. Exits with 1 if anything does not balance.")]
pub(super) struct Audit {
    /// The sale; without it, all
    sale: Option<SaleId>,
    /// Also compare the events in this queue with the decisions. It must have been bound to order.# before
    /// the first of them. Each event is read once and given back, which may count as a delivery of it
    #[arg(long, value_name = "QUEUE")]
    events: Option<String>,
    /// Repair what is safe to repair: delete hints that do not agree with the ledger. Each repair is printed
    /// and written to the operators' log
    #[arg(long)]
    fix: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Something that does not balance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    /// A book of the ledger, `hints`, or `events`.
    book: &'static str,
    sale_id: String,
    about: String,
    detail: String,
    /// Whether it is repaired.
    fixed: bool,
}

impl Finding {
    fn new(
        book: &'static str,
        sale: &str,
        about: impl Into<String>,
        detail: impl Into<String>,
    ) -> Self {
        let (sale_id, about, detail) = (sale.to_owned(), about.into(), detail.into());
        Self { book, sale_id, about, detail, fixed: false }
    }
}

/// What was looked at, and what was found.
#[derive(Debug, Serialize)]
struct Report {
    balanced: bool,
    sales: u64,
    decisions: u64,
    books: Vec<BookReport>,
    queues: Queues,
    findings: Vec<Finding>,
}

#[derive(Debug, Serialize)]
struct BookReport {
    book: &'static str,
    /// What must hold.
    rule: &'static str,
    /// What was looked at, in words.
    seen: String,
    /// At most [`MAX_DISCREPANCIES`] and one more for each book.
    findings: usize,
}

/// What waits.
#[derive(Debug, Serialize)]
struct Queues {
    intents: u64,
    returned: u64,
    deferred: u64,
    dead_letters: BTreeMap<String, usize>,
}

impl Audit {
    pub(super) async fn run(self, app: &App) -> anyhow::Result<ExitCode> {
        let (broker, audited) = (app.broker().await?, app.audited().await?);
        let Audited { ledger, books, .. } = &audited;
        let sales = match &self.sale {
            Some(sale) => ledger.sales(Some(std::slice::from_ref(sale))).await?,
            None => ledger.sales(None).await?,
        };
        let queues = queues(broker.as_ref(), app.division().await?).await?;
        let balance = books.balance(self.sale.as_ref()).await?;
        if let Some(sale) = &self.sale
            && sales.is_empty()
            && balance.discrepancies.is_empty()
        {
            anyhow::bail!("the ledger has no sale {sale}; see: floodgate sale list");
        }
        let mut report = report_of(balance, queues);
        self.audit_hints(app, &audited, &sales, &mut report).await?;
        if let Some(queue) = &self.events {
            let queue = Queue::Named(queue.clone());
            let scope = self.sale.as_ref();
            let events = events::compare(broker.as_ref(), &audited, queue, &sales, scope).await?;
            report.add(
                "events",
                "events in the queue are the decisions",
                events.seen,
                events.findings,
            );
        }
        report.balanced = report.findings.iter().all(|finding| finding.fixed);
        let code = if report.balanced { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        if self.json {
            output::json(&report)?;
        } else {
            print(&report)?;
        }
        Ok(code)
    }

    /// Compares what the inventory holds with the ledger, and deletes what is wrong if so asked.
    async fn audit_hints(
        &self,
        app: &App,
        audited: &Audited,
        sales: &[SaleState],
        report: &mut Report,
    ) -> anyhow::Result<()> {
        let Some(holdings) = &audited.holdings else { return Ok(()) };
        let mut hints =
            hints::compare(holdings.as_ref(), audited, sales, self.sale.as_ref()).await?;
        if self.fix {
            let journal = app.journal().await?;
            for finding in &mut hints.findings {
                let Ok(sale) = SaleId::parse(finding.sale_id.as_str()) else { continue };
                holdings.forget(&sale).await?;
                finding.fixed = true;
                let detail = format!("{}: {}", finding.about, finding.detail);
                let entry = Entry::new(&operator(), Action::HintsDeleted, Some(sale), &detail);
                journal.record(&[entry]).await;
            }
        }
        report.add(
            "hints",
            "Redis agrees with the ledger, but for orders in flight",
            hints.seen,
            hints.findings,
        );
        Ok(())
    }
}

impl Report {
    fn add(
        &mut self,
        book: &'static str,
        rule: &'static str,
        seen: String,
        findings: Vec<Finding>,
    ) {
        self.books.push(BookReport { book, rule, seen, findings: findings.len() });
        self.findings.extend(findings);
    }
}

/// What must hold in a book of the ledger.
fn rule(book: Book) -> &'static str {
    match book {
        Book::Sales => "every row belongs to a sale",
        Book::Stock => "no more is sold than is on offer, at any moment",
        Book::Sold => "units sold are those of the created orders, in turn",
        Book::Buyers => "buyers have the units of their orders, within the limit",
        Book::SoldOut => "every sold_out was right at its moment",
        Book::PurchaseLimit => "every purchase_limit was right at its moment",
        Book::Window => "every not_open and closed was right",
        Book::Restocks => "units on offer are those of opening and restocks",
    }
}

fn report_of(balance: Balance, queues: Queues) -> Report {
    let Balance { sales, decisions, discrepancies } = balance;
    let books = Vec::new();
    let mut report =
        Report { balanced: true, sales, decisions, books, queues, findings: Vec::new() };
    for book in Book::ALL {
        let seen = match book {
            Book::Sales | Book::Restocks => format!("{sales} sales"),
            _ => format!("{decisions} decisions"),
        };
        let found = discrepancies.iter().filter(|found| found.book == book);
        let findings = found.map(|Discrepancy { sale_id, about, detail, .. }| {
            Finding::new(book.name(), sale_id, about, detail)
        });
        report.add(book.name(), rule(book), seen, findings.collect());
    }
    report
}

async fn queues(broker: &dyn Broker, division: Division) -> anyhow::Result<Queues> {
    let depths = Depths::look(broker, division).await?;
    Ok(Queues {
        intents: depths.intents(),
        returned: depths.returned(),
        deferred: depths.deferred,
        dead_letters: dead_letters::by_reason(broker).await?,
    })
}

fn print(report: &Report) -> anyhow::Result<()> {
    let rows = report.books.iter().map(|BookReport { book, rule, findings, .. }| {
        let found = match findings {
            0 => "ok".to_owned(),
            many if *many > MAX_DISCREPANCIES => format!("over {MAX_DISCREPANCIES} wrong"),
            some => format!("{some} wrong"),
        };
        [(*book).to_owned(), found, (*rule).to_owned()]
    });
    output::table(["book", "found", "rule"], rows)?;
    let Report { sales, decisions, .. } = report;
    output::text(&format!("\nLooked at {sales} sales and {decisions} decisions.\n"))?;
    let others = report.books.iter().skip(Book::ALL.len());
    for BookReport { book, seen, .. } in others {
        output::text(&format!("Looked at {book}: {seen}.\n"))?;
    }
    let Queues { intents, returned, deferred, dead_letters } = &report.queues;
    let dead: Vec<String> =
        dead_letters.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    let dead = if dead.is_empty() { "none".to_owned() } else { dead.join(", ") };
    output::text(&format!(
        "Waiting: {intents} intents, {returned} returned, {deferred} deferred. Dead letters: {dead}.\n"
    ))?;
    if report.findings.is_empty() {
        return output::text("Everything balances.\n");
    }
    output::text("\n")?;
    let cells = |finding: &Finding| {
        let Finding { book, sale_id, about, detail, fixed } = finding.clone();
        let fixed = if fixed { "fixed: " } else { "" };
        [book.to_owned(), sale_id, about, format!("{fixed}{detail}")]
    };
    output::table(["book", "sale", "about", "what is wrong"], report.findings.iter().map(cells))
}
