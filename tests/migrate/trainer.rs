//! The training job of the examples: what it computes after it has moved.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::common::{Host, wait_until};
use crate::pair::{Receiver, send};

const PYTHON: &str = "/usr/bin/python3";
const TRAINER: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/examples/mnist-trainer/train.py"
);
const SIZE: [&str; 6] = ["--seed", "7", "--epochs", "3", "--steps", "500"];
const STEPS: usize = 1500;

/// Weights, the optimizer's state and the random numbers to come are in its memory only: were any of it lost or done twice, the losses would differ.
#[test]
fn training_goes_on_as_if_it_had_not_moved() {
    let unmoved = Command::new(PYTHON)
        .arg(TRAINER)
        .args(SIZE)
        .output()
        .unwrap();
    let unmoved = String::from_utf8(unmoved.stdout).unwrap();
    assert_eq!(unmoved.lines().count(), STEPS);

    let (source, destination) = (Host::new(), Host::new());
    let store = source.dir().join("store");
    fs::create_dir(&store).unwrap();
    let command = format!(
        "exec {PYTHON} /train.py {} </dev/null >/losses 2>&1",
        SIZE.join(" ")
    );
    let bundle = source
        .bundle("trainer")
        .host_programs()
        .bind(Path::new(TRAINER), "/train.py", "ro")
        .script(&command);
    source.run_detached(&bundle);
    let losses = || fs::read_to_string(bundle.rootfs().join("losses")).unwrap_or_default();
    wait_until("it is in the first epoch", || {
        losses().lines().count() > 200
    });

    let receiver = Receiver::start(&destination, "trainer", &store, &["--detach"]);
    send(&source, "trainer", &store, receiver.address, &[])
        .wait()
        .ok();
    receiver.running.wait().ok();
    let moved_after = losses().lines().count();
    assert!(moved_after < STEPS, "it was done before it moved");
    assert_eq!(source.status("trainer"), "gone");

    destination.wait_for_status("trainer", "stopped");
    assert_eq!(
        losses(),
        unmoved,
        "it moved after about {moved_after} steps"
    );
}
