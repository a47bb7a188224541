//! The script for CI jobs of the examples.

use std::net::SocketAddr;

use crate::common::pair::Pair;
use crate::common::{Cmd, Host, Output};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/ci/migrate.sh");

fn migrate(host: &Host, pair: &Pair, address: SocketAddr, max_downtime_ms: &str) -> Output {
    let rcm = format!(
        "{} --root {}",
        env!("CARGO_BIN_EXE_rcm"),
        host.root().display()
    );
    Cmd::new(SCRIPT)
        .arg(pair.id())
        .arg(address.to_string())
        .arg(pair.store())
        .env("RCM", rcm)
        .env("MAX_DOWNTIME_MS", max_downtime_ms)
        .run()
}

#[test]
fn a_job_moves_a_container() {
    let pair = Pair::new("job");
    let receiver = pair.receiver(&["--detach"]);
    let output = migrate(&pair.source, &pair, receiver.address, "60000").ok();
    assert!(
        output.stdout().contains("job runs at 127.0.0.1:"),
        "{output:?}"
    );
    receiver.running.wait().ok();
    pair.assert_at_destination();
}

#[test]
fn a_job_fails_if_it_stood_still_for_too_long() {
    let pair = Pair::new("slow-job");
    let receiver = pair.receiver(&["--detach"]);
    let output = migrate(&pair.source, &pair, receiver.address, "0").exits_with(4);
    assert!(output.stderr().contains("longer than 0 ms"), "{output:?}");
    receiver.running.wait().ok();
    pair.assert_at_destination();
}

#[test]
fn a_job_fails_with_the_status_and_the_reason() {
    let pair = Pair::new("failed-job");
    // No receiver listens.
    let output = migrate(&pair.source, &pair, ([127, 0, 0, 1], 1).into(), "60000").exits_with(1);
    assert!(
        output
            .stderr()
            .contains("migrate: failed-job runs on here: "),
        "{output:?}"
    );
    pair.assert_at_source();
    Cmd::new(SCRIPT).run().exits_with(2);
}
