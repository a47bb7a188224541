//! Room for the images.

use std::path::Path;

use nix::sys::statvfs::statvfs;
use nix::unistd::Pid;
use procfs::process::Process;

use super::error;
use crate::migrate::preamble::Finding;
use crate::migrate::progress::bytes;

/// Compares the memory that the images will hold with what is free in the store.
pub(super) fn judge(needed_bytes: u64, image_path: &Path) -> Option<Finding> {
    lacking(needed_bytes, free_bytes(image_path)?, image_path)
}

/// What root may still write to the file system of `path`.
pub(super) fn free_bytes(path: &Path) -> Option<u64> {
    let stats = statvfs(path).ok()?;
    #[allow(
        clippy::useless_conversion,
        clippy::unnecessary_cast,
        reason = "the types differ between architectures"
    )]
    let free_bytes = (stats.blocks_available() as u64).saturating_mul(stats.fragment_size() as u64);
    Some(free_bytes)
}

fn lacking(needed_bytes: u64, free_bytes: u64, image_path: &Path) -> Option<Finding> {
    (free_bytes < needed_bytes).then(|| {
        error(
            format!(
                "the images need about {}, and {} has {} left",
                bytes(needed_bytes),
                image_path.display(),
                bytes(free_bytes)
            ),
            "make room there, or use another --image-path",
        )
    })
}

/// The memory of all of them that goes into the images.
pub(super) fn memory_bytes(moving: &[Pid]) -> u64 {
    moving.iter().filter_map(|pid| private_bytes(*pid)).sum()
}

/// What no file holds: CRIU reads the rest from the root file system again (proc_pid_smaps_rollup(5); kibibytes there). Shares, so that pages
/// which a fork has left in common count once.
fn private_bytes(pid: Pid) -> Option<u64> {
    let rollup = Process::new(pid.as_raw()).ok()?.smaps_rollup().ok()?;
    let map = rollup.memory_map_rollup.0.first()?;
    let counts = &map.extension.map;
    Some(
        ["Pss_Anon", "Pss_Shmem", "SwapPss"]
            .iter()
            .filter_map(|name| counts.get(*name))
            .sum(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_its_own_counts() {
        let before_bytes = memory_bytes(&[Pid::this()]);
        let memory = vec![7_u8; 64 << 20];
        let after_bytes = memory_bytes(&[Pid::this()]);
        assert!(std::hint::black_box(&memory).iter().all(|&byte| byte == 7));
        assert!(
            after_bytes > before_bytes + (32 << 20),
            "{before_bytes} {after_bytes}"
        );
    }

    #[test]
    fn too_little_room_is_a_finding() {
        let store = Path::new("/pool");
        assert_eq!(lacking(1 << 20, 1 << 20, store), None);
        let finding = lacking(3 << 30, 1 << 30, store).unwrap();
        assert!(finding.what.contains("3.0 GiB") && finding.what.contains("1.0 GiB"));
    }
}
