//! Files with the decisions of a sale: a line of JSON each, compressed, with a manifest beside it.

mod folder;
mod line;

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use flate2::Compression;
use flate2::bufread::MultiGzDecoder;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use crate::domain::decision::{Decision, Outcome};
use crate::domain::digest::Sha256;
use crate::domain::event::rfc3339;
use crate::domain::sale::SaleState;
use crate::ledger::ArchiveRecord;
use folder::{PART, at, beside, sync_folder};
use line::{decision, line};

pub use folder::{FolderLock, manifest_of, name, remove, remove_others, revision};

/// Of a line, generously.
const MAX_LINE_BYTES: u64 = 4096;

/// Why a file can't be written or read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveFileError {
    /// The file system says no.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What it says.
        source: io::Error,
    },
    /// It has something else than decisions.
    #[error("{}: line {line} is no decision", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Which line, from 1.
        line: u64,
    },
    /// It is not what was written.
    #[error(
        "{} has {found_decisions} decisions and SHA-256 {found_sha256}; expected: {decisions}, {sha256}",
        path.display()
    )]
    Differs {
        /// The file.
        path: PathBuf,
        /// What it has.
        found_decisions: u64,
        /// What it has.
        found_sha256: String,
        /// What it should have.
        decisions: u64,
        /// What it should have.
        sha256: String,
    },
}

/// What is in a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    /// Decisions.
    pub decisions: u64,
    /// Units of the created orders.
    pub units: u64,
    /// When the first and the last of them were made.
    pub decided: Option<(DateTime<Utc>, DateTime<Utc>)>,
    /// Of the file's bytes, in hex.
    pub sha256: String,
}

/// A file that is being written, beside where it is put when it is whole, and removed unless it comes to that. Nobody
/// but its owner can read it.
pub struct ArchiveWriter {
    path: PathBuf,
    part: Part,
    encoder: GzEncoder<BufWriter<File>>,
}

/// A file that is not whole, which is removed with this unless it was put in its place.
struct Part {
    path: PathBuf,
    is_in_place: bool,
}

impl ArchiveWriter {
    /// Begins the file at `path`.
    pub fn begin(path: &Path) -> Result<Self, ArchiveFileError> {
        let (path, part) = (path.to_owned(), beside(path, PART));
        let mut private = OpenOptions::new();
        private.write(true).create_new(true).mode(0o600);
        let file = private.open(&part).map_err(at(&part))?;
        let encoder = GzEncoder::new(BufWriter::new(file), Compression::default());
        Ok(Self { path, part: Part { path: part, is_in_place: false }, encoder })
    }

    /// Adds a decision.
    pub fn add(&mut self, decision: &Decision) -> Result<(), ArchiveFileError> {
        self.encoder.write_all(&line(decision)).map_err(at(&self.part.path))
    }

    /// Has it on the disk, reads it back, and only then puts it in its place.
    pub fn finish(self, expected: u64) -> Result<Contents, ArchiveFileError> {
        let Self { path, mut part, encoder } = self;
        let file = encoder.finish().and_then(|buffer| Ok(buffer.into_inner()?));
        let file = file.map_err(at(&part.path))?;
        file.sync_all().map_err(at(&part.path))?;
        let contents = contents(&part.path)?;
        if contents.decisions != expected {
            return Err(differs(&part.path, &contents, expected, &contents.sha256));
        }
        fs::rename(&part.path, &path).map_err(at(&path))?;
        part.is_in_place = true;
        sync_folder(&path)?;
        Ok(contents)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if self.is_in_place {
            return;
        }
        if let Err(error) = fs::remove_file(&self.path) {
            let file = self.path.display();
            tracing::warn!(%error, %file, "a file that is not whole is left; delete it");
        }
    }
}

/// Decisions of a file, one after the other.
pub struct ArchiveReader<R> {
    path: PathBuf,
    lines: BufReader<R>,
    read: u64,
}

impl ArchiveReader<MultiGzDecoder<BufReader<File>>> {
    /// The decisions of the file at `path`.
    pub fn open(path: &Path) -> Result<Self, ArchiveFileError> {
        let file = File::open(path).map_err(at(path))?;
        Ok(Self::of(path, MultiGzDecoder::new(BufReader::new(file))))
    }
}

impl<R: Read> ArchiveReader<R> {
    fn of(path: &Path, text: R) -> Self {
        Self { path: path.to_owned(), lines: BufReader::new(text), read: 0 }
    }

    /// The next ones, at most `most`; none at the end.
    pub fn next(&mut self, most: usize) -> Result<Vec<Decision>, ArchiveFileError> {
        let mut decisions = Vec::new();
        let mut line = Vec::new();
        while decisions.len() < most {
            line.clear();
            let mut bounded = self.lines.by_ref().take(MAX_LINE_BYTES);
            if bounded.read_until(b'\n', &mut line).map_err(at(&self.path))? == 0 {
                break;
            }
            self.read += 1;
            let bad = || ArchiveFileError::Line { path: self.path.clone(), line: self.read };
            decisions.push(decision(&line).ok_or_else(bad)?);
        }
        Ok(decisions)
    }
}

/// Reads a file whole: each line, and the digest of its bytes.
pub fn contents(path: &Path) -> Result<Contents, ArchiveFileError> {
    let file = File::open(path).map_err(at(path))?;
    let hashed = Hashed { file, hash: Sha256::default() };
    let mut reader = ArchiveReader::of(path, MultiGzDecoder::new(BufReader::new(hashed)));
    let mut contents = Contents::default();
    loop {
        let some = reader.next(1000)?;
        if some.is_empty() {
            break;
        }
        for decision in some {
            contents.decisions += 1;
            if decision.outcome == Outcome::Created {
                contents.units += u64::from(decision.order.quantity.get());
            }
            let at = decision.decided_at;
            let (first, last) = contents.decided.unwrap_or((at, at));
            contents.decided = Some((first.min(at), last.max(at)));
        }
    }
    let mut hashed = reader.lines.into_inner().into_inner().into_inner();
    io::copy(&mut hashed, &mut io::sink()).map_err(at(path))?;
    contents.sha256 = hashed.hash.finish();
    Ok(contents)
}

/// Fails unless the file at `path` is the one that `record` tells of.
pub fn verify(path: &Path, record: &ArchiveRecord) -> Result<(), ArchiveFileError> {
    let found = contents(path)?;
    if (found.decisions, &found.sha256) == (record.decisions, &record.sha256) {
        return Ok(());
    }
    Err(differs(path, &found, record.decisions, &record.sha256))
}

/// Writes the manifest of a file: what it is, for who finds it later.
pub fn write_manifest(
    path: &Path,
    sale: &SaleState,
    contents: &Contents,
    created_at: DateTime<Utc>,
) -> Result<(), ArchiveFileError> {
    let definition = &sale.sale;
    let Contents { decisions, units, decided, sha256 } = contents;
    let manifest: Value = json!({
        "format": "floodgate.archive.v1",
        "floodgate": env!("CARGO_PKG_VERSION"),
        "created_at": rfc3339(created_at),
        "file": path.file_name().map(|name| name.to_string_lossy()),
        "sha256": sha256,
        "decisions": decisions,
        "units": units,
        "first_decided_at": decided.map(|(first, _)| rfc3339(first)),
        "last_decided_at": decided.map(|(_, last)| rfc3339(last)),
        "sale": definition,
        "sold": sale.sold,
        "version": sale.version,
    });
    let text = serde_json::to_vec_pretty(&manifest)
        .unwrap_or_else(|error| unreachable!("strings and numbers: {error}"));
    let path = manifest_of(path);
    let part = beside(&path, PART);
    let mut private = OpenOptions::new();
    private.write(true).create(true).truncate(true).mode(0o600);
    let mut file = private.open(&part).map_err(at(&part))?;
    file.write_all(&text).and_then(|()| file.sync_all()).map_err(at(&part))?;
    fs::rename(&part, &path).map_err(at(&path))?;
    sync_folder(&path)
}

/// Counts the bytes that are read into a digest.
struct Hashed {
    file: File,
    hash: Sha256,
}

impl Read for Hashed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.hash.update(&buffer[..read]);
        Ok(read)
    }
}

fn differs(path: &Path, found: &Contents, decisions: u64, sha256: &str) -> ArchiveFileError {
    ArchiveFileError::Differs {
        path: path.to_owned(),
        found_decisions: found.decisions,
        found_sha256: found.sha256.clone(),
        decisions,
        sha256: sha256.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use chrono::TimeDelta;

    use super::*;
    use crate::domain::decision::Reason;
    use crate::domain::order::{Order, OrderId, Quantity, SaleId, UserId};

    fn some(count: u32) -> Vec<Decision> {
        let outcomes = [Outcome::Created, Outcome::SoldOut, Outcome::Rejected(Reason::Paused)];
        let at = DateTime::from_timestamp_millis(1_795_680_000_123).unwrap();
        let decision = |n: u32| Decision {
            order: Order {
                id: OrderId::parse(format!("o-{n}")).unwrap(),
                sale_id: SaleId::parse("s").unwrap(),
                user_id: UserId::parse(format!("u-{n}")).unwrap(),
                quantity: Quantity::new(2).unwrap(),
            },
            outcome: outcomes[n as usize % 3],
            submitted_at: at,
            decided_at: at + TimeDelta::milliseconds(n.into()),
            version: n,
            sold: 2 * n,
        };
        (0..count).map(decision).collect()
    }

    fn write(path: &Path, decisions: &[Decision]) -> Result<Contents, ArchiveFileError> {
        let mut writer = ArchiveWriter::begin(path)?;
        for decision in decisions {
            writer.add(decision)?;
        }
        writer.finish(decisions.len() as u64)
    }

    #[test]
    fn decisions_come_back_as_they_were_put_in() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name(&SaleId::parse("s").unwrap(), "1"));
        let decisions = some(2500);
        let written = write(&path, &decisions).unwrap();
        assert_eq!((written.decisions, written.units), (2500, 834 * 2));
        let mut reader = ArchiveReader::open(&path).unwrap();
        let (first, rest) = (reader.next(1000).unwrap(), reader.next(9999).unwrap());
        assert_eq!([first, rest].concat(), decisions);
        assert!(reader.next(1).unwrap().is_empty());
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        remove(&path).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_changed_file_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.jsonl.gz");
        let written = write(&path, &some(100)).unwrap();
        let record = ArchiveRecord {
            sale_id: SaleId::parse("s").unwrap(),
            archive_id: "1".into(),
            stage: crate::ledger::ArchiveStage::Done,
            file: String::new(),
            sha256: written.sha256,
            decisions: 100,
            created_at: Utc::now(),
        };
        verify(&path, &record).unwrap();
        let whole = fs::read(&path).unwrap();
        for (n, change) in [(whole.len() - 1, 1), (4, 1), (whole.len() / 2, 1)] {
            let mut bytes = whole.clone();
            bytes[n] ^= change;
            fs::write(&path, bytes).unwrap();
            assert!(verify(&path, &record).is_err(), "byte {n}");
        }
        fs::write(&path, &whole[..whole.len() - 9]).unwrap();
        assert!(verify(&path, &record).is_err());
        fs::write(&path, [whole.clone(), whole].concat()).unwrap();
        assert!(verify(&path, &record).is_err());
    }

    #[test]
    fn a_file_is_written_by_one_process() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.jsonl.gz");
        let first = ArchiveWriter::begin(&path).unwrap();
        assert!(ArchiveWriter::begin(&path).is_err());
        drop(first);
        write(&path, &some(1)).unwrap();
    }

    #[test]
    fn nothing_is_left_of_a_file_that_is_not_finished() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.jsonl.gz");
        let mut dropped = ArchiveWriter::begin(&path).unwrap();
        dropped.add(&some(1)[0]).unwrap();
        drop(dropped);
        ArchiveWriter::begin(&path).unwrap().finish(1).unwrap_err();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
