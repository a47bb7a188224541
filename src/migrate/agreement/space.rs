//! Judgement of the free space for the images.

use std::path::Path;

use crate::migrate::wire::finding::Finding;
use crate::migrate::wire::id::Side;
use crate::migrate::wire::observed::Observed;
use crate::text::bytes;

/// Approximate size of the images of a container without its memory, and the part of each process
/// (seen: 100 to 300 KiB for a few processes).
const SMALL_BYTES: u64 = 128 << 10;
const SMALL_BYTES_PER_PROCESS: u64 = 32 << 10;
/// Approximate number of these files: criu/image-desc.c, CRIU 4.2, has six for each process and
/// some 30 for each container.
const FILES: u64 = 32;
const FILES_PER_PROCESS: u64 = 8;

/// Free space of a file system. An unknown limit causes no finding.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Space {
    /// Bytes that root may still write.
    pub free_bytes: Option<u64>,
    /// Number of files that may still be created; `None` also if the file system has no limit.
    pub free_files: Option<u64>,
}

/// Returns a finding for each resource that the images lack in the store at `path`. The store gets
/// the memory or only the other images.
#[must_use]
pub fn lacking(
    side: Side,
    observed: &Observed,
    has_memory: bool,
    space: Space,
    path: &Path,
) -> Vec<Finding> {
    let memory_bytes = if has_memory { observed.memory_bytes } else { 0 };
    let small_bytes = SMALL_BYTES + SMALL_BYTES_PER_PROCESS.saturating_mul(observed.processes);
    let needed_bytes = memory_bytes.saturating_add(small_bytes);
    let needed_files = FILES + FILES_PER_PROCESS.saturating_mul(observed.processes);
    let mut findings = Vec::new();
    let mut lacks = |needed: String, left: String| {
        findings.push(Finding::error(
            side,
            format!(
                "the images need about {needed}, and {} has {left} left",
                path.display()
            ),
            "free space there, or use another --image-path",
        ));
    };
    if let Some(free_bytes) = space.free_bytes.filter(|&free| free < needed_bytes) {
        lacks(bytes(needed_bytes), bytes(free_bytes));
    }
    if let Some(free_files) = space.free_files.filter(|&free| free < needed_files) {
        lacks(format!("{needed_files} files"), free_files.to_string());
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(free_bytes: u64, free_files: u64) -> Space {
        Space {
            free_bytes: Some(free_bytes),
            free_files: Some(free_files),
        }
    }

    #[test]
    fn too_little_space_is_a_finding() {
        let observed = Observed {
            memory_bytes: 3 << 30,
            processes: 10,
            ..Observed::default()
        };
        let find = |has_memory, space| {
            let path = Path::new("/pool");
            let found = lacking(Side::Destination, &observed, has_memory, space, path);
            found.into_iter().map(|one| one.what).collect::<Vec<_>>()
        };
        assert_eq!(find(true, Space::default()), [""; 0]);
        assert_eq!(find(true, space(4 << 30, 1000)), [""; 0]);
        assert_eq!(find(false, space(1 << 20, 1000)), [""; 0]);
        let [bytes, files] = &find(true, space(1 << 30, 20))[..] else {
            panic!();
        };
        assert!(bytes.contains("about 3.0 GiB") && bytes.contains("1.0 GiB left"));
        assert!(files.contains("about 112 files") && files.contains("has 20 left"));
    }
}
