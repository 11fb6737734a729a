//! Locks that go with a file.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// For the user who runs floodgate only: orders name their buyers.
const PRIVATE: u32 = 0o600;

/// Opens the file at `path` to write, and makes it if it isn't there.
pub(super) fn private_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(false).mode(PRIVATE).open(path)
}

/// A lock that this process holds. The kernel gives it back when the process ends in any way.
#[derive(Debug)]
pub(crate) struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    /// Waits for the lock at `path`. Blocks.
    pub(super) fn wait(path: PathBuf) -> io::Result<Self> {
        loop {
            let file = private_file(&path)?;
            file.lock()?;
            if is_at(&file, &path)? {
                return Ok(Self { path, _file: file });
            }
        }
    }

    /// Takes the lock at `path`, unless another process has it, or another handle.
    pub(super) fn take(path: PathBuf) -> io::Result<Option<Self>> {
        loop {
            let file = private_file(&path)?;
            match file.try_lock() {
                Ok(()) if is_at(&file, &path)? => return Ok(Some(Self { path, _file: file })),
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    }
}

/// Whether `file` is still the one at `path`: the last holder of its lock may have removed it.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let inode = file.metadata()?.ino();
    match fs::metadata(path) {
        Ok(there) => Ok(there.ino() == inode),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Still locked, so no other process holds it, and one that opened it meanwhile looks whether it is there.
        let _ = fs::remove_file(&self.path);
    }
}
