//! Failures that leave both trees as they were.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;

use super::apart::{Apart, WRITER, assert_gapless};
use crate::common::pair::{Gate, Receiver, runs_on};
use crate::common::{COMMAND_LIMIT_DUR, wait_within};
use crate::tree::sample;

/// A network that cuts the connection of the tree, the second one, as soon as `is_time` returns
/// true for the number of bytes that it has carried.
fn cutting(target: SocketAddr, is_time: impl Fn(usize) -> bool + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut is_time = Some(is_time);
        for (index, near) in listener.incoming().enumerate() {
            let (near, far) = (near.unwrap(), TcpStream::connect(target).unwrap());
            let (from, to) = (far.try_clone().unwrap(), near.try_clone().unwrap());
            std::thread::spawn(move || forward(from, to, |_| false));
            match is_time.take_if(|_| index == 1) {
                Some(is_time) => std::thread::spawn(move || forward(near, far, is_time)),
                None => std::thread::spawn(move || forward(near, far, |_| false)),
            };
        }
    });
    address
}

fn forward(mut from: TcpStream, mut to: TcpStream, is_time: impl Fn(usize) -> bool) {
    let mut carried = 0;
    let mut buffer = vec![0; 16 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        carried += count;
        if is_time(carried) || to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}

fn a_cut_link_leaves_both_trees(id: &str, has_tree: bool) {
    // Data for every pass, which cannot be compressed.
    let noise = "(while true; do head -c 600000 /dev/urandom >/noise; usleep 50000; done) &";
    let apart = Apart::with(id, 10, |bundle, _| {
        bundle.script(&WRITER.replacen("mkdir", &format!("{noise}\nmkdir"), 1))
    });
    if has_tree {
        apart.provide();
    }
    let before = apart.at_place();
    let slow = ["--bandwidth", "500KB/s"];
    for in_the_freeze in [false, true] {
        let mut receiver = apart.receiver();
        let frozen = Arc::new(AtomicBool::new(false));
        let is_frozen = Arc::clone(&frozen);
        receiver.address = cutting(receiver.address, move |carried| match in_the_freeze {
            true => is_frozen.load(Ordering::Relaxed),
            false => carried > 100_000,
        });
        let sender = apart.sending(&receiver, &slow);
        if in_the_freeze {
            let dumped = format!("{id}: dump ");
            let _ = wait_within(2 * COMMAND_LIMIT_DUR, || sender.stderr().contains(&dumped));
            frozen.store(true, Ordering::Relaxed);
        }
        runs_on(sender.wait(), "the root file system cannot be sent");
        receiver.running.wait().exits_with(1);
        apart.assert_stayed(&before);
    }
    let receiver = apart.receiver();
    apart.send(&receiver, &[]).ok();
    receiver.running.wait().ok();
    assert_gapless(&apart.rootfs());
    apart.assert_nothing_left();
}

#[test]
fn a_link_that_is_cut_leaves_the_only_tree_as_it_was() {
    a_cut_link_leaves_both_trees("cutfull", false);
}

#[test]
fn a_link_that_is_cut_leaves_both_trees_as_they_were() {
    a_cut_link_leaves_both_trees("cutdiff", true);
}

#[test]
fn a_full_disk_at_the_destination_is_known_before_or_told() {
    let apart = Apart::new("nospace", 10);
    let disk = apart.destination.dir().join("disk");
    fs::create_dir(&disk).unwrap();
    let tmpfs = |options: &str| {
        let flags = MsFlags::empty();
        mount(Some("tmpfs"), &disk, Some("tmpfs"), flags, Some(options)).unwrap();
    };
    let start = || {
        let place = disk.join("place");
        let flags = ["--detach", "--bundle", place.to_str().unwrap()];
        Receiver::start(&apart.destination, apart.id(), &apart.store(), &flags)
    };
    tmpfs("size=1m");
    let receiver = start();
    runs_on(
        apart.send(&receiver, &[]),
        "the root file system needs about",
    );
    receiver.running.signal(Signal::SIGTERM);
    receiver.running.wait().exits_with(1);
    umount2(&disk, MntFlags::MNT_DETACH).unwrap();
    // Room for the contents, but not for so many files.
    tmpfs("size=64m,nr_inodes=100");
    let receiver = start();
    runs_on(apart.send(&receiver, &[]), "No space left on device");
    receiver.running.wait().exits_with(1);
    assert_eq!(fs::read_dir(&disk).unwrap().count(), 0);
    umount2(&disk, MntFlags::MNT_DETACH).unwrap();
    apart.assert_stayed(&None);
}

/// A tree in use is not replaced: its processes would not see the new one.
#[test]
fn a_tree_in_use_is_not_replaced() {
    let apart = Apart::new("inuse", 2);
    apart.provide();
    let other = apart.destination.bundle("other").args(["sleep", "1000"]);
    let other = other.set("/root/path", serde_json::json!(apart.rootfs()));
    apart.destination.run_detached(&other);
    let receiver = apart.receiver();
    runs_on(apart.send(&receiver, &[]), "is the root of process");
    apart.destination.delete("other");
    apart.send(&receiver, &[]).ok();
    receiver.running.wait().ok();
    apart.assert_moved();
}

/// Fails in the middle of the restore, when the new tree is in its place.
fn a_failed_restore_leaves_both_trees(has_tree: bool) {
    let apart = Apart::with("undone", 10, Gate::hook);
    if has_tree {
        apart.provide();
        sample::change(&apart.bundle.rootfs().join("data"));
    }
    let before = apart.at_place();
    let gate = Gate::close(apart.source.dir());
    let receiver = apart.receiver();
    let sender = apart.sending(&receiver, &[]);
    gate.wait();
    assert!(apart.rootfs().join("data/etc").exists());
    sender.signal(Signal::SIGTERM);
    runs_on(sender.wait(), "stopped by SIGTERM");
    gate.open();
    receiver.running.wait().exits_with(1);
    apart.assert_stayed(&before);
    // A killed receiver leaves the cleanup to the next one.
    let gate = Gate::close(apart.source.dir());
    let receiver = apart.receiver();
    let sender = apart.sending(&receiver, &[]);
    gate.wait();
    receiver.running.signal(Signal::SIGKILL);
    receiver.running.wait();
    runs_on(sender.wait(), "");
    gate.open();
    let resolve = apart.destination.cmd("live-migrate");
    resolve.args(["undone", "--resolve"]).run().exits_with(1);
    apart.assert_stayed(&before);
    // And the next attempt succeeds.
    let _ = fs::remove_file(&gate.reached);
    let receiver = apart.receiver();
    apart.send(&receiver, &[]).ok();
    receiver.running.wait().ok();
    apart.assert_moved();
}

#[test]
fn a_restore_that_fails_leaves_no_tree() {
    a_failed_restore_leaves_both_trees(false);
}

#[test]
fn a_restore_that_fails_puts_the_old_tree_back() {
    a_failed_restore_leaves_both_trees(true);
}
