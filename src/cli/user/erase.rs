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
use crate::domain::erasure::is_token;
use crate::domain::order::{SaleId, UserId};
use crate::fault::crash_point;
use crate::ledger::{ArchiveRecord, ArchiveStage, KeptOfUser};
use crate::operator_log::{Action, Entry};
use crate::sales::archive_file::{self, ArchiveReader, ArchiveWriter, FolderLock, verify};

/// Decisions read at once.
const PAGE: usize = 1000;
/// How often to look at what is kept, at most. The first look finds what to replace, and the last one that nothing is
/// left; those between follow a `sale archive` or `sale restore` that ran meanwhile.
const LOOKS: usize = 5;
/// What to do once something is replaced, and not all.
const REPEAT: &str = "the id is kept in part yet; repeat the command";

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
        let sales = letters::sales(broker.as_ref(), user_id).await?;
        let mut replacing = Replacing {
            retention: &retention,
            user: user_id,
            tokens: BTreeMap::new(),
            free: BTreeSet::new(),
            report: Report::default(),
        };
        let sales = replacing.until_none_is_left(sales).await?;
        let Replacing { tokens, mut report, .. } = replacing;
        report.sales = tokens.len();
        let replaced = letters::replace(broker.as_ref(), user_id, &tokens).await;
        report.dead_letters = replaced.context(REPEAT)?;
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

/// The replacing of a user in ledger and archive files.
struct Replacing<'a> {
    retention: &'a Retention,
    user: &'a UserId,
    /// By sale, of those in which the user's orders are the token's.
    tokens: BTreeMap<SaleId, UserId>,
    /// Archives, with the checksums of their files, that have not the id.
    free: BTreeSet<(SaleId, String, String)>,
    report: Report,
}

impl Replacing<'_> {
    /// Replaces the user in what is kept, and looks again: decisions may have left the ledger for a file before they
    /// were replaced, or have come back from one. Returns the sales where something was kept, with those of `sales`.
    async fn until_none_is_left(
        &mut self,
        mut sales: BTreeSet<SaleId>,
    ) -> anyhow::Result<BTreeSet<SaleId>> {
        for look in 0..LOOKS {
            let found = self.look().await;
            let (is_in_ledger, kept, files) =
                if look == 0 { found? } else { found.context(REPEAT)? };
            crash_point("erase_found");
            if look > 0 && files.is_empty() && !is_in_ledger {
                return Ok(sales);
            }
            sales.extend(kept);
            self.replace(&sales, files).await.context(REPEAT)?;
            if is_token(self.user) {
                return Ok(sales);
            }
        }
        bail!("decisions move between the ledger and archives all the time: {REPEAT}")
    }

    /// Whether the ledger has the id, in which sales it is kept, and the archive files that may have it.
    async fn look(&self) -> anyhow::Result<(bool, Vec<SaleId>, Vec<ArchiveRecord>)> {
        let kept = self.retention.erasure.kept_of(self.user).await?;
        let files = self.files(&kept).await?;
        let is_in_ledger = kept.values().any(|kept| kept.in_ledger);
        Ok((is_in_ledger, kept.into_keys().collect(), files))
    }

    /// The archives that may have the user's id. Each must be here, and no command at work on it.
    async fn files(
        &self,
        kept: &BTreeMap<SaleId, KeptOfUser>,
    ) -> anyhow::Result<Vec<ArchiveRecord>> {
        let mut files = Vec::new();
        for (sale, kept) in kept {
            for record in self.retention.archive.archives(Some(sale)).await? {
                must_be_done(&record)?;
                if kept.in_archive && !self.free.contains(&key(&record)) {
                    files.extend(self.verified(record).await?);
                }
            }
        }
        Ok(files)
    }

    /// An archive whose file is here. `None`: it was restored meanwhile.
    async fn verified(&self, record: ArchiveRecord) -> anyhow::Result<Option<ArchiveRecord>> {
        let of_sale = || format!("an archive of sale {}", record.sale_id);
        let Err(error) = verify(Path::new(&record.file), &record) else {
            return Ok(Some(record));
        };
        // Another command may have put another file in its place.
        match current(self.retention, &record).await? {
            Some(now) if now.file == record.file => Err(error).with_context(of_sale),
            Some(now) => {
                must_be_done(&now)?;
                verify(Path::new(&now.file), &now).with_context(of_sale)?;
                Ok(Some(now))
            }
            None => Ok(None),
        }
    }

    async fn replace(
        &mut self,
        sales: &BTreeSet<SaleId>,
        files: Vec<ArchiveRecord>,
    ) -> anyhow::Result<()> {
        let (retention, user) = (self.retention, self.user);
        let sales: Vec<SaleId> = sales.iter().cloned().collect();
        self.tokens = retention.erasure.begin(user, &sales).await?;
        crash_point("erase_begun");
        for (sale, token) in &self.tokens {
            self.report.decisions += retention.erasure.replace(user, sale, token).await?;
            crash_point("erase_replaced");
        }
        for record in files {
            let Some(token) = self.tokens.get(&record.sale_id) else { continue };
            let Some((now, replaced)) = rewrite(retention, record, user, token).await? else {
                continue;
            };
            self.free.insert(key(&now));
            self.report.archive_files += usize::from(replaced > 0);
            self.report.archived_decisions += replaced;
        }
        Ok(())
    }
}

fn key(record: &ArchiveRecord) -> (SaleId, String, String) {
    (record.sale_id.clone(), record.archive_id.clone(), record.sha256.clone())
}

fn must_be_done(record: &ArchiveRecord) -> anyhow::Result<()> {
    if record.stage != ArchiveStage::Done {
        let what = if record.stage == ArchiveStage::Restoring { "restore" } else { "archive" };
        let sale = &record.sale_id;
        bail!("sale {sale} is between ledger and archive; first: floodgate sale {what} {sale}");
    }
    Ok(())
}

/// An archive as the ledger has it now.
async fn current(
    retention: &Retention,
    record: &ArchiveRecord,
) -> anyhow::Result<Option<ArchiveRecord>> {
    let archives = retention.archive.archives(Some(&record.sale_id)).await?;
    Ok(archives.into_iter().find(|archive| archive.archive_id == record.archive_id))
}

/// Writes a file anew with the token, puts it in the place of the other, and removes that. Returns the archive as it is
/// then, and how many decisions had the user. `None`: it was restored meanwhile.
async fn rewrite(
    retention: &Retention,
    record: ArchiveRecord,
    user: &UserId,
    token: &UserId,
) -> anyhow::Result<Option<(ArchiveRecord, u64)>> {
    let _lock = FolderLock::take(Path::new(&record.file))?;
    // Whoever had the lock before may have written another file.
    let Some(record) = current(retention, &record).await? else { return Ok(None) };
    must_be_done(&record)?;
    let path = PathBuf::from(&record.file);
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
    let mut now = record.clone();
    if replaced == 0 {
        drop(writer);
    } else {
        let contents = writer.finish(record.decisions)?;
        archive_file::write_manifest(&revision, &state, &contents, record.created_at)?;
        crash_point("erase_written");
        revision.to_str().context("the file's name is not UTF-8")?.clone_into(&mut now.file);
        now.sha256 = contents.sha256;
        retention.erasure.replace_file(&record, &now).await?;
        crash_point("erase_switched");
    }
    // Also what was left by one that was killed.
    archive_file::remove_others(Path::new(&now.file), sale, id)?;
    Ok(Some((now, replaced)))
}
