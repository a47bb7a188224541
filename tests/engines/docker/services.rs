//! Services: networks, ports and compose.

use std::fs;

use super::MISSING;
use crate::common::{Cmd, skip, wait_until};
use crate::dockerd::{Docker, PROGRAMS};
use crate::engine::missing;

#[test]
fn networks_and_ports_work() {
    if let Some(program) = missing(&PROGRAMS) {
        skip!("{program} {MISSING}");
    }
    let docker = Docker::shared();
    docker.client(["network", "create", "backend"]).run().ok();
    let serve = "echo served >/tmp/page; exec httpd -f -p 80 -h /tmp";
    let flags = ["--detach", "--name", "server", "--network", "backend"];
    let flags = [&flags[..], &["--publish", "127.0.0.1:18080:80"]].concat();
    docker.run(&flags, &["sh", "-c", serve]).ok();
    let fetch = || {
        let fetch = docker.within("busybox").args(["wget", "-q", "-O", "-"]);
        fetch.arg("http://127.0.0.1:18080/page").run().stdout()
    };
    wait_until("the mapped port answers", || fetch() == "served\n");
    // Another container finds it by its name: Docker's hooks and name server.
    let output = docker.run(
        &["--rm", "--network", "backend"],
        &["wget", "-q", "-O", "-", "http://server/page"],
    );
    assert_eq!(output.ok().stdout(), "served\n");
    // One that shares its network namespace.
    let output = docker.run(
        &["--rm", "--network", "container:server"],
        &["wget", "-q", "-O", "-", "http://127.0.0.1/page"],
    );
    assert_eq!(output.ok().stdout(), "served\n");
    // And one of another network does not.
    let output = docker.run(&["--rm"], &["nslookup", "server"]);
    assert_ne!(output.code(), 0, "{output:?}");
    docker.remove("server");
    docker.client(["network", "rm", "backend"]).run().ok();
}

#[test]
fn compose_starts_two_services() {
    if let Some(program) = missing(&["docker-compose"]).or_else(|| missing(&PROGRAMS)) {
        skip!("{program} {MISSING}");
    }
    let docker = Docker::shared();
    let dir = docker.dir().join("composed");
    fs::create_dir(&dir).unwrap();
    let file = r#"
version: "2.4"
services:
  page:
    image: busybox
    command: sh -c "echo composed >/tmp/page; exec httpd -f -p 80 -h /tmp"
    stop_signal: SIGKILL
  reader:
    image: busybox
    depends_on: [page]
    command: sh -c "until wget -q -O - http://page/page; do usleep 50000; done"
"#;
    fs::write(dir.join("docker-compose.yml"), file).unwrap();
    let compose = |arguments: &[&str]| {
        let compose = Cmd::new("docker-compose").current_dir(&dir);
        docker.address(compose).args(arguments).run().ok()
    };
    compose(&["up", "--detach"]);
    wait_until("the reader has ended", || {
        let reader = docker.client(["ps", "--all", "--quiet"]);
        let reader = reader.args(["--filter", "label=com.docker.compose.service=reader"]);
        let reader = reader.args(["--filter", "status=exited"]).run().ok();
        !reader.stdout().trim().is_empty()
    });
    let logs = compose(&["logs", "--no-color", "reader"]).stdout();
    assert!(logs.contains("composed"), "{logs}");
    compose(&["down", "--timeout", "1"]);
}
