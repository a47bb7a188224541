//! What has executed at the destination does not execute there again, even if nobody has noticed
//! it.

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver as Inbox, Sender as Outbox, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::network::WITHOUT_ROUNDS;
use crate::common::pair::{Pair, Receiver, restore_by_hand, wait_until_empty};
use crate::common::{Host, Running, stop_when, wait_until};

/// Waits without a system call that sleeps, so that it sees `go` with its first instructions, and
/// says so.
const SCRIPT: &str = "exec </dev/null >/dev/null 2>&1
for number in 1 2 3 4 5; do echo $number >> /numbers; done
while [ ! -e /go ]; do :; done
echo ran >> /ran
exit 7";

/// A migration whose destination is about to resume the container.
struct Scene {
    pair: Pair,
    receiver: Receiver,
    sender: Running,
}

impl Scene {
    fn new(id: &str) -> Self {
        let pair = Pair::with(id, |bundle, _| bundle.script(SCRIPT));
        let receiver = pair.receiver(&["--detach"]);
        let sender = pair.send_with(receiver.address, &WITHOUT_ROUNDS);
        Self {
            pair,
            receiver,
            sender,
        }
    }

    fn rootfs(&self) -> PathBuf {
        self.pair.bundle.rootfs()
    }

    /// How many times the container has executed since its restore.
    fn executions(&self) -> usize {
        executions(&self.rootfs())
    }

    fn phase(&self) -> String {
        phase(&self.pair).unwrap()
    }

    fn log(&self) -> String {
        let dir = format!("@migrations/{}.criu", self.pair.id());
        let path = self.pair.destination.root().join(dir).join("restore.log");
        String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned()
    }

    /// Stops CRIU where the container executes, and CRIU has not written that to its log. The
    /// receiver is at work.
    fn reach_the_gap(&self) -> Gap {
        let rcm = self.receiver.running.pid();
        let committed = || {
            let phase = phase(&self.pair);
            phase.is_some_and(|phase| phase == "committed" || phase == "resuming")
        };
        let reached = stop_when(rcm, committed).expect("it commits");
        // The source is frozen: only the destination's copy sees it.
        fs::write(self.rootfs().join("go"), "").unwrap();
        let gap = Gap::of(&self.pair, rcm);
        drop(reached);
        gap.reached.recv_timeout(Duration::from_secs(30)).unwrap();
        assert_eq!(self.executions(), 1);
        gap
    }
}

fn executions(rootfs: &Path) -> usize {
    let text = fs::read_to_string(rootfs.join("ran")).unwrap_or_default();
    text.lines().count()
}

fn phase(pair: &Pair) -> Option<String> {
    let path = format!("@migrations/{}.json", pair.id());
    let text = fs::read(pair.destination.root().join(path)).ok()?;
    let record: serde_json::Value = serde_json::from_slice(&text).ok()?;
    Some(record["phase"].as_str()?.to_owned())
}

/// A CRIU that is stopped right after it has released the container.
struct Gap {
    reached: Inbox<()>,
    go_on: Outbox<()>,
    killed: JoinHandle<()>,
}

impl Gap {
    /// Returns when CRIU is traced.
    fn of(pair: &Pair, rcm: i32) -> Self {
        let worker = fs::read(pair.destination.root().join(pair.id()).join("criu.json")).unwrap();
        let worker: serde_json::Value = serde_json::from_slice(&worker).unwrap();
        let criu = i32::try_from(worker["pid"].as_i64().unwrap()).unwrap();
        let init = children(rcm).into_iter().find(|&pid| pid != criu);
        let init = init.expect("a restored process");
        let rootfs = pair.bundle.rootfs();
        let (tell, reached) = channel();
        let (go_on, told) = channel();
        let killed = std::thread::spawn(move || {
            let was_traced = Cell::new(false);
            let has_executed = || {
                let is_traced = tracer(init) == Some(criu);
                let is_released = was_traced.get() && !is_traced;
                was_traced.set(is_traced);
                if is_released {
                    wait_until("it executes", || executions(&rootfs) > 0);
                }
                is_released
            };
            let stopped = stop_when(criu, has_executed);
            assert!(stopped.is_some(), "CRIU has ended");
            tell.send(()).unwrap();
            told.recv().unwrap();
            kill(Pid::from_raw(criu), Signal::SIGKILL).unwrap();
        });
        wait_until("CRIU is traced", || tracer(criu).is_some());
        Self {
            reached,
            go_on,
            killed,
        }
    }

    /// CRIU dies there.
    fn kill(self) {
        self.go_on.send(()).unwrap();
        self.killed.join().unwrap();
    }
}

fn children(pid: i32) -> Vec<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    text.split_whitespace()
        .map(|child| child.parse().unwrap())
        .collect()
}

/// The process that traces it.
fn tracer(pid: i32) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("TracerPid:"))?;
    line.trim().parse().ok().filter(|&tracer| tracer != 0)
}

/// Both are killed, and the container has ended meanwhile: nothing in the log says that it was ever
/// there.
#[test]
fn a_container_that_ran_before_rcm_and_criu_died_is_not_restored_again() {
    let mut scene = Scene::new("once");
    let gap = scene.reach_the_gap();
    scene.receiver.running.signal(Signal::SIGKILL);
    gap.kill();
    assert!(scene.receiver.running.ends_within(Duration::from_secs(10)));
    let (source, destination) = (&scene.pair.source, &scene.pair.destination);
    wait_until("it has ended", || destination.status("once") != "running");
    assert!(!scene.log().contains("Tasks resumed"), "{}", scene.log());
    scene.sender.signal(Signal::SIGKILL);
    assert!(scene.sender.ends_within(Duration::from_secs(10)));

    let resolve = |host: &Host| host.cmd("live-migrate").args(["once", "--resolve"]).run();
    let mut resolved = resolve(destination);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(scene.executions(), 1, "{resolved:?}");
    resolved = resolved.exits_with(3);
    assert!(resolved.stdout().contains("may have run"), "{resolved:?}");
    assert_eq!(scene.phase(), "resuming");
    // However often somebody asks.
    resolve(destination).exits_with(3);
    assert_eq!(scene.executions(), 1);
    let status = |flags: &[&str]| {
        let known = destination.cmd("live-migrate").args(["once", "--status"]);
        known.args(flags).run().ok().stdout().to_owned()
    };
    assert!(status(&[]).contains("may have run here"), "{}", status(&[]));
    let known: serde_json::Value = serde_json::from_str(&status(&["--json"])).unwrap();
    assert_eq!(known["phase"], "resuming");
    assert_eq!(known["mayHaveRun"], true);
    assert_eq!(known["settled"], false);
    // The source does not run it either, and the images are there.
    let answer = resolve(source).exits_with(3);
    assert!(answer.stderr().contains("Committed"), "{answer:?}");
    assert_eq!(source.status("once"), "paused");
    assert_eq!(scene.pair.left_in_store().len(), 1);

    // Somebody knows that it should run once more.
    fs::remove_file(scene.rootfs().join("go")).unwrap();
    restore_by_hand(destination, "once", &resolved.stdout());
    destination.wait_for_status("once", "running");
    resolve(destination).ok();
    assert_eq!(scene.phase(), "done");
    resolve(source).ok();
    assert_eq!(source.status("once"), "gone");
    wait_until_empty("left in the store", || scene.pair.left_in_store());
    fs::write(scene.rootfs().join("go"), "").unwrap();
    wait_until("it ends", || destination.status("once") == "stopped");
    assert_eq!(scene.executions(), 2);
}

/// The receiver lives, and its CRIU dies where the container executes.
#[test]
fn a_receiver_does_not_restore_again_what_has_executed() {
    let mut scene = Scene::new("criudied");
    scene.reach_the_gap().kill();
    let (source, destination) = (&scene.pair.source, &scene.pair.destination);
    wait_until("it is taken away", || {
        let tries_again = scene.receiver.running.stderr().contains("restoring again");
        tries_again || destination.status("criudied") == "gone"
    });
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(scene.executions(), 1, "{}", scene.receiver.running.stderr());
    scene.sender.signal(Signal::SIGKILL);
    assert!(scene.sender.ends_within(Duration::from_secs(10)));
    assert_eq!(scene.phase(), "resuming");
    let resolve = |host: &Host| {
        let command = host.cmd("live-migrate");
        command.args(["criudied", "--resolve"]).run()
    };
    // The receiver answers for a while.
    let answer = resolve(source).exits_with(3);
    assert!(answer.stderr().contains("Committed"), "{answer:?}");
    assert!(scene.receiver.running.ends_within(Duration::from_secs(30)));
    let told = scene.receiver.running.stderr();
    assert!(told.contains("may have run"), "{told}");

    // Somebody knows that it has done its work.
    resolve(destination).exits_with(3);
    let images = fs::read_dir(scene.pair.store()).unwrap().next().unwrap();
    fs::remove_dir_all(images.unwrap().path().join("0")).unwrap();
    resolve(destination).ok();
    resolve(source).ok();
    assert_eq!(scene.executions(), 1);
    assert_eq!(source.status("criudied"), "gone");
    wait_until_empty("left in the store", || scene.pair.left_in_store());
}

/// Records of earlier releases have no version and no phase `resuming`. There, and only there,
/// CRIU's log tells whether a container that does not run any more has run.
#[test]
fn a_record_without_a_version_is_settled_by_the_log() {
    let mut scene = Scene::new("unversioned");
    assert!(scene.sender.ends_within(Duration::from_secs(60)));
    assert!(scene.receiver.running.ends_within(Duration::from_secs(60)));
    fs::write(scene.rootfs().join("go"), "").unwrap();
    let destination = &scene.pair.destination;
    wait_until("it has ended", || {
        destination.status("unversioned") == "stopped"
    });
    assert!(scene.log().contains("Tasks resumed"), "{}", scene.log());
    let path = destination.root().join("@migrations/unversioned.json");
    let commit = |is_versioned: bool| {
        let text = fs::read(&path).unwrap();
        let mut record: serde_json::Value = serde_json::from_slice(&text).unwrap();
        record["phase"] = "committed".into();
        if !is_versioned {
            record.as_object_mut().unwrap().remove("version").unwrap();
        }
        fs::write(&path, record.to_string()).unwrap();
    };
    commit(false);
    scene.pair.resolve_destination().ok();
    assert_eq!((scene.executions(), scene.phase()), (1, "done".into()));
    // Here nothing has executed, whatever a log says. But there are no images any more.
    commit(true);
    let resolved = scene.pair.resolve_destination().exits_with(3);
    let stderr = resolved.stderr();
    assert!(stderr.contains("cannot be restored"), "{stderr}");
    assert_eq!(scene.executions(), 1);
}
