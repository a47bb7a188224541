//! Any tree becomes any other: more than a thousand small random trees, one after the other.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, FileTypeExt, symlink};
use std::path::{Path, PathBuf};

use super::compare::{assert_same, describe};
use super::{copy, follow, sample, update};
use crate::common::random::Random;

/// Few names, so that they meet; some that sort around a slash.
const NAMES: [&str; 7] = ["a", "a-b", "a b", "b", "b!", "c", "a0"];

fn any_path(root: &Path, random: &mut Random) -> PathBuf {
    let mut path = root.to_path_buf();
    for _ in 0..=random.below(3) {
        path.push(NAMES[random.below(NAMES.len())]);
    }
    path
}

fn mutate(root: &Path, random: &mut Random) {
    let path = any_path(root, random);
    let other = any_path(root, random);
    let inode = |path: &Path| path.symlink_metadata();
    // Opening a FIFO would wait for its other end.
    if fs::metadata(&path).is_ok_and(|found| found.file_type().is_fifo()) {
        return;
    }
    // Changes that are not possible now are left out.
    let _ = match random.below(14) {
        0..=2 => fs::create_dir_all(&path),
        3 => fs::write(&path, b"same"),
        4 => {
            let size = random.below(5000);
            fs::write(&path, random.bytes(size))
        }
        5 => fs::hard_link(&other, &path),
        6 => symlink("b", &path),
        7 => fs::remove_file(&path),
        8 => fs::remove_dir_all(&path),
        9 => fs::rename(&other, &path),
        10 if inode(&path).is_ok() => {
            sample::set_time(&path, random.below(1000) as i64, 5);
            Ok(())
        }
        11 if inode(&path).is_ok_and(|found| !found.is_symlink()) => {
            sample::set_mode(&path, 0o600 + random.below(64) as u32);
            Ok(())
        }
        12 => File::options().write(true).open(&path).and_then(|file| {
            file.set_len(random.below(3_000_000) as u64)?;
            file.write_all_at(&random.bytes(10), random.below(3_000_000) as u64)
        }),
        _ => nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR).map_err(Into::into),
    };
}

#[test]
fn any_tree_becomes_any_other() {
    // Memory: no waiting for a disk, and no change times to trust.
    let Ok(dir) = tempfile::tempdir_in("/dev/shm") else {
        crate::common::skip!("no /dev/shm");
    };
    let (source, peer, follower) = (
        dir.path().join("s"),
        dir.path().join("p"),
        dir.path().join("f"),
    );
    for seed in 0..60 {
        let mut random = Random::new(seed);
        fs::create_dir(&source).unwrap();
        let mut sent = copy(&source, &peer);
        copy(&source, &follower);
        for round in 0..25 {
            for _ in 0..=random.below(12) {
                mutate(&source, &mut random);
            }
            // The peer's tree may differ from all that was ever sent.
            if random.below(4) == 0 {
                for _ in 0..random.below(6) {
                    mutate(&peer, &mut random);
                }
            }
            let before = describe(&source);
            update(&source, &peer);
            (_, sent) = follow(&source, &follower, &sent);
            assert_eq!(before, describe(&source), "packing changes nothing");
            eprintln!("seed {seed} round {round}: {} entries", before.len());
            assert_same(&source, &peer);
            assert_same(&source, &follower);
        }
        for tree in [&source, &peer, &follower] {
            fs::remove_dir_all(tree).unwrap();
        }
    }
}
