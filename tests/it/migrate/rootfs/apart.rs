//! Two hosts that do not share the trees of their containers.

use std::collections::BTreeMap;
use std::fs;
use std::io::Empty;
use std::path::{Path, PathBuf};

use rcm::image::tree::{Base, Compression, Limits, apply, pack};
use serde_json::Value;

use crate::common::pair::{Receiver, send};
use crate::common::{Bundle, Host, Output, Running, wait_until};
use crate::tree::compare::{assert_same, describe};
use crate::tree::sample;

/// Counts in its memory and in two places of its tree.
pub const WRITER: &str = "exec </dev/null >/dev/null 2>&1 3>>/numbers
mkdir -p /made; number=0
while true; do number=$((number + 1)); echo $number >&3; echo $number >/made/$number; usleep 5000; done";

/// Two hosts, and a container that writes to its tree at the first. The bundle is at another place
/// on the second host.
pub struct Apart {
    pub source: Host,
    pub destination: Host,
    pub bundle: Bundle,
    pub place: PathBuf,
}

impl Apart {
    pub fn new(id: &str, packages: usize) -> Self {
        Self::with(id, packages, |bundle, _| bundle)
    }

    pub fn with(id: &str, packages: usize, change: impl FnOnce(Bundle, &Path) -> Bundle) -> Self {
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

    pub fn id(&self) -> &str {
        self.bundle.id()
    }

    pub fn store(&self) -> PathBuf {
        self.source.dir().join("store")
    }

    pub fn rootfs(&self) -> PathBuf {
        self.place.join("rootfs")
    }

    pub fn receiver(&self) -> Receiver {
        let place = self.place.to_str().unwrap();
        let flags = ["--detach", "--bundle", place];
        Receiver::start(&self.destination, self.id(), &self.store(), &flags)
    }

    pub fn report_path(&self) -> PathBuf {
        self.source.dir().join("report.json")
    }

    pub fn sending(&self, receiver: &Receiver, flags: &[&str]) -> Running {
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

    pub fn send(&self, receiver: &Receiver, flags: &[&str]) -> Output {
        self.sending(receiver, flags).wait()
    }

    pub fn report(&self) -> Value {
        serde_json::from_slice(&fs::read(self.report_path()).unwrap()).unwrap()
    }

    /// Asserts that the container runs at the destination, with the tree as it was at the source
    /// when it stopped.
    #[track_caller]
    pub fn assert_moved(&self) {
        assert_eq!(self.destination.status(self.id()), "running");
        assert_eq!(self.source.status(self.id()), "gone");
        let (there, here) = (self.bundle.rootfs(), self.rootfs());
        let stopped_at = last(&there);
        wait_until("it counts", || last(&here) > stopped_at + 3);
        assert_gapless(&here);
        assert_same(&there.join("data"), &here.join("data"));
        let (there, here) = (describe(&there), describe(&here));
        let mut made = 0;
        // The container may have been frozen before it wrote into its last file.
        let last_made = format!("/made/{stopped_at}");
        for (path, line) in &there {
            // The container continues to write to these.
            if ![&b""[..], b"/made", b"/numbers", last_made.as_bytes()].contains(&&path[..]) {
                assert_eq!(Some(line), here.get(path), "{}", path.escape_ascii());
            }
            made += u64::from(path.starts_with(b"/made/"));
        }
        assert!(made + 1 >= stopped_at, "{made} of {stopped_at}");
        self.assert_nothing_left();
    }

    /// Asserts that no temporary files are left beside the tree at the destination or in it.
    #[track_caller]
    pub fn assert_nothing_left(&self) {
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
    pub fn assert_stayed(&self, before: &Option<BTreeMap<Vec<u8>, String>>) {
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

    /// Inventory of the tree that the destination has in the bundle's place.
    pub fn at_place(&self) -> Option<BTreeMap<Vec<u8>, String>> {
        self.place.exists().then(|| {
            let mut lines = describe(&self.place);
            // Something was beside the tree meanwhile, which changes the times of the directory
            // above.
            lines.remove(&b""[..]);
            lines
        })
    }

    /// Gives the destination the tree as it is now.
    pub fn provide(&self) {
        fs::create_dir(&self.place).unwrap();
        copy_tree(&self.bundle.rootfs(), &self.rootfs());
    }
}

pub fn copy_tree(from: &Path, to: &Path) {
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

/// Files with a leading dot, which only rcm makes there.
pub fn hidden(dir: &Path) -> Vec<String> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with('.'))
        .collect()
}

pub fn numbers(rootfs: &Path) -> Vec<u64> {
    let text = fs::read_to_string(rootfs.join("numbers")).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| line.parse().unwrap()).collect()
}

pub fn last(rootfs: &Path) -> u64 {
    numbers(rootfs).last().copied().unwrap_or(0)
}

#[track_caller]
pub fn assert_gapless(rootfs: &Path) {
    let numbers = numbers(rootfs);
    let expected: Vec<u64> = (1..=numbers.len() as u64).collect();
    assert_eq!(numbers, expected);
    for number in &numbers[..numbers.len() - 1] {
        let made = fs::read_to_string(rootfs.join(format!("made/{number}"))).unwrap();
        assert_eq!(made, format!("{number}\n"));
    }
}
