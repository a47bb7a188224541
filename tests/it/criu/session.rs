//! rcm's CRIU session against the real CRIU: dumps and restores of plain processes, held and
//! decided.
//!
//! Needs root and a CRIU that works on this kernel.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rcm::criu::stats::DumpStats;
use rcm::criu::{
    Common, Criu, DumpOptions, Error, PausedDump, PausedRestore, RestoreOptions, Version,
};

use crate::common::wait_until;

/// A process that writes ever larger numbers into a file.
struct Counter {
    dir: tempfile::TempDir,
    child: Child,
}

impl Counter {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // One process only: a child that its killed parent leaves behind would keep the process
        // group's id, and with it the pid, taken.
        let script = "\
import os, time
i = 0
while True:
    i += 1
    with open('number.new', 'w') as file:
        file.write(str(i))
    os.rename('number.new', 'number')
    time.sleep(0.01)
";
        let child = Command::new("setsid")
            .args(["python3", "-c", script])
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let counter = Self { dir, child };
        counter.assert_counts();
        counter
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    fn images(&self) -> PathBuf {
        let path = self.dir.path().join("images");
        fs::create_dir_all(&path).unwrap();
        path
    }

    fn number(&self) -> u64 {
        fs::read_to_string(self.dir.path().join("number"))
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(0)
    }

    fn assert_counts(&self) {
        let before = self.number();
        wait_until("it counts on", || self.number() > before);
    }

    fn assert_stopped(&self) {
        let before = self.number();
        sleep(Duration::from_millis(200));
        assert_eq!(self.number(), before, "it counts although it is stopped");
    }

    fn dump(&self) -> PausedDump<()> {
        let options = DumpOptions {
            common: self.common(),
            pid: self.pid().as_raw(),
            ..DumpOptions::default()
        };
        criu().dump(&options, ()).unwrap()
    }

    fn restore(&self) -> PausedRestore<()> {
        let options = RestoreOptions {
            common: self.common(),
            ..RestoreOptions::default()
        };
        criu().restore(options, (), |_, _| Ok(())).unwrap()
    }

    fn common(&self) -> Common {
        Common {
            subject: "the counter".into(),
            images_dir: self.images(),
            log_level: 4,
            ..Common::default()
        }
    }

    /// Dumps it and lets CRIU kill it.
    fn dump_and_kill(&mut self) {
        self.dump().commit().unwrap();
        let status = self.child.wait().unwrap();
        assert!(!status.success());
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn criu() -> Criu {
    Criu::find(None).expect("these tests need a CRIU")
}

fn exists(pid: Pid) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

#[test]
fn version_and_features() {
    let criu = criu();
    assert!(criu.version() >= Version::new(3, 0, 0));
    let features = criu.features().unwrap();
    assert_eq!(
        criu.require_memory_tracking().is_ok(),
        features.memory_tracking
    );
    assert_eq!(criu.require_lazy_pages().is_ok(), features.lazy_pages);
    let error = criu
        .require(Version::new(99, 0, 0), "this test")
        .unwrap_err();
    assert!(
        error.to_string().contains("this test needs 99.0"),
        "{error}"
    );
}

#[test]
fn a_refused_dump_runs_on() {
    let counter = Counter::start();
    let held = counter.dump();
    counter.assert_stopped();
    held.refuse();
    counter.assert_counts();
    drop(counter.dump());
    counter.assert_counts();
}

#[test]
fn a_committed_dump_is_killed_and_counted() {
    let mut counter = Counter::start();
    counter.dump_and_kill();
    counter.assert_stopped();
    let stats = DumpStats::read(&counter.images()).unwrap();
    assert!(
        stats.frozen_dur > Duration::ZERO && stats.written_bytes > 0,
        "{stats:?}"
    );
}

#[test]
fn a_dump_may_leave_it_running() {
    let counter = Counter::start();
    let options = DumpOptions {
        common: counter.common(),
        pid: counter.pid().as_raw(),
        leave_running: true,
        ..DumpOptions::default()
    };
    criu().dump(&options, ()).unwrap().commit().unwrap();
    counter.assert_counts();
}

/// The dump is held by another process, this test program started again, which is then killed.
#[test]
fn it_runs_on_when_the_one_who_holds_it_is_killed() {
    const VARIABLE: &str = "RCM_TEST_HOLD";
    if let Ok(told) = std::env::var(VARIABLE) {
        let (pid, images) = told.split_once(' ').unwrap();
        let options = DumpOptions {
            common: Common {
                images_dir: images.into(),
                ..Common::default()
            },
            pid: pid.parse().unwrap(),
            ..DumpOptions::default()
        };
        let _held = criu().dump(&options, ()).unwrap();
        fs::write(Path::new(images).join("held"), "").unwrap();
        sleep(Duration::from_secs(60));
        return;
    }
    let counter = Counter::start();
    let images = counter.images();
    let mut holder = Command::new(std::env::current_exe().unwrap())
        .args([
            "criu::session::it_runs_on_when_the_one_who_holds_it_is_killed",
            "--exact",
        ])
        .env(VARIABLE, format!("{} {}", counter.pid(), images.display()))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("the dump is held", || images.join("held").exists());
    counter.assert_stopped();
    holder.kill().unwrap();
    holder.wait().unwrap();
    counter.assert_counts();
}

#[test]
fn a_refused_restore_leaves_nothing_and_a_resumed_one_runs() {
    let mut counter = Counter::start();
    counter.dump_and_kill();

    let held = counter.restore();
    let pid = held.pid();
    assert_eq!(pid, counter.pid());
    counter.assert_stopped();
    held.refuse();
    assert!(!exists(pid), "something is left");
    drop(counter.restore());
    assert!(!exists(pid), "something is left");

    let before = counter.number();
    counter.restore().resume().unwrap();
    counter.assert_counts();
    assert!(counter.number() > before);
    // It is this process's child, so its status can be waited for.
    assert_eq!(
        waitpid(pid, Some(WaitPidFlag::WNOHANG)),
        Ok(WaitStatus::StillAlive)
    );
    kill(pid, Signal::SIGKILL).unwrap();
    assert!(matches!(
        waitpid(pid, None),
        Ok(WaitStatus::Signaled(_, Signal::SIGKILL, _))
    ));
    assert_eq!(waitpid(pid, None), Err(Errno::ECHILD));
}

#[test]
fn a_failing_dump_says_why_and_runs_on() {
    let counter = Counter::start();
    let options = DumpOptions {
        common: counter.common(),
        pid: i32::MAX,
        ..DumpOptions::default()
    };
    let error = criu().dump(&options, ()).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::Failed { .. }), "{text}");
    assert!(
        text.starts_with("criu dump of the counter failed: Error ("),
        "{text}"
    );
    assert!(text.contains("dump.log"), "{text}");
    counter.assert_counts();
}
