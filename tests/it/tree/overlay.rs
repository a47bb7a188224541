//! The upper directory of a real overlay, with marks for deleted and hidden files.

use std::fs;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use rcm::image::tree::{Base, Compression, Inventory, TreeError, apply, pack, take_inventory};

use super::compare::assert_same;
use super::{LIMITS, copy, is_root, places, sample, update};
use crate::common;

struct Overlay {
    mounted: PathBuf,
    upper: PathBuf,
}

impl Overlay {
    fn mount(dir: &Path, name: &str, lower: &Path) -> nix::Result<Self> {
        let at = |part: &str| {
            let path = dir.join(format!("{name}-{part}"));
            fs::create_dir_all(&path).expect("a directory");
            path
        };
        let (mounted, upper, work) = (at("mounted"), at("upper"), at("work"));
        let options = format!(
            "lowerdir={},upperdir={},workdir={},redirect_dir=off,metacopy=off",
            lower.display(),
            upper.display(),
            work.display()
        );
        mount(
            Some("overlay"),
            &mounted,
            Some("overlay"),
            MsFlags::empty(),
            Some(&*options),
        )?;
        Ok(Self { mounted, upper })
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        // The test has its result; a mount that stays would only keep the directory.
        let _ = umount2(&self.mounted, MntFlags::MNT_DETACH);
    }
}

fn change(root: &Path) {
    let doc = |package: usize| root.join(format!("usr/share/doc/package-{package}"));
    fs::remove_file(doc(1).join("file-1.gz")).unwrap();
    fs::remove_dir_all(doc(2)).unwrap();
    // The new directory hides the files of the lower layer.
    fs::remove_dir_all(doc(3)).unwrap();
    fs::create_dir(doc(3)).unwrap();
    fs::write(doc(3).join("new"), "new").unwrap();
    fs::remove_dir_all(doc(4)).unwrap();
    fs::write(doc(4), "a file in the place of a directory").unwrap();
    fs::remove_file(doc(0).join("file-2.gz")).unwrap();
    fs::create_dir(doc(0).join("file-2.gz")).unwrap();
    fs::write(doc(0).join("file-3.gz"), "other").unwrap();
    sample::set_mode(&root.join("bin/su"), 0o700);
    sample::set_attribute(&root.join("bin/ping"), "user.note", b"1");
    fs::write(root.join("added"), "added").unwrap();
    fs::remove_file(root.join("dev/null")).unwrap();
    fs::create_dir(root.join("empty")).unwrap();
}

#[test]
fn an_upper_directory_becomes_changes_to_the_lower_one() {
    if !is_root() {
        common::skip!("needs root: overlay mounts");
    }
    let (dir, lower, destination) = places();
    sample::build(&lower, 8);
    // A lower layer has neither: there, both are marks of the overlay.
    fs::remove_file(lower.join("dev/whiteout-like")).unwrap();
    fs::remove_dir(lower.join("var/lib/nested/d")).unwrap();
    let overlay = match Overlay::mount(dir.path(), "source", &lower) {
        Ok(overlay) => overlay,
        Err(errno) => common::skip!("no overlay can be mounted here: {errno}"),
    };
    copy(&lower, &destination);
    // As at a destination that shares the lower layers and mounts an overlay of its own over them.
    let other = Overlay::mount(dir.path(), "other", &lower).expect("a second overlay");
    change(&overlay.mounted);

    let (mut changes, mut sent) = (Vec::new(), Vec::new());
    let base = Base::<&[u8]>::Lower;
    let totals = pack(
        &overlay.upper,
        base,
        &mut changes,
        Some(&mut sent),
        Compression::Zstd,
    )
    .unwrap();
    assert!(totals.content_bytes < 100_000, "{totals:?}");
    for place in [&destination, &other.mounted] {
        assert_eq!(apply(place, &changes[..], LIMITS).unwrap(), totals);
    }
    assert_merged(&overlay, &destination);
    assert_merged(&overlay, &other.mounted);

    // Then, as in the freeze: new whiteouts, a directory that becomes opaque, files that only the
    // upper directory had.
    let doc = overlay.mounted.join("usr/share/doc");
    fs::remove_file(overlay.mounted.join("added")).unwrap();
    fs::remove_dir_all(doc.join("package-3")).unwrap();
    fs::remove_dir_all(doc.join("package-0")).unwrap();
    fs::create_dir(doc.join("package-0")).unwrap();
    fs::write(doc.join("package-0/README"), "again").unwrap();
    fs::write(doc.join("package-2"), "a whiteout became a file").unwrap();
    fs::remove_file(doc.join("package-5/file-5.gz")).unwrap();
    let (mut more, mut sent_now) = (Vec::new(), Vec::new());
    let base = Base::Sent(Inventory::open(&sent[..]).unwrap());
    let totals = pack(
        &overlay.upper,
        base,
        &mut more,
        Some(&mut sent_now),
        Compression::None,
    )
    .unwrap();
    assert!(totals.content_bytes < 100, "{totals:?}");
    for place in [&destination, &other.mounted] {
        apply(place, &more[..], LIMITS).unwrap();
    }
    assert_merged(&overlay, &destination);
    assert_merged(&overlay, &other.mounted);
    let base = Base::Sent(Inventory::open(&sent_now[..]).unwrap());
    let totals = pack(
        &overlay.upper,
        base,
        std::io::sink(),
        None::<std::io::Sink>,
        Compression::None,
    );
    assert_eq!(totals.unwrap(), Default::default());

    // The mounted overlay is a tree like any other.
    let third = dir.path().join("third");
    copy(&lower, &third);
    update(&overlay.mounted, &third);
    assert_merged(&overlay, &third);
}

/// The overlay keeps no hard links between files that it copied up, and its file counts are those
/// of the layers.
#[track_caller]
fn assert_merged(overlay: &Overlay, found: &Path) {
    let plain = |path: &Path| -> Vec<(Vec<u8>, String)> {
        super::compare::describe(path)
            .into_iter()
            .map(|(path, line)| {
                let words: Vec<&str> = line.split(' ').collect();
                let kept = words.iter().enumerate().filter(|(index, word)| {
                    let before = index.checked_sub(1).map_or("", |index| words[index]);
                    !["links", "first"].contains(word) && !["links", "first"].contains(&before)
                });
                (
                    path,
                    kept.map(|(_, word)| *word).collect::<Vec<_>>().join(" "),
                )
            })
            .collect()
    };
    let (expected, found) = (plain(&overlay.mounted), plain(found));
    for (expected, found) in expected.iter().zip(&found) {
        assert_eq!(expected, found);
    }
    assert_eq!(expected.len(), found.len());
}

#[test]
fn an_upper_directory_that_does_not_stand_alone_is_refused() {
    if !is_root() {
        common::skip!("needs root: trusted attributes");
    }
    let (_dir, upper, destination) = places();
    fs::create_dir(upper.join("moved")).unwrap();
    for attribute in ["trusted.overlay.redirect", "trusted.overlay.metacopy"] {
        sample::set_attribute(&upper.join("moved"), attribute, b"/from");
        let base = Base::<&[u8]>::Lower;
        let error = pack(
            &upper,
            base,
            std::io::sink(),
            None::<std::io::Sink>,
            Compression::None,
        );
        assert!(
            matches!(&error, Err(TreeError::Overlay { attribute: found, .. }) if *found == attribute),
            "{error:?}"
        );
        let path = std::ffi::CString::new(upper.join("moved").to_str().unwrap()).unwrap();
        rcm::sys::xattr::remove(&path, &std::ffi::CString::new(attribute).unwrap()).unwrap();
    }
    // The tree of a peer cannot be its base: everything outside the upper directory would count as
    // deleted.
    fs::create_dir(&destination).unwrap();
    let mut sent = Vec::new();
    let base = Base::<&[u8]>::Lower;
    pack(
        &upper,
        base,
        std::io::sink(),
        Some(&mut sent),
        Compression::None,
    )
    .unwrap();
    let base = Base::Peer(Inventory::open(&sent[..]).unwrap());
    let error = pack(
        &upper,
        base,
        std::io::sink(),
        None::<std::io::Sink>,
        Compression::None,
    );
    assert!(matches!(error, Err(TreeError::OtherView)), "{error:?}");
    // In a plain tree, overlay attributes are copied like any others.
    sample::set_attribute(&upper.join("moved"), "trusted.overlay.opaque", b"y");
    fs::remove_dir(&destination).unwrap();
    copy(&upper, &destination);
    assert_same(&upper, &destination);
    take_inventory(&destination, std::io::sink(), Compression::None).unwrap();
}
