//! `rcm exec`: another process in a container.

mod cgroup;

use std::fs;
use std::os::fd::AsRawFd;
use std::time::Duration;

use crate::common::{Cmd, ConsoleSocket, Host, is_alive, wait_until};
use nix::sys::signal::Signal;
use serde_json::json;

#[test]
fn the_exit_status_is_that_of_the_process() {
    let host = Host::with_container(|bundle| bundle);
    for code in [0, 1, 42, 255] {
        let script = format!("exit {code}");
        let output = host.exec_sh("web", &script).exits_with(code);
        assert_eq!(output.stderr(), "");
    }
    host.exec_sh("web", "kill -KILL $$").exits_with(137);
    host.exec_sh("web", "kill -TERM $$").exits_with(143);
    assert_eq!(host.status("web"), "running");
}

#[test]
fn standard_streams_pass_through() {
    let host = Host::with_container(|bundle| bundle);
    let output = host
        .cmd("exec")
        .args(["web", "sh", "-c", "cat; echo to-stderr >&2"])
        .stdin("in\n")
        .run()
        .ok();
    assert_eq!(output.stdout(), "in\n");
    assert_eq!(output.stderr(), "to-stderr\n");
}

#[test]
fn it_is_in_the_namespaces_and_the_cgroup_of_the_container() {
    let host = Host::with_container(|bundle| bundle.set("/hostname", json!("moon")));
    let pid = host.pid("web");
    let output = host
        .exec_sh("web", "hostname; for kind in mnt pid net ipc uts; do readlink /proc/self/ns/$kind; done; cat /proc/self/cgroup")
        .ok();
    let text = output.stdout();
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("moon"));
    for kind in ["mnt", "pid", "net", "ipc", "uts"] {
        let link = fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
        assert_eq!(lines.next(), link.to_str(), "{kind}");
    }
    let cgroups: Vec<String> = lines.map(str::to_owned).collect();
    let first = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert_eq!(cgroups, first.lines().collect::<Vec<_>>());
}

#[test]
fn flags_change_the_process() {
    let host = Host::with_container(|bundle| {
        bundle
            .env("FROM_SPEC=1")
            .set("/process/noNewPrivileges", json!(false))
    });
    let output = host
        .exec_with(
            "--user 1000:1000 --additional-gids 7 -g 8 --cwd /tmp --env ONE=1 -e FROM_SPEC=2",
            "web",
            [
                "sh",
                "-c",
                "id -u; id -g; id -G; pwd; echo $ONE $FROM_SPEC; grep NoNewPrivs /proc/self/status",
            ],
        )
        .ok();
    assert_eq!(
        output.stdout(),
        "1000\n1000\n1000 7 8\n/tmp\n1 2\nNoNewPrivs:\t0\n"
    );
    let output = host
        .exec_with(
            "--no-new-privs",
            "web",
            ["grep", "NoNewPrivs", "/proc/self/status"],
        )
        .ok();
    assert_eq!(output.stdout(), "NoNewPrivs:\t1\n");
    // Only the user: its group stays that of the spec.
    let output = host
        .exec_with("-u 1000", "web", ["sh", "-c", "id -u; id -g"])
        .ok();
    assert_eq!(output.stdout(), "1000\n0\n");
}

#[test]
fn capabilities_are_added() {
    let host = Host::with_container(|bundle| {
        bundle.set(
            "/process/capabilities",
            json!({"bounding": ["CAP_CHOWN"], "effective": ["CAP_CHOWN"], "permitted": ["CAP_CHOWN"]}),
        )
    });
    let bounding = |flags: &[&str]| {
        let output = host
            .cmd("exec")
            .args(flags)
            .args(["web", "grep", "-E", "Cap(Bnd|Eff)", "/proc/self/status"])
            .run()
            .ok();
        let text = output.stdout();
        let mut sets = text
            .split_whitespace()
            .skip(1)
            .step_by(2)
            .map(|set| u64::from_str_radix(set, 16).unwrap());
        (sets.next().unwrap(), sets.next().unwrap())
    };
    assert_eq!(bounding(&[]), (1, 1));
    // CAP_KILL is 5 (linux/capability.h).
    assert_eq!(bounding(&["--cap", "CAP_KILL"]), (0b10_0001, 0b10_0001));
    host.exec_with("--cap CAP_NO_SUCH", "web", ["true"])
        .fails_with(255, "CAP_NO_SUCH");
}

#[test]
fn a_process_from_a_file() {
    let host = Host::with_container(|bundle| bundle);
    let path = host.dir().join("process.json");
    let process = json!({
        "user": {"uid": 1000, "gid": 1000}, "cwd": "/home", "env": ["PATH=/bin", "KEY=from file"],
        "args": ["sh", "-c", "id -u; pwd; echo $KEY; exit 3"]
    });
    fs::write(&path, process.to_string()).unwrap();
    let output = host
        .cmd("exec")
        .arg("--process")
        .arg(&path)
        .arg("web")
        .run()
        .exits_with(3);
    assert_eq!(output.stdout(), "1000\n/home\nfrom file\n");
    fs::write(&path, "{").unwrap();
    host.cmd("exec")
        .arg("--process")
        .arg(&path)
        .arg("web")
        .run()
        .fails_with(255, "process.json");
    host.rcm(["exec", "--process", "/no/such/process.json", "web"])
        .fails_with(255, "/no/such/process.json");
}

#[test]
fn detached_it_runs_on() {
    let host = Host::with_container(|bundle| bundle);
    let pid_file = host.dir().join("exec.pid");
    let output = host
        .cmd("exec")
        .args(["--detach", "--pid-file"])
        .arg(&pid_file)
        .args(["web", "sh", "-c", "echo up; exec sleep 1000"])
        .run()
        .ok();
    let pid: i32 = fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    assert!(is_alive(pid));
    wait_until("it writes", || output.stdout() == "up\n");
    let procs = host.cgroup_file("web", "cgroup.procs", "cgroup.procs");
    assert!(procs.lines().any(|line| line == pid.to_string()), "{procs}");
    host.delete("web");
    wait_until("it dies with the container", || !is_alive(pid));
}

#[test]
fn signals_are_forwarded() {
    let host = Host::with_container(|bundle| bundle);
    let exec = host
        .cmd("exec")
        .args([
            "web",
            "sh",
            "-c",
            "trap 'echo term; exit 9' TERM; echo ready; while :; do sleep 0.01; done",
        ])
        .spawn();
    wait_until("the handler is set", || exec.stdout().contains("ready"));
    exec.signal(Signal::SIGTERM);
    let output = exec.wait().exits_with(9);
    assert_eq!(output.stdout(), "ready\nterm\n");
}

#[test]
fn a_terminal_on_request() {
    let host = Host::with_container(|bundle| bundle);
    let (code, text) = host
        .cmd("exec")
        .args([
            "--tty",
            "web",
            "sh",
            "-c",
            "tty; test -t 0 && test -t 1 && test -t 2 && echo terminal; exit 6",
        ])
        .on_terminal()
        .wait();
    assert_eq!(code, 6, "{text:?}");
    assert!(text.contains("/dev/pts/"), "{text:?}");
    assert!(text.contains("terminal\r\n"), "{text:?}");
    host.exec("web", ["test", "-t", "0"]).exits_with(1);

    let socket = ConsoleSocket::listen(&host.dir().join("console.sock"));
    host.cmd("exec")
        .args(["--tty", "--detach", "--console-socket"])
        .arg(socket.path())
        .args(["web", "sh", "-c", "read line; echo got $line"])
        .run()
        .ok();
    let mut terminal = socket.terminal();
    terminal.send("a line\n");
    terminal.expect("got a line");
    host.exec_with("--tty --detach", "web", ["true"])
        .fails_with(255, "without setting console socket");
}

#[test]
fn descriptors_are_preserved_on_request() {
    let host = Host::with_container(|bundle| bundle);
    fs::write(host.dir().join("three"), "3\n").unwrap();
    let output = Cmd::new("sh")
        .args(["-c", r#"exec 3<three 4</dev/null; exec "$@""#, "sh"])
        .arg(env!("CARGO_BIN_EXE_rcm"))
        .arg("--root")
        .arg(host.root())
        .args(["exec", "--preserve-fds", "1", "web"])
        .args(["sh", "-c", "cat <&3; ls /proc/self/fd | tr '\\n' ' '"])
        .current_dir(host.dir())
        .run()
        .ok();
    // 4 is the directory that ls itself reads.
    assert_eq!(output.stdout().trim(), "3\n0 1 2 3 4", "{output:?}");
}

#[test]
fn the_pidfd_socket_gets_a_descriptor_of_the_process() {
    let host = Host::with_container(|bundle| bundle);
    let socket = ConsoleSocket::listen(&host.dir().join("pidfd.sock"));
    let pid_file = host.dir().join("exec.pid");
    host.cmd("exec")
        .args(["--detach", "--pidfd-socket"])
        .arg(socket.path())
        .arg("--pid-file")
        .arg(&pid_file)
        .args(["web", "sleep", "1000"])
        .run()
        .ok();
    let (_, pidfd) = socket.receive();
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).unwrap();
    let pid = fs::read_to_string(&pid_file).unwrap();
    assert!(info.contains(&format!("Pid:\t{pid}\n")), "{info}");
}

#[test]
fn what_cannot_be_executed_is_status_255_and_a_sentence() {
    let host = Host::new();
    let bundle = host.container("web", |bundle| bundle);
    fs::write(bundle.rootfs().join("bin/not-executable"), "").unwrap();
    for (program, sentence) in [
        ("no-such", "executable file not found in $PATH"),
        ("/no/such", "no such file or directory"),
        ("/bin/not-executable", "permission denied"),
    ] {
        for flags in [&[][..], &["--detach"]] {
            host.cmd("exec")
                .args(flags)
                .args(["web", program])
                .run()
                .fails_with(255, sentence);
        }
    }
    host.exec_with("--cwd /no/such/dir", "web", ["true"])
        .fails_with(255, "/no/such/dir");
    host.exec_with("--user me", "web", ["true"]).exits_with(255);
    host.rcm(["exec", "web"])
        .fails_with(255, "exec args cannot be empty");
    // Nothing of a failed exec is left in the container.
    let procs = host.cgroup_file("web", "cgroup.procs", "cgroup.procs");
    assert_eq!(procs, host.pid("web").to_string());
    assert_eq!(host.status("web"), "running");
}

#[test]
fn containers_that_cannot_execute() {
    let host = Host::new();
    let bundle = host.container("web", |bundle| bundle);
    host.pause("web").ok();
    host.exec("web", ["true"])
        .fails_with(255, "cannot exec in a paused container");
    let mut waiting = host
        .cmd("exec")
        .args(["--ignore-paused", "web", "echo", "thawed"])
        .spawn();
    std::thread::sleep(Duration::from_millis(300));
    assert!(waiting.is_running(), "{}", waiting.stderr());
    assert_eq!(waiting.stdout(), "");
    host.resume("web").ok();
    assert_eq!(waiting.wait().ok().stdout(), "thawed\n");

    host.kill("web", "KILL").ok();
    host.wait_for_status("web", "stopped");
    host.exec("web", ["true"])
        .fails_with(255, "cannot exec in a stopped container");
    host.delete("web");

    // A created container can be looked into before it starts.
    host.create(&bundle);
    assert_eq!(host.exec("web", ["echo", "here"]).ok().stdout(), "here\n");
    assert_eq!(host.status("web"), "created");
}

#[test]
fn in_a_user_namespace() {
    let host = Host::with_container(|bundle| bundle.user_namespace(200_000));
    let output = host
        .exec_sh(
            "web",
            "id -u; cat /proc/self/uid_map; touch /tmp/x && stat -c %u /tmp/x",
        )
        .ok();
    let text = output.stdout();
    let words: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(words, ["0", "0", "200000", "65536", "0"], "{output:?}");
    let output = host.exec_with("--user 1000", "web", ["id", "-u"]).ok();
    assert_eq!(output.stdout(), "1000\n");
}

#[test]
fn the_seccomp_filter_of_the_container_holds() {
    let host = Host::with_container(|bundle| {
        bundle.set(
            "/linux/seccomp",
            json!({
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]
            }),
        )
    });
    let output = host.exec("web", ["mkdir", "/tmp/new"]).exits_with(1);
    assert!(
        output.stderr().contains("Operation not permitted"),
        "{output:?}"
    );
    let output = host
        .exec("web", ["grep", "Seccomp:", "/proc/self/status"])
        .ok();
    assert_eq!(output.stdout(), "Seccomp:\t2\n");
}

#[test]
fn many_at_once() {
    let host = Host::with_container(|bundle| bundle);
    let running: Vec<_> = (0..20)
        .map(|number| {
            let script = format!("echo {number}; exit {number}");
            host.cmd("exec").args(["web", "sh", "-c", &script]).spawn()
        })
        .collect();
    for (number, exec) in (0..).zip(running) {
        let output = exec.wait().exits_with(number);
        assert_eq!(output.stdout(), format!("{number}\n"));
    }
    // Their sockets are gone with them.
    let left: Vec<_> = fs::read_dir(host.root().join("web"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name.to_string_lossy().starts_with("exec"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_started_process_outlives_a_killed_rcm() {
    let host = Host::with_container(|bundle| bundle);
    let exec = host
        .cmd("exec")
        .args([
            "web",
            "sh",
            "-c",
            "echo $$ > /tmp/pid; echo up; exec sleep 1000",
        ])
        .spawn();
    wait_until("it is up", || exec.stdout() == "up\n");
    exec.signal(Signal::SIGKILL);
    exec.wait().exits_with(137);
    let alive = host.exec_sh("web", "kill -0 $(cat /tmp/pid)");
    alive.ok();
    host.kill("web", "KILL").ok();
    host.wait_for_status("web", "stopped");
}

/// It would wait to be started for ever.
#[test]
fn a_process_that_was_not_started_ends_with_a_killed_rcm() {
    let host = Host::with_container(|bundle| bundle);
    let init = host.pid("web").to_string();
    let procs = || host.cgroup_file("web", "cgroup.procs", "cgroup.procs");
    // In a frozen group it gets as far as joining.
    host.pause("web").ok();
    let exec = host
        .cmd("exec")
        .args(["--ignore-paused", "web", "sleep", "1000"])
        .spawn();
    wait_until("it has joined", || procs() != init);
    exec.signal(Signal::SIGKILL);
    exec.wait().exits_with(137);
    host.resume("web").ok();
    wait_until("it has ended", || procs() == init);
}
