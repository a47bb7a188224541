//! A container's life through the command line: create, start, state, kill, pause, resume, delete,
//! run, list.

mod foreground;
mod service_manager;

use std::fs;
use std::time::Duration;

use crate::common::{Host, is_alive, wait_until};
use chrono::{DateTime, Utc};

#[test]
fn a_container_is_created_started_and_deleted() {
    let host = Host::new();
    let bundle = host.bundle("web").script("echo hello; sleep 1000");
    let created = host.create(&bundle);
    assert_eq!(host.status("web"), "created");
    let pid = host.pid("web");
    assert_eq!(created.stdout(), "", "nothing of the user's ran yet");
    host.start("web");
    assert_eq!(host.status("web"), "running");
    assert_eq!(host.pid("web"), pid);
    wait_until("the container writes", || created.stdout() == "hello\n");
    host.rcm(["start", "web"])
        .fails_with(1, "cannot start an already running container");
    host.rcm(["delete", "web"]).fails_with(
        1,
        "cannot delete container web that is not stopped: running",
    );
    host.kill("web", "KILL").ok();
    host.wait_for_status("web", "stopped");
    host.rcm(["start", "web"])
        .fails_with(1, "cannot start a container that has stopped");
    host.rcm(["delete", "web"]).ok();
    assert_eq!(host.status("web"), "gone");
    assert_eq!(host.remains(), Vec::<String>::new());
}

#[test]
fn a_container_that_was_not_started_is_deleted() {
    let host = Host::new();
    let bundle = host.bundle("web").args(["sleep", "1000"]);
    host.create(&bundle);
    let pid = host.pid("web");
    host.rcm(["delete", "web"]).ok();
    assert!(!is_alive(pid));
    assert_eq!(host.remains(), Vec::<String>::new());
}

#[test]
fn the_state_has_the_shape_of_runc() {
    let host = Host::new();
    let before = Utc::now();
    let bundle = host
        .bundle("web")
        .args(["sleep", "1000"])
        .annotation("com.example.key", "value");
    host.create(&bundle);
    let state = host.state("web");
    let mut members: Vec<_> = state.as_object().unwrap().keys().cloned().collect();
    members.sort();
    assert_eq!(
        members,
        [
            "annotations",
            "bundle",
            "created",
            "id",
            "ociVersion",
            "owner",
            "pid",
            "rootfs",
            "status"
        ]
    );
    assert_eq!(state["ociVersion"], "1.2.0");
    assert_eq!(state["id"], "web");
    assert_eq!(state["status"], "created");
    assert_eq!(state["bundle"], bundle.dir().to_str().unwrap());
    assert_eq!(state["rootfs"], bundle.rootfs().to_str().unwrap());
    assert_eq!(state["annotations"]["com.example.key"], "value");
    assert_eq!(state["owner"], "root");
    let created: DateTime<Utc> = state["created"].as_str().unwrap().parse().unwrap();
    assert!(before <= created && created <= Utc::now(), "{created}");
    assert!(is_alive(host.pid("web")));

    host.kill("web", "KILL").ok();
    host.wait_for_status("web", "stopped");
    let state = host.state("web");
    assert_eq!(state["pid"], 0);
    assert_eq!(
        state["created"],
        serde_json::json!(created.to_rfc3339_opts(chrono::SecondsFormat::Nanos, true))
    );
}

#[test]
fn list_shows_containers_as_table_json_and_ids() {
    let host = Host::new();
    // A root that was named and is not there is an error, as with runc.
    host.cmd("list").run().exits_with(1);
    fs::create_dir(host.root()).unwrap();
    let empty = host.cmd("list").run().ok().stdout();
    assert_eq!(
        empty.split_whitespace().collect::<Vec<_>>(),
        ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]
    );
    let json = host.rcm(["list", "--format", "json"]).ok();
    assert_eq!(json.stdout(), "null\n");

    let first = host.bundle("first").args(["sleep", "1000"]);
    let second = host.bundle("second").args(["sleep", "1000"]);
    host.create(&second);
    host.run_detached(&first);
    let ids = host.rcm(["list", "--quiet"]).ok().stdout();
    assert_eq!(ids, "first\nsecond\n");
    let short = host.rcm(["list", "-q", "-f", "json"]).ok();
    assert_eq!(short.stdout(), ids, "-q wins, as with runc");

    let list = host.rcm(["list", "--format", "json"]).ok().json();
    let list = list.as_array().unwrap();
    assert_eq!(list.len(), 2);
    assert_eq!(list[0], host.state("first"));
    assert_eq!(list[1], host.state("second"));

    let table = host.cmd("list").run().ok().stdout();
    let rows: Vec<Vec<&str>> = table
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    let pid = host.pid("first").to_string();
    assert_eq!(rows.len(), 3, "{table}");
    assert_eq!(rows[1][..3], ["first", pid.as_str(), "running"]);
    assert_eq!(rows[1][3], first.dir().to_str().unwrap());
    assert_eq!(rows[1][5], "root");
    assert_eq!(rows[2][2], "created");
    // Columns stand below their names.
    let column = table.find("STATUS").unwrap();
    assert!(
        table.lines().nth(1).unwrap()[column..].starts_with("running"),
        "{table}"
    );
    host.rcm(["list", "--format", "xml"]).exits_with(1);
}

#[test]
fn a_damaged_container_hides_no_other() {
    let host = Host::new();
    let bundle = host.bundle("web").args(["sleep", "1000"]);
    host.create(&bundle);
    fs::create_dir(host.root().join("broken")).unwrap();
    fs::write(host.root().join("broken/state.json"), "{").unwrap();
    let output = host.rcm(["list", "--quiet"]).ok();
    assert_eq!(output.stdout(), "web\n");
    assert!(output.stderr().contains("broken"), "{output:?}");
    host.rcm(["state", "broken"])
        .fails_with(1, "damaged state file");
    host.delete("broken");
}

#[test]
fn run_detached_leaves_the_container_running() {
    let host = Host::new();
    let bundle = host.bundle("web").script("echo up; sleep 1000");
    let pid_file = host.dir().join("pid");
    let output = host
        .cmd("run")
        .arg("--detach")
        .arg("--pid-file")
        .arg(&pid_file)
        .bundle(&bundle)
        .run()
        .ok();
    assert_eq!(host.status("web"), "running");
    assert_eq!(
        fs::read_to_string(&pid_file).unwrap(),
        host.pid("web").to_string()
    );
    wait_until("the container writes", || output.stdout() == "up\n");
    host.kill("web", "KILL").ok();
    host.wait_for_status("web", "stopped");
}

#[test]
fn keep_leaves_the_stopped_container() {
    let host = Host::new();
    let bundle = host.bundle("web").script("exit 4");
    host.cmd("run")
        .arg("--keep")
        .bundle(&bundle)
        .run()
        .exits_with(4);
    assert_eq!(host.status("web"), "stopped");
    host.run(&bundle)
        .fails_with(1, "container with given ID already exists");
    host.rcm(["delete", "web"]).ok();
    assert_eq!(host.remains(), Vec::<String>::new());
}

#[test]
fn the_pid_file_of_create_names_the_first_process() {
    let host = Host::new();
    let bundle = host.bundle("web").args(["sleep", "1000"]);
    let pid_file = host.dir().join("pid");
    host.cmd("create")
        .arg("--pid-file")
        .arg(&pid_file)
        .bundle(&bundle)
        .run()
        .ok();
    let pid: i32 = fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    assert_eq!(pid, host.pid("web"));
    let own = fs::read_link("/proc/self/ns/pid").unwrap();
    assert_ne!(fs::read_link(format!("/proc/{pid}/ns/pid")).unwrap(), own);
}

#[test]
fn the_bundle_defaults_to_the_working_directory() {
    let host = Host::new();
    let bundle = host.bundle("web").script("echo here");
    let output = host
        .cmd("run")
        .arg("web")
        .current_dir(bundle.dir())
        .run()
        .ok();
    assert_eq!(output.stdout(), "here\n");
}

#[test]
fn kill_knows_names_and_numbers_and_defaults_to_term() {
    let host = Host::new();
    let bundle = host.bundle("web").script(
        "for s in HUP USR1 USR2 WINCH; do trap \"echo $s\" $s; done; trap 'echo TERM; exit 0' TERM; echo ready; \
         while :; do sleep 0.01; done",
    );
    let output = host.run_detached(&bundle);
    wait_until("the handlers are set", || output.stdout().contains("ready"));
    for (argument, word) in [
        ("HUP", "HUP"),
        ("SIGUSR1", "USR1"),
        ("usr2", "USR2"),
        ("28", "WINCH"),
    ] {
        host.kill("web", argument).ok();
        wait_until(word, || output.stdout().contains(word));
    }
    host.kill("web", "0").ok();
    host.kill("web", "NOSUCH").fails_with(1, "unknown signal");
    host.rcm(["kill", "web"]).ok();
    host.wait_for_status("web", "stopped");
    wait_until("TERM", || output.stdout().contains("TERM"));
    host.rcm(["kill", "web"])
        .fails_with(1, "container not running");
    host.rcm(["kill", "--all", "web", "KILL"]).ok();
}

#[test]
fn a_container_without_a_pid_namespace_dies_as_a_whole() {
    let host = Host::new();
    let bundle = host
        .bundle("web")
        .without_namespace("pid")
        .script("sleep 1000 & sleep 1000 & echo ready; wait");
    let output = host.run_detached(&bundle);
    wait_until("its children are there", || output.stdout() == "ready\n");
    host.kill("web", "KILL").ok();
    host.wait_for_status("web", "stopped");
    wait_until("no process is left", || {
        host.cgroup_dirs("web")
            .iter()
            .all(|dir| fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default() == "")
    });
    host.rcm(["delete", "web"]).ok();
    assert_eq!(host.remains(), Vec::<String>::new());
}

#[test]
fn pause_stops_and_resume_continues() {
    let host = Host::new();
    let bundle = host
        .bundle("web")
        .script("n=0; while :; do n=$((n+1)); echo $n; sleep 0.01; done");
    let output = host.run_detached(&bundle);
    wait_until("it counts", || !output.stdout().is_empty());
    host.resume("web").fails_with(1, "container not paused");
    host.pause("web").ok();
    assert_eq!(host.status("web"), "paused");
    let counted = output.stdout();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(output.stdout(), counted, "it went on while paused");
    host.pause("web")
        .fails_with(1, "container not running or created: paused");
    host.resume("web").ok();
    assert_eq!(host.status("web"), "running");
    wait_until("it counts again", || output.stdout().len() > counted.len());
    // Deleting and killing work on a frozen one, too.
    host.pause("web").ok();
    host.kill("web", "KILL").ok();
    host.wait_for_status("web", "stopped");
    host.pause("web")
        .fails_with(1, "container not running or created: stopped");
    host.rcm(["delete", "web"]).ok();

    host.run_detached(&bundle);
    host.pause("web").ok();
    host.rcm(["delete", "--force", "web"]).ok();
    assert_eq!(host.remains(), Vec::<String>::new());
}

#[test]
fn a_created_container_can_be_paused() {
    let host = Host::new();
    let bundle = host.bundle("web").script("echo started; sleep 1000");
    let output = host.create(&bundle);
    host.pause("web").ok();
    assert_eq!(host.status("web"), "paused");
    host.resume("web").ok();
    assert_eq!(host.status("web"), "created");
    host.start("web");
    wait_until("it starts", || output.stdout() == "started\n");
}

/// Also the hierarchies without limits: systemd uses one of them to track processes.
#[test]
fn every_hierarchy_has_the_container() {
    let host = Host::new();
    let bundle = host.bundle("web").args(["sleep", "1000"]);
    host.run_detached(&bundle);
    let group = format!("{}/web", host.cgroup_parent());
    let text = fs::read_to_string(format!("/proc/{}/cgroup", host.pid("web"))).unwrap();
    for line in text.lines() {
        let (_, hierarchy) = line.split_once(':').unwrap();
        let (controllers, path) = hierarchy.split_once(':').unwrap();
        // As with runc, other hierarchies without controllers are left to their owners.
        if !controllers.starts_with("name=") || controllers == "name=systemd" {
            assert_eq!(path, group, "{line}");
        }
    }
    let joined = host.exec("web", ["cat", "/proc/self/cgroup"]).ok();
    assert_eq!(joined.stdout(), text);
    host.delete("web");
    assert_eq!(host.remains(), Vec::<String>::new());
}
