//! Free space, and the memory that the images will hold.

use std::path::Path;

use nix::sys::statvfs::statvfs;
use nix::unistd::Pid;
use procfs::process::Process;

use crate::migrate::agreement::Space;

/// Returns the free space of the file system of `path`.
#[must_use]
pub fn free_space(path: &Path) -> Space {
    let Ok(stats) = statvfs(path) else {
        return Space::default();
    };
    #[allow(
        clippy::useless_conversion,
        clippy::unnecessary_cast,
        reason = "the types differ between architectures"
    )]
    let (blocks, block_bytes, files, free_files) = (
        stats.blocks_available() as u64,
        stats.fragment_size() as u64,
        stats.files() as u64,
        stats.files_available() as u64,
    );
    Space {
        free_bytes: Some(blocks.saturating_mul(block_bytes)),
        // Some file systems create inodes when they need them and report none (statvfs(3)).
        free_files: (files > 0).then_some(free_files),
    }
}

/// Returns the memory of these processes that goes into the images, in bytes.
pub(super) fn memory_bytes(moving: &[Pid]) -> u64 {
    moving.iter().filter_map(|pid| private_bytes(*pid)).sum()
}

/// Returns the memory that no file holds, in bytes. CRIU reads the rest from the root file system
/// again. The shares of proc_pid_smaps_rollup(5) are summed, so that pages that a fork has left in
/// common count once.
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
}
