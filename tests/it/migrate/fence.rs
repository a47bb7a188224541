//! The fence around a dumped container that CRIU holds, on both versions of control groups.
//!
//! Every process is in one group of each hierarchy, and freezing and killing are part of cgroup v2
//! itself. So a v2 group beside the container's own v1 groups behaves as on a host with v2 alone.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rcm::criu::Criu;
use rcm::migrate::container::fence::CgroupFence;
use rcm::runtime::criu_flags::CriuFlags;
use rcm::runtime::verbs::checkpoint::{self, CheckpointOptions, HeldCheckpoint};
use rcm::runtime::{Cgroup, Container};

use crate::common::pair::Pair;
use crate::common::{skip, wait_until};

/// Dumps the container; CRIU holds it.
fn dump(pair: &Pair) -> HeldCheckpoint {
    let container = Container::load(&pair.source.root(), pair.id()).unwrap();
    let images = pair.source.dir().join("images");
    fs::create_dir(&images).unwrap();
    let options = CheckpointOptions {
        flags: CriuFlags {
            image_path: images,
            ..CriuFlags::default()
        },
        ..CheckpointOptions::default()
    };
    checkpoint::begin(&Criu::find(None).unwrap(), &container, options).unwrap()
}

fn own_group(pair: &Pair) -> Cgroup {
    Container::load(&pair.source.root(), pair.id())
        .unwrap()
        .cgroup()
}

/// A fresh group of the v2 hierarchy with all processes of the container; gone when dropped.
struct UnifiedGroup(PathBuf);

impl UnifiedGroup {
    /// `None` if the container's own group is one of cgroup v2, or no such hierarchy is mounted.
    fn around(pair: &Pair) -> Option<Self> {
        if own_group(pair).is_v2() {
            return None;
        }
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let top = mounts
            .lines()
            .map(|line| line.split(' ').collect::<Vec<_>>())
            .find(|fields| fields[2] == "cgroup2")
            .map(|fields| PathBuf::from(fields[1]))?;
        let dir = top.join(format!("rcm-fence-{}-{}", std::process::id(), pair.id()));
        fs::create_dir(&dir).unwrap();
        let group = Self(dir);
        // The loop starts `usleep` processes all the time. A process that is born inside stays
        // inside.
        wait_until("all are in the group", || {
            let pids = own_group(pair).pids().unwrap();
            for pid in &pids {
                let _ = fs::write(group.0.join("cgroup.procs"), pid.to_string());
            }
            let inside = fs::read_to_string(group.0.join("cgroup.procs")).unwrap();
            let inside: Vec<&str> = inside.lines().collect();
            !pids.is_empty() && pids.iter().all(|pid| inside.contains(&&*pid.to_string()))
        });
        Some(group)
    }

    fn cgroup(&self) -> Cgroup {
        Cgroup::new(BTreeMap::from([(String::new(), self.0.clone())]))
    }
}

impl Drop for UnifiedGroup {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("cgroup.freeze"), "0");
        for _ in 0..500 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[track_caller]
fn assert_still(pair: &Pair) {
    let now = pair.last();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(pair.last(), now);
}

/// The steps of the source after the commit.
fn kills_without_a_step(pair: &Pair, group: Cgroup) {
    let held = dump(pair);
    let last = pair.last();
    let mut fence = CgroupFence::set(group).unwrap();
    fence.seal();
    assert!(fence.holds());
    fence.kill().unwrap();
    held.commit().unwrap();
    pair.source.wait_for_status(pair.id(), "stopped");
    assert_eq!(pair.last(), last);
    pair.assert_gapless();
}

/// The steps of the source when the destination rolls back.
fn holds_until_lifted(pair: &Pair, group: impl Fn() -> Cgroup) {
    let held = dump(pair);
    let mut fence = CgroupFence::set(group()).unwrap();
    fence.seal();
    drop(fence);
    assert!(
        group().is_frozen(),
        "a sealed fence is not lifted by being dropped"
    );
    held.refuse();
    if group().is_v2() {
        // CRIU has let go of the tasks; on v1 the refusal thaws the container's own group as well.
        assert_still(pair);
    }
    CgroupFence::adopt(group()).lift().unwrap();
    pair.assert_counts();
}

#[test]
fn version_1() {
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        skip!("control groups are version 2 here");
    }
    let pair = Pair::new("fence1");
    holds_until_lifted(&pair, || own_group(&pair));
    fs::remove_dir_all(pair.source.dir().join("images")).unwrap();
    kills_without_a_step(&pair, own_group(&pair));
}

#[test]
fn version_2() {
    let pair = Pair::new("fence2");
    let around = UnifiedGroup::around(&pair);
    if around.is_none() && !own_group(&pair).is_v2() {
        skip!("no cgroup v2 hierarchy is mounted");
    }
    let group = || match &around {
        Some(group) => group.cgroup(),
        None => own_group(&pair),
    };
    holds_until_lifted(&pair, group);
    fs::remove_dir_all(pair.source.dir().join("images")).unwrap();
    kills_without_a_step(&pair, group());
}

/// A fence that is not sealed yet: the commit is not in the journal, so the container must resume
/// when rcm dies.
#[test]
fn before_the_seal_a_dead_keeper_lets_it_go_on() {
    /// Set for the process that plays the keeper: this test program again, with this test alone.
    const KEEPER: &str = "RCM_TEST_FENCE_KEEPER";
    if let Some(freezer) = std::env::var_os(KEEPER) {
        let freezer = PathBuf::from(freezer);
        let key = match freezer.join("cgroup.freeze").exists() {
            true => "",
            false => "freezer",
        };
        let paths = BTreeMap::from([(key.to_owned(), freezer)]);
        let fence = CgroupFence::set(Cgroup::new(paths)).unwrap();
        assert!(fence.holds());
        println!("fenced");
        std::thread::sleep(Duration::from_secs(60));
        fence.lift().unwrap();
        return;
    }
    let pair = Pair::new("fence3");
    let group = own_group(&pair);
    let mut keeper = Command::new(std::env::current_exe().unwrap())
        .args([
            "migrate::fence::before_the_seal_a_dead_keeper_lets_it_go_on",
            "--exact",
            "--nocapture",
        ])
        .env(KEEPER, group.freezer_dir().unwrap())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut text = Vec::new();
    let mut stdout = keeper.stdout.take().unwrap();
    while !String::from_utf8_lossy(&text).contains("fenced") {
        let mut byte = [0];
        assert_eq!(stdout.read(&mut byte).unwrap(), 1, "the keeper ended");
        text.extend(byte);
    }
    assert_still(&pair);
    // SIGKILL.
    keeper.kill().unwrap();
    keeper.wait().unwrap();
    pair.assert_counts();
}
