//! The training job of the examples, hundreds of megabytes with dozens of threads: it computes the
//! same results after a migration.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use crate::common::pair::{Receiver, send};
use crate::common::{Bundle, Host, skip, wait_within};

const SIZE: [&str; 6] = ["--seed", "7", "--epochs", "3", "--steps", "200"];
const STEPS: usize = 600;
/// Keras is imported and JAX compiles, on a machine that runs other tests.
const TRAINING_LIMIT_DUR: Duration = Duration::from_secs(180);

/// Image from `make example`, which takes minutes, so the test does not build it.
fn rootfs() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join(target)
        .join("example/bundle/rootfs")
}

/// Prints into the file `id` of the directory `results`, apart from warnings of its libraries.
fn trainer(host: &Host, id: &str, results: &Path) -> Bundle {
    let command = format!(
        "exec python /opt/trainer/train.py {} </dev/null >/mnt/{id} 2>/mnt/{id}.errors",
        SIZE.join(" ")
    );
    host.bundle(id)
        .set("/root", json!({"path": rootfs(), "readonly": true}))
        .mount("tmpfs", "tmpfs".as_ref(), "/tmp", &[])
        .bind(results, "/mnt", "rw")
        .env("PATH=/opt/trainer/bin:/usr/bin:/bin")
        .env("KERAS_HOME=/tmp/keras")
        .env("JAX_PLATFORMS=cpu")
        .script(&command)
}

/// Weights, the optimizer's state, the seeds of dropout and the loader's random numbers are in its
/// memory only: if any of it were lost or done twice, the losses would differ.
#[test]
fn training_goes_on_as_if_it_had_not_moved() {
    if !rootfs().join("opt/trainer/train.py").exists() {
        skip!("there is no training job: `make example` builds it");
    }
    let (source, destination) = (Host::new(), Host::new());
    let (results, store) = (source.dir().join("results"), source.dir().join("store"));
    fs::create_dir(&results).unwrap();
    fs::create_dir(&store).unwrap();
    let losses = |id: &str| {
        let text = fs::read_to_string(results.join(id)).unwrap_or_default();
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let bundle = trainer(&source, "unmoved", &results);
    source
        .cmd("run")
        .bundle(&bundle)
        .limit(TRAINING_LIMIT_DUR)
        .run()
        .ok();
    let unmoved = losses("unmoved");
    assert_eq!(unmoved.len(), STEPS);

    source.run_detached(&trainer(&source, "trainer", &results));
    let in_its_first_epoch = wait_within(TRAINING_LIMIT_DUR, || {
        assert_eq!(source.status("trainer"), "running");
        losses("trainer").len() >= 40
    });
    assert!(in_its_first_epoch, "{:?}", losses("trainer"));
    let receiver = Receiver::start(&destination, "trainer", &store, &["--detach"]);
    send(&source, "trainer", &store, receiver.address, &[])
        .wait()
        .ok();
    receiver.running.wait().ok();
    let moved_after = losses("trainer").len();
    assert!(moved_after < STEPS, "it was done before it moved");
    assert_eq!(source.status("trainer"), "gone");

    let is_done = wait_within(TRAINING_LIMIT_DUR, || {
        destination.status("trainer") == "stopped"
    });
    assert!(is_done, "it moved after {moved_after} steps");
    let moved = losses("trainer");
    assert_eq!(moved.len(), STEPS);
    for (one, other) in moved.iter().zip(&unmoved) {
        assert_eq!(one, other, "it moved after about {moved_after} steps");
    }
}
