//! A container that notifies a service manager when it is ready, see sd_notify(3).

use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;

use crate::common::{Host, wait_until};
use nix::sys::signal::Signal;

/// Sends "ready" as sd_notify(3) does, between messages that are not passed on.
const NOTIFIER: &str = "
import os, socket, sys, time
manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
manager.connect(os.environ['NOTIFY_SOCKET'])
for words in [b'STATUS=about to', b'READY=1\\nSTATUS=done']:
    manager.send(words)
time.sleep(0.2)
if 'STAYS' in os.environ:
    manager.send(b'STOPPING=1')
    print('sent', flush=True)
time.sleep(1000)
";

/// Receives the messages for a service manager up to the barrier, then releases the sender.
fn notifications(manager: &UnixDatagram) -> Vec<String> {
    let mut told = Vec::new();
    loop {
        let (message, barrier) = rcm::sys::socket::recv_fd(manager.as_fd(), 4096).unwrap();
        told.push(String::from_utf8(message).unwrap());
        if barrier.is_some() {
            return told;
        }
    }
}

#[test]
fn a_service_manager_is_told_that_a_container_is_ready() {
    let host = Host::new();
    let path = host.dir().join("manager.sock");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager
        .set_read_timeout(Some(crate::common::COMMAND_LIMIT_DUR))
        .unwrap();
    let bundle = host
        .bundle("web")
        .host_programs()
        .args(["python3", "-c", NOTIFIER]);
    let told = |pid: i32| {
        [
            "READY=1\n".to_owned(),
            format!("MAINPID={pid}\n"),
            "BARRIER=1".into(),
        ]
    };

    let running = host
        .cmd("run")
        .arg("-d")
        .bundle(&bundle)
        .env("NOTIFY_SOCKET", &path)
        .spawn();
    let heard = notifications(&manager);
    running.wait().ok();
    assert_eq!(heard, told(host.pid("web")));
    // Only the container's first process has the variable.
    let env = host.exec("web", ["env"]).ok();
    assert!(!env.stdout().contains("NOTIFY_SOCKET"), "{env:?}");
    host.delete("web");

    host.cmd("create")
        .bundle(&bundle)
        .env("NOTIFY_SOCKET", &path)
        .run()
        .ok();
    let pid = host.pid("web");
    let starting = host
        .cmd("start")
        .arg("web")
        .env("NOTIFY_SOCKET", &path)
        .spawn();
    let heard = notifications(&manager);
    starting.wait().ok();
    assert_eq!(heard, told(pid));
    host.delete("web");

    // The socket stays as long as rcm.
    let bundle = bundle.env("STAYS=1");
    let running = host
        .cmd("run")
        .bundle(&bundle)
        .env("NOTIFY_SOCKET", &path)
        .spawn();
    assert_eq!(notifications(&manager), told(running.pid()));
    wait_until("it goes on", || running.stdout() == "sent\n");
    running.signal(Signal::SIGKILL);
    running.wait();
    host.delete("web");

    // rcm does not wait for a message of a container that has ended.
    let bundle = host.bundle("web").args(["true"]);
    for flags in [&[][..], &["-d"]] {
        let cmd = host.cmd("run").args(flags);
        cmd.bundle(&bundle).env("NOTIFY_SOCKET", &path).run().ok();
    }
}
