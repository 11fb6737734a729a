//! `floodgate user erase`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use chrono::Utc;
use clap::Args;
use serde::Serialize;

use super::letters;
use crate::app::{App, Retention};
use crate::cli::operator::operator;
use crate::cli::output;
use crate::domain::order::{SaleId, UserId};
use crate::fault::crash_point;
use crate::ledger::{ArchiveRecord, ArchiveStage, KeptOfUser};
use crate::operator_log::{Action, Entry};
use crate::sales::archive_file::{self, ArchiveReader, ArchiveWriter, FolderLock, verify};

/// Decisions read at once.
const PAGE: usize = 1000;

#[derive(Debug, Args)]
pub(super) struct Erase {
    /// The user's id
    user_id: UserId,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What was replaced.
#[derive(Debug, Default, Serialize)]
struct Report {
    sales: usize,
    decisions: u64,
    archive_files: usize,
    archived_decisions: u64,
    dead_letters: usize,
}

impl Erase {
    pub(super) async fn run(self, app: &App) -> anyhow::Result<()> {
        let Self { user_id, json } = &self;
        let (retention, broker) = (app.retention().await?, app.broker().await?);
        let kept = retention.erasure.kept_of(user_id).await?;
        let files = files(&retention, &kept).await?;
        let mut sales: BTreeSet<SaleId> = kept.into_keys().collect();
        sales.extend(letters::sales(broker.as_ref(), user_id).await?);
        let sales: Vec<SaleId> = sales.into_iter().collect();
        let tokens = retention.erasure.begin(user_id, &sales).await?;
        crash_point("erase_begun");
        let mut report = Report { sales: tokens.len(), ..Report::default() };
        for (sale, token) in &tokens {
            report.decisions += retention.erasure.replace(user_id, sale, token).await?;
            crash_point("erase_replaced");
        }
        for record in files {
            let Some(token) = tokens.get(&record.sale_id) else { continue };
            let replaced = rewrite(&retention, record, user_id, token).await?;
            report.archive_files += usize::from(replaced > 0);
            report.archived_decisions += replaced;
        }
        report.dead_letters = letters::replace(broker.as_ref(), user_id, &tokens).await?;
        if let Some(holdings) = &retention.holdings {
            for sale in &sales {
                holdings
                    .forget(sale)
                    .await
                    .context("Redis may have the id yet; repeat the command")?;
            }
        }
        let Report { sales, decisions, archive_files, archived_decisions, dead_letters } = &report;
        let told = format!(
            "{decisions} decisions of {sales} sales, {archived_decisions} in {archive_files} archive files, \
             {dead_letters} dead letters"
        );
        // Without the id, which would be kept in the log.
        let entry = Entry::new(&operator(), Action::UserErased, None, &told);
        retention.journal.record(&[entry]).await;
        if *json {
            return output::json(&report);
        }
        eprintln!("Replaced in {told}.");
        Ok(())
    }
}

/// The archives that may have the user's id. Each must be here, and no command at work on it.
async fn files(
    retention: &Retention,
    kept: &BTreeMap<SaleId, KeptOfUser>,
) -> anyhow::Result<Vec<ArchiveRecord>> {
    let mut files = Vec::new();
    for (sale, kept) in kept {
        for record in retention.archive.archives(Some(sale)).await? {
            if record.stage != ArchiveStage::Done {
                let what =
                    if record.stage == ArchiveStage::Restoring { "restore" } else { "archive" };
                bail!(
                    "sale {sale} is between ledger and archive; first: floodgate sale {what} {sale}"
                );
            }
            if kept.in_archive {
                let path = Path::new(&record.file);
                verify(path, &record).with_context(|| format!("an archive of sale {sale}"))?;
                files.push(record);
            }
        }
    }
    Ok(files)
}

/// Writes a file anew with the token, puts it in the place of the other, and removes that. Returns how many decisions
/// had the user.
async fn rewrite(
    retention: &Retention,
    record: ArchiveRecord,
    user: &UserId,
    token: &UserId,
) -> anyhow::Result<u64> {
    let path = PathBuf::from(&record.file);
    let _lock = FolderLock::take(&path)?;
    let (sale, id) = (&record.sale_id, &record.archive_id);
    let state = retention.ledger.sales(Some(std::slice::from_ref(sale))).await?.pop();
    let state = state.with_context(|| format!("sale {sale} is gone"))?;
    let revision = archive_file::revision(&path, sale, id, Utc::now());
    let (mut reader, mut writer) = (ArchiveReader::open(&path)?, ArchiveWriter::begin(&revision)?);
    let mut replaced = 0;
    loop {
        let some = reader.next(PAGE)?;
        if some.is_empty() {
            break;
        }
        for mut decision in some {
            if decision.order.user_id == *user {
                decision.order.user_id = token.clone();
                replaced += 1;
            }
            writer.add(&decision)?;
        }
    }
    if replaced == 0 {
        drop(writer);
    } else {
        let contents = writer.finish(record.decisions)?;
        archive_file::write_manifest(&revision, &state, &contents, record.created_at)?;
        crash_point("erase_written");
        let now = ArchiveRecord {
            file: revision.to_str().context("the file's name is not UTF-8")?.to_owned(),
            sha256: contents.sha256,
            ..record.clone()
        };
        retention.erasure.replace_file(&record, &now).await?;
        crash_point("erase_switched");
    }
    // Also what was left by one that was killed.
    let stored = retention.archive.archives(Some(sale)).await?;
    if let Some(stored) = stored.into_iter().find(|stored| stored.archive_id == *id) {
        archive_file::remove_others(Path::new(&stored.file), sale, id)?;
    }
    Ok(replaced)
}
