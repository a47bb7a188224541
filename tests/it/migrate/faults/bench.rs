//! Two hosts with a link between them, for the injection of faults.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rcm::migrate::wire::id::Side;

use super::super::link::{self, Link};
use super::case::dismiss;
use crate::common::pair::{Pair, Receiver, restore_by_hand, send, wait_until_empty};
use crate::common::{Cmd, Host, Running, is_alive, wait_until};

/// Way of the images to the destination.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Store {
    Shared,
    Streamed,
}

/// A small file system of its own.
struct Disk {
    dir: tempfile::TempDir,
}

impl Disk {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (tmpfs, options) = (Some("tmpfs"), Some("size=32m,mode=700"));
        mount(tmpfs, dir.path(), tmpfs, MsFlags::empty(), options).unwrap();
        Self { dir }
    }

    fn filler(&self) -> PathBuf {
        self.dir.path().join("filler")
    }

    fn fill(&self) {
        let mut filler = fs::File::create(self.filler()).unwrap();
        while filler.write_all(&[1; 4096]).is_ok() {}
    }

    fn make_room(&self) {
        let _ = fs::remove_file(self.filler());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = umount2(self.dir.path(), MntFlags::MNT_DETACH);
    }
}

/// Part of a host that is a [`Disk`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Place {
    Store,
    State,
}

/// The hosts in their network namespaces, and a container that counts at the source.
pub struct Bench {
    pub pair: Pair,
    pub link: Link,
    disk: Option<Disk>,
    own_store: Option<PathBuf>,
    token: String,
    /// As long as a file of that name is here, the CRIU of that side fails at once.
    broken: tempfile::TempDir,
}

fn name(side: Side) -> &'static str {
    match side {
        Side::Source => "source",
        Side::Destination => "destination",
    }
}

/// A host in `namespace` with a CRIU that can be made to fail.
fn host(namespace: &Path, broken: &Path, side: Side) -> Host {
    let criu = broken.join(format!("criu-{}", name(side)));
    let flag = broken.join(name(side));
    let script = format!(
        "#!/bin/sh\n[ ! -e {} ] || exit 1\nexec criu \"$@\"\n",
        flag.display()
    );
    fs::write(&criu, script).unwrap();
    fs::set_permissions(&criu, fs::Permissions::from_mode(0o755)).unwrap();
    Host::new().with_prefix([
        "nsenter".into(),
        format!("--net={}", namespace.display()),
        "env".into(),
        format!("RCM_CRIU={}", criu.display()),
    ])
}

impl Bench {
    pub fn new(id: &str, store: Store, small: Option<(Side, Place)>) -> Self {
        let link = Link::new();
        let broken = tempfile::tempdir().unwrap();
        let source = host(link.source.path(), broken.path(), Side::Source);
        let destination = host(link.destination.path(), broken.path(), Side::Destination);
        let disk = small.map(|_| Disk::new());
        let on_disk = |path: &Path| symlink(disk.as_ref().unwrap().dir.path(), path).unwrap();
        match small {
            Some((Side::Source, Place::State)) => on_disk(&source.root()),
            Some((Side::Destination, Place::State)) => on_disk(&destination.root()),
            _ => {}
        }
        let pair = Pair::between(source, destination, id, |bundle, _| bundle);
        if small == Some((Side::Source, Place::Store)) {
            fs::remove_dir(pair.store()).unwrap();
            on_disk(&pair.store());
        }
        let own_store = (store == Store::Streamed).then(|| {
            let own = pair.destination.dir().join("own-store");
            match small {
                Some((Side::Destination, Place::Store)) => on_disk(&own),
                _ => fs::create_dir(&own).unwrap(),
            }
            own
        });
        let token = pair.source.dir().join("token");
        fs::write(&token, "a secret of this test".repeat(3)).unwrap();
        fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
        Self {
            pair,
            link,
            disk,
            own_store,
            token: token.to_str().unwrap().to_owned(),
            broken,
        }
    }

    pub fn host(&self, side: Side) -> &Host {
        match side {
            Side::Source => &self.pair.source,
            Side::Destination => &self.pair.destination,
        }
    }

    pub fn store(&self, side: Side) -> PathBuf {
        match (side, &self.own_store) {
            (Side::Destination, Some(own)) => own.clone(),
            _ => self.pair.store(),
        }
    }

    fn address(side: Side) -> String {
        let address = match side {
            Side::Source => link::SOURCE,
            Side::Destination => link::DESTINATION,
        };
        format!("{address}:7260")
    }

    pub fn receive(&self, side: Side) -> Receiver {
        let address = Self::address(side);
        let flags = [
            "--detach",
            "--listen",
            &address,
            "--token-file",
            &self.token,
        ];
        Receiver::start(self.host(side), self.pair.id(), &self.store(side), &flags)
    }

    /// Sends the container from `side` to the other end.
    pub fn send(&self, side: Side, to: Option<&str>, flags: &[&str]) -> Running {
        let address = to.map_or_else(|| Self::address(other(side)), str::to_owned);
        let flags = [&["--token-file", &*self.token][..], flags].concat();
        let (host, store) = (self.host(side), self.store(side));
        send(
            host,
            self.pair.id(),
            &store,
            address.parse().unwrap(),
            &flags,
        )
    }

    /// The source's record, beside the container.
    pub fn record(&self) -> Option<serde_json::Value> {
        let path = self.pair.source.root().join(self.pair.id());
        json(&path.join("migration.json"))
    }

    /// The record that stays.
    pub fn kept(&self, side: Side) -> Option<serde_json::Value> {
        let dir = self.host(side).root().join("@migrations");
        json(&dir.join(format!("{}.json", self.pair.id())))
    }

    pub fn log_has(&self, side: Side, file: &str, text: &str) -> bool {
        let dir = format!("@migrations/{}.criu", self.pair.id());
        fs::read(self.host(side).root().join(dir).join(file))
            .is_ok_and(|log| String::from_utf8_lossy(&log).contains(text))
    }

    pub fn break_criu(&self, side: Side) {
        fs::write(self.broken.path().join(name(side)), "").unwrap();
    }

    pub fn fill(&self) {
        self.disk.as_ref().unwrap().fill();
    }

    /// Removes the fault.
    pub fn recover(&self) {
        if let Some(disk) = &self.disk {
            disk.make_room();
        }
        for side in [Side::Source, Side::Destination] {
            let _ = fs::remove_file(self.broken.path().join(name(side)));
        }
    }

    /// Kills the CRIU that works on the container there.
    pub fn kill_criu(&self, side: Side) {
        let path = self.host(side).root().join(self.pair.id());
        let worker = json(&path.join("criu.json")).expect("a CRIU at work");
        let pid = i32::try_from(worker["pid"].as_i64().unwrap()).unwrap();
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        wait_until("CRIU is dead", || !is_alive(pid));
    }

    /// The images of the final dump at the destination's end.
    pub fn images(&self, side: Side) -> PathBuf {
        let record = self.record().unwrap();
        let migration = record["migration"].as_str().unwrap();
        self.store(side).join(migration).join("0")
    }

    pub fn resolve(&self, side: Side) -> Cmd {
        let command = self.host(side).cmd("live-migrate");
        let limit_dur = Duration::from_secs(90);
        command.args([self.pair.id(), "--resolve"]).limit(limit_dur)
    }

    /// The receiver was killed when the container may have run: it is not restored by itself, and
    /// an operator who knows that it has not run does that.
    #[track_caller]
    pub fn restore_by_hand(&self) {
        let resolved = dismiss(self.resolve(Side::Destination).spawn()).exits_with(3);
        assert!(resolved.stdout().contains("may have run"), "{resolved:?}");
        restore_by_hand(&self.pair.destination, self.pair.id(), &resolved.stdout());
    }

    /// Returns whether that side has no record of an open migration.
    pub fn is_settled_at(&self, side: Side) -> bool {
        let beside = (side == Side::Source).then(|| self.record()).flatten();
        [beside, self.kept(side)]
            .iter()
            .flatten()
            .all(|record| ["done", "rolled-back"].contains(&record["phase"].as_str().unwrap()))
    }

    pub fn is_settled(&self) -> bool {
        self.is_settled_at(Side::Source) && self.is_settled_at(Side::Destination)
    }

    /// Asserts that there is one copy, on `side`, which has missed and repeated nothing, and that
    /// nothing else is left of any migration.
    #[track_caller]
    pub fn assert_at(&self, side: Side) {
        let (here, there) = (self.host(side), self.host(other(side)));
        let id = self.pair.id();
        wait_until(&format!("it runs at the {side}"), || {
            here.status(id) == "running"
        });
        self.pair.assert_counts();
        assert_eq!(there.status(id), "gone");
        assert!(
            self.is_settled(),
            "{:?} {:?} {:?}",
            self.record(),
            self.kept(Side::Source),
            self.kept(Side::Destination)
        );
        wait_until_empty("left behind", || self.left(here, there));
    }

    fn left(&self, here: &Host, there: &Host) -> Vec<String> {
        let mut left = there.remains();
        left.extend((here.remains().into_iter()).filter(|remains| remains.starts_with("mount")));
        for side in [Side::Source, Side::Destination] {
            let allowed = [".json", ".lock", ".criu"].map(|end| format!("{}{end}", self.pair.id()));
            left.extend(
                names(&self.host(side).root().join("@migrations"))
                    .into_iter()
                    .filter(|name| !allowed.contains(name)),
            );
            let below = walkdir::WalkDir::new(self.store(side)).min_depth(1);
            left.extend(
                below
                    .into_iter()
                    .flatten()
                    .filter(|entry| entry.file_name() != "filler")
                    .map(|entry| format!("{entry:?}")),
            );
        }
        // All processes that rcm has started are in its network namespace: CRIU, guards.
        for namespace in [self.link.source.path(), self.link.destination.path()] {
            left.extend(inside(namespace));
            left.extend(rules(namespace));
        }
        let pid = here.pid(self.pair.id());
        left.extend(rules(Path::new(&format!("/proc/{pid}/ns/net"))));
        left
    }

    /// Asserts that the container moves from `side` to the other end.
    #[track_caller]
    pub fn assert_moves_from(&self, side: Side) {
        let receiver = self.receive(other(side));
        self.send(side, None, &[]).wait().ok();
        receiver.running.wait().ok();
        self.assert_at(other(side));
    }
}

fn other(side: Side) -> Side {
    match side {
        Side::Source => Side::Destination,
        Side::Destination => Side::Source,
    }
}

fn json(path: &Path) -> Option<serde_json::Value> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn names(dir: &Path) -> Vec<String> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// The processes in a network namespace.
fn inside(namespace: &Path) -> Vec<String> {
    let inode = fs::metadata(namespace).unwrap().ino();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        if fs::metadata(entry.path().join("ns/net")).is_ok_and(|found| found.ino() == inode) {
            let line = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
            found.push(format!("process {:?}: {line:?}", entry.file_name()));
        }
    }
    found
}

/// The rules for packets in a network namespace that CRIU has left.
fn rules(namespace: &Path) -> Vec<String> {
    let output = Command::new("nsenter")
        .arg(format!("--net={}", namespace.display()))
        .arg("iptables-save")
        .output()
        .unwrap();
    let rules = String::from_utf8_lossy(&output.stdout).into_owned();
    rules
        .lines()
        .filter(|rule| rule.contains("CRIU"))
        .map(str::to_owned)
        .collect()
}
