//! Points of a migration at which faults are injected.

use std::fs;

use rcm::migrate::wire::id::Side::{self, Destination, Source};

use super::bench::Bench;
use crate::common::Running;
use crate::common::pair::Receiver;
use Point::{
    CleanUp, Commit, Committed, Dump, Fence, Freeze, Negotiate, PeerReady, PreCopy, Restore,
    Resume, Resuming, Ship, Verify,
};

/// A point of a migration.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub enum Point {
    /// Both ends agreed.
    Negotiate,
    /// Memory is copied while the container runs.
    PreCopy,
    /// The source is about to freeze the container.
    Freeze,
    /// CRIU has seized the tasks.
    Dump,
    /// The images are written.
    Ship,
    /// The destination looks at them.
    Verify,
    /// CRIU makes the processes.
    Restore,
    /// The container is restored, and the source does not know it yet.
    PeerReady,
    /// The source's cgroup is frozen, and its journal does not say "committing".
    Fence,
    /// The source's journal says "committing", and the commit has not left.
    Commit,
    /// The commit is in the destination's journal, and nothing has executed.
    Committed,
    /// The destination's journal says that CRIU gets its yes, and CRIU does not have it.
    Resuming,
    /// The container runs, and the source does not know it yet.
    Resume,
    /// The source knows it, and its copy is still there.
    CleanUp,
}

/// Those of every fault, without rounds of pre-copy.
pub const POINTS: [Point; 12] = [
    Negotiate, Freeze, Dump, Ship, Verify, Restore, PeerReady, Fence, Commit, Committed, Resume,
    CleanUp,
];

impl Point {
    /// The end that is stopped there.
    pub fn end(self) -> Side {
        match self {
            Negotiate | PreCopy | Freeze | Dump | Ship | Fence | Commit | CleanUp => Source,
            Verify | Restore | PeerReady | Committed | Resuming | Resume => Destination,
        }
    }

    pub fn is_reached(self, bench: &Bench, receiver: &Receiver, sender: &Running) -> bool {
        let phase = |record: Option<serde_json::Value>, name| {
            record.is_some_and(|record| record["phase"] == name)
        };
        let source = |name| phase(bench.record(), name);
        let destination = |name| phase(bench.kept(Destination), name);
        match self {
            Negotiate => {
                let agreed = bench
                    .record()
                    .is_some_and(|record| record["secret"].is_string());
                agreed && destination("negotiated")
            }
            PreCopy => source("pre-copying"),
            Freeze => source("frozen"),
            Dump => bench.log_has(Source, "dump.log", "Seized task "),
            Ship => sender.stderr().contains(": dump "),
            Verify => match bench.store(Source) == bench.store(Destination) {
                true => has_image_open(receiver.running.pid()),
                false => sender.stderr().contains(": dump "),
            },
            Restore => bench.log_has(
                Destination,
                "restore.log",
                "Running post-setup-namespaces scripts",
            ),
            PeerReady => destination("peer-ready"),
            Fence => {
                let file = |v1, v2| bench.pair.source.cgroup_file(bench.pair.id(), v1, v2);
                source("fenced")
                    && ["FROZEN", "1"].contains(&&*file("freezer.state", "cgroup.freeze"))
            }
            Commit => source("committing"),
            Committed => destination("committed"),
            Resuming => destination("resuming"),
            Resume => {
                let text = "Restore finished successfully. Tasks resumed.";
                destination("resuming") && bench.log_has(Destination, "restore.log", text)
            }
            CleanUp => phase(bench.kept(Source), "committed"),
        }
    }
}

pub fn has_image_open(pid: i32) -> bool {
    fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .flatten()
        .any(|entry| {
            fs::read_link(entry.path())
                .is_ok_and(|path| path.extension().is_some_and(|end| end == "img"))
        })
}
