//! Verdict of the destination, in a file in the image store for a source that cannot reach it.
//!
//! A receiver does not listen for ever. If the source has not confirmed that it knows the result of
//! its migration, the verdict stays beside the images until the source has removed both. Only root
//! can write to that directory.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::migrate::limits::MAX_VERDICT_BYTES;
use crate::migrate::wire::id::MigrationId;
use crate::migrate::wire::payload::Answer;
use crate::migrate::wire::state::Verdict;
use crate::sys::file::write_atomic;

/// Name of the verdict. Names of images end in `.img` or `.json`, so none is the same.
const FILE: &str = "verdict";

/// The verdict cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the verdict {path}, which tells the source how its migration ended")]
pub struct VerdictError {
    /// Path of the file.
    pub path: PathBuf,
    /// Cause.
    #[source]
    pub source: io::Error,
}

#[derive(Serialize, Deserialize)]
struct Stored(Answer);

/// Writes the verdict to this migration's directory of the store.
///
/// # Errors
/// If the verdict cannot be written, above all because the source has removed the directory
/// already.
pub fn write(images: &Path, migration: MigrationId, verdict: Verdict) -> Result<(), VerdictError> {
    let path = images.join(FILE);
    serde_json::to_vec(&Stored(Answer { migration, verdict }))
        .map_err(io::Error::other)
        .and_then(|text| write_atomic(&path, &text, 0o600))
        .map_err(|source| VerdictError { path, source })
}

/// Reads the verdict. `None` if the file is missing, truncated, or belongs to another migration.
#[must_use]
pub fn read(images: &Path, migration: MigrationId) -> Option<Verdict> {
    use std::io::Read;
    let mut text = Vec::new();
    fs::File::open(images.join(FILE))
        .and_then(|file| file.take(MAX_VERDICT_BYTES).read_to_end(&mut text))
        .ok()?;
    let Stored(answer) = serde_json::from_slice(&text).ok()?;
    (answer.migration == migration).then_some(answer.verdict)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_complete_verdict_of_this_migration_counts() {
        let dir = tempfile::tempdir().unwrap();
        let migration = MigrationId::new([1; 16]);
        assert_eq!(read(dir.path(), migration), None);
        write(dir.path(), migration, Verdict::RolledBack).unwrap();
        assert_eq!(read(dir.path(), migration), Some(Verdict::RolledBack));
        assert_eq!(read(dir.path(), MigrationId::new([2; 16])), None);
        fs::write(dir.path().join(FILE), "{\"migration\":").unwrap();
        assert_eq!(read(dir.path(), migration), None);
        assert!(write(&dir.path().join("gone"), migration, Verdict::Running).is_err());
    }
}
