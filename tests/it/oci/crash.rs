//! Commands that are killed or compete: rcm finds and removes their remains, and no other container
//! is harmed.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::common::{Bundle, Cmd, Host, Output, Running, is_alive, stop_when, wait_until};
use nix::sys::signal::Signal;
use serde_json::json;

/// Kills rcm after `delay_dur` in a `create` and returns whether that was before its end.
fn killed_creation(host: &Host, verb: &str, delay_dur: Duration) -> bool {
    let bundle = host.bundle("web").args(["sleep", "1000"]);
    let mut running = host.cmd(verb).bundle(&bundle).spawn();
    std::thread::sleep(delay_dur);
    let in_time = running.is_running();
    if in_time {
        running.signal(Signal::SIGKILL);
    }
    let _: Output = running.wait();
    in_time
}

#[test]
fn a_creation_that_was_killed_is_cleaned_up() {
    let host = Host::new();
    let mut caught = 0;
    // Steps of two milliseconds: every phase of a creation is hit.
    for step in 0..60 {
        let delay_dur = Duration::from_millis(2 * step);
        caught += u32::from(killed_creation(&host, "create", delay_dur));
        // A half-made container has a state.
        if host.root().join("web/state.json").exists() {
            assert_ne!(host.status("web"), "gone");
        }
        host.rcm(["delete", "--force", "web"]).ok();
        wait_until("everything is gone", || host.remains().is_empty());
    }
    assert!(caught > 5, "only {caught} creations were killed in time");
}

#[test]
fn a_foreground_run_that_was_killed_is_cleaned_up() {
    let host = Host::new();
    for step in 0..20 {
        killed_creation(&host, "run", Duration::from_millis(5 * step));
        host.rcm(["delete", "--force", "web"]).ok();
        wait_until("everything is gone", || host.remains().is_empty());
    }
}

/// Parts of a container that are left at a moment of its removal.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Left {
    is_frozen: bool,
    is_alive: bool,
    /// Hierarchies in which the container has a group: 0 for none, 1 for some, 2 for all.
    groups: u8,
    /// In the container's directory, if it is there.
    files: Option<BTreeSet<String>>,
}

impl Left {
    fn of(host: &Host, init: i32, hierarchies: usize) -> Self {
        let groups = host.cgroup_dirs("web");
        Self {
            is_frozen: groups.iter().any(|dir| {
                let read = |name| fs::read_to_string(dir.join(name)).unwrap_or_default();
                read("freezer.state").trim() == "FROZEN" || read("cgroup.freeze").trim() == "1"
            }),
            is_alive: is_alive(init),
            groups: u8::from(!groups.is_empty()) + u8::from(groups.len() == hierarchies),
            files: fs::read_dir(host.root().join("web")).ok().map(|names| {
                let names = names.flatten().map(|entry| entry.file_name());
                names.map(|name| name.into_string().unwrap()).collect()
            }),
        }
    }
}

/// Kills `delete` in every state through which it takes the container. `prepare` makes that
/// container.
fn kill_deletions(flags: &[&str], prepare: impl Fn(&Host, &Bundle)) {
    let host = Host::new();
    let bundle = host.bundle("web").args(["sleep", "1000"]);
    let delete = |at: &dyn Fn(Left) -> bool| {
        prepare(&host, &bundle);
        let (init, hierarchies) = (host.recorded_pid("web"), host.cgroup_dirs("web").len());
        // It is stopped until it is traced, so that the test sees all of its system calls.
        let running = Cmd::new("sh")
            .args(["-c", r#"kill -STOP $$; exec "$@""#, "sh"])
            .arg(env!("CARGO_BIN_EXE_rcm"))
            .arg("--root")
            .arg(host.root())
            .arg("delete")
            .args(flags)
            .arg("web")
            .spawn();
        let stat = format!("/proc/{}/stat", running.pid());
        wait_until("it stands still", || {
            fs::read_to_string(&stat).unwrap().contains(") T ")
        });
        let found = stop_when(running.pid(), || at(Left::of(&host, init, hierarchies)));
        if found.is_some() {
            running.signal(Signal::SIGKILL);
            drop(found);
            let _: Output = running.wait();
            return true;
        }
        false
    };
    let seen = RefCell::new(Vec::<Left>::new());
    let to_the_end = delete(&|left| {
        let mut seen = seen.borrow_mut();
        if !seen.contains(&left) {
            seen.push(left);
        }
        false
    });
    assert!(!to_the_end);
    assert_eq!(host.remains(), Vec::<String>::new());
    let seen = seen.into_inner();
    assert!(seen.len() >= 5, "{seen:#?}");
    let mut caught = 0;
    for point in &seen {
        let was_caught = delete(&|left| left == *point);
        caught += usize::from(was_caught);
        if host.root().join("web").exists() {
            // With its state, or as one that lacks it.
            let list = host.cmd("list").run().ok();
            assert!(
                (list.stdout() + &list.stderr()).contains("web"),
                "{point:?}: {list:?}"
            );
        }
        host.rcm(["delete", "--force", "web"]).ok();
        wait_until("everything is gone", || host.remains().is_empty());
    }
    // The killed processes may have reached different points.
    assert!(caught * 2 > seen.len(), "{caught} of {seen:#?}");
}

#[test]
fn a_killed_deletion_of_a_running_container_is_completed() {
    kill_deletions(&["--force"], |host, bundle| {
        host.run_detached(bundle);
    });
}

#[test]
fn a_killed_deletion_of_a_created_container_is_completed() {
    kill_deletions(&[], |host, bundle| {
        host.create(bundle);
    });
}

#[test]
fn a_killed_deletion_of_a_paused_container_is_completed() {
    kill_deletions(&["--force"], |host, bundle| {
        host.run_detached(bundle);
        host.pause("web").ok();
    });
}

#[test]
fn a_killed_deletion_of_a_stopped_container_is_completed() {
    kill_deletions(&[], |host, bundle| {
        host.run_detached(bundle);
        host.kill("web", "KILL").ok();
        host.wait_for_status("web", "stopped");
    });
}

/// Names in shared directories that rcm may use.
fn shared_names() -> BTreeSet<String> {
    let names = ["/run", "/tmp", "/dev/shm"].map(|dir| fs::read_dir(dir).into_iter().flatten());
    let names = names.into_iter().flatten().flatten();
    names
        .map(|entry| entry.path().display().to_string())
        // Those of the tests, other tests' included; and a directory that stays, empty.
        .filter(|path| path.contains("rcm") && !path.contains("rcm-test-"))
        .filter(|path| path != "/run/rcm-mounts")
        .collect()
}

#[test]
fn a_hundred_lives_side_by_side_leave_nothing() {
    const LIVES: u32 = 100;
    const WORKERS: u32 = 8;
    let host = Host::new();
    let before = shared_names();
    let temporary = host.dir().join("tmp");
    fs::create_dir(&temporary).unwrap();
    let next = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for worker in 0..WORKERS {
            let (host, next, temporary) = (&host, &next, &temporary);
            scope.spawn(move || {
                // Its lives have one cgroup, one after the other, and mounts that are prepared.
                let bundle = host
                    .bundle(&format!("bundle{worker}"))
                    .args(["sleep", "1000"])
                    .bind(host.dir(), "/mnt", "ro");
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= LIVES {
                        return;
                    }
                    let id = &*format!("life{number}");
                    let rcm = |verb: &str| host.cmd(verb).env("TMPDIR", temporary);
                    let create = rcm("create").arg("--bundle").arg(bundle.dir());
                    create.arg(id).run().ok();
                    rcm("start").arg(id).run().ok();
                    let output = rcm("exec").args([id, "echo", id]).run().ok();
                    assert_eq!(output.stdout().trim(), id);
                    rcm("kill").args([id, "KILL"]).run().ok();
                    host.wait_for_status(id, "stopped");
                    rcm("delete").arg(id).run().ok();
                    assert_eq!(host.status(id), "gone");
                }
            });
        }
    });
    assert_eq!(host.remains(), Vec::<String>::new());
    assert_eq!(fs::read_dir(&temporary).unwrap().count(), 0);
    let new: Vec<_> = shared_names().difference(&before).cloned().collect();
    assert_eq!(new, Vec::<String>::new());
}

#[test]
fn two_creations_of_one_id_make_one_container() {
    let host = Host::new();
    let bundle = host.bundle("web").args(["sleep", "1000"]);
    let running: Vec<_> = (0..8)
        .map(|_| host.cmd("create").bundle(&bundle).spawn())
        .collect();
    let outputs: Vec<Output> = running.into_iter().map(Running::wait).collect();
    let made = outputs.iter().filter(|output| output.code() == 0).count();
    assert_eq!(made, 1, "{outputs:?}");
    for output in outputs.into_iter().filter(|output| output.code() != 0) {
        output.fails_with(1, "container with given ID already exists");
    }
    assert_eq!(host.status("web"), "created");
    assert!(is_alive(host.pid("web")));
}

#[test]
fn a_cgroup_in_use_is_not_taken_over() {
    let host = Host::new();
    let first = host.bundle("first").args(["sleep", "1000"]);
    host.run_detached(&first);
    // Another container with the same cgroup fails. The first one must survive this.
    let path = format!("{}/first", host.cgroup_parent());
    let second = host
        .bundle("second")
        .set("/linux/cgroupsPath", json!(path))
        .args(["no-such"]);
    host.run(&second)
        .fails_with(1, "container's cgroup is not empty: 1 process(es) found");
    assert_eq!(host.status("first"), "running");
    host.pause("first").ok();
}
