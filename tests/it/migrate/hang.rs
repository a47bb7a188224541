//! A CRIU that makes no progress. `--timeout` ends the wait for it, at either end.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::pair::{Gate, Pair, runs_on};
use crate::common::{Host, wait_until};

/// The CRIU that works on a container.
fn criu(host: &Host, id: &str) -> Option<Pid> {
    let text = fs::read(host.root().join(id).join("criu.json")).ok()?;
    let process: serde_json::Value = serde_json::from_slice(&text).ok()?;
    Some(Pid::from_raw(process["pid"].as_i64()? as i32))
}

/// CRIU waits for the tar(1) that packs a tmpfs, which is in the dump because it is shared.
/// Stopping CRIU by a signal would not do: when rcm ends, the kernel sends SIGHUP to a stopped
/// process group that has become orphaned.
#[test]
fn a_dump_that_hangs_is_not_said_to_have_been_undone() {
    let pair = Pair::with("hangs", |bundle, _| {
        bundle.mount("tmpfs", Path::new("tmpfs"), "/packed", &["shared"])
    });
    let dir = pair.source.dir();
    let (bin, hold, reached) = (dir.join("bin"), dir.join("hold"), dir.join("reached"));
    fs::create_dir(&bin).unwrap();
    fs::write(&hold, "").unwrap();
    let script = format!(
        "#!/bin/sh\ntouch {}\nwhile [ -e {} ]; do sleep 0.05; done\nPATH=${{PATH#*:}} exec tar \"$@\"\n",
        reached.display(),
        hold.display()
    );
    fs::write(bin.join("tar"), script).unwrap();
    fs::set_permissions(bin.join("tar"), fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());

    let receiver = pair.receiver(&["--detach"]);
    let sender = pair.source.cmd("live-migrate").env("PATH", path);
    let sender = sender.args(["hangs", "--timeout", "1s", "--image-path"]);
    let sender = sender.arg(pair.store()).arg("--destination");
    let sender = sender.arg(receiver.address.to_string()).spawn();
    let output = sender.wait().exits_with(3);
    assert!(reached.exists());
    for said in ["is frozen here until CRIU lets go", "--resolve"] {
        assert!(output.stderr().contains(said), "{output:?}");
    }
    receiver.running.wait().exits_with(1);
    let stopped_at = pair.last();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(pair.last(), stopped_at);

    let resolve = pair.source.cmd("live-migrate");
    let resolving = resolve.args(["hangs", "--resolve"]).spawn();
    std::thread::sleep(Duration::from_millis(200));
    fs::remove_file(hold).unwrap();
    resolving.wait().exits_with(1);
    pair.assert_at_source();
    pair.move_there();
}

#[test]
fn a_restore_that_hangs_is_destroyed() {
    let pair = Pair::with("hangsthere", Gate::hook);
    let gate = Gate::close(pair.source.dir());
    let receiver = pair.receiver(&["--detach", "--timeout", "1s"]);
    let sender = pair.send_to(receiver.address);
    gate.wait();
    let criu = criu(&pair.destination, "hangsthere").unwrap();
    kill(criu, Signal::SIGSTOP).unwrap();
    gate.open();
    runs_on(sender.wait(), "no answer within");
    receiver.running.wait().exits_with(1);
    // CRIU was killed with the container's control group, or notices the end now.
    let _ = kill(criu, Signal::SIGCONT);
    wait_until("CRIU is gone", || kill(criu, None).is_err());
    pair.assert_at_source();
    pair.move_there();
}
