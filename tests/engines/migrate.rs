//! Containers of engines that move to another host.

use std::fs;
use std::path::PathBuf;

use crate::common::{Host, is_alive, skip, wait_until};
use crate::dockerd::{Docker, PROGRAMS, Role};
use crate::engine::missing;
use crate::pair::Receiver;

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
fn store(docker: &Docker) -> PathBuf {
    let store = docker.dir().join("store");
    fs::create_dir(&store).unwrap();
    store
}

#[test]
fn a_container_of_docker_goes_on_at_another_host() {
    if let Some(program) = missing(&PROGRAMS) {
        skip!("{program} is not installed; `make deps` installs docker.io");
    }
    let docker = Docker::start_with_own_run(Role::Added, &[]);
    let destination = Host::new();
    let store = store(&docker);
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

    let bundle = destination.dir().join("arrived");
    let bundle_flags = ["--detach", "--bundle", bundle.to_str().unwrap()];
    let receiver = Receiver::start(&destination, &id, &store, &bundle_flags);
    // As Docker prints ids; no state directory is named.
    let migrate = |flags: &[&str]| {
        docker
            .rcm()
            .args(["live-migrate", &id[..12]])
            .args(flags)
            .run()
    };
    let address = receiver.address.to_string();
    let sent = migrate(&[
        "--image-path",
        store.to_str().unwrap(),
        "--destination",
        &address,
    ])
    .ok();
    receiver.running.wait().ok();
    assert!(sent.stderr().contains("root file system: full"), "{sent:?}");
    assert!(migrate(&["--status"]).ok().stdout().contains("moved to"));

    // It goes on from where it was, and has what it had.
    assert_eq!(destination.status(&id), "running");
    let look = |path: &str| destination.exec(&id, ["cat", path]).ok().stdout();
    let arrived = gapless(&look("/numbers"));
    assert!(arrived > 3);
    wait_until("it counts there", || {
        gapless(&look("/numbers")) > arrived + 3
    });
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
    let store = store(&docker);
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
