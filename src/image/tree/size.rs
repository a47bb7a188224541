//! Measures a tree.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use walkdir::WalkDir;

/// Returns the space that a tree takes on its file system, in bytes, without mounts in it. Files
/// with several names count once. Unreadable files are left out.
#[must_use]
pub fn size_bytes(root: &Path) -> u64 {
    let mut seen = HashSet::new();
    WalkDir::new(root)
        .same_file_system(true)
        .into_iter()
        .filter_map(|entry| entry.ok()?.metadata().ok())
        .filter(|metadata| {
            metadata.is_dir() || metadata.nlink() == 1 || seen.insert(metadata.ino())
        })
        // The unit is 512 bytes (stat(2)).
        .map(|metadata| metadata.blocks() * 512)
        .sum()
}
