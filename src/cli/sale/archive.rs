//! `floodgate sale archive` and `floodgate sale restore`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use chrono::{SubsecRound, Utc};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::app::{App, Retention};
use crate::cli::operator::operator;
use crate::cli::output;
use crate::domain::event::rfc3339;
use crate::domain::order::SaleId;
use crate::domain::sale::SaleState;
use crate::fault::crash_point;
use crate::ledger::{ArchiveRecord, ArchiveStage, archivable};
use crate::operator_log::{Action, Entry};
use crate::sales::archive_file::{
    self, ArchiveFileError, ArchiveReader, ArchiveWriter, Contents, verify, write_manifest,
};
use crate::shutdown;

/// Decisions that are read, or moved in one transaction.
const CHUNK: u32 = 2000;

#[derive(Debug, Args)]
pub(super) struct Archive {
    /// The sale's id
    sale_id: SaleId,
    /// The folder to write the file and its manifest to
    #[arg(long, value_name = "FOLDER", default_value = ".")]
    to: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Restore {
    /// The sale's id
    sale_id: SaleId,
    /// Where the file is now; without it, where it was written
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What was done.
#[derive(Serialize)]
struct Report<'a> {
    sale_id: &'a SaleId,
    decisions: u64,
    files: Vec<FileView>,
}

/// Where decisions are.
#[derive(Serialize)]
pub(in crate::cli) struct FileView {
    pub(in crate::cli) file: String,
    pub(in crate::cli) sha256: String,
    decisions: u64,
    stage: &'static str,
    created_at: String,
}

impl FileView {
    pub(in crate::cli) fn of(record: &ArchiveRecord) -> Self {
        Self {
            file: record.file.clone(),
            sha256: record.sha256.clone(),
            decisions: record.decisions,
            stage: record.stage.name(),
            created_at: rfc3339(record.created_at),
        }
    }
}

/// Says that decisions of a sale are elsewhere, if they are.
pub(in crate::cli) async fn must_not_be_archived(
    archive: &dyn crate::ledger::Archive,
    state: &SaleState,
) -> anyhow::Result<()> {
    if !state.archived {
        return Ok(());
    }
    let sale = &state.sale.id;
    let records = archive.archives(Some(sale)).await?;
    let files: Vec<String> =
        records.iter().map(|record| format!("{} ({})", record.file, record.decisions)).collect();
    bail!(
        "decisions of sale {sale} are archived: {}; to bring them back: floodgate sale restore {sale}",
        files.join(", ")
    )
}

impl Archive {
    pub(super) async fn run(self, app: &App) -> anyhow::Result<()> {
        let Self { sale_id, to, json } = &self;
        let max_age = app.settings().intent.max_age;
        let (retention, stop) = (app.retention().await?, shutdown::on_signal()?);
        let state = sale(&retention, sale_id).await?;
        let records = retention.archive.archives(Some(sale_id)).await?;
        let begun = records.into_iter().find(|record| record.stage != ArchiveStage::Done);
        let mut record = match begun {
            Some(record) if record.stage == ArchiveStage::Restoring => bail!(
                "sale {sale_id} is being restored; to go on with that: floodgate sale restore {sale_id}"
            ),
            Some(record) if record.stage == ArchiveStage::Moving => {
                eprintln!("Going on with {}.", record.file);
                verify(Path::new(&record.file), &record)?;
                record
            }
            begun => {
                archivable(&state, Utc::now(), max_age)?;
                let writing =
                    Writing { retention: &retention, state: &state, max_age, stop: &stop };
                if let Some(left) = begun {
                    // What a command that was killed has left. One that still runs finds that it is forgotten.
                    retention.archive.forget(&left).await?;
                    archive_file::remove(Path::new(&left.file))?;
                }
                match writing.write(to).await? {
                    Some(record) => record,
                    None => return nothing(sale_id, "the ledger has no decision of it", *json),
                }
            }
        };
        record.stage = ArchiveStage::Moving;
        retention.archive.record(&record, max_age).await?;
        crash_point("archive_moving");
        let (bar, mut reader) =
            (progress(record.decisions), ArchiveReader::open(Path::new(&record.file))?);
        loop {
            let some = reader.next(CHUNK as usize)?;
            if some.is_empty() {
                break;
            }
            retention.archive.move_out(&record, &some).await?;
            crash_point("archive_chunk");
            bar.inc(some.len() as u64);
            stopped(&stop, "archive", sale_id)?;
        }
        bar.finish_and_clear();
        record.stage = ArchiveStage::Done;
        retention.archive.record(&record, max_age).await?;
        forget_hints(&retention, sale_id).await;
        let ArchiveRecord { decisions, file, sha256, .. } = &record;
        let detail = format!("{decisions} decisions, SHA-256 {sha256}, {file}");
        let entry = Entry::new(&operator(), Action::Archived, Some(sale_id.clone()), &detail);
        retention.journal.record(&[entry]).await;
        if *json {
            let (decisions, files) = (*decisions, vec![FileView::of(&record)]);
            return output::json(&Report { sale_id, decisions, files });
        }
        eprintln!("{decisions} decisions of sale {sale_id} are in {file} now. SHA-256: {sha256}");
        Ok(())
    }
}

/// Says that there was nothing to do.
fn nothing(sale_id: &SaleId, why: &str, json: bool) -> anyhow::Result<()> {
    if json {
        return output::json(&Report { sale_id, decisions: 0, files: Vec::new() });
    }
    eprintln!("Nothing is done for sale {sale_id}: {why}.");
    Ok(())
}

/// The writing of a file, with which nothing leaves the ledger.
struct Writing<'a> {
    retention: &'a Retention,
    state: &'a SaleState,
    max_age: Duration,
    stop: &'a CancellationToken,
}

impl Writing<'_> {
    /// Writes a file into `folder`. `None`: there was nothing to write.
    async fn write(&self, folder: &Path) -> anyhow::Result<Option<ArchiveRecord>> {
        self.begin_to_end(folder).await.map_err(|error| {
            if !error.is::<ArchiveFileError>() {
                return error;
            }
            let sale = &self.state.sale.id;
            error.context(format!(
                "nothing of sale {sale} has left the ledger; to repeat, with --to where there is room: \
                 floodgate sale archive {sale}"
            ))
        })
    }

    async fn begin_to_end(&self, folder: &Path) -> anyhow::Result<Option<ArchiveRecord>> {
        let sale_id = &self.state.sale.id;
        let folder = folder.canonicalize().with_context(|| folder.display().to_string())?;
        let created_at = Utc::now().trunc_subsecs(3);
        let archive_id = created_at.format("%Y%m%dT%H%M%S%3fZ").to_string();
        let path = folder.join(archive_file::name(sale_id, &archive_id));
        let record = ArchiveRecord {
            sale_id: sale_id.clone(),
            archive_id,
            stage: ArchiveStage::Writing,
            file: path.to_str().context("the folder's name is not UTF-8")?.to_owned(),
            sha256: String::new(),
            decisions: 0,
            created_at,
        };
        // First, so that a file is known of from its beginning.
        self.retention.archive.record(&record, self.max_age).await?;
        let mut writer = ArchiveWriter::begin(&path)?;
        let written = self.write_decisions(&mut writer).await?;
        if written == 0 {
            drop(writer);
            self.retention.archive.forget(&record).await?;
            return Ok(None);
        }
        crash_point("archive_written");
        let contents: Contents = writer.finish(written)?;
        write_manifest(&path, self.state, &contents, record.created_at)?;
        crash_point("archive_verified");
        let (sha256, decisions) = (contents.sha256, contents.decisions);
        Ok(Some(ArchiveRecord { sha256, decisions, ..record }))
    }

    async fn write_decisions(&self, writer: &mut ArchiveWriter) -> anyhow::Result<u64> {
        let sale = &self.state.sale.id;
        let (bar, mut after, mut written) = (progress(0), None, 0);
        loop {
            let page = self.retention.books.decided(sale, after.as_ref(), CHUNK).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.order.id.clone());
            for decision in &page {
                writer.add(decision)?;
            }
            written += page.len() as u64;
            bar.set_message(format!("{written} decisions written"));
            stopped(self.stop, "archive", sale)?;
        }
        bar.finish_and_clear();
        Ok(written)
    }
}

impl Restore {
    pub(super) async fn run(self, app: &App) -> anyhow::Result<()> {
        let Self { sale_id, from, json } = &self;
        let (retention, stop) = (app.retention().await?, shutdown::on_signal()?);
        sale(&retention, sale_id).await?;
        let records = retention.archive.archives(Some(sale_id)).await?;
        let mut chosen = Vec::new();
        for record in records {
            let path = PathBuf::from(&record.file);
            match from {
                _ if record.stage == ArchiveStage::Writing => {
                    // Nothing has left the ledger for it.
                    retention.archive.forget(&record).await?;
                    archive_file::remove(&path)?;
                }
                None => {
                    verify(&path, &record)?;
                    chosen.push((record, path));
                }
                Some(from) if archive_file::contents(from)?.sha256 == record.sha256 => {
                    chosen.push((record, from.clone()));
                }
                Some(_) => {}
            }
        }
        match (chosen.is_empty(), from) {
            (true, Some(from)) => bail!("{} is no archive of sale {sale_id}", from.display()),
            (true, None) => return nothing(sale_id, "it is not archived", *json),
            (false, _) => {}
        }
        let (mut restored, mut files) = (0, Vec::new());
        for (mut record, path) in chosen {
            record.stage = ArchiveStage::Restoring;
            restored += restore(&retention, &record, &path, &stop).await?;
            files.push(FileView::of(&record));
        }
        forget_hints(&retention, sale_id).await;
        let detail = format!("{restored} decisions from {} files", files.len());
        let entry = Entry::new(&operator(), Action::Restored, Some(sale_id.clone()), &detail);
        retention.journal.record(&[entry]).await;
        if *json {
            return output::json(&Report { sale_id, decisions: restored, files });
        }
        eprintln!("{restored} decisions of sale {sale_id} are back in the ledger.");
        for FileView { file, .. } in files {
            eprintln!(
                "{file} is not needed any more, and floodgate user erase does not reach it: delete it."
            );
        }
        Ok(())
    }
}

/// Brings the decisions of a file back, and says how many they are.
async fn restore(
    retention: &Retention,
    record: &ArchiveRecord,
    path: &Path,
    stop: &CancellationToken,
) -> anyhow::Result<u64> {
    retention.archive.record(record, Duration::ZERO).await?;
    crash_point("restore_begun");
    let (bar, mut reader) = (progress(record.decisions), ArchiveReader::open(path)?);
    let mut restored = 0;
    loop {
        let some = reader.next(CHUNK as usize)?;
        if some.is_empty() {
            break;
        }
        retention.archive.move_back(record, &some).await?;
        crash_point("restore_chunk");
        restored += some.len() as u64;
        bar.inc(some.len() as u64);
        stopped(stop, "restore", &record.sale_id)?;
    }
    bar.finish_and_clear();
    retention.archive.forget(record).await?;
    crash_point("restored");
    Ok(restored)
}

async fn sale(retention: &Retention, sale: &SaleId) -> anyhow::Result<SaleState> {
    let found = retention.ledger.sales(Some(std::slice::from_ref(sale))).await?.pop();
    found.with_context(|| format!("there is no sale {sale}; floodgate sale list has all"))
}

/// What Redis holds of the sale is compared with decisions that are not there any more, or were not there.
async fn forget_hints(retention: &Retention, sale: &SaleId) {
    if let Some(holdings) = &retention.holdings
        && let Err(error) = holdings.forget(sale).await
    {
        tracing::warn!(%error, sale_id = %sale, "Redis keeps its hints of the sale until they expire");
    }
}

fn stopped(stop: &CancellationToken, what: &str, sale: &SaleId) -> anyhow::Result<()> {
    if stop.is_cancelled() {
        bail!("stopped; to go on: floodgate sale {what} {sale}");
    }
    Ok(())
}

/// Hidden unless standard error is a terminal.
fn progress(decisions: u64) -> ProgressBar {
    let bar = ProgressBar::new(decisions);
    let template = "{bar:30} {percent:>3}%  {msg}  {elapsed} (left {eta})";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}
