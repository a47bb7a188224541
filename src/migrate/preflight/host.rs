//! Probes of the destination for one container.

use std::fs;
use std::path::{Component, Path, PathBuf};

use crate::migrate::wire::observed::NeededFile;

/// Returns the wall clock, in milliseconds since 1970.
#[must_use]
pub fn clock_ms() -> i64 {
    chrono::Utc::now().timestamp_millis()
}

/// Returns the `files` that are missing below `rootfs` or have another size there.
#[must_use]
pub fn differing_files(rootfs: &Path, files: &[NeededFile]) -> Vec<PathBuf> {
    files
        .iter()
        .filter(|file| !is_same(rootfs, file))
        .map(|file| file.path.clone())
        .collect()
}

fn is_same(rootfs: &Path, file: &NeededFile) -> bool {
    let mut path = rootfs.to_path_buf();
    for component in file.path.components() {
        match component {
            Component::RootDir => {}
            Component::Normal(name) => path.push(name),
            // The kernel does not show such a path.
            _ => return false,
        }
    }
    // Links of the tree are not followed: an absolute one would lead into the host's tree.
    fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_file() && meta.len() == file.size_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_the_same_by_size() {
        let rootfs = tempfile::tempdir().unwrap();
        fs::create_dir(rootfs.path().join("bin")).unwrap();
        fs::write(rootfs.path().join("bin/a"), "12345").unwrap();
        let file = |path: &str, size_bytes| NeededFile {
            path: path.into(),
            size_bytes,
        };
        let files = [
            file("/bin/a", 5),
            file("/bin/a", 6),
            file("/bin/b", 5),
            file("/bin/../bin/a", 5),
        ];
        let differing = differing_files(rootfs.path(), &files);
        let expected = ["/bin/a", "/bin/b", "/bin/../bin/a"].map(PathBuf::from);
        assert_eq!(differing, expected);
    }
}
