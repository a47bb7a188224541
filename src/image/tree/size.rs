//! How much there is in a tree.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use walkdir::WalkDir;

/// What a tree takes on its file system, in bytes, without what is mounted in it. Files with several names count once; what cannot be read is left out.
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
        // In units of 512 bytes (stat(2)).
        .map(|metadata| metadata.blocks() * 512)
        .sum()
}
