//! Containers of an ordinary user.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use crate::common::{Cmd, Host, is_alive, wait_until};
use serde_json::{Value, json};

/// A user without any rights: nobody.
const UID: u32 = 65534;

/// The user's environment: the binary, a runtime directory and a bundle made by `rcm spec
/// --rootless`.
struct User<'a> {
    host: &'a Host,
    bundle: PathBuf,
    /// The group of his commands, if it is not that of the test.
    session: Option<PathBuf>,
}

impl<'a> User<'a> {
    fn new(host: &'a Host) -> Self {
        let dir = host.dir();
        let binary = dir.join("rcm");
        // The directory of the build may be closed to other users, so the binary gets a name that
        // they reach.
        let built = Path::new(env!("CARGO_BIN_EXE_rcm"));
        fs::hard_link(built, &binary)
            .or_else(|_| fs::copy(built, &binary).map(drop))
            .unwrap();
        let bundle = dir.join("bundle");
        crate::common::make_rootfs(&bundle.join("rootfs"));
        fs::create_dir(dir.join("run")).unwrap();
        for owned in [&dir.join("run"), &bundle] {
            for entry in walkdir::WalkDir::new(owned) {
                std::os::unix::fs::lchown(entry.unwrap().path(), Some(UID), Some(UID)).unwrap();
            }
        }
        let user = Self {
            host,
            bundle,
            session: None,
        };
        user.rcm()
            .args(["spec", "--rootless", "--bundle"])
            .arg(&user.bundle)
            .run()
            .ok();
        user.edit(|spec| spec["process"]["terminal"] = json!(false));
        user
    }

    fn rcm(&self) -> Cmd {
        let id = UID.to_string();
        let as_user = match &self.session {
            None => Cmd::new("setpriv"),
            Some(group) => Cmd::new("sh")
                .args(["-c", "echo $$ >\"$0/cgroup.procs\" && exec setpriv \"$@\""])
                .arg(group),
        };
        as_user
            .args(["--reuid", &id, "--regid", &id, "--clear-groups"])
            .arg(self.host.dir().join("rcm"))
            .env("XDG_RUNTIME_DIR", self.host.dir().join("run"))
    }

    fn edit(&self, change: impl FnOnce(&mut Value)) {
        let path = self.bundle.join("config.json");
        let mut spec: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut spec);
        fs::write(&path, spec.to_string()).unwrap();
    }

    fn script(&self, script: &str) {
        self.edit(|spec| {
            spec["process"]["args"] = json!(["sh", "-c", script]);
            spec["process"]["env"] = json!(["PATH=/bin"]);
        });
    }

    fn run(&self) -> Cmd {
        self.rcm()
            .args(["run", "--bundle"])
            .arg(&self.bundle)
            .arg("web")
    }
}

#[test]
fn a_container_from_the_example() {
    let host = Host::new();
    let user = User::new(&host);
    user.script("id -u; cat /proc/self/uid_map; hostname; exit 7");
    let output = user.run().run().exits_with(7);
    let text = output.stdout();
    let words: Vec<_> = text.split_whitespace().collect();
    assert_eq!(words, ["0", "0", "65534", "1", "runc"], "{output:?}");
    assert_eq!(output.stderr(), "");
    let root = fs::metadata(host.dir().join("run/rcm")).unwrap();
    // The sticky bit keeps it from being cleaned up (XDG Base Directory Specification).
    assert_eq!((root.uid(), root.mode() & 0o7777), (UID, 0o1700));
}

#[test]
fn its_life() {
    let host = Host::new();
    let user = User::new(&host);
    user.script("trap 'exit 0' TERM; while :; do sleep 0.01; done");
    user.run().arg("--detach").run().ok();
    let state = user.rcm().args(["state", "web"]).run().ok().json();
    assert_eq!(state["status"], "running");
    let pid = i32::try_from(state["pid"].as_i64().unwrap()).unwrap();
    let output = user
        .rcm()
        .args([
            "exec",
            "web",
            "sh",
            "-c",
            "echo $(id -u) $(hostname); exit 3",
        ])
        .run()
        .exits_with(3);
    assert_eq!(output.stdout(), "0 runc\n");
    // It has no group of its own.
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    assert_eq!(
        fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap(),
        own
    );
    user.rcm().args(["kill", "web", "TERM"]).run().ok();
    wait_until("it ends", || !is_alive(pid));
    user.rcm().args(["delete", "web"]).run().ok();

    // Without a pid namespace of its own, and nothing to find its processes by.
    user.edit(|spec| {
        let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|one| one["type"] != "pid");
        // A file system of processes belongs to their namespace.
        spec["mounts"][0] = json!({
            "destination": "/proc", "type": "none", "source": "/proc", "options": ["rbind"]
        });
    });
    let output = user.run().arg("--detach").run().ok();
    assert!(
        output.stderr().contains("no cgroup and no private pid"),
        "{output:?}"
    );
    user.rcm().args(["kill", "web", "KILL"]).run().ok();
    user.rcm().args(["delete", "--force", "web"]).run().ok();
}

#[test]
fn limits_need_a_cgroup() {
    let host = Host::new();
    let user = User::new(&host);
    user.script("true");
    user.edit(|spec| spec["linux"]["resources"] = json!({"pids": {"limit": 20}}));
    user.run().run().fails_with(
        1,
        "cannot set pids limit: container could not join or create cgroup",
    );
    // Nothing is asked for.
    user.edit(|spec| {
        spec["linux"]["resources"] = json!({
            "devices": [{"allow": false, "access": "rwm"}], "memory": {"limit": 0}
        });
    });
    user.run().run().ok();
}

#[test]
fn a_cgroup_that_the_spec_names_needs_rights() {
    let host = Host::new();
    let user = User::new(&host);
    user.script("true");
    user.edit(|spec| spec["linux"]["cgroupsPath"] = json!(format!("{}/web", host.cgroup_parent())));
    let output = user.run().run().exits_with(1);
    let stderr = output.stderr();
    assert!(
        stderr.contains("unable to apply cgroup configuration"),
        "{output:?}"
    );
    assert!(stderr.contains("ermission denied"), "{output:?}");
}

#[test]
fn the_choice_is_the_callers() {
    let host = Host::new();
    let user = User::new(&host);
    user.script("true");
    let with = |choice: &str| {
        user.rcm()
            .args(["--rootless", choice, "run", "--bundle"])
            .arg(&user.bundle)
            .arg("web")
            .run()
    };
    with("false").fails_with(1, "unable to apply cgroup configuration");
    with("true").ok();
    with("AUTO").ok();
    let output = with("maybe").exits_with(1);
    assert!(output.stderr().contains("incorrect usage"), "{output:?}");
    // Root may have it, too, and loses nothing.
    let bundle = host.bundle("web").args(["cat", "/proc/self/cgroup"]);
    let output = host
        .global(["--rootless", "true"])
        .arg("run")
        .bundle(&bundle)
        .run()
        .ok();
    assert!(output.stdout().contains("/web\n"), "{output:?}");
}

/// Gives a group to the user in every hierarchy of cgroup v1.
fn delegate_v1(path: &str) {
    for entry in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            let dir = PathBuf::from(format!("{}{path}", entry.path().display()));
            fs::create_dir(&dir).unwrap();
            for name in ["cpuset.cpus", "cpuset.mems"] {
                if let Ok(value) = fs::read(entry.path().join(name)) {
                    fs::write(dir.join(name), value).unwrap();
                }
            }
            chown(&dir, Some(UID), Some(UID)).unwrap();
        }
    }
}

/// Gives a group of cgroup v2 to the user as systemd does with `Delegate=yes`, with one below it
/// for his session. Returns this one: a user may only move processes between groups of a tree that
/// is his (cgroups(7), "delegation containment").
fn delegate_v2(path: &str) -> PathBuf {
    let root = Path::new("/sys/fs/cgroup");
    let dir = PathBuf::from(format!("{}{path}", root.display()));
    fs::write(root.join("cgroup.subtree_control"), "+pids").unwrap();
    let session = dir.join("session");
    for group in [&dir, &session] {
        fs::create_dir(group).unwrap();
        for name in ["", "cgroup.procs", "cgroup.subtree_control"] {
            chown(group.join(name), Some(UID), Some(UID)).unwrap();
        }
    }
    session
}

#[test]
fn limits_in_a_cgroup_of_the_user() {
    let host = Host::new();
    let mut user = User::new(&host);
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        user.session = Some(delegate_v2(host.cgroup_parent()));
    } else {
        delegate_v1(host.cgroup_parent());
    }
    user.script("sleep 1000");
    user.edit(|spec| {
        spec["linux"]["cgroupsPath"] = json!(format!("{}/web", host.cgroup_parent()));
        // Device rules are root's, and left out.
        spec["linux"]["resources"] = json!({
            "pids": {"limit": 20}, "devices": [{"allow": false, "access": "rwm"}]
        });
    });
    user.run().arg("--detach").run().ok();
    assert_eq!(host.cgroup_file("web", "pids.max", "pids.max"), "20");
    user.rcm()
        .args(["exec", "--detach", "web", "sleep", "1000"])
        .run()
        .ok();
    for dir in host.cgroup_dirs("web") {
        let processes = fs::read_to_string(dir.join("cgroup.procs")).unwrap();
        assert_eq!(processes.lines().count(), 2, "{}", dir.display());
    }
    user.rcm().args(["delete", "--force", "web"]).run().ok();
    assert_eq!(host.cgroup_dirs("web"), Vec::<PathBuf>::new());
    if let Some(session) = &user.session {
        fs::remove_dir(session).unwrap();
    }
}

#[test]
fn hooks_and_a_network_of_its_own() {
    let host = Host::new();
    let user = User::new(&host);
    user.script("ip link show lo");
    let out = host.dir().join("run/hooks");
    user.edit(|spec| {
        let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.push(json!({"type": "network"}));
        // The host's could not be mounted in another network namespace than its own.
        let mounts = spec["mounts"].as_array_mut().unwrap();
        mounts.retain(|mount| mount["destination"] != "/sys/fs/cgroup");
        for kind in ["createRuntime", "createContainer"] {
            let script = format!(
                "echo {kind} $(id -u) $(readlink /proc/self/ns/net) >> {}",
                out.display()
            );
            spec["hooks"][kind] = json!([
                {"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"]}
            ]);
        }
    });
    let output = user.run().run().ok();
    assert!(output.stdout().contains("LOOPBACK,UP"), "{output:?}");
    let text = fs::read_to_string(&out).unwrap();
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split(' ').collect()).collect();
    assert_eq!(lines[0][..2], ["createRuntime", "65534"], "{text}");
    assert_eq!(lines[1][..2], ["createContainer", "0"], "{text}");
    let own = fs::read_link("/proc/self/ns/net").unwrap();
    assert_eq!(Path::new(lines[0][2]), own);
    assert_ne!(Path::new(lines[1][2]), own);
    assert_eq!(
        fs::metadata(&out).unwrap().permissions().mode() & 0o777,
        0o644
    );
}
