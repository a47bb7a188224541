//! Terminals, pipes and files that the container reads and writes.

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};

use super::{COUNTER, assert_counts, checkpoint, images, restore, restore_detached};
use crate::common::{Cmd, ConsoleSocket, Host, wait_until};
use nix::sys::signal::Signal;

#[test]
fn a_container_with_a_terminal() {
    let host = Host::new();
    let bundle = host
        .bundle("web")
        .terminal()
        .script("n=0; while read line; do n=$((n+1)); echo \"$n: $line on $(tty)\"; done");
    let socket = ConsoleSocket::listen(&host.dir().join("console-1"));
    host.cmd("run")
        .args(["--detach", "--console-socket"])
        .arg(socket.path())
        .bundle(&bundle)
        .run()
        .ok();
    let mut terminal = socket.terminal();
    terminal.send("before\n");
    terminal.expect("1: before on /dev/pts/0");
    let images = images(&host, "images");
    checkpoint(&host, &bundle, &images).run().ok();

    let output = restore_detached(&host, &bundle, &images).run();
    assert_eq!(output.code(), 1);
    assert!(
        output.stderr().contains("console socket"),
        "{}",
        output.stderr()
    );

    let socket = ConsoleSocket::listen(&host.dir().join("console-2"));
    restore_detached(&host, &bundle, &images)
        .arg("--console-socket")
        .arg(socket.path())
        .run()
        .ok();
    let mut terminal = socket.terminal();
    terminal.send("after\n");
    terminal.expect("2: after on /dev/pts/0");

    // And once more, in the foreground of a terminal.
    let again = host.dir().join("again");
    checkpoint(&host, &bundle, &again).run().ok();
    let mut session = restore(&host, &bundle, &again).on_terminal();
    session.terminal.send("third\n");
    session.terminal.expect("3: third on /dev/pts/0");
    session.terminal.send("\u{4}");
    assert_eq!(session.wait().0, 0);
    assert_eq!(host.status("web"), "gone");
}

#[test]
fn a_foreground_restore_gets_signals_and_the_exit_status() {
    let host = Host::new();
    let bundle = host.bundle("web").script(&format!(
        "trap 'echo trapped > /trapped; exit 7' TERM; {COUNTER}"
    ));
    host.run_detached(&bundle);
    assert_counts(&bundle);
    let images = images(&host, "images");
    checkpoint(&host, &bundle, &images).run().ok();
    let running = restore(&host, &bundle, &images).spawn();
    assert_counts(&bundle);
    running.signal(Signal::SIGTERM);
    assert_eq!(running.wait().code(), 7);
    assert!(bundle.rootfs().join("trapped").exists());
    assert_eq!(host.status("web"), "gone");
}

#[test]
fn a_redirected_output_goes_on_in_its_file() {
    let host = Host::new();
    let bundle = host
        .bundle("web")
        .script("i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done");
    let log = host.dir().join("out.log");
    let run = format!(
        "exec {} --root {} run --detach --bundle {} web < /dev/null > {} 2>&1",
        env!("CARGO_BIN_EXE_rcm"),
        host.root().display(),
        bundle.dir().display(),
        log.display()
    );
    Cmd::new("sh").args(["-c", &run]).run().ok();
    let lines = || fs::read_to_string(&log).unwrap_or_default().lines().count();
    wait_until("it writes", || lines() > 3);
    let images = images(&host, "images");
    checkpoint(&host, &bundle, &images).run().ok();
    let before = lines();
    restore_detached(&host, &bundle, &images).run().ok();
    wait_until("it writes on", || lines() > before + 3);
    let text = fs::read_to_string(&log).unwrap();
    for (index, line) in text.lines().enumerate() {
        assert_eq!(
            line,
            (index + 1).to_string(),
            "a number is missing or twice"
        );
    }

    // On another host the file is not there: it is made.
    let again = host.dir().join("again");
    checkpoint(&host, &bundle, &again).run().ok();
    fs::remove_file(&log).unwrap();
    restore_detached(&host, &bundle, &again).run().ok();
    wait_until("it writes into a new file", || {
        log.exists() && fs::metadata(&log).unwrap().blocks() > 0
    });
}

#[test]
fn pipes_lead_to_the_one_who_restores() {
    let host = Host::new();
    let bundle = host
        .bundle("web")
        .script("i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done");
    let start = |verb: &str, images: Option<&Path>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rcm"));
        command.arg("--root").arg(host.root()).arg(verb);
        if let Some(images) = images {
            command.arg("--image-path").arg(images);
        }
        command
            .arg("--bundle")
            .arg(bundle.dir())
            .arg("web")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let numbers = |child: &mut std::process::Child, count: usize| -> Vec<u64> {
        let stdout = child.stdout.as_mut().unwrap();
        let (mut text, mut byte) = (String::new(), [0]);
        while text.matches('\n').count() < count {
            stdout.read_exact(&mut byte).unwrap();
            text.push(byte[0] as char);
        }
        text.lines().map(|line| line.parse().unwrap()).collect()
    };
    let mut run = start("run", None);
    let first = numbers(&mut run, 5);
    assert_eq!(first, [1, 2, 3, 4, 5]);
    let images = images(&host, "images");
    checkpoint(&host, &bundle, &images).run().ok();
    let mut rest = String::new();
    run.stdout
        .take()
        .unwrap()
        .read_to_string(&mut rest)
        .unwrap();
    run.wait().unwrap();
    let last: u64 = rest.lines().last().map_or(5, |line| line.parse().unwrap());

    let mut restored = start("restore", Some(&images));
    let next = numbers(&mut restored, 3);
    assert_eq!(next, [last + 1, last + 2, last + 3]);
    host.kill("web", "KILL").ok();
    assert_eq!(restored.wait().unwrap().code(), Some(137));
}
