//! Subjects of runc's own integration suite, rewritten for this project. `scripts/runc-suite.sh`
//! runs the original.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use crate::common::{Bundle, Cmd, Host, skip};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// Returns the output of a script in a container, on both streams.
#[track_caller]
fn prints(host: &Host, bundle: Bundle, script: &str) -> String {
    let output = host.run(&bundle.script(script)).ok();
    output.stdout() + &output.stderr()
}

/// The processors that a process may use, as its `status` has them.
fn allowed(status: &str) -> String {
    let line = status
        .lines()
        .find(|line| line.starts_with("Cpus_allowed_list:"));
    line.unwrap_or_default().to_owned()
}

#[test]
fn processors_of_the_caller_are_not_those_of_the_container() {
    let own = allowed(&fs::read_to_string("/proc/self/status").unwrap());
    if !own.contains(['-', ',']) {
        skip!("there is one processor only");
    }
    let host = Host::new().with_prefix(["taskset", "-c", "0"]);
    let bundle = host.bundle("web").args(["sleep", "1000"]);
    host.run_detached(&bundle);
    let first = fs::read_to_string(format!("/proc/{}/status", host.pid("web"))).unwrap();
    assert_eq!(allowed(&first), own);
    let joined = host.exec("web", ["cat", "/proc/self/status"]).ok();
    assert_eq!(allowed(&joined.stdout()), own);
}

#[test]
fn inheritable_capabilities_need_not_be_permitted() {
    let host = Host::new();
    let capabilities = json!({
        "bounding": ["CAP_KILL", "CAP_CHOWN", "CAP_SYSLOG"], "permitted": ["CAP_KILL", "CAP_CHOWN"], "effective": ["CAP_KILL"],
        "inheritable": ["CAP_CHOWN", "CAP_SYSLOG"], "ambient": ["CAP_CHOWN", "CAP_KILL"]
    });
    let bundle = host
        .bundle("web")
        .set("/process/capabilities", capabilities);
    let output = prints(&host, bundle, "grep Cap /proc/self/status");
    assert!(output.contains("CapInh:\t0000000400000001"), "{output}");
    assert!(output.contains("CapPrm:\t0000000000000021"), "{output}");
    assert!(output.contains("CapAmb:\t0000000000000001"), "{output}");
    assert!(
        output.contains("can't raise ambient capability CAP_KILL: "),
        "{output}"
    );
}

#[test]
fn a_capability_may_be_what_lets_a_program_execute() {
    let host = Host::new();
    let names = ["CAP_DAC_OVERRIDE"];
    let bundle = host.bundle("web").user(1000, 1000).args(["/program"]);
    fs::write(bundle.rootfs().join("program"), "#!/bin/sh\necho here\n").unwrap();
    let closed = fs::Permissions::from_mode(0o700);
    fs::set_permissions(bundle.rootfs().join("program"), closed).unwrap();
    let bundle = bundle.set("/process/capabilities", json!({}));
    host.run(&bundle).fails_with(1, "permission denied");
    let capabilities = json!({
        "bounding": names, "permitted": names, "effective": names, "inheritable": names, "ambient": names
    });
    let bundle = bundle.set("/process/capabilities", capabilities);
    let output = host.run(&bundle).ok();
    assert_eq!(output.stdout(), "here\n");
}

#[test]
fn a_process_file_may_leave_out_what_go_has_a_zero_for() {
    let host = Host::new();
    host.run_detached(&host.bundle("web").args(["sleep", "1000"]));
    let file = host.dir().join("process.json");
    fs::write(
        &file,
        r#"{"args": ["/bin/sh", "-c", "echo $HOME; id -u"], "cwd": "/"}"#,
    )
    .unwrap();
    let output = host
        .cmd("exec")
        .arg("--process")
        .arg(&file)
        .arg("web")
        .run()
        .ok();
    assert_eq!(output.stdout().lines().last(), Some("0"));
    let output = host.exec_with("--user 1234", "web", ["sh", "-c", "echo $HOME"]);
    assert_eq!(output.ok().stdout(), "/\n");
}

#[test]
fn a_mask_in_a_seccomp_rule_is_a_mask() {
    let host = Host::new();
    // umask(2) of all that has a bit in common with 0700 is refused; a mask of 0 would let
    // everything pass, or nothing.
    let seccomp = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{
        "names": ["umask"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1,
        "args": [{"index": 0, "value": 0o700, "valueTwo": 0o300, "op": "SCMP_CMP_MASKED_EQ"}]
    }]});
    let bundle = || host.bundle("web").set("/linux/seccomp", seccomp.clone());
    assert_eq!(prints(&host, bundle(), "umask 0077; umask"), "0077\n");
    assert_ne!(prints(&host, bundle(), "umask 0377; umask"), "0377\n");
    assert_eq!(prints(&host, bundle(), "umask 0700; umask"), "0700\n");
}

#[test]
fn what_a_seccomp_filter_does() {
    let host = Host::new();
    let with = |action: Value| {
        let mut rule = json!({"names": ["mkdir", "mkdirat"]});
        rule.as_object_mut()
            .unwrap()
            .extend(action.as_object().unwrap().clone());
        let seccomp = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]});
        let bundle = host.bundle("web").set("/linux/seccomp", seccomp);
        prints(
            &host,
            bundle,
            "mkdir /tmp/made 2>&1; echo $?; rmdir /tmp/made 2>/dev/null; true",
        )
    };
    for (action, expected) in [
        (json!({"action": "SCMP_ACT_ALLOW"}), "0"),
        (json!({"action": "SCMP_ACT_LOG"}), "0"),
        (
            json!({"action": "SCMP_ACT_ERRNO"}),
            "Operation not permitted",
        ),
        (
            json!({"action": "SCMP_ACT_ERRNO", "errnoRet": 28}),
            "No space left on device",
        ),
        // Nobody traces it.
        (
            json!({"action": "SCMP_ACT_TRACE"}),
            "Function not implemented",
        ),
        // 128 and SIGSYS.
        (json!({"action": "SCMP_ACT_TRAP"}), "159"),
        (json!({"action": "SCMP_ACT_KILL"}), "159"),
        (json!({"action": "SCMP_ACT_KILL_THREAD"}), "159"),
        (json!({"action": "SCMP_ACT_KILL_PROCESS"}), "159"),
    ] {
        let printed = with(action.clone());
        assert!(printed.contains(expected), "{action}: {printed}");
    }
    let unknown = json!({"defaultAction": "SCMP_ACT_WEIRD"});
    let bundle = host.bundle("web").set("/linux/seccomp", unknown);
    host.run(&bundle).exits_with(1);
}

/// CVE-2022-29162: a process could get an inheritable capability back by executing a file that has
/// it.
#[test]
fn capabilities_of_a_process_that_joins_are_not_inheritable() {
    let host = Host::new();
    host.run_detached(&host.bundle("web").args(["sleep", "1000"]));
    let sets = ["grep", "-E", "Cap(Inh|Amb)", "/proc/self/status"];
    let none = "CapInh:\t0000000000000000\nCapAmb:\t0000000000000000\n";
    assert_eq!(host.exec("web", sets).ok().stdout(), none);
    let more = host.cmd("exec").args(["--cap", "CAP_NET_ADMIN", "web"]);
    assert_eq!(more.args(sets).run().ok().stdout(), none);
}

#[test]
fn the_mask_of_new_files_is_the_container_s() {
    let host = Host::new();
    let script = "umask; touch /tmp/file; stat -c %a /tmp/file; rm /tmp/file";
    for (umask, expected) in [(None, "0022\n644\n"), (Some(0o77), "0077\n600\n")] {
        let bundle = host.bundle("web").args(["sleep", "1000"]).edit(|config| {
            if let Some(umask) = umask {
                config["process"]["user"]["umask"] = json!(umask);
            }
        });
        host.run_detached(&bundle);
        let joined = host.exec_sh("web", script).ok();
        assert_eq!(joined.stdout(), expected);
        host.delete("web");
    }
}

#[test]
fn dev_and_the_cgroups_are_read_only_where_the_spec_says_so() {
    let host = Host::new();
    let bundle = host.bundle("web").edit(|config| {
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.retain(|mount| mount["type"] != "cgroup");
        for mount in mounts.iter_mut().filter(|mount| mount["destination"] == "/dev") {
            mount["options"].as_array_mut().unwrap().push(json!("ro"));
        }
        mounts.push(json!({
            "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "noexec", "nodev", "ro"]
        }));
    });
    let output = prints(
        &host,
        bundle,
        "grep -E ' /dev | /sys/fs/cgroup' /proc/mounts",
    );
    let mounts: Vec<&str> = output.lines().collect();
    assert!(mounts.len() > 1, "{output}");
    for mount in mounts {
        let options = mount.split(' ').nth(3).unwrap();
        assert!(options.starts_with("ro,"), "{mount}");
    }
}

#[test]
fn a_mount_goes_where_a_dangling_link_leads() {
    let host = Host::new();
    let file = host.dir().join("file");
    fs::write(&file, "here\n").unwrap();
    let bundle = host.bundle("web").bind(&file, "/etc/hosts", "ro");
    let etc = bundle.rootfs().join("etc");
    fs::create_dir_all(&etc).unwrap();
    let _ = fs::remove_file(etc.join("hosts"));
    symlink("/none/../run/made/hosts", etc.join("hosts")).unwrap();
    assert_eq!(prints(&host, bundle, "cat /run/made/hosts"), "here\n");
}

#[test]
fn a_destination_may_be_the_path_on_the_host() {
    let host = Host::new();
    let file = host.dir().join("file");
    fs::write(&file, "here\n").unwrap();
    let bundle = host.bundle("web");
    let destination = bundle.rootfs().join("inner");
    let bundle = bundle.bind(&file, destination.to_str().unwrap(), "ro");
    assert_eq!(prints(&host, bundle, "cat /inner"), "here\n");
}

#[test]
fn a_source_that_only_root_reaches_is_mounted_into_a_user_namespace() {
    let host = Host::new();
    let closed = host.dir().join("closed");
    fs::create_dir_all(closed.join("dir")).unwrap();
    fs::write(closed.join("dir/file"), "here\n").unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    let bundle = host
        .bundle("web")
        .user_namespace(100_000)
        .bind(&closed.join("dir"), "/mnt", "ro");
    assert_eq!(prints(&host, bundle, "cat /mnt/file"), "here\n");
}

#[test]
fn a_network_that_the_user_namespace_does_not_own_is_joined() {
    let host = Host::new();
    let bundle = host
        .bundle("web")
        .user_namespace(100_000)
        .namespace("network", Some(Path::new("/proc/self/ns/net")))
        .edit(|config| {
            // Only the owner of a network may mount a sysfs of it.
            let mounts = config["mounts"].as_array_mut().unwrap();
            mounts.retain(|mount| mount["type"] != "sysfs" && mount["type"] != "cgroup");
        })
        .args(["sleep", "1000"]);
    host.run_detached(&bundle);
    let own = fs::read_link("/proc/self/ns/net").unwrap();
    let joined = host.exec("web", ["readlink", "/proc/self/ns/net"]).ok();
    assert_eq!(Path::new(joined.stdout().trim()), own);
}

#[test]
fn a_path_is_masked_once() {
    let host = Host::new();
    let bundle = host
        .bundle("web")
        .set("/linux/maskedPaths", json!(["/secret", "/secret"]));
    fs::create_dir(bundle.rootfs().join("secret")).unwrap();
    assert_eq!(
        prints(&host, bundle, "grep -c ' /secret ' /proc/mounts"),
        "1\n"
    );
}

#[test]
fn a_container_that_was_not_started_ends_by_a_signal() {
    let host = Host::new();
    host.create(&host.bundle("web").args(["sleep", "1000"]))
        .ok();
    host.kill("web", "TERM").ok();
    host.wait_for_status("web", "stopped");
    host.delete("web");
}

#[test]
fn what_outlives_the_first_process_can_be_killed() {
    let host = Host::new();
    let bundle = host
        .bundle("web")
        .without_namespace("pid")
        .args(["sleep", "1000"]);
    host.run_detached(&bundle);
    host.exec_with("--detach", "web", ["sleep", "1000"]).ok();
    Cmd::new("kill")
        .args(["-KILL", &host.pid("web").to_string()])
        .run()
        .ok();
    host.wait_for_status("web", "stopped");
    host.kill("web", "KILL").ok();
    crate::common::wait_until("the container's cgroup is empty", || {
        host.cgroup_dirs("web").iter().all(|dir| {
            fs::read_to_string(dir.join("cgroup.procs"))
                .unwrap_or_default()
                .is_empty()
        })
    });
    host.cmd("kill")
        .args(["web", Signal::SIGKILL.as_str()])
        .run()
        .fails_with(1, "container not running");
}

#[test]
fn memory_policies_and_deadlines_that_cannot_be() {
    let host = Host::new();
    for (pointer, value, sentence) in [
        (
            "/linux/memoryPolicy",
            json!({}),
            "invalid memory policy mode",
        ),
        (
            "/linux/memoryPolicy",
            json!({"mode": "MPOL_BIND", "nodes": "0-9876543210"}),
            "invalid memory policy nodes",
        ),
        (
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_NOTIFY"}),
            "SCMP_ACT_NOTIFY cannot be used as default action",
        ),
    ] {
        let bundle = host.bundle("web").set(pointer, value);
        host.run(&bundle).fails_with(1, sentence);
    }
}

#[test]
fn debug_records_that_runcs_users_know() {
    let host = Host::new();
    let log = host.dir().join("log");
    let log_text = log.to_str().unwrap().to_owned();
    let bundle = host.bundle("web").args(["true"]);
    host.global(["--debug", "--log", &log_text, "--log-format", "json", "run"])
        .bundle(&bundle)
        .run()
        .ok();
    let text = fs::read_to_string(Path::new(&log)).unwrap();
    let records: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    for words in [
        "nsexec container setup",
        ": affinity: 0x",
        "child process in init()",
        "init: closing the pipe to signal completion",
    ] {
        let is_there = |record: &Value| {
            record["level"] == "debug"
                && record["msg"]
                    .as_str()
                    .is_some_and(|message| message.contains(words))
        };
        assert!(records.iter().any(is_there), "{words}: {text}");
    }
}

#[test]
fn help_for_what_does_not_exist() {
    let host = Host::new();
    host.bare()
        .args(["foo", "-h"])
        .run()
        .fails_with(3, "No help topic for 'foo'");
}
