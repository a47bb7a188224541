//! Cgroups below the container's, which `exec --cgroup` names.

use std::fs;
use std::path::Path;

use crate::common::Host;

/// Makes the group `name` below the container's, in one hierarchy.
fn make_sub_cgroup(dir: &Path, name: &str) {
    let sub = dir.join(name);
    fs::create_dir(&sub).unwrap();
    // A fresh cpuset takes no process before it has processors and memory nodes (cpuset(7)).
    for name in ["cpuset.cpus", "cpuset.mems"] {
        if let Ok(value) = fs::read(dir.join(name)) {
            let _ = fs::write(sub.join(name), value);
        }
    }
}

#[test]
fn a_group_below_the_container() {
    let host = Host::with_container(|bundle| bundle);
    let exec = |cgroup: &str| {
        host.exec_with(
            &format!("--cgroup {cgroup}"),
            "web",
            ["cat", "/proc/self/cgroup"],
        )
    };
    // A group that is not there is not made.
    exec("sub").fails_with(255, "o such file or directory");
    for dir in host.cgroup_dirs("web") {
        assert!(!dir.join("sub").exists(), "{}", dir.display());
        make_sub_cgroup(&dir, "sub");
    }
    let output = exec("sub").ok();
    let joined = output.stdout();
    assert!(joined.contains("/web/sub\n"), "{output:?}");
    assert!(!joined.contains("/web\n"), "{output:?}");
    let output = exec("/").ok();
    assert!(output.stdout().contains("/web\n"), "{output:?}");
    for outside in ["..", "../web", "sub/../.."] {
        exec(outside).fails_with(255, "bad sub cgroup path");
    }
    // The failed commands have left no process behind.
    let procs = host.cgroup_file("web", "cgroup.procs", "cgroup.procs");
    assert_eq!(procs, host.pid("web").to_string());
}

#[test]
fn groups_by_controller() {
    let host = Host::with_container(|bundle| bundle);
    let exec = |groups: &[&str]| {
        host.cmd("exec")
            .args(groups.iter().flat_map(|group| ["--cgroup", group]))
            .args(["web", "cat", "/proc/self/cgroup"])
            .run()
    };
    exec(&["whaaat:/"]).fails_with(255, "unknown controller whaaat");
    exec(&["memory:/", "memory:/"]).fails_with(255, "controller memory specified multiple times");
    exec(&["memory:/", "sub"]).fails_with(255, "missing <controller>: prefix");
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        exec(&["memory:/"]).fails_with(255, "unknown controller memory");
        return;
    }
    exec(&["cpu:nonexistent"]).fails_with(255, "o such file or directory");
    exec(&["cpu:.."]).fails_with(255, "bad sub cgroup path");
    for dir in host.cgroup_dirs("web") {
        // cpu and cpuacct may be mounted together.
        let name = match dir.join("memory.limit_in_bytes").exists() {
            true => "submem",
            false => "subcpu",
        };
        make_sub_cgroup(&dir, name);
    }
    let output = exec(&["memory:submem", "cpu,cpuacct:subcpu"]).ok();
    for line in output.stdout().lines() {
        let (controllers, path) = line.split_once(':').unwrap().1.split_once(':').unwrap();
        let expected = match controllers {
            "memory" => "/web/submem",
            _ if controllers.contains("cpu") && controllers != "cpuset" => "/web/subcpu",
            "freezer" | "pids" | "devices" => "/web",
            _ => continue,
        };
        assert!(path.ends_with(expected), "{line}");
    }
}
