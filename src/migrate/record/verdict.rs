//! The destination's word, left in the image store for a source that cannot reach it.
//!
//! A receiver does not listen for ever. When the source has not confirmed that it knows how its migration ended, the verdict stays
//! beside the images, in a directory that only root writes to, until the source has removed both.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::migrate::wire::id::MigrationId;
use crate::migrate::wire::payload::Answer;
use crate::migrate::wire::state::Verdict;
use crate::sys::file::write_atomic;

/// No name of an image: those end in `.img` or `.json`.
const FILE: &str = "verdict";
/// More than such a file ever has.
const CAP_BYTES: u64 = 1 << 10;

/// The verdict cannot be left.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the verdict {path}, which tells the source how its migration ended")]
pub struct VerdictError {
    /// The file.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

#[derive(Serialize, Deserialize)]
struct Left(Answer);

/// Leaves it in this migration's directory of the store.
///
/// # Errors
/// Where it cannot be written, above all because the source has removed the directory already.
pub fn leave(images: &Path, migration: MigrationId, verdict: Verdict) -> Result<(), VerdictError> {
    let path = images.join(FILE);
    serde_json::to_vec(&Left(Answer { migration, verdict }))
        .map_err(io::Error::other)
        .and_then(|text| write_atomic(&path, &text, 0o600))
        .map_err(|source| VerdictError { path, source })
}

/// Reads it. Nothing where there is none that is whole and about this migration: that is no word at all.
#[must_use]
pub fn find(images: &Path, migration: MigrationId) -> Option<Verdict> {
    use std::io::Read;
    let mut text = Vec::new();
    fs::File::open(images.join(FILE))
        .and_then(|file| file.take(CAP_BYTES).read_to_end(&mut text))
        .ok()?;
    let Left(answer) = serde_json::from_slice(&text).ok()?;
    (answer.migration == migration).then_some(answer.verdict)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_word_about_this_migration_counts() {
        let dir = tempfile::tempdir().unwrap();
        let migration = MigrationId::new([1; 16]);
        assert_eq!(find(dir.path(), migration), None);
        leave(dir.path(), migration, Verdict::RolledBack).unwrap();
        assert_eq!(find(dir.path(), migration), Some(Verdict::RolledBack));
        assert_eq!(find(dir.path(), MigrationId::new([2; 16])), None);
        fs::write(dir.path().join(FILE), "{\"migration\":").unwrap();
        assert_eq!(find(dir.path(), migration), None);
        assert!(leave(&dir.path().join("gone"), migration, Verdict::Running).is_err());
    }
}
