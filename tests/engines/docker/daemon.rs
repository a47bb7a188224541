//! The engine ends, starts again, or has many containers at once.

use serde_json::Value;

use super::{COUNTER, MISSING};
use crate::common::{is_alive, skip, wait_until};
use crate::dockerd::{Docker, PROGRAMS, Role};
use crate::engine::missing;

#[test]
fn twenty_containers_at_once() {
    if let Some(program) = missing(&PROGRAMS) {
        skip!("{program} {MISSING}");
    }
    let docker = Docker::shared();
    let starting: Vec<_> = (0..20)
        .map(|number| {
            let name = format!("many-{number}");
            let script = format!("echo {number}; exec sleep 1000");
            let flags = ["--detach", "--name", &name, "--init"];
            docker.run_command(&flags, &["sh", "-c", &script]).spawn()
        })
        .collect();
    for client in starting {
        client.wait().ok();
    }
    let names: Vec<String> = (0..20).map(|number| format!("many-{number}")).collect();
    for (number, name) in names.iter().enumerate() {
        wait_until("each has printed its number", || {
            docker.logs(name) == format!("{number}\n")
        });
    }
    let filter = ["--filter", "name=many-", "--quiet"];
    let list = docker.client(["ps"]).args(filter).run().ok().stdout();
    assert_eq!(list.lines().count(), 20);
    docker.client(["stop"]).args(&names).run().ok();
    docker.client(["rm"]).args(&names).run().ok();
}

#[test]
fn containers_survive_the_engine() {
    if let Some(program) = missing(&PROGRAMS) {
        skip!("{program} {MISSING}");
    }
    let mut docker = Docker::start(Role::Added, &["--live-restore"]);
    let info = docker.client(["info", "--format", "{{json .}}"]).run().ok();
    let info: Value = info.json();
    assert_ne!(info["DefaultRuntime"], "rcm");
    let flags = ["--detach", "--name", "survivor", "--env", "STAYS=1"];
    docker.run(&flags, &["sh", "-c", COUNTER]).ok();
    let runtime = docker.inspect("survivor", ".HostConfig.Runtime");
    assert_eq!(runtime, "rcm");
    let pid: i32 = docker.inspect("survivor", ".State.Pid").parse().unwrap();

    docker.stop();
    assert!(is_alive(pid));
    docker.begin();
    assert_eq!(docker.inspect("survivor", ".State.Status"), "running");
    let now: i32 = docker.inspect("survivor", ".State.Pid").parse().unwrap();
    assert_eq!(now, pid);
    let output = docker.exec("survivor", &["sh", "-c", "echo $STAYS"]);
    assert_eq!(output.ok().stdout(), "1\n");
    let before = docker.logs("survivor").lines().count();
    wait_until("it counts", || {
        docker.logs("survivor").lines().count() > before + 3
    });
    // Its end is noticed, too, by the daemon that did not start it.
    docker
        .client(["stop", "--time", "1", "survivor"])
        .run()
        .ok();
    assert_eq!(docker.inspect("survivor", ".State.ExitCode"), "137");
    docker.remove("survivor");

    docker.run(&["--rm"], &["true"]).ok();
}

#[test]
fn what_runs_ends_with_the_engine() {
    if let Some(program) = missing(&PROGRAMS) {
        skip!("{program} {MISSING}");
    }
    let mut docker = Docker::start(Role::Default, &["--shutdown-timeout=1"]);
    let command = [
        "sh",
        "-c",
        "trap 'exit 0' TERM; while :; do sleep 0.1; done",
    ];
    docker.run(&["--detach", "--name", "left"], &command).ok();
    docker.run(&["--detach", "--rm"], &["sleep", "1000"]).ok();
    // Nothing of them is left: the host looks when it is dropped.
    docker.stop();
}
