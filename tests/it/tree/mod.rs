//! Whole trees, differences and changes since arrive as they are: every attribute, and nothing that
//! did not change.

pub mod compare;
mod overlay;
mod random_trees;
pub mod sample;
mod since;

use std::io::Empty;
use std::path::{Path, PathBuf};

use compare::assert_same;
use rcm::image::tree::{
    Base, Compression, Inventory, Limits, Slot, Staging, Totals, apply, link_copy, pack,
    size_bytes, take_inventory,
};

const LIMITS: Limits = Limits {
    entries: 1_000_000,
    content_bytes: 1 << 30,
};

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Two directories, which may be in memory.
fn places() -> (tempfile::TempDir, PathBuf, PathBuf) {
    places_in(tempfile::tempdir().expect("a directory"))
}

/// Two directories on the disk, if this machine has one.
fn places_on_disk() -> (tempfile::TempDir, PathBuf, PathBuf) {
    places_in(tempfile::tempdir_in("/var/tmp").expect("a directory"))
}

fn places_in(dir: tempfile::TempDir) -> (tempfile::TempDir, PathBuf, PathBuf) {
    let (source, destination) = (dir.path().join("source"), dir.path().join("destination"));
    std::fs::create_dir(&source).expect("a directory");
    (dir, source, destination)
}

fn stage(place: &Path, id: &str) -> Staging {
    Staging::create_tree(Slot::new(place, id).expect("a place")).expect("staged")
}

/// Packs `source` whole and unpacks it to `destination`; returns the inventory that was sent.
fn copy(source: &Path, destination: &Path) -> Vec<u8> {
    let (mut changes, mut sent) = (Vec::new(), Vec::new());
    let base = Base::<Empty>::Nothing;
    let packed = pack(
        source,
        base,
        &mut changes,
        Some(&mut sent),
        Compression::Zstd,
    )
    .expect("packed");
    let staging = stage(destination, "1");
    let applied = apply(&staging.path(), &changes[..], LIMITS).expect("applied");
    assert_eq!(packed, applied);
    staging.sync().expect("synced");
    staging.publish().expect("published");
    staging.keep().expect("kept");
    sent
}

/// Brings `destination` to the state of `source` by the differences to its own tree.
fn update(source: &Path, destination: &Path) -> (Totals, usize, Vec<u8>) {
    let (mut listed, mut changes, mut sent) = (Vec::new(), Vec::new(), Vec::new());
    take_inventory(destination, &mut listed, Compression::Zstd).expect("listed");
    let base = Base::Peer(Inventory::open(&listed[..]).expect("an inventory"));
    let packed = pack(
        source,
        base,
        &mut changes,
        Some(&mut sent),
        Compression::Zstd,
    )
    .expect("packed");
    assert_eq!(
        apply(destination, &changes[..], LIMITS).expect("applied"),
        packed
    );
    (packed, changes.len(), sent)
}

/// Brings `destination` to the state of `source` by the changes since `sent`.
fn follow(source: &Path, destination: &Path, sent: &[u8]) -> (Totals, Vec<u8>) {
    let (mut changes, mut now_sent) = (Vec::new(), Vec::new());
    let base = Base::Sent(Inventory::open(sent).expect("an inventory"));
    let packed = pack(
        source,
        base,
        &mut changes,
        Some(&mut now_sent),
        Compression::None,
    )
    .expect("packed");
    assert_eq!(
        apply(destination, &changes[..], LIMITS).expect("applied"),
        packed
    );
    (packed, now_sent)
}

#[test]
fn a_whole_tree_arrives_as_it_is_and_differences_only() {
    if !is_root() {
        crate::common::skip!("needs root: device nodes and owners");
    }
    let (dir, source, destination) = places();
    sample::build(&source, 150);
    sample::debian(&source.join("debian"));
    let lines = compare::describe(&source);
    assert!(lines.len() > 5000, "{} entries", lines.len());
    let sent = copy(&source, &destination);
    assert_same(&source, &destination);
    let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert_eq!(names.len(), 2, "nothing is left of the staging");

    // Nothing changed: an empty stream.
    let (totals, stream_bytes, _) = update(&source, &destination);
    assert_eq!(totals, Totals::default());
    assert!(stream_bytes < 100, "{stream_bytes}");

    let (second, third) = (dir.path().join("second"), dir.path().join("third"));
    copy(&source, &second);
    copy(&source, &third);
    let new_bytes = sample::change(&source);
    let (by_digest, _, _) = update(&source, &destination);
    assert_same(&source, &destination);
    let (by_stamp, _) = follow(&source, &second, &sent);
    assert_same(&source, &second);
    assert_eq!(by_digest, by_stamp);
    // As in the freeze: no further pack follows, so no inventory is written.
    let mut last = Vec::new();
    let base = Base::Sent(Inventory::open(&sent[..]).expect("an inventory"));
    let none = None::<std::io::Sink>;
    let totals = pack(&source, base, &mut last, none, Compression::Zstd).expect("packed");
    assert_eq!(totals, by_stamp);
    apply(&third, &last[..], LIMITS).expect("applied");
    assert_same(&source, &third);
    assert_eq!(by_digest.content_bytes, new_bytes);
    assert!((20..60).contains(&by_digest.entries), "{by_digest:?}");
    assert_eq!(by_digest.deletions, 4);
}

#[test]
fn a_staging_leaves_nothing_and_puts_back_what_was_there() {
    let (dir, source, destination) = places();
    std::fs::write(source.join("file"), "x").unwrap();
    let nothing_left = || {
        let names = std::fs::read_dir(dir.path()).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name());
        assert_eq!(
            names
                .filter(|name| name.as_encoded_bytes()[0] == b'.')
                .count(),
            0
        );
    };
    let other = dir.path().join("other");
    for was_there in [false, true] {
        let staging = stage(&other, "a");
        std::fs::write(staging.path().join("half"), "x").unwrap();
        // Leave it as a crash would.
        std::mem::forget(staging);
        let staging = stage(&other, "a");
        assert_eq!(std::fs::read_dir(staging.path()).unwrap().count(), 0);
        drop(staging);
        nothing_left();
        // Published, and undone: by the same process, or after a crash.
        for is_alive in [true, false] {
            let place = Slot::new(&other, "a").unwrap();
            let staging = Staging::create_tree(place.clone()).unwrap();
            std::fs::write(staging.path().join("new"), "x").unwrap();
            staging.publish().unwrap();
            assert!(other.join("new").exists());
            match is_alive {
                true => drop(staging),
                false => {
                    std::mem::forget(staging);
                    place.undo().unwrap();
                }
            }
            assert!(!other.join("new").exists());
            assert_eq!(other.join("file").exists(), was_there);
            assert_eq!(other.exists(), was_there);
            nothing_left();
        }
        // Between the two renames.
        if was_there {
            let place = Slot::new(&other, "a").unwrap();
            let staging = Staging::create_tree(place.clone()).unwrap();
            std::fs::rename(&other, staging.path().with_file_name("old")).unwrap();
            std::mem::forget(staging);
            place.undo().unwrap();
            assert!(other.join("file").exists());
        }
        copy(&source, &other);
        assert!(other.join("file").exists());
        nothing_left();
    }
    assert!(!destination.exists());
}

/// The files of the old tree are those of the new one, until they change.
#[test]
fn a_linked_copy_takes_changes_and_leaves_the_old_tree_alone() {
    if !is_root() {
        crate::common::skip!("needs root: device nodes and owners");
    }
    let (dir, source, destination) = places_on_disk();
    sample::build(&source, 20);
    copy(&source, &destination);
    let before = compare::describe(&destination);
    let linked = dir.path().join("linked");
    std::fs::create_dir(&linked).unwrap();
    link_copy(&destination, &linked).unwrap();
    let used = size_bytes(&dir.path().join("linked"));
    assert!(used > 0);
    update(&source, &linked);
    sample::change(&source);
    update(&source, &linked);
    // But for the number of names.
    let plain = |lines: std::collections::BTreeMap<Vec<u8>, String>| -> Vec<(Vec<u8>, String)> {
        let line = |line: String| {
            let mut words = line.split(' ').map(str::to_owned).collect::<Vec<_>>();
            if let Some(at) = words.iter().position(|word| word == "links") {
                words[at + 1] = "?".into();
            }
            words.join(" ")
        };
        lines
            .into_iter()
            .map(|(path, text)| (path, line(text)))
            .collect()
    };
    assert_eq!(plain(compare::describe(&destination)), plain(before));
    std::fs::remove_dir_all(&destination).unwrap();
    assert_same(&source, &linked);
}
