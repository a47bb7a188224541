//! Containers of engines that move to another host.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::pair::Receiver;
use crate::common::{Cmd, Host, is_alive, skip, wait_until};
use crate::containerd::{self, Containerd};
use crate::dockerd::{Docker, PROGRAMS, Role};
use crate::engine::{CLIENT_LIMIT_DUR, missing};
use crate::podman::{self, Podman};

/// Counts in its memory and in a file of its writable layer.
const COUNTER: &str =
    "number=0; while :; do number=$((number + 1)); echo $number >>/numbers; usleep 20000; done";

/// Every number once, in order.
fn gapless(text: &str) -> usize {
    let numbers: Vec<usize> = text.lines().map(|line| line.parse().unwrap()).collect();
    let expected: Vec<usize> = (1..=numbers.len()).collect();
    assert_eq!(numbers, expected);
    numbers.len()
}

/// The images' directory, which both hosts see.
fn store(dir: &Path) -> PathBuf {
    let store = dir.join("store");
    fs::create_dir(&store).unwrap();
    store
}

/// Moves the counter `id`, which is called `name` to `rcm` at the source, to a fresh host. Returns
/// that host when the counter runs there.
fn moved(id: &str, name: &str, store: &Path, rcm: Cmd) -> Host {
    let destination = Host::new();
    let bundle = destination.dir().join("arrived");
    let flags = ["--detach", "--bundle", bundle.to_str().unwrap()];
    let receiver = Receiver::start(&destination, id, store, &flags);
    let address = receiver.address.to_string();
    rcm.args([
        "live-migrate",
        name,
        "--destination",
        &address,
        "--image-path",
    ])
    .arg(store)
    .limit(CLIENT_LIMIT_DUR)
    .run()
    .ok();
    receiver.running.wait().ok();
    assert_eq!(destination.status(id), "running");
    let numbers = || gapless(&destination.exec(id, ["cat", "/numbers"]).ok().stdout());
    let arrived = numbers();
    assert!(arrived > 3);
    wait_until("it counts there", || numbers() > arrived + 3);
    destination
}

#[test]
fn a_container_of_docker_goes_on_at_another_host() {
    if let Some(program) = missing(&PROGRAMS) {
        skip!("{program} is not installed; `make deps` installs docker.io");
    }
    let docker = Docker::start_with_own_run(Role::Added, &[]);
    let store = store(docker.dir());
    let flags = [
        "--detach",
        "--name",
        "counter",
        "--memory",
        "64m",
        "--pids-limit",
        "50",
    ];
    let flags = [
        &flags[..],
        &["--hostname", "traveller", "--add-host", "peer:192.0.2.7"],
    ]
    .concat();
    docker.run(&flags, &["sh", "-c", COUNTER]).ok();
    let id = docker.inspect("counter", ".Id");
    let pid: i32 = docker.inspect("counter", ".State.Pid").parse().unwrap();
    docker
        .exec("counter", &["sh", "-c", "echo layer >/etc/kept"])
        .ok();
    let before = || gapless(&docker.exec("counter", &["cat", "/numbers"]).ok().stdout());
    wait_until("it counts", || before() > 3);

    // As Docker prints ids; no state directory is named.
    let destination = moved(&id, &id[..12], &store, docker.rcm());
    let asked = docker.rcm().args(["live-migrate", &id[..12], "--status"]);
    assert!(asked.run().ok().stdout().contains("moved to"));

    // It has its memory and its file.
    let look = |path: &str| destination.exec(&id, ["cat", path]).ok().stdout();
    assert_eq!(look("/etc/kept"), "layer\n");
    assert_eq!(look("/etc/hostname"), "traveller\n");
    assert!(look("/etc/hosts").contains("192.0.2.7\tpeer"));
    assert_eq!(
        destination.exec(&id, ["hostname"]).ok().stdout(),
        "traveller\n"
    );
    let limit = destination.cgroup_file(&id, "memory.limit_in_bytes", "memory.max");
    assert_eq!(limit, (64 << 20).to_string());

    // Docker has seen it end, and nothing else.
    assert!(!is_alive(pid));
    wait_until("Docker has noticed", || {
        docker.inspect("counter", ".State.Status") == "exited"
    });
    assert_eq!(docker.inspect("counter", ".State.ExitCode"), "137");
    assert_eq!(docker.inspect("counter", ".State.Error"), "");
    docker.remove("counter");
    docker.run(&["--rm"], &["true"]).ok();
    assert_eq!(destination.status(&id), "running");
    destination.delete(&id);
}

#[test]
fn a_container_that_its_engine_would_start_again_stays() {
    if let Some(program) = missing(&PROGRAMS) {
        skip!("{program} is not installed; `make deps` installs docker.io");
    }
    let docker = Docker::start_with_own_run(Role::Default, &[]);
    let destination = Host::new();
    let store = store(docker.dir());
    let flags = ["--detach", "--name", "lasting", "--restart", "always"];
    docker.run(&flags, &["sleep", "1000"]).ok();
    let id = docker.inspect("lasting", ".Id");
    let ask = |id: &str, destination: &Host| {
        let bundle = destination.dir().join("asked");
        let flags = ["--detach", "--bundle", bundle.to_str().unwrap()];
        let receiver = Receiver::start(destination, id, &store, &flags);
        let asked = docker
            .rcm()
            .args([
                "live-migrate",
                &id[..8],
                "--dry-run",
                "--json",
                "--destination",
            ])
            .arg(receiver.address.to_string())
            .arg("--image-path")
            .arg(&store)
            .run()
            .exits_with(1);
        receiver.running.signal(nix::sys::signal::Signal::SIGTERM);
        receiver.running.wait();
        let findings = asked.json()["findings"].clone();
        let errors = findings.as_array().unwrap().iter();
        errors
            .filter(|finding| finding["severity"] == "error")
            .map(|finding| finding["what"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let errors = ask(&id, &destination);
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].contains("--restart always"), "{errors:?}");
    docker.remove("lasting");
}

#[test]
fn a_container_of_podman_goes_on_at_another_host() {
    if let Some(program) = missing(&podman::PROGRAMS) {
        skip!("{program} is not installed; `make deps` installs podman and conmon");
    }
    let podman = Podman::shared();
    let store = store(podman.dir());
    let flags = ["--detach", "--name", "traveller", "--network", "none"];
    podman.run(&flags, &["sh", "-c", COUNTER]).ok();
    let id = podman.inspect("traveller", ".Id");
    let before = || gapless(&podman.exec("traveller", &["cat", "/numbers"]).ok().stdout());
    wait_until("it counts", || before() > 3);
    let destination = moved(&id, &id[..12], &store, podman.rcm());
    let hosts = destination.exec(&id, ["cat", "/etc/hosts"]).ok().stdout();
    assert!(hosts.contains("traveller"), "{hosts}");
    wait_until("Podman has noticed", || {
        podman.inspect("traveller", ".State.Status") == "exited"
    });
    podman.remove("traveller");
    destination.delete(&id);
}

#[test]
fn a_task_of_containerd_goes_on_at_another_host() {
    if let Some(program) = missing(&containerd::PROGRAMS) {
        skip!("{program} is not installed; `make deps` installs containerd");
    }
    let containerd = Containerd::shared();
    let store = store(containerd.dir());
    let flags = ["--detach", "--null-io"];
    containerd
        .run("traveller", &flags, &["sh", "-c", COUNTER])
        .ok();
    let before = || {
        gapless(
            &containerd
                .exec("traveller", &["cat", "/numbers"])
                .ok()
                .stdout(),
        )
    };
    wait_until("it counts", || before() > 3);
    let root = containerd.runtime_root().join("default");
    let rcm = Cmd::new(env!("CARGO_BIN_EXE_rcm")).arg("--root").arg(root);
    let destination = moved("traveller", "traveller", &store, rcm);
    containerd.wait_for_status("traveller", "STOPPED");
    containerd.remove("traveller");
    destination.delete("traveller");
}
