//! Copies of root file systems: the destination gets the tree as it was when the container stopped,
//! and a failure leaves both trees unchanged.

mod apart;
mod failures;

use std::fs;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::common::pair::{Receiver, send};
use crate::common::{Host, wait_until};
use crate::tree::compare::describe;
use crate::tree::sample;
use apart::{Apart, WRITER, assert_gapless, copy_tree, hidden, last};

/// The container sees a merged tree. Files that it has deleted from the lower layer do not arrive
/// at the destination.
#[test]
fn an_overlay_arrives_as_the_container_sees_it() {
    let apart = Apart::with("overlaid", 20, |bundle, _| {
        bundle.script(&WRITER.replace("usleep 5000", "usleep 200000"))
    });
    apart.source.delete("overlaid");
    let rootfs = apart.bundle.rootfs();
    // In a lower layer these would be marks of an overlay.
    fs::remove_file(rootfs.join("data/dev/whiteout-like")).unwrap();
    fs::remove_dir_all(rootfs.join("data/var/lib/nested")).unwrap();
    let layer = |name: &str| apart.source.dir().join(name);
    fs::rename(&rootfs, layer("lower")).unwrap();
    for dir in [&rootfs, &layer("upper"), &layer("work")] {
        fs::create_dir(dir).unwrap();
    }
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        layer("lower").display(),
        layer("upper").display(),
        layer("work").display()
    );
    let overlay = Some("overlay");
    mount(
        overlay,
        &rootfs,
        overlay,
        MsFlags::empty(),
        Some(options.as_str()),
    )
    .unwrap();
    for name in ["numbers", "data/etc"] {
        let path = rootfs.join(name);
        let removed = match path.is_dir() {
            true => fs::remove_dir_all(path),
            false => fs::remove_file(path),
        };
        removed.unwrap();
    }
    fs::remove_dir_all(rootfs.join("made")).unwrap();
    apart.source.run_detached(&apart.bundle);
    wait_until("it counts", || last(&rootfs) > 3);
    // The destination has the lower tree.
    fs::create_dir(&apart.place).unwrap();
    copy_tree(&layer("lower"), &apart.rootfs());
    let receiver = apart.receiver();
    apart.send(&receiver, &["--rootfs", "diff"]).ok();
    receiver.running.wait().ok();
    apart.assert_moved();
    let passes = &apart.report()["rootfsPasses"];
    assert!(passes[0]["entries"].as_u64().unwrap() < 300, "{passes}");
    umount2(&rootfs, MntFlags::MNT_DETACH).unwrap();
}

#[test]
fn a_whole_tree_moves_with_its_container() {
    let apart = Apart::with("whole", 150, |bundle, _| {
        sample::debian(&bundle.rootfs().join("debian"));
        bundle
    });
    let receiver = apart.receiver();
    let output = apart.send(&receiver, &[]).ok();
    let why = "root file system: full, the destination has no tree there";
    assert!(output.stderr().contains(why), "{output:?}");
    receiver.running.wait().ok();
    apart.assert_moved();
    let config = fs::read(apart.bundle.config_path()).unwrap();
    assert_eq!(fs::read(apart.place.join("config.json")).unwrap(), config);
    let report = apart.report();
    assert_eq!(report["rootfs"]["way"], "full");
    let passes = report["rootfsPasses"].as_array().unwrap();
    assert!(passes[0]["entries"].as_u64().unwrap() > 5000, "{report}");
    assert_eq!(passes.last().unwrap()["frozen"], true);
}

#[test]
fn a_tree_that_both_ends_see_is_not_copied() {
    let (source, destination) = (Host::new(), Host::new());
    fs::create_dir(source.dir().join("store")).unwrap();
    let bundle = source.bundle("seen").script(WRITER);
    source.run_detached(&bundle);
    wait_until("it counts", || last(&bundle.rootfs()) > 3);
    let store = source.dir().join("store");
    for (rootfs, why) in [
        ("auto", "shared, both ends see the same tree"),
        ("full", "shared, both ends see the same tree"),
    ] {
        let receiver = Receiver::start(&destination, "seen", &store, &["--detach"]);
        let flags = ["--rootfs", rootfs];
        let output = send(&source, "seen", &store, receiver.address, &flags);
        let output = output.wait().ok();
        assert!(output.stderr().contains(why), "{output:?}");
        receiver.running.wait().ok();
        assert_gapless(&bundle.rootfs());
        assert_eq!(hidden(&bundle.rootfs()), [""; 0]);
        // And back.
        let receiver = Receiver::start(&source, "seen", &store, &["--detach"]);
        let flags = ["--rootfs", "shared"];
        let output = send(&destination, "seen", &store, receiver.address, &flags);
        output.wait().ok();
        receiver.running.wait().ok();
    }
}

#[test]
fn only_what_differs_crosses() {
    let apart = Apart::with("differs", 60, |bundle, _| {
        sample::debian(&bundle.rootfs().join("debian"));
        bundle.script(&WRITER.replace("usleep 5000", "usleep 200000"))
    });
    apart.provide();
    // A thousandth of the tree differs, in every way.
    let new_bytes = sample::change(&apart.bundle.rootfs().join("data"));
    let receiver = apart.receiver();
    let output = apart.send(&receiver, &[]).ok();
    let why = "root file system: diff, the destination has another tree there";
    assert!(output.stderr().contains(why), "{output:?}");
    receiver.running.wait().ok();
    apart.assert_moved();
    let report = apart.report();
    let sent = |field| -> u64 {
        let passes = report["rootfsPasses"].as_array().unwrap().iter();
        passes.map(|pass| pass[field].as_u64().unwrap()).sum()
    };
    // Besides the changes above, the container has written its own files meanwhile.
    let written = fs::metadata(apart.bundle.rootfs().join("numbers")).unwrap();
    let most_bytes = new_bytes + 10 * written.len() + 4096;
    assert!(sent("contentBytes") < most_bytes, "{report}");
    assert!(sent("deletions") >= 4, "{report}");
    let all = describe(&apart.bundle.rootfs()).len() as u64;
    assert!(sent("entries") < all / 2, "{all}: {report}");
}

/// A bundle that was prepared at the destination keeps its own spec. Without one, the destination
/// gets that of the source.
#[test]
fn whose_spec_it_is() {
    for (rootfs, is_kept) in [("diff", true), ("full", false)] {
        let apart = Apart::new("spec", 2);
        apart.provide();
        let own = fs::read_to_string(apart.bundle.config_path()).unwrap();
        let own = own.replace("TERM=xterm", "TERM=linux");
        fs::write(apart.place.join("config.json"), &own).unwrap();
        let receiver = apart.receiver();
        apart.send(&receiver, &["--rootfs", rootfs]).ok();
        receiver.running.wait().ok();
        apart.assert_moved();
        let found = fs::read_to_string(apart.place.join("config.json")).unwrap();
        assert_eq!(found == own, is_kept);
    }
}

/// During the freeze CRIU links an open file without a name into the tree.
#[test]
fn what_criu_links_into_the_tree_comes_too() {
    let apart = Apart::with("linked", 2, |bundle, _| {
        let script = format!("exec 9>/one; echo kept >&9; ln /one /two; rm /one; {WRITER}");
        bundle.script(&script)
    });
    let receiver = apart.receiver();
    apart.send(&receiver, &["--link-remap"]).ok();
    receiver.running.wait().ok();
    assert_eq!(apart.destination.status("linked"), "running");
    assert_gapless(&apart.rootfs());
    let two = fs::read_to_string(apart.rootfs().join("two")).unwrap();
    assert_eq!(two, "kept\n");
    apart.assert_nothing_left();
}
