//! The changes since an earlier pack are found without reading unchanged files.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

use rcm::image::tree::Totals;

use super::compare::assert_same;
use super::{copy, follow, places, places_on_disk, sample};
use crate::common::random::Random;

/// Bytes that this thread has read with system calls (proc_pid_io(5)).
fn read_bytes() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/io").expect("the kernel counts");
    let line = text.lines().find(|line| line.starts_with("rchar:"));
    line.and_then(|line| line.split(' ').nth(1)?.parse().ok())
        .expect("a number")
}

fn keeps_times(path: &Path) -> bool {
    let magic = nix::sys::statfs::statfs(path)
        .expect("a file system")
        .filesystem_type();
    magic == nix::sys::statfs::EXT4_SUPER_MAGIC
        || magic == nix::sys::statfs::XFS_SUPER_MAGIC
        || magic == nix::sys::statfs::BTRFS_SUPER_MAGIC
}

#[test]
fn an_old_file_is_not_read_again_and_a_new_one_is() {
    let (_dir, source, destination) = places_on_disk();
    if !keeps_times(&source) {
        crate::common::skip!("/var/tmp is not on a file system of a disk");
    }
    let mut random = Random::new(3);
    for name in ["a", "b", "c"] {
        fs::write(source.join(name), random.bytes(8 << 20)).unwrap();
    }
    // Just written: not to be trusted yet.
    let sent = copy(&source, &destination);
    let before = read_bytes();
    let (totals, _) = follow(&source, &destination, &sent);
    assert_eq!(totals, Totals::default());
    assert!(read_bytes() - before > 24 << 20);

    std::thread::sleep(Duration::from_millis(2100));
    let (_, sent) = follow(&source, &destination, &sent);
    let before = read_bytes();
    let (totals, sent) = follow(&source, &destination, &sent);
    assert_eq!(totals, Totals::default());
    assert!(read_bytes() - before < 1 << 20, "{}", read_bytes() - before);

    // The same size and modification time as before: only the change time differs.
    let path = source.join("b");
    let old = fs::metadata(&path).unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(b"?", 5 << 20).unwrap();
    sample::set_time(&path, old.mtime(), old.mtime_nsec());
    let before = read_bytes();
    let (totals, sent) = follow(&source, &destination, &sent);
    assert_eq!((totals.entries, totals.content_bytes), (2, 256 << 10));
    assert!((8 << 20..10 << 20).contains(&(read_bytes() - before)));
    assert_same(&source, &destination);

    // Another file under the old name, with everything as it was but the inode.
    fs::copy(source.join("c"), source.join("d")).unwrap();
    File::options()
        .write(true)
        .open(source.join("d"))
        .unwrap()
        .write_all_at(b"?", 7)
        .unwrap();
    let old = fs::metadata(source.join("c")).unwrap();
    fs::rename(source.join("d"), source.join("c")).unwrap();
    sample::set_time(&source.join("c"), old.mtime(), old.mtime_nsec());
    let (totals, _) = follow(&source, &destination, &sent);
    assert_eq!(totals.content_bytes, 256 << 10);
    assert_same(&source, &destination);
}

#[test]
fn a_change_right_behind_the_reading_is_found() {
    let (_dir, source, destination) = places();
    let path = source.join("counter");
    fs::write(&path, b"0000").unwrap();
    let mut sent = copy(&source, &destination);
    for round in 1_u32..60 {
        // Often within the same tick of the clock that gives the times.
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(format!("{round:04}").as_bytes(), 0)
            .unwrap();
        sample::set_time(&path, 1, 0);
        (_, sent) = follow(&source, &destination, &sent);
        assert_eq!(
            fs::read(destination.join("counter")).unwrap(),
            fs::read(&path).unwrap()
        );
    }
}

#[test]
fn a_tree_that_changes_meanwhile_is_whole_in_the_end() {
    let (_dir, source, destination) = places();
    let stop = std::sync::atomic::AtomicBool::new(false);
    for name in 0..50 {
        fs::create_dir(source.join(format!("d{name}"))).unwrap();
    }
    std::thread::scope(|scope| {
        let changing = scope.spawn(|| {
            let mut random = Random::new(4);
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let dir = source.join(format!("d{}", random.below(50)));
                let file = dir.join(format!("f{}", random.below(5)));
                // Any of them may fail: the tree is a moving target for this thread, too.
                let _ = match random.below(6) {
                    0 => fs::remove_file(&file),
                    1 => fs::remove_dir_all(&dir).and_then(|()| fs::create_dir(&dir)),
                    2 => fs::write(&file, []),
                    3 => fs::rename(&file, dir.join("other")),
                    _ => {
                        let size = random.below(600_000);
                        fs::write(&file, random.bytes(size))
                    }
                };
            }
        });
        let mut sent = copy(&source, &destination);
        for _ in 0..10 {
            (_, sent) = follow(&source, &destination, &sent);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        changing.join().unwrap();
        follow(&source, &destination, &sent);
    });
    assert_same(&source, &destination);
}
