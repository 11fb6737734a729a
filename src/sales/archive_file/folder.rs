//! Where archive files are: their names, and what is beside them.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};

use super::ArchiveFileError;
use crate::domain::order::SaleId;

/// What every file's name ends with, and its manifest's.
const ENDING: &str = ".jsonl.gz";
const MANIFEST: &str = ".manifest.json";
/// What follows the name of a file that is not whole yet.
pub(super) const PART: &str = ".part";

/// Removes a file, its manifest, and what was left of either, as far as they are there.
pub fn remove(path: &Path) -> Result<(), ArchiveFileError> {
    let manifest = manifest_of(path);
    for path in [path, &manifest, &beside(path, PART), &beside(&manifest, PART)] {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(path)(error)),
            _ => {}
        }
    }
    sync_folder(path)
}

/// The name of a file.
pub fn name(sale: &SaleId, archive_id: &str) -> String {
    format!("{sale}-{archive_id}{ENDING}")
}

/// Where a file goes that takes the place of the one at `path`, `now`.
pub fn revision(path: &Path, sale: &SaleId, archive_id: &str, now: DateTime<Utc>) -> PathBuf {
    // A sale's id has no dot, so that no other archive's names begin in the same way.
    let now = now.format("%Y%m%dT%H%M%S%6fZ");
    path.with_file_name(format!("{sale}-{archive_id}.{now}{ENDING}"))
}

/// Removes what is beside the file at `path` of the same archive, but for its manifest.
pub fn remove_others(path: &Path, sale: &SaleId, archive_id: &str) -> Result<(), ArchiveFileError> {
    let (folder, begins) = (folder_of(path), format!("{sale}-{archive_id}."));
    let kept = [path.to_owned(), manifest_of(path)];
    for entry in fs::read_dir(folder).map_err(at(folder))? {
        let other = folder.join(entry.map_err(at(folder))?.file_name());
        let name = other.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(&begins)
            && !kept.iter().any(|kept| kept.file_name() == other.file_name())
        {
            fs::remove_file(&other).map_err(at(&other))?;
        }
    }
    sync_folder(path)
}

/// Keeps other commands from rewriting files in a folder, until it is dropped.
pub struct FolderLock {
    _file: File,
}

impl FolderLock {
    /// Waits for the lock of the folder of `path`.
    pub fn take(path: &Path) -> Result<Self, ArchiveFileError> {
        let lock = folder_of(path).join(".floodgate.lock");
        let mut private = OpenOptions::new();
        private.write(true).create(true).truncate(false).mode(0o600);
        let file = private.open(&lock).map_err(at(&lock))?;
        file.lock().map_err(at(&lock))?;
        Ok(Self { _file: file })
    }
}

/// Where the manifest of a file is.
pub fn manifest_of(path: &Path) -> PathBuf {
    let name = path.to_string_lossy();
    PathBuf::from(format!("{}{MANIFEST}", name.strip_suffix(ENDING).unwrap_or(&name)))
}

pub(super) fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."))
}

/// Has the names in the folder of `path` on the disk.
pub(super) fn sync_folder(path: &Path) -> Result<(), ArchiveFileError> {
    let folder = folder_of(path);
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(at(folder))
}

pub(super) fn at(path: &Path) -> impl Fn(io::Error) -> ArchiveFileError {
    move |source| ArchiveFileError::Io { path: path.to_owned(), source }
}
