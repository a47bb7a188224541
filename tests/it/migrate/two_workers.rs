//! The web application of the examples, which moves between two workers while it gets requests.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::link::{DESTINATION, Link, SOURCE, host};
use crate::common::pair::Receiver;
use crate::common::{Cmd, wait_until};

const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples");
const PORT: &str = "8080";

/// Handles a request like the front end: it asks the workers one after the other until one answers.
fn ask(net: &str) -> Option<u64> {
    for _ in 0..400 {
        for worker in [SOURCE, DESTINATION] {
            let output = Command::new("nsenter")
                .args([net, "busybox", "wget", "-q", "-O", "-"])
                .arg(format!("http://{worker}:{PORT}/"))
                .output()
                .unwrap();
            if output.status.success() {
                return String::from_utf8(output.stdout)
                    .unwrap()
                    .trim()
                    .parse()
                    .ok();
            }
        }
        thread::sleep(Duration::from_millis(50));
    }
    None
}

#[test]
fn no_request_is_lost_and_none_counts_twice() {
    let link = Link::new();
    let (source, destination) = (host(&link.source), host(&link.destination));
    let net = format!("--net={}", link.source.path().display());
    let (dir, store) = (source.dir().join("counter"), source.dir().join("store"));
    fs::create_dir(&store).unwrap();
    Cmd::new(Path::new(EXAMPLES).join("two-workers/roles/worker/files/make-counter.sh"))
        .arg(&dir)
        .arg(PORT)
        .env("RCM", env!("CARGO_BIN_EXE_rcm"))
        .run()
        .ok();
    let config = dir.join("config.json");
    let mut spec: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    spec["linux"]["cgroupsPath"] = json!(format!("{}/counter", source.cgroup_parent()));
    fs::write(&config, spec.to_string()).unwrap();
    source
        .cmd("run")
        .args(["--detach", "--bundle"])
        .arg(&dir)
        .arg("counter")
        .run()
        .ok();
    wait_until("it answers", || ask(&net).is_some());

    let stop = AtomicBool::new(false);
    let answers = thread::scope(|scope| {
        let client = scope.spawn(|| {
            let mut answers = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                answers.push(ask(&net));
            }
            answers.push(ask(&net));
            answers
        });
        let address = format!("{DESTINATION}:7260");
        let flags = ["--detach", "--listen", &address];
        let receiver = Receiver::start(&destination, "counter", &store, &flags);
        let rcm = format!(
            "{} --root {}",
            env!("CARGO_BIN_EXE_rcm"),
            source.root().display()
        );
        let output = Cmd::new("nsenter")
            .arg(&net)
            .arg(Path::new(EXAMPLES).join("two-workers/roles/worker/files/move-counter.sh"))
            .args([DESTINATION, PORT])
            .arg(&store)
            .env("RCM", rcm)
            .env("MIGRATE", Path::new(EXAMPLES).join("ci/migrate.sh"))
            .limit(Duration::from_secs(90))
            .run();
        stop.store(true, Ordering::Relaxed);
        output.ok();
        receiver.running.wait().ok();
        client.join().unwrap()
    });
    let answers: Vec<u64> = answers.into_iter().map(Option::unwrap).collect();
    assert!(answers.len() > 2, "{answers:?}");
    for pair in answers.windows(2) {
        assert_eq!(pair[1], pair[0] + 1, "{answers:?}");
    }
    assert_eq!(source.status("counter"), "gone");
    assert_eq!(destination.status("counter"), "running");
}
