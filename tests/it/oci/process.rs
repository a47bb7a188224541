//! Environment of a container's first process: streams, descriptors, user, capabilities, mounts,
//! limits, namespaces.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

use crate::common::{Bundle, Cmd, ConsoleSocket, Host, skip};
use serde_json::{Value, json};

#[test]
fn standard_streams_pass_through() {
    let host = Host::new();
    let bundle = host
        .bundle("web")
        .script("cat; echo to-stderr >&2; echo done");
    let output = host
        .cmd("run")
        .bundle(&bundle)
        .stdin("line 1\nline 2\n")
        .run()
        .ok();
    assert_eq!(output.stdout(), "line 1\nline 2\ndone\n");
    assert_eq!(output.stderr(), "to-stderr\n");
}

#[test]
fn a_missing_working_directory_is_made() {
    let host = Host::new();
    let bundle = host
        .bundle("web")
        .set("/process/cwd", json!("/srv/data"))
        .script("pwd");
    let output = host.run(&bundle).ok();
    assert_eq!(output.stdout(), "/srv/data\n");
}

#[test]
fn a_missing_working_directory_is_made_in_a_mount() {
    let host = Host::new();
    let volume = host.dir().join("volume");
    fs::create_dir(&volume).unwrap();
    let bundle = || host.bundle("web").script("pwd; stat -c %u .");
    let in_tmpfs = bundle()
        .mount("tmpfs", "tmpfs".as_ref(), "/mnt", &[])
        .set("/process/cwd", json!("/mnt/srv/data"));
    let output = host.run(&in_tmpfs).ok();
    assert_eq!(output.stdout(), "/mnt/srv/data\n0\n");
    assert!(!in_tmpfs.rootfs().join("mnt/srv").exists());

    let in_volume = bundle()
        .bind(&volume, "/mnt", "rw")
        .set("/process/cwd", json!("/mnt/srv"));
    let output = host.run(&in_volume).ok();
    assert_eq!(output.stdout(), "/mnt/srv\n0\n");
    assert!(volume.join("srv").is_dir());

    // The container's own root makes it.
    let mapped = bundle()
        .user_namespace(200_000)
        .set("/process/cwd", json!("/srv/data"));
    let output = host.run(&mapped).ok();
    assert_eq!(output.stdout(), "/srv/data\n0\n");

    let read_only = bundle()
        .mount("tmpfs", "tmpfs".as_ref(), "/mnt", &["ro"])
        .set("/process/cwd", json!("/mnt/srv"));
    host.run(&read_only)
        .fails_with(1, "set in config.json failed: no such file or directory");
}

#[test]
fn personality_flags_are_ignored_with_a_warning() {
    let host = Host::new();
    let personality = json!({"domain": "LINUX32", "flags": ["ADDR_NO_RANDOMIZE"]});
    let bundle = host
        .bundle("web")
        .args(["sleep", "1000"])
        .set("/linux/personality", personality);
    let output = host.run_detached(&bundle);
    assert!(
        output
            .stderr()
            .contains("ignoring unsupported personality flags"),
        "{output:?}"
    );
    // PER_LINUX32 of linux/personality.h, without flags.
    let read = ["cat", "/proc/self/personality"];
    assert_eq!(host.exec("web", read).ok().stdout(), "00000008\n");
}

#[test]
fn limits_as_runc_reads_them() {
    let host = Host::new();
    for limit in [0, 1] {
        let one = bundle_with(&host, "pids", json!({"limit": limit}));
        host.run_detached(&one);
        assert_eq!(host.cgroup_file("web", "pids.max", "pids.max"), "1");
        host.delete("web");
    }
    let kernel = bundle_with(
        &host,
        "memory",
        json!({"kernel": 1 << 20, "kernelTCP": 1 << 20}),
    );
    let output = host.run_detached(&kernel);
    assert!(
        output
            .stderr()
            .contains("Kernel memory settings are ignored"),
        "{output:?}"
    );
    for dir in host.cgroup_dirs("web") {
        if let Ok(limit) = fs::read_to_string(dir.join("memory.kmem.tcp.limit_in_bytes")) {
            assert_ne!(limit.trim(), (1 << 20).to_string());
        }
    }
}

fn bundle_with(host: &Host, resource: &str, value: Value) -> Bundle {
    let bundle = host.bundle("web").args(["sleep", "1000"]);
    bundle.resource(resource, value)
}

#[test]
fn descriptors_are_preserved_on_request() {
    let host = Host::new();
    let bundle = host
        .bundle("web")
        .script("cat <&3; cat <&4; ls /proc/self/fd | tr '\\n' ' '");
    for (name, text) in [("three", "3\n"), ("four", "4\n")] {
        fs::write(host.dir().join(name), text).unwrap();
    }
    // A shell gives the descriptors their numbers.
    let through_shell = |flags: &[&str]| {
        Cmd::new("sh")
            .args(["-c", r#"exec 3<three 4<four 5</dev/null; exec "$@""#, "sh"])
            .arg(env!("CARGO_BIN_EXE_rcm"))
            .arg("--root")
            .arg(host.root())
            .arg("run")
            .args(flags)
            .bundle(&bundle)
            .current_dir(host.dir())
            .run()
    };
    let output = through_shell(&["--preserve-fds", "2"]).ok();
    let text = output.stdout();
    let (data, open) = text.split_at(4);
    assert_eq!(data, "3\n4\n");
    // ls itself has the directory open, under the first free number: so neither 5 nor anything of
    // rcm's came through.
    assert_eq!(open.trim(), "0 1 2 3 4 5", "{output:?}");
    through_shell(&["--preserve-fds", "9"]).fails_with(1, "unable to stat preserved-fd 3 (of 9)");
    assert_eq!(host.remains(), Vec::<String>::new());
}

#[test]
fn listen_fds_reach_the_process() {
    let host = Host::new();
    let bundle = host
        .bundle("web")
        .script("echo $LISTEN_FDS $LISTEN_PID; cat <&3; cat <&4");
    for (name, text) in [("three", "3\n"), ("four", "4\n")] {
        fs::write(host.dir().join(name), text).unwrap();
    }
    let output = Cmd::new("sh")
        .args([
            "-c",
            r#"exec 3<three 4<four; LISTEN_FDS=1 LISTEN_PID=$$; export LISTEN_FDS LISTEN_PID; exec "$@""#,
            "sh",
        ])
        .arg(env!("CARGO_BIN_EXE_rcm"))
        .arg("--root")
        .arg(host.root())
        .args(["run", "--preserve-fds", "1"])
        .bundle(&bundle)
        .current_dir(host.dir())
        .run()
        .ok();
    assert_eq!(output.stdout(), "1 1\n3\n4\n", "{output:?}");
}

#[test]
fn the_pidfd_socket_gets_a_descriptor_of_the_first_process() {
    let host = Host::new();
    let bundle = host.bundle("web").args(["sleep", "1000"]);
    let socket = ConsoleSocket::listen(&host.dir().join("pidfd.sock"));
    host.cmd("create")
        .arg("--pidfd-socket")
        .arg(socket.path())
        .bundle(&bundle)
        .run()
        .ok();
    let (_, pidfd) = socket.receive();
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).unwrap();
    let pid = info
        .lines()
        .find_map(|line| line.strip_prefix("Pid:"))
        .expect("a pidfd");
    assert_eq!(pid.trim(), host.pid("web").to_string());
}

#[test]
fn the_process_is_as_the_spec_says() {
    let host = Host::new();
    let bundle = host
        .bundle("web")
        .user(1000, 1000)
        .set("/process/cwd", "/home".into())
        .set("/process/user/additionalGids", json!([7, 8]))
        .env("KEY=a value")
        .set("/hostname", "moon".into())
        .script("id -u; id -g; id -G; pwd; echo \"$KEY\"; hostname; echo $HOME; ulimit -n; umask");
    let bundle = bundle.set("/process/user/umask", 0o27.into());
    let output = host.run(&bundle).ok();
    assert_eq!(
        output.stdout(),
        "1000\n1000\n1000 7 8\n/home\na value\nmoon\n/home\n1024\n0027\n"
    );
}

#[test]
fn capabilities_and_no_new_privileges_hold() {
    let host = Host::new();
    let bundle = host
        .bundle("web")
        .script("grep -E '^(Cap|NoNewPrivs)' /proc/self/status");
    let bundle = bundle.set(
        "/process/capabilities",
        json!({
            "bounding": ["CAP_KILL", "CAP_CHOWN"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL", "CAP_CHOWN"]
        }),
    );
    let text = host.run(&bundle).ok().stdout();
    let value = |key: &str| {
        let line = text.lines().find(|line| line.starts_with(key)).unwrap();
        u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap()
    };
    // CAP_CHOWN is 0, CAP_KILL is 5 (linux/capability.h).
    assert_eq!(value("CapBnd:"), 0b10_0001, "{text}");
    assert_eq!(value("CapPrm:") & !0b10_0001, 0, "{text}");
    assert_eq!(value("CapAmb:"), 0, "{text}");
    assert_eq!(value("NoNewPrivs:"), 1, "{text}");
}

#[test]
fn mounts_are_as_the_spec_says() {
    let host = Host::new();
    let data = host.dir().join("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("file"), "from the host\n").unwrap();
    let bundle = host
        .bundle("web")
        .bind(&data, "/mnt/rw", "rw")
        .bind(&data, "/mnt/ro", "ro")
        .mount("tmpfs", "tmpfs".as_ref(), "/tmp", &["size=1m", "mode=1777"])
        .set("/root/readonly", true.into())
        .script(
            "cat /mnt/ro/file; echo new > /mnt/rw/new; touch /mnt/ro/x 2>/dev/null || echo read-only; \
             touch /x 2>/dev/null || echo read-only root; touch /tmp/x && echo tmp; \
             head -c1 /proc/kcore | wc -c; echo 1 > /proc/sys/vm/swappiness 2>/dev/null || echo read-only proc; \
             ls /dev/null /dev/zero /dev/pts/ptmx >/dev/null && echo devices",
        );
    let output = host.run(&bundle).ok();
    assert_eq!(
        output.stdout(),
        "from the host\nread-only\nread-only root\ntmp\n0\nread-only proc\ndevices\n",
        "{output:?}"
    );
    assert_eq!(fs::read_to_string(data.join("new")).unwrap(), "new\n");
}

#[test]
fn limits_reach_the_cgroup() {
    let host = Host::new();
    let bundle = host
        .bundle("web")
        .args(["sleep", "1000"])
        .resource("memory", json!({"limit": 64 << 20}))
        .resource("pids", json!({"limit": 17}))
        .resource(
            "cpu",
            json!({"shares": 512, "quota": 50000, "period": 100_000}),
        );
    host.create(&bundle);
    let memory = host.cgroup_file("web", "memory.limit_in_bytes", "memory.max");
    assert_eq!(memory, (64 << 20).to_string());
    assert_eq!(host.cgroup_file("web", "pids.max", "pids.max"), "17");
    let quota = host.cgroup_file("web", "cpu.cfs_quota_us", "cpu.max");
    assert!(quota.starts_with("50000"), "{quota}");
    let pid = host.pid("web").to_string();
    let procs = host.cgroup_file("web", "cgroup.procs", "cgroup.procs");
    assert_eq!(procs, pid);
}

#[test]
fn a_process_over_its_memory_limit_is_killed() {
    let host = Host::new();
    let bundle = host
        .bundle("web")
        .resource("memory", json!({"limit": 16 << 20, "swap": 16 << 20}))
        .args(["dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1"]);
    host.run(&bundle).exits_with(137);
    assert_eq!(host.remains(), Vec::<String>::new());
}

#[test]
fn a_network_namespace_of_the_host_is_joined() {
    let host = Host::new();
    // A second container shares the first one's namespaces, as the containers of a pod do.
    let first = host.bundle("first").args(["sleep", "1000"]);
    host.run_detached(&first);
    let pid = host.pid("first");
    let path = |kind: &str| format!("/proc/{pid}/ns/{kind}");
    let second = host
        .bundle("second")
        .namespace("network", Some(path("net").as_ref()))
        .namespace("ipc", Some(path("ipc").as_ref()))
        .namespace("uts", Some(path("uts").as_ref()))
        .edit(|config| {
            config["hostname"] = Value::Null;
        })
        .script("for kind in net ipc uts; do readlink /proc/self/ns/$kind; done");
    let output = host.run(&second).ok();
    let links: Vec<String> = ["net", "ipc", "uts"]
        .iter()
        .map(|kind| fs::read_link(path(kind)).unwrap().display().to_string())
        .collect();
    assert_eq!(output.stdout().lines().collect::<Vec<_>>(), links);
}

#[test]
fn a_container_in_a_user_namespace() {
    let host = Host::new();
    let bundle = host
        .bundle("web")
        .user_namespace(200_000)
        .script("id -u; cat /proc/self/uid_map; touch /root/mine && stat -c %u /root/mine");
    let output = host.run(&bundle).ok();
    let text = output.stdout();
    let words: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(words, ["0", "0", "200000", "65536", "0"], "{output:?}");
    let file = bundle.rootfs().join("root/mine");
    assert_eq!(file.metadata().unwrap().uid(), 200_000);
}

#[test]
fn a_seccomp_listener_gets_the_filter_and_the_state() {
    let host = Host::new();
    let socket = ConsoleSocket::listen(&host.dir().join("seccomp.sock"));
    let seccomp = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": socket.path(), "listenerMetadata": "mine",
        "syscalls": [{"names": ["swapoff"], "action": "SCMP_ACT_NOTIFY"}]
    });
    let bundle = host
        .bundle("web")
        .args(["sleep", "1000"])
        .set("/linux/seccomp", seccomp);
    let receive = || {
        let (message, listener) = socket.receive();
        let link = fs::read_link(format!("/proc/self/fd/{}", listener.as_raw_fd())).unwrap();
        assert_eq!(link.to_str(), Some("anon_inode:seccomp notify"));
        serde_json::from_slice::<Value>(&message).unwrap()
    };
    host.run_detached(&bundle);
    let message = receive();
    assert_eq!(message["fds"], json!(["seccompFd"]));
    assert_eq!(message["metadata"], "mine");
    assert_eq!(message["pid"], host.pid("web"));
    assert_eq!(message["state"]["id"], "web");
    assert_eq!(message["state"]["status"], "creating");
    assert_eq!(message["state"]["bundle"], bundle.dir().to_str().unwrap());
    host.exec_with("-d", "web", ["true"]).ok();
    let message = receive();
    assert_eq!(message["state"]["status"], "running");
    assert_ne!(message["pid"], host.pid("web"));
}

#[test]
fn clocks_of_its_own() {
    if fs::metadata("/proc/self/ns/time").is_err() {
        skip!("the kernel has no time namespaces");
    }
    let host = Host::new();
    let offsets = json!({
        "boottime": {"secs": 1_000_000, "nanosecs": 7}, "monotonic": {"secs": 2_000_000, "nanosecs": 8}
    });
    let bundle = host
        .bundle("web")
        .namespace("time", None)
        .set("/linux/timeOffsets", offsets)
        .args(["sleep", "1000"]);
    host.run_detached(&bundle);
    let own = fs::read_link("/proc/self/ns/time").unwrap();
    let first = fs::read_link(format!("/proc/{}/ns/time", host.pid("web"))).unwrap();
    assert_ne!(own, first);
    let script =
        "readlink /proc/self/ns/time; cat /proc/self/timens_offsets; cut -d. -f1 /proc/uptime";
    let joined = host.exec_sh("web", script).ok().stdout();
    let words: Vec<&str> = joined.split_whitespace().collect();
    assert_eq!(words[0], first.to_str().unwrap());
    assert_eq!(
        words[1..7],
        ["monotonic", "2000000", "8", "boottime", "1000000", "7"]
    );
    let uptime: i64 = words[7].parse().unwrap();
    assert!(uptime >= 1_000_000, "{uptime}");

    // Offsets are for a namespace that is made.
    for change in [
        json!({"boottime": {"secs": 1, "nanosecs": 1_000_000_000}}),
        json!({"weird": {"secs": 1}}),
    ] {
        let bundle = host.bundle("other").namespace("time", None);
        let bundle = bundle.set("/linux/timeOffsets", change);
        host.run(&bundle).exits_with(1);
    }
}

#[test]
fn a_network_device_moves_in() {
    let host = Host::new();
    let bundle = host
        .bundle("web")
        .args(["ip", "addr", "show", "moved0"])
        .set("/linux/netDevices", json!({"rcm-t0": {"name": "moved0"}}));
    // In a network that goes with its last process.
    let script = r#"ip link add rcm-t0 type veth peer name rcm-t1 && ip addr add 10.9.8.7/24 dev rcm-t0 && ip link set rcm-t0 up && exec "$@""#;
    let output = Cmd::new("unshare")
        .args(["--net", "sh", "-c", script, "sh"])
        .arg(env!("CARGO_BIN_EXE_rcm"))
        .arg("--root")
        .arg(host.root())
        .arg("run")
        .bundle(&bundle)
        .run()
        .ok();
    assert!(output.stdout().contains("10.9.8.7/24"), "{output:?}");
}
