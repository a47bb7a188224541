//! Room for the images.

use std::path::Path;

use crate::migrate::wire::finding::Finding;
use crate::migrate::wire::id::Side;
use crate::migrate::wire::observed::Observed;
use crate::text::bytes;

/// What the images of a container hold besides memory, about, and what each process adds (seen: 100 to 300 KiB for a few processes).
const SMALL_BYTES: u64 = 128 << 10;
const SMALL_BYTES_PER_PROCESS: u64 = 32 << 10;
/// How many files that are, about: criu/image-desc.c has six for each process and some 30 for each container.
const FILES: u64 = 32;
const FILES_PER_PROCESS: u64 = 8;

/// What is left in a file system. Nothing is said about what is not known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Room {
    /// What root may still write.
    pub free_bytes: Option<u64>,
    /// How many files it may still make; `None` also where the file system has no limit.
    pub free_files: Option<u64>,
}

/// What the images of the container lack in the store at `path`, which gets its memory or only the rest.
#[must_use]
pub fn lacking(
    side: Side,
    observed: &Observed,
    has_memory: bool,
    room: Room,
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
            "make room there, or use another --image-path",
        ));
    };
    if let Some(free_bytes) = room.free_bytes.filter(|&free| free < needed_bytes) {
        lacks(bytes(needed_bytes), bytes(free_bytes));
    }
    if let Some(free_files) = room.free_files.filter(|&free| free < needed_files) {
        lacks(format!("{needed_files} files"), free_files.to_string());
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(free_bytes: u64, free_files: u64) -> Room {
        Room {
            free_bytes: Some(free_bytes),
            free_files: Some(free_files),
        }
    }

    #[test]
    fn too_little_room_is_a_finding() {
        let observed = Observed {
            memory_bytes: 3 << 30,
            processes: 10,
            ..Observed::default()
        };
        let find = |has_memory, room| {
            let path = Path::new("/pool");
            let found = lacking(Side::Destination, &observed, has_memory, room, path);
            found.into_iter().map(|one| one.what).collect::<Vec<_>>()
        };
        assert_eq!(find(true, Room::default()), [""; 0]);
        assert_eq!(find(true, room(4 << 30, 1000)), [""; 0]);
        assert_eq!(find(false, room(1 << 20, 1000)), [""; 0]);
        let [bytes, files] = &find(true, room(1 << 30, 20))[..] else {
            panic!();
        };
        assert!(bytes.contains("about 3.0 GiB") && bytes.contains("1.0 GiB left"));
        assert!(files.contains("about 112 files") && files.contains("has 20 left"));
    }
}
