//! Root file systems that are copied: what arrives is what was there when the container stopped, and a failure leaves both trees as they were.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Empty, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;
use rcm::image::tree::{Base, Compression, Limits, apply, pack};
use serde_json::Value;

use crate::common::pair::{Gate, Receiver, runs_on, send};
use crate::common::{Bundle, COMMAND_LIMIT_DUR, Host, Output, Running, wait_until};
use crate::tree::compare::{assert_same, describe};
use crate::tree::sample;

/// Counts in its memory and in two places of its tree.
const WRITER: &str = "exec </dev/null >/dev/null 2>&1 3>>/numbers
mkdir -p /made; number=0
while true; do number=$((number + 1)); echo $number >&3; echo $number >/made/$number; usleep 5000; done";

/// Two hosts, and a container that writes to its tree at the first. The bundle's place at the second is another one.
struct Apart {
    source: Host,
    destination: Host,
    bundle: Bundle,
    place: PathBuf,
}

impl Apart {
    fn new(id: &str, packages: usize) -> Self {
        Self::with(id, packages, |bundle, _| bundle)
    }

    fn with(id: &str, packages: usize, change: impl FnOnce(Bundle, &Path) -> Bundle) -> Self {
        let (source, destination) = (Host::new(), Host::new());
        fs::create_dir(source.dir().join("store")).unwrap();
        let bundle = change(source.bundle(id).script(WRITER), source.dir());
        let data = bundle.rootfs().join("data");
        fs::create_dir(&data).unwrap();
        sample::build(&data, packages);
        let place = destination.dir().join("place");
        let apart = Self {
            source,
            destination,
            bundle,
            place,
        };
        apart.source.run_detached(&apart.bundle);
        wait_until("it counts", || last(&apart.bundle.rootfs()) > 3);
        apart
    }

    fn id(&self) -> &str {
        self.bundle.id()
    }

    fn store(&self) -> PathBuf {
        self.source.dir().join("store")
    }

    fn rootfs(&self) -> PathBuf {
        self.place.join("rootfs")
    }

    fn receiver(&self) -> Receiver {
        let place = self.place.to_str().unwrap();
        let flags = ["--detach", "--bundle", place];
        Receiver::start(&self.destination, self.id(), &self.store(), &flags)
    }

    fn report_path(&self) -> PathBuf {
        self.source.dir().join("report.json")
    }

    fn sending(&self, receiver: &Receiver, flags: &[&str]) -> Running {
        let report = self.report_path();
        let flags = [&["--report", report.to_str().unwrap()], flags].concat();
        send(
            &self.source,
            self.id(),
            &self.store(),
            receiver.address,
            &flags,
        )
    }

    fn send(&self, receiver: &Receiver, flags: &[&str]) -> Output {
        self.sending(receiver, flags).wait()
    }

    fn report(&self) -> Value {
        serde_json::from_slice(&fs::read(self.report_path()).unwrap()).unwrap()
    }

    /// It runs at the destination, with the tree as it was at the source when it stopped, and goes on from there.
    #[track_caller]
    fn assert_moved(&self) {
        assert_eq!(self.destination.status(self.id()), "running");
        assert_eq!(self.source.status(self.id()), "gone");
        let (there, here) = (self.bundle.rootfs(), self.rootfs());
        let stopped_at = last(&there);
        wait_until("it counts", || last(&here) > stopped_at + 3);
        assert_gapless(&here);
        assert_same(&there.join("data"), &here.join("data"));
        let (there, here) = (describe(&there), describe(&here));
        let mut made = 0;
        // It may have stopped before it wrote into its last file.
        let last_made = format!("/made/{stopped_at}");
        for (path, line) in &there {
            // The container goes on with these.
            if ![&b""[..], b"/made", b"/numbers", last_made.as_bytes()].contains(&&path[..]) {
                assert_eq!(Some(line), here.get(path), "{}", path.escape_ascii());
            }
            made += u64::from(path.starts_with(b"/made/"));
        }
        assert!(made + 1 >= stopped_at, "{made} of {stopped_at}");
        self.assert_nothing_left();
    }

    /// Neither beside the tree at the destination nor in it.
    #[track_caller]
    fn assert_nothing_left(&self) {
        wait_until("the store is empty", || {
            fs::read_dir(self.store()).unwrap().count() == 0
        });
        let mut left = hidden(&self.place);
        left.extend(hidden(&self.rootfs()));
        left.extend(hidden(&self.bundle.rootfs()));
        left.extend(hidden(self.destination.dir()));
        assert_eq!(left, [""; 0]);
        let state = self.destination.root().join("@migrations");
        assert!(!state.join(format!("{}.placement", self.id())).exists());
    }

    #[track_caller]
    fn assert_stayed(&self, before: &Option<BTreeMap<Vec<u8>, String>>) {
        wait_until("it runs at the source", || {
            self.source.status(self.id()) == "running"
        });
        let rootfs = self.bundle.rootfs();
        let now = last(&rootfs);
        wait_until("it counts", || last(&rootfs) > now + 3);
        assert_gapless(&rootfs);
        assert_eq!(self.destination.status(self.id()), "gone");
        assert_eq!(self.at_place(), *before);
        self.assert_nothing_left();
    }

    /// What the destination has in the bundle's place.
    fn at_place(&self) -> Option<BTreeMap<Vec<u8>, String>> {
        self.place.exists().then(|| {
            let mut lines = describe(&self.place);
            // Something was beside the tree meanwhile, which changes the times of the directory above.
            lines.remove(&b""[..]);
            lines
        })
    }

    /// Gives the destination the tree as it is now.
    fn provide(&self) {
        fs::create_dir(&self.place).unwrap();
        copy_tree(&self.bundle.rootfs(), &self.rootfs());
    }
}

fn copy_tree(from: &Path, to: &Path) {
    let mut changes = Vec::new();
    let (base, no_list) = (Base::<Empty>::Nothing, None::<Vec<u8>>);
    pack(from, base, &mut changes, no_list, Compression::None).unwrap();
    let limits = Limits {
        entries: u64::MAX,
        content_bytes: u64::MAX,
    };
    fs::create_dir(to).unwrap();
    apply(to, &changes[..], limits).unwrap();
}

/// Files that begin with a dot, which nobody but rcm makes there.
fn hidden(dir: &Path) -> Vec<String> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with('.'))
        .collect()
}

fn numbers(rootfs: &Path) -> Vec<u64> {
    let text = fs::read_to_string(rootfs.join("numbers")).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| line.parse().unwrap()).collect()
}

fn last(rootfs: &Path) -> u64 {
    numbers(rootfs).last().copied().unwrap_or(0)
}

#[track_caller]
fn assert_gapless(rootfs: &Path) {
    let numbers = numbers(rootfs);
    let expected: Vec<u64> = (1..=numbers.len() as u64).collect();
    assert_eq!(numbers, expected);
    for number in &numbers[..numbers.len() - 1] {
        let made = fs::read_to_string(rootfs.join(format!("made/{number}"))).unwrap();
        assert_eq!(made, format!("{number}\n"));
    }
}

/// A network that cuts the connection of the tree, the second one, when `is_time` says so of the bytes that it has carried.
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

#[test]
fn a_link_that_is_cut_leaves_both_trees_as_they_were() {
    // Something for every pass, that does not shrink on its way.
    let noise = "(while true; do head -c 600000 /dev/urandom >/noise; usleep 50000; done) &";
    for (id, has_tree) in [("cutfull", false), ("cutdiff", true)] {
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
                let until = Instant::now() + 2 * COMMAND_LIMIT_DUR;
                while !sender.stderr().contains(&dumped) && Instant::now() < until {
                    std::thread::sleep(Duration::from_millis(20));
                }
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

/// What nobody sees is not replaced.
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

/// What the container sees is a merged tree; what it has deleted of the lower one is gone at the destination.
#[test]
fn an_overlay_arrives_as_the_container_sees_it() {
    let apart = Apart::with("overlaid", 20, |bundle, _| {
        bundle.script(&WRITER.replace("usleep 5000", "usleep 200000"))
    });
    apart.source.delete("overlaid");
    let rootfs = apart.bundle.rootfs();
    // What would be marks of an overlay in a lower layer.
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
    // Beside what changed, what the container has written meanwhile.
    let written = fs::metadata(apart.bundle.rootfs().join("numbers")).unwrap();
    let most_bytes = new_bytes + 10 * written.len() + 4096;
    assert!(sent("contentBytes") < most_bytes, "{report}");
    assert!(sent("deletions") >= 4, "{report}");
    let all = describe(&apart.bundle.rootfs()).len() as u64;
    assert!(sent("entries") < all / 2, "{all}: {report}");
}

/// The bundle of a host that has been prepared keeps its own spec; one that gets everything has the source's.
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

/// CRIU gives an open file without a name one in the tree, in the freeze.
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

/// In the middle of the restore, the new tree is in its place.
#[test]
fn a_restore_that_fails_puts_the_old_tree_back() {
    for has_tree in [false, true] {
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
        // Killed, it leaves that to the next one.
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
}
